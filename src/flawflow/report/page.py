"""One self-contained HTML page: no network, no script, pictures inside; opens from disk on any device."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from flawflow.errors import InputError
from flawflow.files import atomic_write

# Browsers then refuse whatever lies outside the file.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_STYLE = """
:root { color-scheme: light dark; --page: #f4f5f7; --card: #fff; --ink: #23272f; --soft: #667085;
  --line: #e3e6eb; --mark: #2a9d8f; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171c; --card: #1d2229; --ink: #e6e9ee; --soft: #98a2b3; --line: #2f3640;
    --mark: #4fc3b5; }
}
* { box-sizing: border-box; }
body { margin: 0; padding: clamp(.75rem, 3vw, 2.5rem); background: var(--page); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 60rem; margin: 0 auto; }
h1 { font-size: clamp(1.4rem, 4.5vw, 2.1rem); line-height: 1.2; margin: .5rem 0 1.25rem;
  overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 .6rem; overflow-wrap: anywhere; }
section { background: var(--card); border: 1px solid var(--line); border-radius: .75rem;
  padding: clamp(.9rem, 2.5vw, 1.5rem); margin: 0 0 1rem; }
p { margin: 0 0 .75rem; max-width: 70ch; overflow-wrap: anywhere; white-space: pre-line; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .75rem;
  margin: 0 0 .75rem; }
dl div { border-left: 3px solid var(--mark); padding: .1rem .75rem; }
dt { color: var(--soft); font-size: .85rem; }
dd { margin: 0; font-size: 1.3rem; font-weight: 600; font-variant-numeric: tabular-nums;
  overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin: 0 0 .75rem; }
table { border-collapse: collapse; width: 100%; font-size: .95rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 0 0 .5rem; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; border-radius: .4rem; background: #fff; }
figcaption { color: var(--soft); font-size: .85rem; margin-top: .5rem; overflow-wrap: anywhere; }
section > :last-child { margin-bottom: 0; }
"""


@dataclass(frozen=True, slots=True)
class Section:
    """One card of the page; what is empty is left out. All text is plain text.

    Attributes:
        heading: the title of the card.
        text: paragraphs separated by an empty line.
        facts: (label, value) pairs shown large, for the few numbers that matter.
        columns: the header of the table.
        rows: the table, each row as long as the header; the first column is left-aligned.
        png: a picture as the bytes of a PNG file.
        caption: a line below the picture, also its text for readers who cannot see it.
    """

    heading: str
    text: str = ""
    facts: Sequence[tuple[str, str]] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    png: bytes | None = None
    caption: str = ""


def write_page(path: Path, title: str, sections: Sequence[Section]) -> None:
    """Write one HTML file, whole or not at all.

    Raises:
        InputError: a table row is longer or shorter than its header, or a picture is not a PNG file.
        OutputError: the file cannot be written.
    """
    cards = "\n".join(_card(section) for section in sections)
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{cards}
</main>
</body>
</html>
"""
    atomic_write(path, page.encode("utf-8", errors="replace"))


def _card(section: Section) -> str:
    parts = [f"<h2>{escape(section.heading)}</h2>" if section.heading else ""]
    parts += [f"<p>{escape(part.strip())}</p>" for part in section.text.split("\n\n") if part.strip()]
    if section.facts:
        facts = "".join(
            f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in section.facts
        )
        parts.append(f"<dl>{facts}</dl>")
    parts.append(_table(section))
    parts.append(_picture(section))
    return "<section>\n" + "\n".join(part for part in parts if part) + "\n</section>"


def _table(section: Section) -> str:
    if not section.columns and not section.rows:
        return ""
    wrong = [row for row in section.rows if len(row) != len(section.columns)]
    if wrong:
        raise InputError(
            f"a table row of {len(wrong[0])} cells below a header of {len(section.columns)}: {list(wrong[0])}"
        )
    head = "".join(f"<th>{escape(name)}</th>" for name in section.columns)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in section.rows)
    table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
    return f'<div class="wide">{table}</div>'


def _picture(section: Section) -> str:
    if section.png is None:
        return ""
    if not section.png.startswith(b"\x89PNG\r\n\x1a\n"):
        raise InputError(f"the picture of section {section.heading!r} is not a PNG file")
    data = base64.b64encode(section.png).decode("ascii")
    caption = f"<figcaption>{escape(section.caption)}</figcaption>" if section.caption else ""
    alt = escape(section.caption or section.heading)
    return f'<figure><img src="data:image/png;base64,{data}" alt="{alt}">{caption}</figure>'

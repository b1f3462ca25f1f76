"""One self-contained HTML page: no network, no script, pictures inside; opens from disk on any device."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from flawflow.errors import InputError
from flawflow.files import atomic_write
from flawflow.report.charts import Markup
from flawflow.report.style import CHARTS, GALLERY, STYLE

# Browsers then refuse whatever lies outside the file.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


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
        pairs: (label, value) pairs shown small, for what is looked up.
        charts: curves and histograms, side by side where there is room, and the table beside them.
        commands: what to type, each a line.
        gallery: the gallery, at the end of the card.
        warning: the card is one to be read first.
    """

    heading: str
    text: str = ""
    facts: Sequence[tuple[str, str]] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    png: bytes | None = None
    caption: str = ""
    pairs: Sequence[tuple[str, str]] = ()
    charts: Sequence[Markup] = ()
    commands: Sequence[str] = ()
    gallery: Markup | None = None
    warning: bool = False


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
<style>{STYLE}{CHARTS}{GALLERY}</style>
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
    parts.append(_definitions("facts", section.facts))
    if section.charts:
        # A table beside its chart uses the width of a desktop, and follows it on a phone.
        parts.append(f'<div class="charts">{"".join(section.charts)}{_table(section)}</div>')
    else:
        parts.append(_table(section))
    parts.append(_definitions("pairs", section.pairs))
    parts.append(_picture(section))
    if section.commands:
        parts.append(f'<pre tabindex="0">{escape(chr(10).join(section.commands))}</pre>')
    parts.append(section.gallery or "")
    opening = '<section class="warning">\n' if section.warning else "<section>\n"
    return opening + "\n".join(part for part in parts if part) + "\n</section>"


def _definitions(kind: str, pairs: Sequence[tuple[str, str]]) -> str:
    if not pairs:
        return ""
    inner = "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in pairs)
    return f'<dl class="{kind}">{inner}</dl>'


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
    # Wide tables scroll by themselves; the focus lets the keyboard do it.
    return f'<div class="wide" tabindex="0" role="region" aria-label="{escape(section.heading)}">{table}</div>'


def _picture(section: Section) -> str:
    if section.png is None:
        return ""
    if not section.png.startswith(b"\x89PNG\r\n\x1a\n"):
        raise InputError(f"the picture of section {section.heading!r} is not a PNG file")
    data = base64.b64encode(section.png).decode("ascii")
    caption = f"<figcaption>{escape(section.caption)}</figcaption>" if section.caption else ""
    alt = escape(section.caption or section.heading)
    return f'<figure><img src="data:image/png;base64,{data}" alt="{alt}">{caption}</figure>'

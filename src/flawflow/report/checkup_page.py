"""The page of `flawflow check`: findings in order, each with its cases and their images."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from flawflow.doctor import SEVERITIES, Case, Finding
from flawflow.report.figures import contact_sheet, encode_png
from flawflow.report.page import Section, write_page
from flawflow.types import Image

_SHOWN = 12  # the ten oddest among them
_TABLE = 40
_ACROSS = 3
_CELL = 200
# Together with the tables this keeps the page well under 15 MB: a picture of that size takes 80 kB at most.
_PICTURES = 120

Thumbnail = Callable[[str, Path], Image | None]


def write_checkup(
    path: Path, folder: Path, findings: Sequence[Finding], facts: Sequence[tuple[str, str]], thumbnail: Thumbnail
) -> None:
    """Write one self-contained HTML file.

    Args:
        path: of the page.
        folder: the one that was checked; files are named relative to it.
        findings: ranked.
        facts: (label, value) pairs for the head of the page.
        thumbnail: (kind of the finding, file) → picture, uint8 RGB (H, W, 3); None where there is none to show.

    Raises:
        OutputError: the file cannot be written.
    """
    left = _PICTURES
    sections = [Section("Summary", _summary(findings), facts)]
    for found in findings:
        pictures = _pictures(found, folder, thumbnail, min(left, _SHOWN))
        left -= len(pictures)
        sections.append(_section(found, folder, pictures))
    write_page(path, f"{folder.resolve().name}: check of the images", sections)


def _summary(findings: Sequence[Finding]) -> str:
    counts = [(sum(found.severity == one for found in findings), one) for one in SEVERITIES]
    listed = ", ".join(f"{count} × {severity}" for count, severity in counts if count)
    return f"{listed}; most serious first." if listed else "Nothing to fix and nothing to look at."


def _section(found: Finding, folder: Path, pictures: Sequence[tuple[Image, str]]) -> Section:
    rows = [(_names(case, folder), case.text) for case in found.cases[:_TABLE]]
    more = len(found.cases) - len(rows)
    text = found.sentence + (f"\n\n{more} more are in the file that --json writes." if more > 0 else "")
    return Section(
        f"{found.severity}: {found.kind} ({len(found.cases)})" if found.cases else f"{found.severity}: {found.kind}",
        text,
        columns=("files", "what") if rows else (),
        rows=rows,
        png=_sheet(pictures),
        caption="; ".join(f"{number}: {name}" for number, (_, name) in enumerate(pictures, start=1)),
    )


def _pictures(found: Finding, folder: Path, thumbnail: Thumbnail, most: int) -> list[tuple[Image, str]]:
    """The first pictures of the cases, the files of a case beside each other."""
    pictures: list[tuple[Image, str]] = []
    for file in (file for case in found.cases for file in case.files[:_ACROSS]):
        if len(pictures) >= most:
            break
        picture = thumbnail(found.kind, file)
        if picture is not None:
            pictures.append((picture, _name(file, folder)))
    return pictures


def _sheet(pictures: Sequence[tuple[Image, str]]) -> bytes | None:
    """Pictures in reading order, three in a row, numbered."""
    if not pictures:
        return None
    across = min(_ACROSS, len(pictures))
    cells = [picture for picture, _ in pictures]
    cells += [_white() for _ in range(-len(cells) % across)]
    rows = [cells[start : start + across] for start in range(0, len(cells), across)]
    names = [name for _, name in pictures]
    captions = [_line(names, start, across) for start in range(0, len(names), across)]
    return encode_png(contact_sheet(rows, [""] * across, captions, _CELL))


def _line(names: Sequence[str], start: int, across: int) -> str:
    row = names[start : start + across]
    return " · ".join(f"{start + number}: {Path(name).name}" for number, name in enumerate(row, start=1))


def _white() -> Image:
    return np.full((8, 8, 3), 255, np.uint8)


def _names(case: Case, folder: Path) -> str:
    shown = [_name(file, folder) for file in case.files[:4]]
    return ", ".join(shown) + (f" and {len(case.files) - 4} more" if len(case.files) > 4 else "") or "–"


def _name(file: Path, folder: Path) -> str:
    return str(file.relative_to(folder)) if file.is_relative_to(folder) else str(file)

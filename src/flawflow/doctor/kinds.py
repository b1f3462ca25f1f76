"""Mixed sizes, colours and bit depths among images that should be of one kind; pure functions."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from flawflow.doctor.findings import Case, Finding, finding
from flawflow.types import ImageKind

Known = Sequence[tuple[Path, ImageKind]]
_SUFFIXES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}


def kind_findings(known: Known) -> list[Finding]:
    """What differs from what most images are; the cases are the minority's."""
    depths = _minority(known, lambda kind: f"{kind.bits} bit")
    colours = _minority(known, lambda kind: kind.colours)
    shapes = _minority(known, lambda kind: f"{_proportion(kind):.2f} times as wide as high")
    renamed = [
        Case(f"called {path.suffix} but holds {kind.format}", (path,))
        for path, kind in known
        if kind.format not in (_SUFFIXES.get(path.suffix.lower()), "MPO")
    ]
    return [
        *finding(
            "must fix",
            "mixed bit depths",
            f"Not {depths[0]} like most images, so probably of another brightness scale: save all of them alike.",
            depths[1],
        ),
        *finding(
            "look",
            "mixed colours",
            f"Not {colours[0]} like most images: a network sees the difference, and transparency is laid over black.",
            colours[1],
        ),
        *_shape_finding(shapes, len(known)),
        *_size_finding(known, shapes[1]),
        *finding("note", "misnamed files", "Files of another format than their names say: read by content.", renamed),
    ]


def _shape_finding(shapes: tuple[str, list[Case]], count: int) -> list[Finding]:
    usual = f"Not {shapes[0]} like most images" if 2 * len(shapes[1]) < count else "Images of many proportions"
    sentence = f"{usual}: all are resized to one square, so the same part is squeezed differently; crop them alike."
    return finding("look", "mixed proportions", sentence, shapes[1])


def _size_finding(known: Known, named: Sequence[Case]) -> list[Finding]:
    """Mixed sizes among the images that are not named for their proportions."""
    told = {file for case in named for file in case.files}
    alike = [(path, kind) for path, kind in known if path not in told]
    usual_size, cases = _minority(alike, lambda kind: f"{kind.width} × {kind.height} pixels")
    usual = f"Not {usual_size} like most images" if 2 * len(cases) < len(alike) else "Images of many sizes"
    return finding("look", "mixed sizes", f"{usual}, and so of another sharpness once resized.", cases)


def _minority(known: Known, name: Callable[[ImageKind], str]) -> tuple[str, list[Case]]:
    """What most images are, and a case for every image that is something else."""
    counts = Counter(name(kind) for _, kind in known)
    usual = counts.most_common(1)[0][0] if counts else ""
    return usual, [Case(name(kind), (path,)) for path, kind in known if name(kind) != usual]


def _proportion(kind: ImageKind) -> float:
    return kind.width / kind.height

"""What all dataset layouts share: how an error shows a tree, and how images find their masks."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flawflow.errors import DatasetError, PairingError
from flawflow.types import Sample

_ENTRIES = 12
_ENTRIES_BELOW = 4


@dataclass(frozen=True, slots=True)
class Layout:
    """How a dataset lies on the disk, for people.

    Attributes:
        title: the name of the dataset.
        tree: the expected tree, one line an entry.
        origin: where its owner publishes it; empty for a layout that is the user's own.
    """

    title: str
    tree: str
    origin: str = ""


@contextmanager
def reading(root: Path) -> Iterator[None]:
    """Turn the system's refusal to show a part of the tree into a DatasetError."""
    try:
        yield
    except OSError as error:
        refused = error.filename or root
        raise DatasetError(f"cannot read {refused}: {error.strerror or error}") from error


def layout_error(layout: Layout, root: Path, problem: str) -> DatasetError:
    """The error for a dataset that is absent or laid out otherwise: both trees, and where to get it."""
    lines = [f"{root}: {problem}.", f"Expected ({layout.title}):", *_indent(layout.tree.strip().splitlines())]
    lines += ["Found:", *_indent(found_tree(root))]
    if layout.origin:
        lines.append(f"{layout.title} is published at {layout.origin}")
    return DatasetError("\n".join(lines))


def category_names(layout: Layout, root: Path, is_category: Callable[[Path], bool], sign: str) -> tuple[str, ...]:
    """The names of the folders in ``root`` that are categories; ``sign`` says in words what a category shows.

    Raises:
        DatasetError: the dataset is absent, or no folder is a category.
    """
    if not root.is_dir():
        raise layout_error(layout, root, "the dataset is not there")
    names = tuple(folder.name for folder in subfolders(root) if is_category(folder))
    if not names:
        raise layout_error(layout, root, f"no folder here holds {sign}")
    return names


def check_known(root: Path, name: str, known: Sequence[str]) -> None:
    """Raises DatasetError for a category that is not there, with those that are."""
    if name not in known:
        raise DatasetError(f"there is no category {name!r} in {root}; it holds: {', '.join(known)}")


def category_folder(layout: Layout, root: Path, name: str, known: Sequence[str], parts: Sequence[str]) -> Path:
    """The folder of a category, complete.

    Raises:
        DatasetError: it is none of the known ones, or one of its parts is absent.
    """
    check_known(root, name, known)
    for part in parts:
        if not (root / name / part).is_dir():
            raise layout_error(layout, root / name, f"{part} is absent")
    return root / name


def found_tree(root: Path) -> list[str]:
    """The first dozen entries of a folder, two levels deep, one line each."""
    if not root.is_dir():
        return ["a file, not a folder"] if root.exists() else ["nothing: the folder does not exist"]
    lines: list[str] = []
    for entry in _children(root):
        lines.append(_label(entry))
        below = _children(entry) if entry.is_dir() else []
        lines += _indent(_label(child) for child in below[:_ENTRIES_BELOW])
        if len(below) > _ENTRIES_BELOW:
            lines.append(f"  … {len(below) - _ENTRIES_BELOW} more")
        if len(lines) > _ENTRIES:
            return [*lines[:_ENTRIES], "…"]
    return lines or ["nothing: the folder is empty"]


def subfolders(folder: Path) -> list[Path]:
    """The visible folders directly inside a folder, sorted; none where it does not exist."""
    return [entry for entry in _children(folder) if entry.is_dir()] if folder.is_dir() else []


def sorted_samples(samples: Iterable[Sample]) -> tuple[Sample, ...]:
    """Samples in the order of their paths."""
    return tuple(sorted(samples, key=lambda sample: sample.path))


def pair_masks(images: Sequence[Path], masks: Sequence[Path], *, defect: str, ending: str = "") -> tuple[Sample, ...]:
    """Defective samples with their masks: the mask's name is the image's, with or without ``ending``.

    Raises:
        PairingError: names the images without a mask and the masks without an image.
    """
    by_stem = masks_by_stem(images, masks, ending)
    bare = [path for path in images if path.stem not in by_stem]
    if bare:
        raise PairingError(f"defective images without a mask: {_name(bare)}; bring the masks, or move them out")
    return tuple(Sample(path, defect, by_stem[path.stem]) for path in images)


def masks_by_stem(images: Sequence[Path], masks: Sequence[Path], ending: str) -> dict[str, Path]:
    """Masks under the stem of the image they belong to.

    Raises:
        PairingError: names the masks that belong to no image.
    """
    by_stem = {path.stem.removesuffix(ending): path for path in masks}
    stems = {path.stem for path in images}
    orphans = [path for stem, path in by_stem.items() if stem not in stems]
    if orphans:
        raise PairingError(f"masks without an image: {_name(orphans)}; bring the images, or move them out")
    return by_stem


def _name(paths: Sequence[Path], most: int = 5) -> str:
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(str(path) for path in paths[:most]) + more


def _children(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _label(entry: Path) -> str:
    return f"{entry.name}/" if entry.is_dir() else entry.name


def _indent(lines: Iterable[str]) -> list[str]:
    return [f"  {line}" for line in lines]

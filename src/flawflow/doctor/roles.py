"""Which file of a folder plays which part, whatever is missing: the openers of ``datasets`` refuse where this goes on.

The layouts are those of ``datasets``; a folder like none of them counts as a plain folder of good images.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flawflow.files import list_images
from flawflow.types import GOOD, Sample

_MAGNETIC_GOOD = "MT_Free"


@dataclass(frozen=True, slots=True)
class Roles:
    """The files of a folder by their part.

    Attributes:
        train: good images to learn from. Magnetic tile has no split: all its good images are here.
        test: images to test on, with their masks where these exist.
        bare: defective test images whose mask is missing, although others have one.
        orphans: masks that belong to no image.
        unused: image files that play no part.
    """

    train: tuple[Sample, ...]
    test: tuple[Sample, ...] = ()
    bare: tuple[Path, ...] = ()
    orphans: tuple[Path, ...] = ()
    unused: tuple[Path, ...] = ()


@dataclass(slots=True)
class _Draft:
    train: list[Sample]
    test: list[Sample]
    bare: list[Path]
    orphans: list[Path]

    def pair(self, images: Sequence[Path], masks: Sequence[Path], defect: str, ending: str = "") -> None:
        """Defective test images with their masks, and what is left over on both sides."""
        by_stem = {path.stem.removesuffix(ending): path for path in masks}
        self.test += [Sample(path, defect, by_stem.get(path.stem)) for path in images]
        self.bare += [path for path in images if path.stem not in by_stem]
        stems = {path.stem for path in images}
        self.orphans += [path for stem, path in by_stem.items() if stem not in stems]


def find_roles(folder: Path) -> Roles:
    """The part that each image file plays.

    Raises:
        DatasetError: the folder is absent or cannot be listed.
    """
    files = list_images(folder, recursive=True)
    draft = _Draft([], [], [], [])
    if (folder / _MAGNETIC_GOOD).is_dir():
        _magnetic_tile(folder, draft)
    elif any(_images(folder / part) for part in ("Train", "Test")):
        _dagm(folder, draft)
    elif (folder / "train").is_dir() or (folder / "test").is_dir():
        _mvtec_like(folder, draft)
    else:
        draft.train += [Sample(path) for path in _images(folder) or files]
    used = {s.path for s in draft.train + draft.test} | {s.mask_path for s in draft.test} | set(draft.orphans)
    unused = (path for path in files if path not in used and not _is_free_mask(folder, path))
    train, test = (tuple(sorted(samples, key=lambda s: s.path)) for samples in (draft.train, draft.test))
    return Roles(train, test, tuple(draft.bare), tuple(draft.orphans), tuple(unused))


def _mvtec_like(folder: Path, draft: _Draft) -> None:
    """MVTec AD and BTAD: train/GOOD, test/GOOD, test/DEFECT, ground_truth/DEFECT."""
    good = "ok" if (folder / "train" / "ok").is_dir() or (folder / "test" / "ko").is_dir() else GOOD
    ending = "" if good == "ok" else "_mask"
    truth = folder / "ground_truth"
    draft.train += [Sample(path) for path in _images(folder / "train" / good)]
    draft.test += [Sample(path) for path in _images(folder / "test" / good)]
    for defect in sorted({*_names(folder / "test"), *_names(truth)} - {good}):
        masks = _images(truth / defect)
        draft.pair(_images(folder / "test" / defect), masks, defect, ending)
    if not truth.is_dir():
        draft.bare.clear()  # no outlines were ever drawn: that is allowed


def _dagm(folder: Path, draft: _Draft) -> None:
    for part in ("Train", "Test"):
        images, masks = _images(folder / part), _images(folder / part / "Label")
        by_stem = {path.stem.removesuffix("_label"): path for path in masks}
        samples = [Sample(p, "defect" if p.stem in by_stem else GOOD, by_stem.get(p.stem)) for p in images]
        good = [sample for sample in samples if not sample.is_defective]
        draft.orphans += [path for stem, path in by_stem.items() if stem not in {p.stem for p in images}]
        if part == "Train":
            draft.train += good
        draft.test += samples if part == "Test" else [sample for sample in samples if sample.is_defective]


def _magnetic_tile(folder: Path, draft: _Draft) -> None:
    for name in _names(folder):
        files = _images(folder / name / "Imgs")
        images = [path for path in files if path.suffix.lower() == ".jpg"]
        masks = [path for path in files if path.suffix.lower() == ".png"]
        if name == _MAGNETIC_GOOD:
            draft.train += [Sample(path) for path in images]
        elif name.startswith("MT_"):
            draft.pair(images, masks, name.removeprefix("MT_").lower())


def _is_free_mask(folder: Path, path: Path) -> bool:
    """Good magnetic tiles come with masks that say nothing."""
    return path.suffix.lower() == ".png" and path.relative_to(folder).parts[0] == _MAGNETIC_GOOD


def _images(folder: Path) -> tuple[Path, ...]:
    return list_images(folder) if folder.is_dir() else ()


def _names(folder: Path) -> Iterable[str]:
    return sorted(e.name for e in folder.iterdir() if e.is_dir() and e.name[0] != ".") if folder.is_dir() else ()

"""Plant faults in copies of a real folder and count what `flawflow check` finds.

    python benchmarks/doctor.py BOTTLE copies [--seeds 3]
    python benchmarks/doctor.py BOTTLE faults
    python benchmarks/doctor.py BOTTLE hidden [--weights FILE] [--seeds 5]

BOTTLE is a product in the layout of MVTec AD. ``copies``: six of each kind, half of them among the good images and half
among the good test images; a copy counts as found when it stands in one group with its original. ``faults``: one of
each. ``hidden``: defective test images among 200 good ones; the rank of each, by the recipe `default`, or by `deit`
with DeiT-Tiny's weights.
"""

import argparse
import io
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import torch

from flawflow.backbones import build_backbone
from flawflow.calibration import Budget
from flawflow.checkup import Checkup, check_files, open_checkup
from flawflow.crossfit import cross_fit
from flawflow.features import FeatureJob, ImageSource
from flawflow.fitting import StoreOptions
from flawflow.recipe import named_recipe

Picture = PIL.Image.Image
_EACH = 6
_HOLDOUT = 0.1


def resized(picture: Picture, share: float) -> Picture:
    size = (round(picture.width * share), round(picture.height * share))
    return picture.resize(size, PIL.Image.Resampling.LANCZOS)


def saved(picture: Picture, quality: int) -> Picture:
    """As a JPEG file of that quality shows it."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return PIL.Image.open(buffer)


CHANGES: dict[str, Callable[[Picture], Picture]] = {
    "exact": lambda p: p,
    "JPEG 95": lambda p: saved(p, 95),
    "JPEG 60": lambda p: saved(p, 60),
    "half the size": lambda p: resized(p, 0.5),
    "30 % of the size": lambda p: resized(p, 0.3),
    "brightness × 1.1": lambda p: p.point(lambda v: min(255, v * 1.1)),
    "brightness × 0.8": lambda p: p.point(lambda v: v * 0.8),
    "cropped by 2 pixels": lambda p: p.crop((2, 2, p.width, p.height)),
    "turned by 90°": lambda p: p.transpose(PIL.Image.Transpose.ROTATE_90),
    "mirrored": lambda p: p.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT),
}


def linked(source: Path, target: Path) -> None:
    """A copy of the product whose files are links, so that planted ones cost nothing but themselves."""
    for file in sorted(source.rglob("*.png")):
        link = target / file.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file.resolve())


def checked(folder: Path) -> Checkup:
    checkup = open_checkup(folder, seed=0)
    check_files(checkup, holdout=_HOLDOUT, budget=Budget())
    return checkup


def plant_copies(folder: Path, seed: int) -> Iterator[tuple[str, Path, Path]]:
    """(kind, original, planted copy), each original copied once."""
    good = sorted((folder / "train/good").glob("*.png"))
    order = iter(np.random.default_rng(seed).permutation(len(good)).tolist())
    for kind, change in CHANGES.items():
        for number in range(_EACH):
            original = good[next(order)]
            part = "train/good" if number % 2 else "test/good"
            planted = folder / part / f"planted_{original.name}"
            change(PIL.Image.open(original).convert("RGB")).save(planted)
            yield kind, original, planted


def copies(bottle: Path, seeds: int) -> None:
    before = [set(case.files) for found in checked(bottle).findings if "cop" in found.kind for case in found.cases]
    print("groups in the untouched folder:", [sorted(file.name for file in group) for group in before])
    known = {frozenset(file.name for file in group) for group in before}
    counts = dict.fromkeys(CHANGES, 0)
    false = 0
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            linked(bottle, Path(folder))
            planted = list(plant_copies(Path(folder), seed))
            found = [f for f in checked(Path(folder)).findings if "cop" in f.kind]
            groups = [set(case.files) for one in found for case in one.cases]
            for kind, original, copy in planted:
                counts[kind] += any({original, copy} <= group for group in groups)
            truth = {frozenset((original.name, copy.name)) for _, original, copy in planted}
            names = [frozenset(file.name for file in group) for group in groups]
            false += sum(not any(t <= group for t in truth | known) for group in names)
            print(f"seed {seed}:", {f"{one.severity}: {one.kind}": len(one.cases) for one in found}, flush=True)
    for kind, count in counts.items():
        print(f"{kind:<22}{count} of {_EACH * seeds}")
    print(f"all                   {sum(counts.values())} of {_EACH * seeds * len(CHANGES)}; false groups: {false}")


def faults(bottle: Path) -> None:
    """Each fault in a folder of its own kind of file; prints what was said of it."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        linked(bottle, root)
        expected = plant_faults(root)
        findings = checked(root).findings
        for kind, file in expected.items():
            cases = [case for found in findings if found.kind == kind for case in found.cases if file in case.files]
            severity = next((found.severity for found in findings if found.kind == kind), "")
            print(f"{kind:<28}{severity:<10}{file.relative_to(root)}: {cases[0].text if cases else 'NOT FOUND'}")
        others = [f"{found.severity}: {found.kind}" for found in findings if found.kind not in expected]
        print("besides:", others)


def plant_faults(root: Path) -> dict[str, Path]:
    """The kind of the finding that each planted fault must give, and the file."""
    train, truth = root / "train/good", root / "ground_truth/broken_large"
    masks = sorted(truth.glob("*.png"))

    def rewrite(file: Path, change: Callable[[Picture], Picture]) -> Path:
        picture = PIL.Image.open(file)
        picture.load()
        file.unlink()
        change(picture).save(file)
        return file

    data = (train / "003.png").read_bytes()
    (train / "003.png").unlink()
    (train / "003.png").write_bytes(data[: len(data) // 2])
    sixteen = train / "010.png"
    grey = cv2.imread(str(sixteen), cv2.IMREAD_GRAYSCALE)
    sixteen.unlink()
    cv2.imwrite(str(sixteen), np.asarray(grey, np.uint16) * 257)
    (root / "ground_truth/broken_small/000_mask.png").unlink()
    shutil.copy(masks[0], truth / "999_mask.png")
    return {
        "unreadable files": train / "003.png",
        "mixed bit depths": sixteen,
        "mixed colours": rewrite(train / "020.png", lambda p: p.convert("RGBA")),
        "mixed proportions": rewrite(train / "030.png", lambda p: p.crop((0, 0, p.width, p.height // 2))),
        "blank images": rewrite(train / "040.png", lambda p: PIL.Image.new("RGB", p.size, (30, 30, 30))),
        "odd light or sharpness": rewrite(train / "050.png", lambda p: p.point(lambda v: v * 0.5)),
        "mask of other proportions": rewrite(masks[1], lambda p: p.crop((0, 0, p.width, p.height - 100))),
        "mask of another size": rewrite(masks[2], lambda p: p.resize((450, 450), PIL.Image.Resampling.NEAREST)),
        "wrong mask values": rewrite(masks[3], three_values),
        "empty mask": rewrite(masks[4], lambda p: PIL.Image.new("L", p.size, 0)),
        "missing masks": root / "test/broken_small/000.png",
        "masks without an image": truth / "999_mask.png",
    }


def three_values(mask: Picture) -> Picture:
    """The upper half of what is marked becomes 128, the rest 1."""
    marked = np.asarray(mask) > 0
    rows = np.flatnonzero(marked.any(axis=1))
    levels = marked.astype(np.uint8)
    levels[: int(rows.mean())] *= 128
    return PIL.Image.fromarray(levels)


def hidden(bottle: Path, weights: Path | None, seeds: int, store: Path | None) -> None:
    recipe, device = named_recipe("deit" if weights else "default"), torch.device("cpu")
    backbone = build_backbone(recipe.backbone, recipe.size, weights)
    good = sorted((bottle / "train/good").glob("*.png"))
    bad = [file for file in sorted((bottle / "test").glob("*/*.png")) if file.parent.name != "good"]
    files = good + bad
    plain, shift = replace(recipe.synthesis, sharpness=0.0), recipe.scoring.shift
    job = FeatureJob(ImageSource(files, recipe.size), backbone, plain, 0, device, shift)
    with StoreOptions(store).open() as opened:
        features = [np.array(view) for view in job.build(opened, recipe.scoring.views, False, print).normal]
    worst = 0
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        some = 1 + seed % 5
        chosen = rng.permutation(len(good))[:200].tolist()
        planted = (len(good) + rng.permutation(len(bad))[:some]).tolist()
        scores = cross_fit([view[chosen + planted] for view in features], recipe, seed=seed, device=device).scores
        ranks = (np.argsort(np.argsort(-scores)) + 1)[200:].tolist()
        worst = max(worst, *ranks)
        names = [f"{files[i].parent.name}/{files[i].name} {rank}" for i, rank in zip(planted, ranks, strict=True)]
        print(f"seed {seed}, {some} among 200: ranks {', '.join(names)}", flush=True)
    print(f"worst rank {worst}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bottle", type=Path)
    parser.add_argument("part", choices=("copies", "faults", "hidden"))
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    match arguments.part:
        case "copies":
            copies(arguments.bottle, arguments.seeds)
        case "faults":
            faults(arguments.bottle)
        case "hidden":
            hidden(arguments.bottle, arguments.weights, arguments.seeds, arguments.store)


if __name__ == "__main__":
    main()

"""Outliers hidden among the good images, and masks that miss the defect: what the flow adds to a check."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from flawflow.backbones import Backbone
from flawflow.batches import grid_cells
from flawflow.checkup import Checkup, Read
from flawflow.crossfit import CrossFit, cross_fit, image_map
from flawflow.doctor import Case, Finding, finding, robust_z
from flawflow.errors import ImageError
from flawflow.features import FeatureJob, ImageSource
from flawflow.images import read_mask
from flawflow.metrics import auroc
from flawflow.recipe import Recipe
from flawflow.report import overlay
from flawflow.store import FeatureStore
from flawflow.types import Image
from flawflow.untrained import FEWEST

_LISTED = 10
_ODD = 5.0
_ELSEWHERE = 0.5
_OUTLIERS = "hidden outliers"
_REST = "the oddest of the rest"
Say = Callable[[str], None]


@dataclass(slots=True)
class Hidden:
    """What the flow finds odd.

    Attributes:
        findings: hidden outliers, the oddest images, misplaced masks.
        oddest: (image, score in nats, robust standard deviations from the median), the oddest first.
        maps: local negative log-likelihood (h, w) of the images that are shown.
        low, high: the range that the colours span.
    """

    findings: list[Finding] = field(default_factory=list)
    oddest: list[tuple[Path, float, float]] = field(default_factory=list)
    maps: dict[Path, NDArray[np.float32]] = field(default_factory=dict)
    low: float = 0.0
    high: float = 1.0

    def to_dict(self) -> list[dict[str, Any]]:
        """The order of oddness as JSON values."""
        return [{"image": str(path), "score": score, "z": z} for path, score, z in self.oddest]

    def drawn(self, kind: str, path: Path, image: Image) -> Image:
        """The image with what is odd about it aglow, in findings of this kind."""
        if kind not in (_OUTLIERS, _REST) or path not in self.maps:
            return image
        height, width = image.shape[:2]
        enlarged = cv2.resize(self.maps[path], (width, height), interpolation=cv2.INTER_LINEAR)
        return overlay(image, np.asarray(enlarged, np.float32), self.low, self.high)


def hidden_outliers(
    checkup: Checkup,
    recipe: Recipe,
    backbone: Backbone,
    store: FeatureStore,
    *,
    seed: int,
    device: torch.device,
    say: Say,
) -> Hidden:
    """Order the good images by how unlikely each is to flows that did not learn from it, and doubt masks.

    Of copies one takes part, because a copy would teach the flow what it is then to find odd.

    Args:
        checkup: the folder, its files already checked.
        recipe: its size, flow and scoring are used.
        backbone: built from the recipe, on the device.
        store: where the features are kept.
        seed, device, say: as for `cross_fit`.
    """
    good = list({one.measures.pixels: one for one in reversed(checkup.good)}.values())[::-1]
    if len(good) < FEWEST:
        text = f"{len(good)} different good images are too few to judge one by the others: expected {FEWEST}."
        return Hidden([Finding("note", "no search for hidden outliers", text)])
    paths = [one.sample.path for one in good]
    plain = replace(recipe.synthesis, sharpness=0.0)
    shift = recipe.scoring.shift
    job = FeatureJob(ImageSource(paths, recipe.size, keep=0), backbone, plain, seed, device, shift)
    features = job.build(store, recipe.scoring.views, False, say).normal
    fitted = cross_fit(features, recipe, seed=seed, device=device, say=say)
    hidden = _ordered(paths, fitted)
    outlined = [one for one in checkup.images if one.sample.mask_path is not None]
    if outlined:
        say(f"comparing {len(outlined)} masks with what looks odd")
        hidden.findings += _misplaced(outlined, recipe, backbone, fitted, device)
    return hidden


def _ordered(paths: Sequence[Path], fitted: CrossFit) -> Hidden:
    z = robust_z(fitted.scores, 1e-6)
    order = np.argsort(-z, kind="stable").tolist()
    listed = order[:_LISTED]
    cases = {
        i: Case(f"number {n}: {z[i]:.1f} robust standard deviations", (paths[i],), float(z[i]))
        for n, i in enumerate(listed, 1)
    }
    # Of the median image, so that one which is odd all over does not dim the others.
    middle, low = (float(np.median(np.quantile(fitted.maps, q, axis=(1, 2)))) for q in (0.5, 0.999))
    return Hidden(
        [
            *finding(
                "look",
                _OUTLIERS,
                "Good images that flows fitted to the other good images find unlikely: look whether they show defects.",
                (case for i, case in cases.items() if z[i] > _ODD),
            ),
            *finding(
                "note",
                _REST,
                "The good images that are next in the order of oddness; a folder always has some.",
                (case for i, case in cases.items() if z[i] <= _ODD),
            ),
        ],
        [(paths[i], float(fitted.scores[i]), float(z[i])) for i in order],
        {paths[i]: fitted.maps[i] for i in listed},
        low,
        low + max(low - middle, 1e-6),
    )


def _misplaced(
    outlined: Sequence[Read], recipe: Recipe, backbone: Backbone, fitted: CrossFit, device: torch.device
) -> list[Finding]:
    cases = []
    for one in outlined:
        cells = _cells(one, backbone.grid)
        if cells is None or cells.all() or not cells.any():
            continue
        local = image_map(fitted.flow, one.sample.path, recipe, backbone, device)
        value = auroc(local.ravel(), cells.ravel())
        if value < _ELSEWHERE and one.sample.mask_path is not None:
            text = f"AUROC {value:.2f} between the mask and what looks odd"
            cases.append(Case(text, (one.sample.path, one.sample.mask_path), 1 - value))
    sentence = "Masks that lie where nothing looks odd to the flow: shifted, mirrored, or those of another image?"
    return finding("look", "misplaced masks", sentence, cases)


def _cells(one: Read, grid: tuple[int, int]) -> NDArray[np.bool_] | None:
    """The grid's cells (h, w) that the mask marks; None for a mask that cannot be read."""
    assert one.sample.mask_path is not None
    try:
        return grid_cells(read_mask(one.sample.mask_path), grid)
    except ImageError:
        return None

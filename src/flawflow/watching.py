"""A detector and a drift monitor on one stream of images."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from torch import Tensor

from flawflow.branch import look
from flawflow.calibration import Budget, p_value
from flawflow.detector import Detector, Inspection
from flawflow.drift import DriftMonitor, DriftSettings, DriftState, Rows
from flawflow.errors import OptionError
from flawflow.images import read_image, resize_image
from flawflow.reference import STATISTICS, Row, statistics
from flawflow.types import Image
from flawflow.workers import at_once

GROUP = 8  # images that are held, and followed, at once


def check_whole(detector: Detector) -> None:
    """Raises OptionError for a detector that cuts images into tiles: drift is told from whole images."""
    if detector.recipe.tiling.side:
        raise OptionError("drift is told from whole images, and this detector was fitted on tiles: use inspect")


def follow(detector: Detector, image: Image | Path, budget: Budget | None = None) -> tuple[Inspection, Rows]:
    """Inspect one image, as `Detector.inspect` does, and its row of statistics, float64 (9,).

    Raises:
        ImageError: the file cannot be read, or the array is not an RGB image.
        OptionError: the detector was fitted on tiles.
    """
    check_whole(detector)
    array = resize_image(read_image(image) if isinstance(image, Path) else image, detector.recipe.size)
    latents: list[Tensor] = []
    looks = look(detector.branches, detector.recipe, [array], detector.device, latents)
    score = float(detector.scorer.image_scores(looks)[0])
    normals = np.asarray(detector.calibration.image_scores)
    line = detector.decision(budget).threshold
    drawn = detector.scorer.drawn(looks[0].numpy())
    found = Inspection(score, p_value(score, normals), score > line, detector.scorer.shown(drawn))
    return found, statistics(array, drawn, score, [z[0] for z in latents])


def followed(detector: Detector, images: Iterable[Image]) -> Iterator[tuple[Inspection, Row]]:
    """`follow` of each image, as many at once as PyTorch has threads; a few are held in memory at a time."""
    every: Callable[..., Iterable[tuple[Inspection, Rows]]] = at_once if detector.device.type == "cpu" else map
    coming = iter(images)
    while group := list(islice(coming, GROUP)):
        for found, row in every(lambda image: follow(detector, image), group):
            yield found, tuple(row.tolist())


def noting(seen: Iterable[tuple[Inspection, Row | None]], rows: list[Row]) -> Iterator[Inspection]:
    """The inspections alone; their rows go to the end of ``rows``."""
    for found, row in seen:
        if row is not None:
            rows.append(row)
        yield found


def start_monitor(detector: Detector, settings: DriftSettings) -> DriftMonitor:
    """A monitor for a new stream, beginning with the detector's reference, if it has one.

    Raises OptionError where reference and warm-up are too few together, or the detector was fitted on tiles.
    """
    check_whole(detector)
    rows = detector.reference.rows if detector.reference else ()
    return DriftMonitor(STATISTICS, np.array(rows, np.float64).reshape(-1, len(STATISTICS)), settings)


def watch(
    detector: Detector, monitor: DriftMonitor, image: Image | Path, budget: Budget | None = None
) -> tuple[Inspection, DriftState]:
    """Inspect the next image of the stream and follow it. Raises ImageError for one that cannot be read."""
    found, row = follow(detector, image, budget)
    return found, monitor.update(row)

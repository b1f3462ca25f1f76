"""A fitted detector looks through other tiles or regions: what it promises is then measured anew, on good images."""

import copy
from collections.abc import Iterable
from dataclasses import replace

from flawflow.detector import Detector, calibrate
from flawflow.errors import OptionError
from flawflow.roi import Roi
from flawflow.tiling import TilingConfig
from flawflow.types import Image


def check_tiling(detector: Detector, tiling: TilingConfig | None) -> None:
    """Raises OptionError where the detector was fitted on tiles, and these are others."""
    known = detector.recipe.tiling
    if tiling is not None and known.side and (tiling.side, tiling.shared) != (known.side, known.shared):
        raise OptionError(
            f"the detector was fitted on tiles of {known.side} pixels that overlap by {known.shared}, and inspects in "
            "the same: leave --tile out, or fit another detector"
        )


def adapt(
    detector: Detector, good: Iterable[Image], tiling: TilingConfig | None = None, roi: Roi | None = None
) -> Detector:
    """A copy that cuts images into tiles, with p-values and thresholds from these good images alone.

    Args:
        detector: a fitted detector; it is left as it was.
        good: images of good parts that the detector did not learn from, as they will come to inspection.
        tiling: how to cut them; None = as the detector does.
        roi: the regions that inspection will be given.

    Raises:
        InputError: there are no good images.
        OptionError: the detector was fitted on tiles of another size.
    """
    check_tiling(detector, tiling)
    recipe = detector.recipe if tiling is None else replace(detector.recipe, tiling=tiling)
    known = detector.calibration
    found = calibrate(detector.backbone, detector.flow, recipe, good, detector.device, known.level_limit, roi)
    changed = copy.copy(detector)
    changed.recipe, changed.calibration = recipe, replace(found, budget=known.budget)
    return changed

"""Laws of the certificate: what an export's scores are measured by, and at how many thresholds verdicts must agree."""

import copy
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from commands import DOCS, shapes
from flawflow.cli.commands.export import compared
from flawflow.detector import Detector
from flawflow.export import LIMIT, compare, drift, sample_images
from flawflow.exported import ExportedDetector, slack, spread
from flawflow.types import Image
from test_detector import pictures
from test_export import SMALL, fitted


@pytest.fixture(scope="module")
def detector() -> Detector:
    return fitted(SMALL)


def exported(detector: Detector, moved: float = 0.0) -> ExportedDetector:
    """An export that answers as the detector does, but for a score that is moved."""

    def compute(image: Image) -> Sequence[np.ndarray[Any, np.dtype[np.float32]]]:
        (one,) = detector.inspect([image])
        return one.anomaly_map, np.asarray(one.score + moved), np.asarray(one.p_value)

    known = detector.calibration
    return ExportedDetector({"size": 64, "slack": slack(known), "calibration": asdict(known)}, lambda _: compute)


def with_scores(detector: Detector, scores: Sequence[float]) -> Detector:
    other = copy.copy(detector)
    other.calibration = replace(detector.calibration, image_scores=tuple(sorted(scores)))
    return other


def away(detector: Detector, images: dict[str, Image]) -> dict[str, float]:
    """Distances from the median calibration score, in spreads."""
    middle, wide = float(np.median(detector.calibration.image_scores)), spread(detector.calibration)
    return {name: abs(detector.inspect([image])[0].score - middle) / wide for name, image in images.items()}


def test_verdicts_are_compared_at_every_budget(detector: Detector) -> None:
    image = pictures(1, 50, 8)[0]
    score = detector.inspect([image])[0].score
    # One calibration score right above the image's, the others far above: the budget's own line is one of those.
    known = with_scores(detector, [score + 2e-4, *(score + 1 + 0.05 * k for k in range(20))])
    same = compare(known, exported(known), {"one": image})
    assert drift(same) is None and same["verdicts_changed"] == 0 and same["thresholds"] == 21
    found = compare(known, exported(known, 3e-4), {"one": image})
    assert found["score_difference_of_spread"] < LIMIT and found["verdicts_changed"] == 1
    assert "verdicts" in str(drift(found))
    assert found["images"][0]["defective"] == found["images"][0]["exported_defective"]


def test_a_score_equal_to_a_calibration_score_keeps_its_verdicts(detector: Detector) -> None:
    image = pictures(1, 50, 8)[0]
    score = detector.inspect([image])[0].score
    known = with_scores(detector, [score - 1, score, score + 1, score + 2, score + 3])
    for moved in (-0.5, 0.0, 0.5):
        found = compare(known, exported(known, moved * slack(known.calibration)), {"one": image})
        assert found["verdicts_changed"] == 0


def test_no_plain_image_scores_more_like_the_product_than_the_mild_pattern(detector: Detector) -> None:
    shares = away(detector, sample_images(None, detector)[1])
    plain = {str(grey): np.full((64, 64, 3), grey, np.uint8) for grey in (16, 64, 128, 192, 240)}
    assert shares["mild 64×64"] <= min(away(detector, plain).values())
    # In other shapes it remains the pattern that it is.
    mild = [share for name, share in shares.items() if name.startswith("mild")]
    assert len(mild) == 5 and max(mild) == pytest.approx(min(mild), rel=0.2)


def test_drawn_images_near_the_product_are_held_to_the_promised_limit(detector: Detector) -> None:
    _, images = sample_images(None, detector)
    shares = away(detector, images)
    # As wide a calibration as makes the nearest image a near one, and the furthest a far one.
    middle, wide = float(np.median(detector.calibration.image_scores)), spread(detector.calibration)
    reach = float(np.sqrt(min(shares.values()) * max(shares.values()))) * wide / 10
    known = with_scores(detector, [middle + reach * k for k in (-1.0, -0.5, 0.0, 0.5, 1.0)])
    shares = away(known, images)
    nearest, furthest = min(shares, key=shares.__getitem__), max(shares, key=shares.__getitem__)
    assert shares[nearest] <= 10 < shares[furthest]
    move = 2 * LIMIT * spread(known.calibration)
    found = compare(known, exported(known, move), images, drawn=True)
    assert found["far_samples"] == sum(share > 10 for share in shares.values())
    assert found["score_difference_of_spread"] == pytest.approx(2 * LIMIT, rel=0.01)
    assert found["far_score_difference_of_own_distance"] < LIMIT
    assert "spread" in str(drift(found))
    # Far away the same move is no drift, unless the images are the user's own.
    far = {furthest: images[furthest]}
    told = compare(known, exported(known, move), far, drawn=True)
    assert told["score_difference_of_spread"] is None and drift(told) is None
    assert "spread" in str(drift(compare(known, exported(known, move), far)))
    told = compare(known, exported(known, 2 * LIMIT * shares[furthest] * spread(known.calibration)), far, drawn=True)
    assert "own distance" in str(drift(told))


@pytest.mark.parametrize(("near", "far"), [(10, 0), (6, 4), (0, 10)])
def test_the_line_says_what_scores_are_measured_by(near: int, far: int) -> None:
    told = {
        "score_limit": LIMIT,
        "score_difference_of_spread": 1e-5 if near else None,
        "far_samples": far,
        "far_score_difference_of_own_distance": 2e-6 if far else None,
        "verdicts_changed": 0,
        "thresholds": 9,
        "map_difference_max": 0.1,
        "images": [{}] * 10,
        "milliseconds": {"detector": 20.0, "export": 10.0},
        "threads": 1,
    }
    line = compared(told)
    assert ("of their spread" in line) == (near > 0)
    assert ("of own distance" in line) == ("--samples" in line) == (far > 0)
    assert "0 verdicts changed at 9 thresholds, maps by 0.1" in line
    if not far:
        assert shapes(line) <= shapes((DOCS / "export.md").read_text())

"""Sample images through the detector and through its export: what differs, and whether it may."""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from flawflow.detector import Detector
from flawflow.errors import FlawflowError, InputError
from flawflow.exported import ExportedDetector, spread
from flawflow.files import list_images
from flawflow.images import read_image
from flawflow.inspection import Inspection
from flawflow.types import Image

Inspect = Callable[[list[Image]], list[Inspection]]
LIMIT = 1e-3  # of the spread of the calibration scores: how far a score may differ
_FILES = 12
# Height and width against the detector's input side: as it is, larger, smaller, wide, and tall enough for Pillow to
# begin with the other axis.
_SHAPES = ((1.0, 1.0), (1.9, 1.7), (0.6, 0.7), (0.8, 2.3), (2.6, 0.9))
_PACKAGES = ("flawflow", "torch", "numpy", "pillow", "onnx", "onnxscript", "onnxruntime", "openvino", "timm")


def sample_images(folder: Path | None, size: int) -> tuple[str, dict[str, Image]]:
    """What the certificate rests on, in words, and its images by name.

    Up to 12 images of the folder, evenly picked, and the first of them in five other shapes; without a folder, images
    drawn from seed 0, one pair of a smooth and a noisy one in each shape.

    Raises:
        InputError: the folder holds no images, or one of them cannot be read.
    """
    if folder is None:
        return "drawn from seed 0: smooth colours, and the same under noise", _drawn(size)
    files = list_images(folder, recursive=True)
    if not files:
        raise InputError(f"{folder} holds no images: expected .png, .jpg, .bmp, .tif or .webp files")
    picked = [files[i] for i in sorted({round(i) for i in np.linspace(0, len(files) - 1, _FILES)})]
    images = {str(file.relative_to(folder)): read_image(file) for file in picked}
    first = next(iter(images.values()))
    scaled = {f"{picked[0].name} at {w}×{h}": _scaled(first, h, w) for h, w in _sides(size)}
    return f"{len(picked)} of {len(files)} images of {folder.name}, and the first in other shapes", images | scaled


def _sides(size: int) -> list[tuple[int, int]]:
    return [(max(1, round(high * size)), max(1, round(wide * size))) for high, wide in _SHAPES]


def _scaled(image: Image, height: int, width: int) -> Image:
    return np.array(PIL.Image.fromarray(image).resize((width, height), PIL.Image.Resampling.BICUBIC), np.uint8)


def _drawn(size: int) -> dict[str, Image]:
    generator = np.random.default_rng(0)
    images = {}
    for height, width in _sides(size):
        smooth = _scaled(generator.integers(0, 256, (5, 7, 3), np.uint8), height, width)
        noise = generator.normal(0, 25, smooth.shape)
        images[f"smooth {width}×{height}"] = smooth
        images[f"noisy {width}×{height}"] = np.clip(smooth + noise, 0, 255).astype(np.uint8)
    return images


def compare(
    detector: Detector, exported: ExportedDetector, images: Mapping[str, Image], drawn: bool = False
) -> dict[str, Any]:
    """Both answers to each image, and the largest differences, as JSON values; see docs/export.md for the keys.

    Score differences are shares of the calibration scores' spread. Drawn images look like no product and score
    thousands of spreads away, where single precision has no such digits: there, of the score's own distance from the
    median calibration score, where that is larger.
    """
    originals, original_ms = _timed(detector.inspect, list(images.values()))
    copies, exported_ms = _timed(exported.inspect, list(images.values()))
    pairs = list(zip(images.items(), originals, copies, strict=True))
    rows = [_row(name, image, one, other) for (name, image), one, other in pairs]
    wide, middle = spread(detector.calibration), np.median(detector.calibration.image_scores or (0.0,))
    scales = [max(wide, abs(one.score - middle)) if drawn else wide for one in originals]
    differences = [abs(one.score - other.score) for one, other in zip(originals, copies, strict=True)]
    return {
        "score_difference_max": max(differences),
        "score_spread": wide,
        "score_spread_is": "interquartile range of the calibration scores" + (", or own distance" if drawn else ""),
        # max() would overlook what is no number
        "score_difference_of_spread": float(np.max(np.divide(differences, scales))),
        "score_limit_of_spread": LIMIT,
        "p_value_difference_max": max(abs(row["p_value"] - row["exported_p_value"]) for row in rows),
        "verdicts_changed": sum(row["defective"] != row["exported_defective"] for row in rows),
        "map_difference_max": float(np.max([row["map_difference_max"] for row in rows])),
        "map_high_above_median": detector.calibration.map_high - detector.calibration.map_median,
        "milliseconds": {"detector": original_ms, "export": exported_ms},
        "images": rows,
    }


def _timed(
    inspect: Callable[[list[Image]], list[Inspection]], images: Sequence[Image]
) -> tuple[list[Inspection], float]:
    """One image at a time; the median of the milliseconds."""
    inspect([images[0]])  # the first is slower
    found, times = [], []
    for image in images:
        start = time.perf_counter()
        found += inspect([image])
        times.append(1000 * (time.perf_counter() - start))
    return found, round(float(np.median(times)), 1)


def _row(name: str, image: Image, one: Inspection, other: Inspection) -> dict[str, Any]:
    return {
        "image": name,
        "height": image.shape[0],
        "width": image.shape[1],
        "score": one.score,
        "exported_score": other.score,
        "p_value": one.p_value,
        "exported_p_value": other.p_value,
        "defective": one.is_defective,
        "exported_defective": other.is_defective,
        "map_difference_max": float(np.abs(one.anomaly_map - other.anomaly_map).max()),
    }


def drift(compared: Mapping[str, Any]) -> str | None:
    """What is wrong with an export, in words; None when it may be used. What is no number is never right."""
    share, changed = compared["score_difference_of_spread"], compared["verdicts_changed"]
    if not share <= LIMIT:
        return f"a score differs by {share:.2g} of the calibration scores' spread, more than {LIMIT:g}"
    if changed:
        return f"{changed} of {len(compared['images'])} verdicts changed"
    if not np.isfinite(compared["map_difference_max"]):
        return "a map holds values that are no numbers"
    return None


def require_no_drift(compared: Mapping[str, Any], path: Path) -> None:
    """Raises FlawflowError, the export being another detector than the one it was made from."""
    wrong = drift(compared)
    if wrong is not None:
        raise FlawflowError(
            f"the export does not answer as the detector does: {wrong}; {path} was not written. Keep to the .flaw "
            "file, or try the other --format or other --samples"
        )


def environment() -> dict[str, str]:
    """The versions that took part, and the machine."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found

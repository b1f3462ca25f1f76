"""Pictures for people: heat-map overlays, contact sheets and figures.

Pictures are uint8 RGB arrays or PNG bytes; nothing is written here, and the same input gives the same bytes.
"""

import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from numpy.typing import NDArray

from flawflow.errors import InputError
from flawflow.types import AnomalyMap, Image, Mask

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GOOD, _DEFECTIVE, _INK = "#2a9d8f", "#e76f51", "#30343b"
_OPACITY = 0.55
_THUMBNAIL = 320


@dataclass(frozen=True, slots=True)
class Case:
    """One image of an evaluation as a figure shows it.

    Attributes:
        title: what the reader should see in it, e.g. ``"worst defective: 013.png"``.
        image: uint8 RGB (H, W, 3).
        truth: bool (H, W), True = defective; None where there is no mask.
        anomaly_map: float32 (h, w), higher = more anomalous; any size.
        score: anomaly score of the image.
        is_defective: what the dataset says.
    """

    title: str
    image: Image
    truth: Mask | None
    anomaly_map: AnomalyMap
    score: float
    is_defective: bool


def overlay(image: Image, anomaly_map: AnomalyMap, low: float, high: float, outline: Mask | None = None) -> Image:
    """Tint the anomalous places of an image and leave the rest as it is.

    Args:
        image: uint8 RGB (H, W, 3).
        anomaly_map: float32 (h, w); enlarged to the image where it is smaller.
        low: map value up to which nothing is tinted.
        high: map value from which the tint is red and strongest; between, green and yellow.
        outline: bool (H, W) drawn as a white line, for example the true defect.

    Returns:
        uint8 RGB (H, W, 3).

    Raises:
        InputError: a shape is wrong, low is above high, or a number is not finite.
    """
    _check_overlay(image, anomaly_map, low, high, outline)
    colours, alpha = heat(anomaly_map, low, high, image.shape[:2])
    tinted = np.rint(image + alpha[:, :, None] * (colours.astype(np.float32) - image)).astype(np.uint8)
    if outline is not None:
        _draw_outline(tinted, outline)
    return tinted


def heat(anomaly_map: AnomalyMap, low: float, high: float, shape: tuple[int, int]) -> tuple[Image, NDArray[np.float64]]:
    """The tint of `overlay`, uint8 RGB (H, W, 3), and how strong it is at each place, (H, W) in [0, 1].

    Args:
        anomaly_map: float32 (h, w), brought to the shape.
        low, high: see `overlay`.
        shape: (H, W).
    """
    level = np.clip((anomaly_map.astype(np.float64) - low) / max(high - low, 1e-12), 0, 1)
    level = np.asarray(cv2.resize(level, shape[::-1], interpolation=cv2.INTER_LINEAR), np.float64)
    # The upper part of the colour map: its lower part is the dark blue of "nothing here".
    colours = cv2.applyColorMap((115 + 125 * level).astype(np.uint8), cv2.COLORMAP_TURBO)[:, :, ::-1]
    return np.asarray(colours, np.uint8), _OPACITY * np.sqrt(level) * (level > 0)


def contact_sheet(
    rows: Sequence[Sequence[Image | Mask]],
    titles: Sequence[str],
    captions: Sequence[str] = (),
    cell: int = 224,
) -> Image:
    """Pictures in rows and columns, for example original, synthetic and mask.

    Args:
        rows: each a picture per column, uint8 RGB (H, W, 3) of any size, or a bool mask (H, W).
        titles: one above each column.
        captions: one below each row; empty for none.
        cell: height and width in pixels that each picture is fitted into.

    Returns:
        uint8 RGB, a white sheet.

    Raises:
        InputError: there are no rows, or their lengths, titles and captions do not agree.
    """
    _check_sheet(rows, titles, captions)
    gap, line = 10, 22
    step = cell + gap + (line if captions else 0)
    size = (gap + len(titles) * (cell + gap), gap + line + len(rows) * step)
    sheet = PIL.Image.new("RGB", size, "white")
    draw = PIL.ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        _write(draw, (gap + column * (cell + gap), gap // 2), title, cell, size=15, colour=_INK)
    for number, row in enumerate(rows):
        top = gap + line + number * step
        for column, picture in enumerate(row):
            fitted = _fit(picture, cell)
            left = gap + column * (cell + gap) + (cell - fitted.width) // 2
            sheet.paste(fitted, (left, top + (cell - fitted.height) // 2))
        if captions:
            _write(draw, (gap, top + cell + 2), captions[number], size[0] - 2 * gap, size=13, colour="#6b7280")
    return np.array(sheet, dtype=np.uint8)


def pick_cases(
    scores: NDArray[np.floating[Any]], labels: NDArray[np.bool_] | NDArray[np.integer[Any]]
) -> list[tuple[int, str]]:
    """The images worth looking at: (index, title) of the best, median and worst of each class.

    The best defective image has the highest score of its class, the worst the lowest; for good images it
    is the other way round. An image is listed once, so a class of one or two images has fewer cases.

    Args:
        scores: (N,) image scores, higher = more anomalous.
        labels: (N,) True or 1 = defective.

    Raises:
        InputError: the shapes differ, or a score is not finite.
    """
    if scores.ndim != 1 or scores.shape != labels.shape or not np.isfinite(scores).all():
        raise InputError(
            f"scores of shape {scores.shape} with labels of shape {labels.shape}; expected finite "
            "scores (N,) and labels (N,)"
        )
    cases: dict[int, str] = {}
    for is_defective, name in ((True, "defective"), (False, "good")):
        members = np.flatnonzero(labels.astype(np.bool_) == is_defective)
        best_first = members[np.argsort(-scores[members] if is_defective else scores[members], kind="stable")]
        if members.size:
            for place, title in ((0, "best"), (-1, "worst"), (members.size // 2, "median")):
                cases.setdefault(int(best_first[place]), f"{title} {name}")
    order = {"best": 0, "median": 1, "worst": 2}
    return sorted(cases.items(), key=lambda case: (case[1].split()[1] == "good", order[case[1].split()[0]]))


def evaluation_figure(cases: Sequence[Case]) -> bytes:
    """Image, truth and anomaly map side by side, one case a row; all maps share one scale. Returns PNG.

    Raises:
        InputError: there are no cases.
    """
    if not cases:
        raise InputError("no cases to draw; expected at least one image")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.6, 2.36 * len(cases) + 0.55), layout="constrained")
    axes = figure.subplots(len(cases), 3, squeeze=False)
    low, high = _map_range(cases)
    for row, case in zip(axes, cases, strict=True):
        row[0].imshow(_thumbnail(case.image))
        _draw_truth(row[1], case)
        row[2].imshow(case.anomaly_map, cmap="inferno", vmin=low, vmax=high)
        row[0].set_title(_shorten(case.title, 40), loc="left", fontsize=9, color=_INK, parse_math=False)
        colour = _DEFECTIVE if case.is_defective else _GOOD
        row[2].set_title(f"score {case.score:.4g}", loc="right", fontsize=9, color=colour)
        for axis in row:
            axis.set_xticks([])
            axis.set_yticks([])
    bar = figure.colorbar(
        axes[0, 2].images[0], ax=axes, location="bottom", shrink=0.5, aspect=30, fraction=0.015, pad=0.005
    )
    bar.set_label("anomaly map (higher = more anomalous)", fontsize=8, color=_INK)
    bar.ax.tick_params(labelsize=7)
    return _png(figure)


def histogram_figure(
    scores: NDArray[np.floating[Any]],
    labels: NDArray[np.bool_] | NDArray[np.integer[Any]],
    threshold: float | None = None,
) -> bytes:
    """Histogram of the image scores of good and defective images, with the threshold; returns PNG.

    Args:
        scores: (N,) image scores, higher = more anomalous.
        labels: (N,) True or 1 = defective.
        threshold: score above which an image is called defective; None for no line.

    Raises:
        InputError: there are no scores, or the shapes differ.
    """
    if scores.ndim != 1 or scores.size == 0 or scores.shape != labels.shape:
        raise InputError(f"scores of shape {scores.shape} with labels of shape {labels.shape}; expected (N,) for both")
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.6, 3.0), layout="constrained")
    axis = figure.subplots()
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    defective = labels.astype(np.bool_)
    edges = np.histogram_bin_edges(scores.astype(np.float64), bins=40)
    for members, name, colour in ((~defective, "good", _GOOD), (defective, "defective", _DEFECTIVE)):
        count = int(np.count_nonzero(members))
        axis.hist(scores[members], bins=list(edges), color=colour, alpha=0.75, label=f"{name} ({count})")
    if threshold is not None:
        axis.axvline(threshold, color=_INK, linestyle="--", linewidth=1.2, label=f"threshold {threshold:.4g}")
    axis.set_xlabel("anomaly score")
    axis.set_ylabel("images")
    axis.legend(frameon=False, fontsize=9, loc="upper right")
    _plain(axis)
    return _png(figure)


def encode_png(image: Image) -> bytes:
    """The bytes of a PNG file of a uint8 RGB image (H, W, 3), for example for a ``Section``."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _draw_outline(picture: Image, outline: Mask) -> None:
    contours, _ = cv2.findContours(outline.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    width = max(1, round(max(picture.shape) / 400))
    cv2.drawContours(picture, contours, -1, (20, 20, 20), width + 2)
    cv2.drawContours(picture, contours, -1, (255, 255, 255), width)


def _draw_truth(axis: "Axes", case: Case) -> None:
    if case.truth is None and case.is_defective:
        axis.text(0.5, 0.5, "no mask", ha="center", va="center", transform=axis.transAxes, color=_INK)
        axis.set_box_aspect(case.image.shape[0] / case.image.shape[1])
        return
    truth = np.zeros(case.image.shape[:2], np.bool_) if case.truth is None else case.truth
    axis.imshow(truth, cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def _map_range(cases: Sequence[Case]) -> tuple[float, float]:
    """One scale for all maps; its lower end is a typical normal place, so that noise stays dark."""
    values = [np.asarray(case.anomaly_map, np.float64) for case in cases]
    low = min(float(np.quantile(value, 0.3)) for value in values)
    peaks = np.asarray([np.quantile(value, 0.999) for value in values]) - low
    defective = np.asarray([case.is_defective for case in cases])
    # Good images' noise must not glow (their typical peak takes half the scale at most), yet one
    # glaring defect must not leave all other maps black: between the two kinds, in ratio.
    good = float(np.median(peaks[~defective])) if not defective.all() else 0.0
    bad = float(np.median(peaks[defective])) if defective.any() else 0.0
    span = max(2 * good, float(np.sqrt(good * bad))) if good > 0 else bad
    return low, low + max(span, 1e-12)


def _thumbnail(image: Image) -> Image:
    return np.asarray(_fit(image, _THUMBNAIL), dtype=np.uint8)


def _fit(picture: Image | Mask, cell: int) -> PIL.Image.Image:
    """Scaled so that the longer side has ``cell`` pixels; masks become black and white."""
    is_mask = picture.dtype == np.bool_
    pixels = np.repeat(picture[:, :, None], 3, axis=2).astype(np.uint8) * 255 if is_mask else picture
    scale = cell / max(picture.shape[:2])
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    how = PIL.Image.Resampling.NEAREST if is_mask else PIL.Image.Resampling.LANCZOS
    return PIL.Image.fromarray(pixels.astype(np.uint8)).resize(size, how)


def _write(
    draw: PIL.ImageDraw.ImageDraw, corner: tuple[int, int], text: str, width: int, *, size: int, colour: str
) -> None:
    """One line of text, shortened to the width in pixels."""
    font = PIL.ImageFont.load_default(size)
    line = " ".join(text.split())
    while draw.textlength(line, font=font) > width and len(line) > 1:
        line = line[:-2] + "…" if line.endswith("…") else line[:-1] + "…"
    draw.text(corner, line, font=font, fill=colour)


def _shorten(text: str, length: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def _plain(axis: "Axes") -> None:
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.tick_params(labelsize=8)


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # File names in scripts that the built-in font lacks are drawn as boxes; that is all that happens.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()


def _check_overlay(image: Image, anomaly_map: AnomalyMap, low: float, high: float, outline: Mask | None) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise InputError(f"image of shape {image.shape} and type {image.dtype}; expected uint8 (H, W, 3)")
    if anomaly_map.ndim != 2 or not np.isfinite(anomaly_map).all():
        raise InputError(f"anomaly map of shape {anomaly_map.shape}; expected finite values (h, w)")
    if outline is not None and outline.shape != image.shape[:2]:
        raise InputError(f"outline of shape {outline.shape}; expected that of the image, {image.shape[:2]}")
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise InputError(f"map range from {low} to {high}; expected finite numbers, the lower one first")


def _check_sheet(rows: Sequence[Sequence[Image | Mask]], titles: Sequence[str], captions: Sequence[str]) -> None:
    if not rows or not titles or {len(row) for row in rows} != {len(titles)}:
        raise InputError(
            f"{len(rows)} rows of {sorted({len(row) for row in rows})} pictures with {len(titles)} titles; "
            "expected as many pictures in each row as titles, and at least one of each"
        )
    if captions and len(captions) != len(rows):
        raise InputError(f"{len(captions)} captions for {len(rows)} rows; expected one each, or none")

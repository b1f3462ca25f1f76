"""A gallery of inspected images for the page: heat map and true mask are layers that the reader switches.

The switches are checkboxes beside the pictures and the style sheet does the rest, so the page needs no script and obeys
the keyboard. Pictures are small WebP files inside the page; the true mask is a vector outline.
"""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

from flawflow.errors import InputError
from flawflow.report.charts import Markup
from flawflow.report.figures import heat
from flawflow.types import AnomalyMap, Image, Mask

# Pixels of the longer side; of the smooth heat map fewer tell as much.
_SIDE, _HEAT_SIDE, _QUALITY = 320, 128, 80


@dataclass(frozen=True, slots=True)
class Picture:
    """One inspected image.

    Attributes:
        name: the file, and what tells it from others of that name, e.g. ``"crack/004.png"``.
        image: uint8 RGB (H, W, 3) of any size.
        truth: bool, True = defective, over the same field of view in any resolution; None where unknown.
        anomaly_map: float32 (h, w), likewise; higher = more anomalous.
        score: of the image.
        p_value: in (0, 1].
        is_defective: what is true.
        is_called: what the detector says.
    """

    name: str
    image: Image
    truth: Mask | None
    anomaly_map: AnomalyMap
    score: float
    p_value: float
    is_defective: bool
    is_called: bool

    @property
    def verdict(self) -> str:
        """Truth and verdict in two words."""
        names = {(True, True): "found", (True, False): "missed", (False, True): "false alarm", (False, False): "passed"}
        return names[self.is_defective, self.is_called]


def gallery_order(
    scores: NDArray[np.floating[Any]], is_defective: NDArray[np.bool_], is_called: NDArray[np.bool_]
) -> list[int]:
    """Indices (N,): errors first and the worst of them foremost, then the others by falling score.

    Missed defects, lowest score first, take turns with false alarms, highest score first.

    Raises:
        InputError: the shapes differ.
    """
    if not scores.shape == is_defective.shape == is_called.shape or scores.ndim != 1:
        raise InputError(
            f"{scores.shape} scores, {is_defective.shape} labels, {is_called.shape} verdicts: expected (N,)"
        )
    falling = np.argsort(-scores, kind="stable")
    alarms = [int(i) for i in falling if is_called[i] and not is_defective[i]]
    missed = [int(i) for i in falling[::-1] if is_defective[i] and not is_called[i]]
    turns = [(turn, kind, i) for kind, row in enumerate((missed, alarms)) for turn, i in enumerate(row)]
    errors = [i for _, _, i in sorted(turns)]
    return errors + [int(i) for i in falling if is_defective[i] == is_called[i]]


def gallery(
    key: str, pictures: Iterable[Picture], total: int, low: float, high: float, room: int, truth: str = "true defect"
) -> Markup:
    """The gallery; it takes pictures in the order given as long as there is room.

    Args:
        key: tells the gallery's switches from those of another gallery of the page: letters and digits.
        pictures: drawn one after the other, so that they need not all be in memory.
        total: how many there are.
        low, high: of the heat map, see `overlay`.
        room: the most characters of pictures, so that the page stays small enough to send around.
        truth: what the outline shows.

    Raises:
        InputError: there is no picture, or a map is not finite.
    """
    shots: list[str] = []
    used = wrong = defective = 0
    for picture in pictures:
        shot = _shot(picture, low, high)
        if shots and used + len(shot) > room:
            break
        shots.append(shot)
        used += len(shot)
        wrong += picture.is_defective != picture.is_called
        defective += picture.is_defective
    if not shots:
        raise InputError("a gallery without pictures: expected at least one")
    rest = total - len(shots)
    note = f"<p>{rest} of {total} images are not shown: they would make the page too large to send around.</p>"
    switches = _switches(key, truth, wrong, 0 < defective < len(shots))
    return Markup(f'<div class="gallery">{switches}<ul class="shots">{"".join(shots)}</ul>{note if rest else ""}</div>')


def heat_layer(anomaly_map: AnomalyMap, low: float, high: float) -> NDArray[np.uint8]:
    """The heat map as a layer of its own: uint8 RGBA, transparent where the map is at most ``low``."""
    if anomaly_map.ndim != 2 or not np.isfinite(anomaly_map).all():
        raise InputError(f"anomaly map of shape {anomaly_map.shape}; expected finite values (h, w)")
    colours, alpha = heat(anomaly_map, low, high, _fitted(anomaly_map.shape, _HEAT_SIDE))
    return np.dstack([colours, np.rint(alpha * 255).astype(np.uint8)])


def outline_path(mask: Mask) -> str:
    """The borders of a mask (H, W), holes included, as the data of an SVG path in pixels; empty for an empty mask."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    step = max(mask.shape) / 512
    short = [cv2.approxPolyDP(contour, step, True).reshape(-1, 2) for contour in contours]
    return "".join("M" + "L".join(f"{x} {y}" for x, y in points.tolist()) + "Z" for points in short)


def _shot(picture: Picture, low: float, high: float) -> str:
    height, width = picture.image.shape[:2]
    wrong = picture.is_defective != picture.is_called
    classes = f"shot is-{'wrong' if wrong else 'right'} is-{'bad' if picture.is_defective else 'good'}"
    kind = "defective" if picture.is_defective else "good"
    alt = escape(f"{picture.name}, {kind}, {picture.verdict}, score {picture.score:.4g}", quote=True)
    layers = f'<img src="{_picture(picture.image)}" alt="{alt}" decoding="async">'
    if (picture.anomaly_map > low).any():
        layers += f'<img class="heat" src="{_layer(picture.anomaly_map, low, high)}" alt="" decoding="async">'
    layers += _truth(picture.truth)
    return (
        f'<li class="{classes}"><label><input type="checkbox" aria-label="bare picture of {escape(picture.name)}">'
        f'<span class="frame" style="aspect-ratio:{width}/{height}">{layers}</span></label>'
        f"<p><b>{escape(picture.name).replace('/', '/<wbr>')}</b>"
        f'<span class="says{" bad" if wrong else ""}">{picture.verdict}</span><span class="soft">'
        f"<span>score {picture.score:.4g}</span> <span>p = {picture.p_value:.3g}</span></span></p></li>"
    )


def _truth(truth: Mask | None) -> str:
    path = outline_path(truth) if truth is not None else ""
    if truth is None or not path:
        return ""
    height, width = truth.shape
    # Contours run through the centres of pixels, which lie half a pixel inside.
    box = f'viewBox="-.5 -.5 {width} {height}" preserveAspectRatio="none"'
    return f'<svg class="truth" {box} aria-hidden="true"><path d="{path}"/><path d="{path}"/></svg>'


def _switches(key: str, truth: str, wrong: int, is_mixed: bool) -> str:
    layers = (("heat", "heat map"), ("truth", truth))
    kinds = [("all", "all"), ("wrong", f"errors ({wrong})")]
    kinds += [("bad", "defective"), ("good", "good")] if is_mixed else []
    parts = ['<span class="part">Layers</span>']
    for name, text in layers:
        parts.append(f'<input type="checkbox" class="show-{name}" id="{key}-{name}" checked>')
        parts.append(f'<label for="{key}-{name}">{escape(text)}</label>')
    parts.append('<span class="break"></span><span class="part">Show</span>')
    for name, text in kinds:
        chosen = " checked" if name == "all" else ""
        parts.append(f'<input type="radio" name="{key}" class="only-{name}" id="{key}-{name}"{chosen}>')
        parts.append(f'<label for="{key}-{name}">{escape(text)}</label>')
    return "".join(parts)


def _fitted(shape: Sequence[int], side: int) -> tuple[int, int]:
    """The shape (H, W), scaled down so that the longer side is at most ``side``."""
    scale = min(1.0, side / max(shape))
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def _picture(image: Image) -> str:
    height, width = _fitted(image.shape[:2], _SIDE)
    small = PIL.Image.fromarray(image).resize((width, height), PIL.Image.Resampling.LANCZOS, reducing_gap=3.0)
    return _webp(small)


def _layer(anomaly_map: AnomalyMap, low: float, high: float) -> str:
    return _webp(PIL.Image.fromarray(heat_layer(anomaly_map, low, high)))


def _webp(picture: PIL.Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=_QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")

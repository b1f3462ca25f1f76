"""The gallery: worst errors first, layers that lie where they belong, no more than there is room for."""

import base64
import io
import re
from collections.abc import Iterator

import cv2
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawflow.errors import InputError
from flawflow.report.gallery import Picture, gallery, gallery_order, heat_layer, outline_path

few = settings(max_examples=60, deadline=None)
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (60, 90, 3), dtype=np.uint8)
MAP = RNG.random((40, 40)).astype(np.float32)
MASK = np.zeros((40, 40), np.bool_)
MASK[10:20, 15:30] = True
NASTY = """<script>alert("x")</script> & 'quoted'"""


def picture(name: str = "crack/000.png", **changes: object) -> Picture:
    values: dict[str, object] = {"truth": MASK, "score": 2.0, "p_value": 0.1, "is_defective": True, "is_called": True}
    return Picture(name, IMAGE, anomaly_map=MAP, **{**values, **changes})  # type: ignore[arg-type]


@few
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=0, max_size=20), st.integers(-3, 3))
def test_errors_come_first_and_the_worst_of_each_kind_foremost(images: list[tuple[int, bool]], line: int) -> None:
    scores = np.array([score for score, _ in images], float)
    labels = np.array([label for _, label in images], bool)
    called = scores > line
    order = gallery_order(scores, labels, called)
    assert sorted(order) == list(range(len(images)))
    wrong = [bool(called[i] != labels[i]) for i in order]
    assert wrong == sorted(wrong, reverse=True)
    errors, rest = order[: sum(wrong)], order[sum(wrong) :]
    missed, alarms = [scores[i] for i in errors if labels[i]], [scores[i] for i in errors if not labels[i]]
    assert missed == sorted(missed) and alarms == sorted(alarms, reverse=True)
    assert [scores[i] for i in rest] == sorted((scores[i] for i in rest), reverse=True)
    # They take turns: among the first 2 k errors there are k of each kind, as far as there are.
    for k in range(1, min(len(missed), len(alarms)) + 1):
        assert sum(labels[i] for i in errors[: 2 * k]) == k


def test_an_order_of_uneven_arrays_is_refused() -> None:
    with pytest.raises(InputError, match="verdicts"):
        gallery_order(np.zeros(2), np.zeros(2, bool), np.zeros(3, bool))


@few
@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(0, 1))
def test_the_heat_layer_is_clear_where_nothing_is_anomalous(seed: int, low: float, width: float) -> None:
    values = np.random.default_rng(seed).random((20, 30)).astype(np.float32)
    layer = heat_layer(values, low, low + width)
    assert layer.shape == (20, 30, 4) and layer.dtype == np.uint8
    assert (layer[values <= low, 3] == 0).all()
    order = np.argsort(values, axis=None)
    assert (np.diff(layer[:, :, 3].ravel()[order].astype(int)) >= 0).all()


def test_large_maps_make_small_layers_of_the_same_form() -> None:
    assert heat_layer(np.zeros((512, 1024), np.float32), 0, 1).shape == (64, 128, 4)
    with pytest.raises(InputError, match="finite"):
        heat_layer(np.full((4, 4), np.nan, np.float32), 0, 1)


@few
@given(st.integers(0, 2**32 - 1))
def test_an_outline_drawn_again_is_the_mask(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = cv2.GaussianBlur(rng.random((64, 64)), (0, 0), 6) > 0.5
    loops = [
        np.array([[float(n) for n in point.split()] for point in loop.split("L")])
        for loop in re.findall(r"M([^Z]*)Z", outline_path(mask))
    ]
    drawn = np.zeros((64, 64), np.uint8)
    for loop in loops:
        cv2.polylines(drawn, [loop.astype(np.int32)], True, 1)
    border = mask & ~cv2.erode(mask.astype(np.uint8), np.ones((3, 3)), borderValue=0).astype(bool)
    assert (cv2.dilate(drawn, np.ones((3, 3))) >= border).all()
    assert (cv2.dilate(border.astype(np.uint8), np.ones((5, 5))) >= drawn).all()
    assert outline_path(np.zeros((9, 9), bool)) == ""


def decoded(source: str) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/webp;base64,"))))


def test_a_card_holds_the_picture_its_layers_and_the_verdict() -> None:
    html = gallery("g", [picture()], 1, 0.5, 1.0, 10**6)
    image, layer = (decoded(source) for source in re.findall(r'src="([^"]+)"', html))
    assert image.size == (90, 60) and layer.size == (40, 40) and layer.mode == "RGBA"
    assert np.abs(np.asarray(image, int)[:, :45].mean() - IMAGE[:, :45].mean()) < 6
    assert 'style="aspect-ratio:90/60"' in html and 'viewBox="-.5 -.5 40 40"' in html
    assert "score 2" in html and "p = 0.1" in html and 'alt="crack/000.png, defective, found, score 2"' in html


@pytest.mark.parametrize(
    ("defective", "called", "verdict"),
    [(True, True, "found"), (True, False, "missed"), (False, True, "false alarm"), (False, False, "passed")],
)
def test_verdicts_have_names_and_errors_are_marked(defective: bool, called: bool, verdict: str) -> None:
    html = gallery("g", [picture(is_defective=defective, is_called=called, truth=None)], 1, 0.5, 1.0, 10**6)
    assert f">{verdict}</span>" in html and ("is-wrong" in html) == (defective != called)
    assert f"errors ({int(defective != called)})" in html


def test_layers_without_content_are_left_out() -> None:
    html = gallery("g", [picture(truth=None)], 1, 2.0, 3.0, 10**6)
    assert 'class="heat"' not in html and 'class="truth"' not in html


def test_pictures_are_taken_as_long_as_there_is_room() -> None:
    drawn: list[int] = []

    def stream() -> Iterator[Picture]:
        for number in range(40):
            drawn.append(number)
            yield picture(f"{number:03d}.png")

    one = len(gallery("g", [picture("000.png")], 1, 0.5, 1.0, 10**6))
    html = gallery("g", stream(), 40, 0.5, 1.0, 5 * one)
    shown = re.findall(r"<b>(\d+)\.png</b>", html)
    assert [int(number) for number in shown] == list(range(len(shown))) and 3 <= len(shown) < 10
    assert f"{40 - len(shown)} of 40 images are not shown" in html
    assert len(html) < 6 * one and len(drawn) == len(shown) + 1
    assert "not shown" not in gallery("g", [picture()], 1, 0.5, 1.0, 1)
    with pytest.raises(InputError, match="expected at least one"):
        gallery("g", [], 0, 0.5, 1.0, 1)


def test_any_name_survives() -> None:
    html = gallery("g", [picture(NASTY)], 1, 0.5, 1.0, 10**6, truth=NASTY)
    assert "<script" not in html and html.count("&lt;script&gt;") == 4

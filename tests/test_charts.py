"""Charts: every value is counted once and drawn where it belongs; any text survives; nonsense is refused."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flawflow.errors import InputError
from flawflow.report.charts import Axis, Group, Line, Mark, histogram_chart, line_chart

few = settings(max_examples=60, deadline=None)
values = st.lists(st.floats(-1e6, 1e6) | st.floats(-1, 1) | st.integers(-3, 3).map(float), min_size=1, max_size=40)
NASTY = """<script>alert("x")</script> & 'quoted'"""


def parsed(markup: str) -> ElementTree.Element:
    """Well-formed, or this raises."""
    return ElementTree.fromstring(markup)


def numbers(path: str) -> list[float]:
    return [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", path)]


@few
@given(values, values, st.floats(-10, 10))
def test_a_histogram_counts_every_value_once(good: list[float], bad: list[float], line: float) -> None:
    groups = [Group("good", good, "good"), Group("bad", bad, "bad")]
    chart = parsed(histogram_chart("scores", groups, "score", [Mark("line", line)]))
    told = [title.text or "" for title in chart.iter("title")]
    for group in groups:
        counts = [int(text.split(": ")[1]) for text in told if text.startswith(f"{group.name}: ")]
        assert sum(counts) == len(group.values)
    for bar in chart.iter("rect"):
        x, y, width, height = (float(bar.attrib[key]) for key in ("x", "y", "width", "height"))
        assert x >= 59 and x + width <= 407 and y >= 13.9 and height > 0 and y + height == pytest.approx(208, abs=0.2)


@few
@given(values, st.integers(0, 39))
@example([0.0, 3.4e-122], 0)  # one place on the paper, two sides of the line
def test_a_mark_separates_the_bars_as_a_threshold_does_the_values(scores: list[float], which: int) -> None:
    line = sorted(scores)[which % len(scores)]  # a score itself, as a threshold is one
    chart = parsed(histogram_chart("s", [Group("g", scores, "good")], "score", [Mark("line", line)]))
    (place,) = {numbers(path.attrib["d"])[0] for path in chart.iter("path") if path.get("class") == "mark"}
    counts = {"left": 0, "right": 0}
    for bar in chart.iter("rect"):
        begin, end = float(bar.attrib["x"]), float(bar.attrib["x"]) + float(bar.attrib["width"])
        assert end < place or begin > place
        counts["left" if end < place else "right"] += int((bar.find("title").text or "").split(": ")[1])  # type: ignore[union-attr]
    # Exactly, and so also where the paper cannot tell a score from the line.
    assert counts == {"left": sum(v <= line for v in scores), "right": sum(v > line for v in scores)}


def test_a_far_outlier_leaves_the_good_images_room() -> None:
    good = np.random.default_rng(0).normal(10, 1, 200).tolist()
    near = histogram_chart("s", [Group("g", good, "good"), Group("b", [14.0], "bad")], "score")
    far = histogram_chart("s", [Group("g", good, "good"), Group("b", [1e3], "bad")], "score")
    assert "stretched" not in near and "stretched" in far
    assert sum(bar.get("class") == "bar good" for bar in parsed(far).iter("rect")) >= 7


@few
@given(st.lists(st.tuples(st.floats(-1e5, 1e5), st.floats(-1e5, 1e5)), min_size=1, max_size=30))
def test_a_line_stays_between_its_axes_and_keeps_its_order(points: list[tuple[float, float]]) -> None:
    x, y = map(list, zip(*points, strict=True))
    chart = parsed(line_chart("t", [Line("n", x, y, dots=True)], Axis("x"), Axis("y")))
    (path,) = [p.attrib["d"] for p in chart.iter("path") if p.get("class") == "line ink"]
    drawn = np.array(numbers(path)).reshape(-1, 2)
    assert len(drawn) == len(points) == len(list(chart.iter("circle")))
    assert (drawn[:, 0] >= 59.9).all() and (drawn[:, 0] <= 406.1).all()
    assert (drawn[:, 1] >= 13.9).all() and (drawn[:, 1] <= 208.1).all()
    for a, b in zip(np.argsort(x, kind="stable"), np.argsort(x, kind="stable")[1:], strict=False):
        assert drawn[a, 0] <= drawn[b, 0] + 0.11


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 7e4), (0.9999, 1.0), (5, 5), (1e-7, 3e-7)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    chart = parsed(line_chart("t", [Line("", [low, high], [low, high])], Axis("x"), Axis("y")))
    texts = [float((t.text or "").replace("−", "-")) for t in chart.iter("text") if t.get("class") == "end"]
    pad = 0.06 * max(abs(low), 1) if low == high else 0
    assert 2 <= len(texts) <= 6 and min(texts) >= low - pad - 1e-12 and max(texts) <= high + pad + 1e-12
    steps = np.diff(texts)
    assert np.allclose(steps, steps[0], rtol=1e-3)


def test_whole_numbers_are_counted_in_whole_numbers() -> None:
    chart = parsed(line_chart("t", [Line("", [1, 2], [0, 1])], Axis("epoch", whole=True), Axis("y")))
    assert [t.text for t in chart.iter("text") if t.get("class") == "middle"][:2] == ["1", "2"]


def test_any_text_survives_and_the_same_input_gives_the_same_chart() -> None:
    groups = [Group(NASTY, [1.0, 2.0], "good")]
    first = histogram_chart(NASTY, groups, NASTY, [Mark(NASTY, 1.5)])
    assert "<script" not in first and NASTY in "".join(parsed(first).itertext())
    assert first == histogram_chart(NASTY, groups, NASTY, [Mark(NASTY, 1.5)])
    curve = line_chart(NASTY, [Line(NASTY, [0], [0])], Axis(NASTY), Axis(NASTY), [Mark(NASTY, 0)])
    assert "<script" not in curve and NASTY in "".join(parsed(curve).itertext())


def test_nonsense_is_refused_and_an_infinite_threshold_is_left_out() -> None:
    x, y = Axis("x"), Axis("y")
    for lines in ([], [Line("", [], [])], [Line("", [1], [1, 2])], [Line("", [1], [float("nan")])]):
        with pytest.raises(InputError, match="expected"):
            line_chart("t", lines, x, y)
    for scores in ([], [float("inf")]):
        with pytest.raises(InputError, match="expected finite"):
            histogram_chart("t", [Group("g", scores, "good")], "x")
    assert 'class="mark"' not in histogram_chart("t", [Group("g", [1.0], "good")], "x", [Mark("∞", float("inf"))])

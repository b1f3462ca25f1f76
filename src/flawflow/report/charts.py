"""Charts as inline SVG: they follow the page's light and dark colours, stay sharp, and need no script.

A chart is `Markup`, HTML of this package's own making in which all text is already escaped. What a mark shows is also
its tooltip, and the chart's sentence is read to those who cannot see it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal, NewType

import numpy as np
from numpy.typing import NDArray

from flawflow.errors import InputError

Markup = NewType("Markup", str)
Tone = Literal["good", "bad", "ink", "soft"]

_WIDTH, _HEIGHT = 420, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 14, 14, 42
_CLOSEST_TICKS = 40


@dataclass(frozen=True, slots=True)
class Line:
    """A curve through the points (x, y).

    Attributes:
        name: what the legend calls it; empty = not in the legend.
        x, y: the points, equally many, at least one.
        tone: its colour.
        dots: draw the points too.
        dashed: for what is only there to compare with.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    tone: Tone = "ink"
    dots: bool = False
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Values that a histogram counts together."""

    name: str
    values: Sequence[float]
    tone: Tone


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line at a value of the x axis."""

    name: str
    value: float


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis; a bound that is None is taken from what is drawn."""

    label: str
    low: float | None = None
    high: float | None = None
    whole: bool = False


@dataclass(frozen=True, slots=True)
class _Scale:
    """From values to pixels: linear after ``bend``, with ticks at round values."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    bend: Callable[[float], float] = float

    def __call__(self, value: float) -> float:
        first, last = self.bend(self.low), self.bend(self.high)
        return self.start + (self.bend(value) - first) / (last - first) * (self.end - self.start)


def line_chart(title: str, lines: Sequence[Line], x: Axis, y: Axis, marks: Sequence[Mark] = ()) -> Markup:
    """Curves over one pair of axes.

    Raises:
        InputError: there is no line, or a line's points are none, uneven or not finite.
    """
    for line in lines:
        if len(line.x) != len(line.y) or not len(line.x) or not np.isfinite([*line.x, *line.y]).all():
            raise InputError(f"line {line.name!r} of {len(line.x)} and {len(line.y)} values: expected finite points")
    if not lines:
        raise InputError("a chart without lines: expected at least one")
    across = _linear([*(v for line in lines for v in line.x), *(m.value for m in marks)], x, _LEFT, _WIDTH - _RIGHT)
    up = _linear([v for line in lines for v in line.y], y, _HEIGHT - _BOTTOM, _TOP)
    parts = [_axes(across, up, x.label, y.label)]
    parts += [_marked(mark, across) for mark in marks]
    parts += [_drawn(line, across, up) for line in lines]
    shown = [(line.tone + " dashed" * line.dashed, line.name) for line in lines if line.name]
    return _figure(title, parts, shown, marks)


def histogram_chart(
    title: str, groups: Sequence[Group], label: str, marks: Sequence[Mark] = (), bins: int = 36
) -> Markup:
    """How many values of each group lie where, in bins of equal width on the paper, the outermost cut by the axis.

    The first mark lies between two bins, and what equals it is left of it, as with a threshold that must be exceeded.

    Where some values lie much farther out than the first group spreads, the axis is stretched near that group
    (inverse hyperbolic sine), so that a far outlier does not press all else into one bin; the label says so.

    Args:
        title: names the chart; also for readers who cannot see it.
        groups: the first is the one to compare with; an empty group is only named.
        label: of the x axis.
        marks: vertical lines, for example the threshold; those that are not finite are left out.
        bins: how many.

    Raises:
        InputError: there is no value at all, or one is not finite.
    """
    pooled = np.array([v for group in groups for v in group.values], np.float64)
    if not pooled.size or not np.isfinite(pooled).all():
        raise InputError(f"a histogram of {pooled.size} values: expected finite numbers, at least one")
    marks = [mark for mark in marks if math.isfinite(mark.value)]
    across, stretched = _score_scale(pooled, np.asarray(groups[0].values, np.float64), marks)
    places = _bin_edges(bins, across(marks[0].value) if marks else _LEFT)
    counts = [_counted(group.values, across, places, marks[:1]) for group in groups]
    up = _linear([0.0, float(max(c.max() for c in counts))], Axis("", 0.0, whole=True), _HEIGHT - _BOTTOM, _TOP)
    parts = [_axes(across, up, label + ", axis stretched near the good images" * stretched, "images")]
    parts += [_bars(group, count, places, up) for group, count in zip(groups, counts, strict=True)]
    parts += [_marked(mark, across) for mark in marks]
    return _figure(title, parts, [(g.tone, f"{g.name} ({len(g.values)})") for g in groups], marks)


def _bin_edges(bins: int, between: float) -> NDArray[np.float64]:
    """Edges of bins across the axis, one of them at exactly this place."""
    left, right = float(_LEFT), float(_WIDTH - _RIGHT)
    edges = between + (right - left) / bins * np.arange(-bins, bins + 1)
    return np.concatenate([[left], edges[(edges > left + 3) & (edges < right - 3)], [right]])


def _counted(
    values: Sequence[float], across: _Scale, edges: NDArray[np.float64], between: Sequence[Mark]
) -> NDArray[np.intp]:
    """How many lie in each bin, the right edge included; the mark parts the values themselves.

    Two values may fall on one place of the paper and yet lie on either side of the threshold.
    """
    found = np.clip(np.searchsorted(edges, [across(v) for v in values], side="left") - 1, 0, len(edges) - 2)
    for mark in between:
        first_right = int(np.abs(edges - across(mark.value)).argmin())
        over = np.array([v > mark.value for v in values], bool)
        found = np.where(over, np.maximum(found, first_right), np.minimum(found, first_right - 1))
    return np.bincount(found, minlength=len(edges) - 1)


def _linear(values: Sequence[float], axis: Axis, start: float, end: float) -> _Scale:
    low = min(values) if axis.low is None else axis.low
    high = max(values) if axis.high is None else axis.high
    if high <= low:
        pad = abs(low) * 0.05 or 1.0
        low, high = (low if axis.low is not None else low - pad), low + pad
    step = _round_step((high - low) / (abs(end - start) / _CLOSEST_TICKS), axis.whole)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return _Scale(low, high, start, end, tuple(n * step for n in range(first, last + 1)))


def _round_step(least: float, whole: bool) -> float:
    """The smallest of 1, 2, 5, 10, 20 … that is not below ``least``."""
    power = 10.0 ** math.floor(math.log10(least))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * (1 - 1e-9))
    return max(1.0, step) if whole else step


def _score_scale(pooled: NDArray[np.float64], good: NDArray[np.float64], marks: Sequence[Mark]) -> tuple[_Scale, bool]:
    """The x axis of a histogram, and whether it is stretched."""
    reach = [*pooled.tolist(), *(mark.value for mark in marks)]
    low, high = min(reach), max(reach)
    reference = good if good.size else pooled
    centre, spread = float(np.median(reference)), float(np.ptp(np.quantile(reference, (0.05, 0.95))))
    # Values that double precision hardly tells apart still need an axis with a length.
    least = 1e-9 * max(1.0, abs(low), abs(high))
    pad = max((high - low) * 0.02, least)
    if spread <= least or high - low < 6 * spread:
        return _linear([low - pad, high + pad], Axis(""), _LEFT, _WIDTH - _RIGHT), False

    def bend(value: float) -> float:
        return math.asinh((value - centre) / spread)

    # Padded on the paper, so that a mark at an end of the axis has a bin on either side.
    margin = (bend(high) - bend(low)) * 0.02
    low, high = (centre + spread * math.sinh(end) for end in (bend(low) - margin, bend(high) + margin))
    scale = _Scale(low, high, _LEFT, _WIDTH - _RIGHT, (), bend)
    return _Scale(scale.low, scale.high, scale.start, scale.end, _sparse_ticks(scale, spread), bend), True


def _sparse_ticks(scale: _Scale, spread: float) -> tuple[float, ...]:
    """Round values, the roundest first, as long as they keep their distance from those already there."""
    top = math.ceil(math.log10(max(abs(scale.low), abs(scale.high))))
    bottom = math.floor(math.log10(spread))
    sizes = [f * 10.0**p for f in (1, 5, 2) for p in range(top, bottom - 1, -1)]
    chosen: list[float] = []
    for value in [0.0, *(sign * size for size in sizes for sign in (1, -1))]:
        is_inside = scale.low <= value <= scale.high
        if is_inside and all(abs(scale(value) - scale(other)) >= _CLOSEST_TICKS for other in chosen):
            chosen.append(value)
    return tuple(sorted(chosen))


def _axes(across: _Scale, up: _Scale, x_label: str, y_label: str) -> str:
    base, left, right = _HEIGHT - _BOTTOM, _LEFT, _WIDTH - _RIGHT
    parts = []
    for tick in up.ticks:
        y = up(tick)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{right}"/>')
        parts.append(f'<text class="end" x="{left - 6}" y="{y + 4:.1f}">{_number(tick)}</text>')
    for tick in across.ticks:
        x = across(tick)
        parts.append(f'<path class="axis" d="M{x:.1f} {base}v4"/>')
        parts.append(f'<text class="middle" x="{x:.1f}" y="{base + 17}">{_number(tick)}</text>')
    parts.append(f'<path class="axis" d="M{left} {base}H{right}"/>')
    parts.append(f'<text class="middle" x="{(left + right) / 2:g}" y="{_HEIGHT - 6}">{escape(x_label)}</text>')
    middle = (base + _TOP) / 2
    parts.append(f'<text class="middle" transform="translate(11 {middle:g})rotate(-90)">{escape(y_label)}</text>')
    return "".join(parts)


def _drawn(line: Line, across: _Scale, up: _Scale) -> str:
    points = [(across(a), up(b)) for a, b in zip(line.x, line.y, strict=True)]
    path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
    drawn = f'<path class="line {line.tone}{" dashed" * line.dashed}" d="{path}"/>'
    if line.dots:
        for (a, b), x, y in zip(points, line.x, line.y, strict=True):
            told = f"<title>{_number(x)}: {y:.4g}</title>"
            drawn += f'<circle class="{line.tone}" cx="{a:.1f}" cy="{b:.1f}" r="3">{told}</circle>'
    return drawn


def _bars(group: Group, counts: NDArray[np.intp], places: NDArray[np.float64], up: _Scale) -> str:
    base, bars = _HEIGHT - _BOTTOM, []
    for count, left, right in zip(counts.tolist(), places[:-1].tolist(), places[1:].tolist(), strict=True):
        if count:
            box = f'x="{left + 0.5:.1f}" y="{up(count):.1f}" width="{right - left - 1:.1f}"'
            told = f"<title>{escape(group.name)}: {count}</title>"
            bars.append(f'<rect class="bar {group.tone}" {box} height="{base - up(count):.1f}">{told}</rect>')
    return "".join(bars)


def _marked(mark: Mark, across: _Scale) -> str:
    told = f"<title>{escape(mark.name)}</title>"
    return f'<path class="mark" d="M{across(mark.value):.1f} {_TOP}V{_HEIGHT - _BOTTOM}">{told}</path>'


def _figure(title: str, parts: Sequence[str], shown: Sequence[tuple[str, str]], marks: Sequence[Mark]) -> Markup:
    named = [*shown, *(("mark", mark.name) for mark in marks)]
    items = "".join(f'<li class="{tone}">{escape(name)}</li>' for tone, name in named)
    told = escape("; ".join([title, *(name for _, name in named)]))
    svg = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{told}">{"".join(parts)}</svg>'
    legend = f'<ul class="legend">{items}</ul>' if items else ""
    return Markup(f'<figure class="chart"><figcaption>{escape(title)}</figcaption>{svg}{legend}</figure>')


def _number(value: float) -> str:
    return f"{value + 0.0:.6g}".replace("-", "−")

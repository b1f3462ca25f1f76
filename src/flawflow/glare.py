"""A gross defect lights up what surrounds it: how a map is dimmed for that. Nothing here needs PyTorch."""

from typing import Any, TypeVar

T = TypeVar("T")


def without_glare(drawn: T, peak: Any, good_map: tuple[float, float], glare: float) -> T:
    """A map in which what stands out far lifts less of the rest: its distances from m over √(1 + (peak − m) / (g r)).

    A likelihood falls with the square of what is odd: the few per cent of a gross defect that networks leak to its
    neighbours, and to the whole image, are more than a faint one has at its heart. Within an image the order of places
    stays, and of two images the one with the higher peak still has it (docs/experiments.md, "Glare").

    Args:
        drawn: the map, an array or a tensor of any shape.
        peak: its highest value, of the places that count, of the same library; at most m = nothing changes.
        good_map: m, the median of good images' maps, and their 99.9 % quantile, m + r, with r > 0.
        glare: g, how many times r a peak lies above m where distances are divided by √2; 0 = nothing changes.
    """
    if not glare:
        return drawn
    median, high = good_map
    reach = glare * (high - median)
    values: Any = drawn
    dimmed: T = median + (values - median) * (reach / (reach + (peak - median).clip(min=0))) ** 0.5
    return dimmed

"""How time and memory of fitting and inspecting grow: with images, with the input's side, with channels.

    python benchmarks/growth.py --out FOLDER [--most 10000] [--threads 2]

Generated images (fabric of the demo's product line), the recipe `default`, one process a cell, which is what its peak
memory belongs to. A cell that has been measured is not measured again, so a stopped run goes on. Writes
``growth.json``, the table ``growth.md`` and the plot ``growth.png``, and prints the table.

"fit" is the wall time of the whole fit with an empty store, "of it: features" what decoding, synthesis and backbone
take of it. The exponents are those of the straight line through a table's last two points on double logarithmic
paper: 1 is linear.
"""

import argparse
import json
import math
import multiprocessing
import queue
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from flawflow.datasets.generated import generate_image
from flawflow.files import atomic_write
from tile import peak_gib

INSPECTED = 20
Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """What one process measures."""

    group: str
    images: int
    side: int
    taps: str

    @property
    def name(self) -> str:
        return f"{self.group} {self.images} images, {self.side} px, taps {self.taps}"


def cells(most: int) -> list[Cell]:
    """All that is measured, the quick ones first."""
    counts = [count for count in (10, 100, 1000, 10_000) if count <= most]
    by_images = [Cell("images", count, 128, "[3]") for count in counts]
    by_side = [Cell("side", 20, side, "[3]") for side in (128, 256, 512, 1024)]
    by_channels = [Cell("channels", 40, 256, taps) for taps in ("[1]", "[3]", "[2,3]", "[1,2,3]")]
    return by_side + by_channels + by_images


def draw(folder: Path, count: int, side: int) -> Path:
    """A folder of so many good images; those that it has are not drawn again."""
    target = folder / f"{side}-{count}"
    target.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        path = target / f"{index:05d}.png"
        if not path.exists():
            image, _ = generate_image("fabric", index, 0, side)
            coded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
            atomic_write(path, np.asarray(coded).tobytes())
    return target


def measure(cell: Cell, images: Path, threads: int, output: Any) -> None:
    """Fits and inspects in this process; puts one row into ``output``."""
    import torch

    from flawflow.fitting import StoreOptions, fit
    from flawflow.recipe import named_recipe

    torch.set_num_threads(threads)
    recipe = named_recipe("default").change(
        {
            "size": str(cell.side),
            "backbone.taps": cell.taps,
            "backbone.stride": "16",
            "smaller": "0",
            "blur": "0",
            "mirrors": "0",  # few images would count as more
        }
    )
    loaded = peak_gib()
    began = time.perf_counter()
    detector = fit(images, recipe, store=StoreOptions(keep=False))
    fitted = time.perf_counter()
    fit_peak = peak_gib()
    inspected = seconds_an_image(detector, sorted(images.iterdir())[:INSPECTED])
    output.put(
        asdict(cell)
        | {
            "channels": detector.backbone.channels,
            "remembered": len(detector.flow.memory.latents) if detector.flow.memory is not None else 0,
            "fit_seconds": fitted - began,
            "feature_seconds": detector.provenance["seconds"]["features"],
            "inspect_ms": 1e3 * inspected,
            "attention_share": attention_share(detector.backbone),
            "loaded_gib": loaded,
            "peak_gib": fit_peak,
        }
    )


def seconds_an_image(detector: Any, paths: Sequence[Path]) -> float:
    """Median of inspecting one after another, decoding included; the first warms up."""
    spent = []
    for path in [paths[0], *paths]:
        began = time.perf_counter()
        detector.inspect(path)
        spent.append(time.perf_counter() - began)
    return float(np.median(spent[1:]))


def attention_share(backbone: Any) -> float:
    """Of the backbone's time, what attention's quadratic part takes (products of queries, keys and values)."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    images = torch.zeros(1, backbone.size, backbone.size, 3, dtype=torch.uint8)
    with torch.inference_mode():
        backbone(images)
        with profile(activities=[ProfilerActivity.CPU]) as found:
            for _ in range(3):
                backbone(images)
    events = found.key_averages()
    spent = sum(event.self_cpu_time_total for event in events)
    quadratic = sum(e.self_cpu_time_total for e in events if "scaled_dot_product" in e.key)
    return float(quadratic / spent)


def run_cell(cell: Cell, folder: Path, threads: int) -> Row:
    """The row of a cell, measured in a process of its own."""
    images = draw(folder / "images", cell.images, cell.side)
    context = multiprocessing.get_context("spawn")
    output = context.Queue()
    worker = context.Process(target=measure, args=(cell, images, threads, output))
    worker.start()
    while True:
        try:
            row: Row = output.get(timeout=5)
            break
        except queue.Empty as error:
            if not worker.is_alive() and output.empty():
                raise SystemExit(f"{cell.name}: the process ended with exit code {worker.exitcode}") from error
    worker.join()
    return row


def exponent(rows: Sequence[Row], across: str, key: str) -> float:
    """Of the growth between the last two rows."""
    last, before = rows[-1], rows[-2]
    return math.log(last[key] / before[key]) / math.log(last[across] / before[across])


def table(rows: Sequence[Row]) -> str:
    """Markdown, one table a group."""
    parts = []
    for group, across in (("images", "images"), ("side", "side"), ("channels", "channels")):
        of_group = sorted((row for row in rows if row["group"] == group), key=lambda row: row[across])
        if not of_group:
            continue
        same = {"images": "128 px", "side": "20 images", "channels": "40 images of 256 px"}[group]
        parts.append(
            f"| {across} ({same}) | fit, s | of it: features | remembered | inspect, ms | attention † "
            "| peak memory, GiB |\n|---|---|---|---|---|---|---|"
        )
        for row in of_group:
            parts.append(
                f"| {row[across]} | {row['fit_seconds']:.1f} | {row['feature_seconds']:.1f} | {row['remembered']} "
                f"| {row['inspect_ms']:.1f} | {row['attention_share']:.0%} | {row['peak_gib']:.2f} |"
            )
        if len(of_group) > 1:
            told = ", ".join(
                f"{label} {exponent(of_group, across, key):.2f}"
                for label, key in (("fit", "fit_seconds"), ("inspect", "inspect_ms"), ("memory", "peak_gib"))
            )
            parts.append(f"\nExponents between the last two: {told}.\n")
    return "\n".join([*parts, "† the quadratic part's share of the backbone's time"])


def plot(rows: Sequence[Row], path: Path) -> None:
    """Time and memory against each of the three, on double logarithmic paper."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, across in zip(axes, ("images", "side", "channels"), strict=True):
        of_group = sorted((row for row in rows if row["group"] == across), key=lambda row: row[across])
        x = [row[across] for row in of_group]
        for label, key in (("fit, s", "fit_seconds"), ("inspect, ms", "inspect_ms"), ("peak memory, GiB", "peak_gib")):
            axis.loglog(x, [row[key] for row in of_group], "o-", label=label)
        axis.set_xticks(x, [f"{value}" for value in x])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlabel({"images": "images", "side": "side of the input, px", "channels": "channels"}[across])
        axis.grid(True, which="both", alpha=0.2)
    axes[0].legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure what is missing, then write and print all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for images, measurements, table and plot")
    parser.add_argument("--most", type=int, default=10_000, help="leave out cells of more images")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    journal = options.out / "growth.json"
    done: dict[str, Row] = json.loads(journal.read_text()) if journal.exists() else {}
    for cell in cells(options.most):
        if cell.name not in done:
            done[cell.name] = run_cell(cell, options.out, options.threads)
            atomic_write(journal, (json.dumps(done, indent=1) + "\n").encode())
            print(f"{cell.name}: {done[cell.name]['fit_seconds']:.1f} s", flush=True)
    rows = list(done.values())
    text = table(rows)
    atomic_write(options.out / "growth.md", (text + "\n").encode())
    plot(rows, options.out / "growth.png")
    print(text)


if __name__ == "__main__":
    main()

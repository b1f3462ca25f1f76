"""The league's table and figure, from the cells' files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawflow.datasets import open_folder
from flawflow.files import atomic_path
from flawflow.images import read_image, read_mask, resize_image, resize_mask
from flawflow.types import Sample
from league.cells import named
from league.methods import CANNOT

MEASURED = ("image_auroc", "image_f1_max", "pixel_auroc", "pixel_f1_max", "aupro")
JUDGED = ("image_auroc", "pixel_auroc", "aupro")  # whose mean the order of the league goes by
_HEADER = (
    "| method | weights | input | image AUROC | image F1 | pixel AUROC | pixel F1 | AUPRO | mean of the three | epochs "
    "| fit s | ms/image | peak MB | seeds |"
)
_LEAST_ROWS, _MOST_ROWS = 1, 6


def table(rows: Sequence[dict[str, Any]], missing: dict[str, str]) -> str:
    """Markdown: the means, one table a product and number of shots, then what could not be run.

    Args:
        rows: of `league.cells.run`.
        missing: reason by cell or method, of what was not even tried.
    """
    done = [row for row in rows if "failed" not in row]
    lines = _means(done)
    for group in dict.fromkeys(row["group"] for row in done):
        lines += [f"### {group}", "", _HEADER, "|" + "---|" * _HEADER.count(" |")]
        mine = [row for row in done if row["group"] == group]
        for key in dict.fromkeys((row["method"], row["network"]) for row in mine):
            lines.append(_line([row for row in mine if (row["method"], row["network"]) == key]))
        lines.append("")
    notes = {row["method"]: row["note"] for row in done if row["note"]}
    lines += [f"- {name}: {note}." for name, note in notes.items()]
    lines += [f"- {name}: {note}." for name, note in dict(map(_incomplete, done)).items() if note]
    changed = {row["method"]: row["settings"] for row in done if row["settings"]}
    lines += [f"- {name} with changed settings: {settings}." for name, settings in changed.items()]
    broken = {
        f"{_player(row)} on {row['group']}, seed {row['seed']}": row["failed"].splitlines()[-1]
        for row in rows
        if "failed" in row
    }
    lines += ["", "Not run:", ""]
    players = set(map(_player, done))  # what this call cannot run, another one may have run
    absent = {name: reason for name, reason in missing.items() if name not in players}
    lines += [f"- {name}: {reason}." for name, reason in (broken | absent | CANNOT).items()]
    return "\n".join(lines) + "\n"


def _line(rows: Sequence[dict[str, Any]]) -> str:
    first = rows[0]
    cells = [first["method"], first["network"] or "–", str(first["size"])]
    cells += [_mean([row[name] for row in rows], 4) for name in MEASURED]
    cells.append(_mean(list(map(_judged, rows)), 4))
    epochs = sorted({row["epochs"] for row in rows})
    reached = dict.fromkeys(f"{round(one, 3):.10g}" for one in (epochs[0], epochs[-1]))
    cells.append(f"{'–'.join(reached)} of {first['planned']}")
    cells += [_mean([row[name] for row in rows], 0) for name in ("fit_seconds", "inspect_ms", "peak_mb")]
    if card := [row["peak_gpu_mb"] for row in rows if "peak_gpu_mb" in row]:
        cells[-1] += f" + {_mean(card, 0)} on the card"
    return "| " + " | ".join([*cells, str(len(rows))]) + " |"


def _judged(row: dict[str, Any]) -> float | None:
    """The mean of the three numbers that a cell is judged by; None where one of them could not be measured."""
    values = [row[name] for name in JUDGED]
    return None if None in values else float(np.mean(values))


def _means(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A table for each number of shots of several products: the mean of the three by product, and over all products.

    Nobody has a mean over products who was not measured on each of them.
    """
    lines: list[str] = []
    for shots in dict.fromkeys(row["group"].rpartition("-")[2] for row in rows):
        mine = [row for row in rows if row["group"].rpartition("-")[2] == shots]
        products = sorted({row["group"].rpartition("-")[0] for row in mine})
        if len(products) < 2:
            continue
        lines += [f"### Means of image AUROC, pixel AUROC and AUPRO, {shots}", ""]
        lines += [f"| method | weights | {' | '.join(products)} | all |", "|" + "---|" * (len(products) + 3)]
        for method, network in dict.fromkeys((row["method"], row["network"]) for row in mine):
            found = [
                [
                    _judged(row)
                    for row in mine
                    if named(f"{product}-{shots}", method, network, row["seed"]) == _name(row)
                ]
                for product in products
            ]
            known = [[value for value in of_product if value is not None] for of_product in found]
            cells = [f"{np.mean(values):.4f}" if values else "–" for values in known]
            cells.append(f"{np.mean(list(map(np.mean, known))):.4f}" if all(known) else "–")
            lines.append(f"| {' | '.join([method, network or '–', *cells])} |")
        lines.append("")
    return lines


def _name(row: dict[str, Any]) -> str:
    return named(row["group"], row["method"], row["network"], row["seed"])


def _player(row: dict[str, Any]) -> str:
    return f"{row['method']} {row['network']}".strip()


def _incomplete(row: dict[str, Any]) -> tuple[str, str]:
    """Who it is, and what its network lacked; "" = nothing."""
    missing = row.get("missing_weights", {"count": 0, "first": []})
    names = ", ".join(missing["first"]) + (", …" if missing["count"] > len(missing["first"]) else "")
    text = f"{missing['count']} tensors that it looks through are not in the weights file and stayed random: {names}"
    return _player(row), text if missing["count"] else ""


def _mean(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    text = f"{np.mean(known):.{digits}f}"
    return text if len(known) == 1 else f"{text} ± {np.std(known):.{digits}f}"


def figure(rows: Sequence[dict[str, Any]], product: Path, folder: Path, file: Path) -> None:
    """Draw image, truth and each method's map side by side (the paper's figure 4), the first test image of each kind
    of defect a row.

    Args:
        rows: of run cells of one product, number of shots and seed, one a column.
        product: that product's folder.
        folder: where the cells' files are.
        file: the PNG.
    """
    from matplotlib.figure import Figure

    test = open_folder(product, rows[0]["seed"]).test
    kinds = [kind for kind in dict.fromkeys(s.defect for s in test) if kind != "good"][:_MOST_ROWS]
    shown = [next(i for i, s in enumerate(test) if s.defect == kind) for kind in kinds]
    columns = [_maps(folder / f"{_name(row)}.npz", shown) for row in rows]
    titles = ["image", "truth", *(f"{row['method']}\n{row['network'].split('_patch')[0]}" for row in rows)]
    height = max(len(shown), _LEAST_ROWS)
    drawn = Figure(figsize=(1.5 * len(titles), 1.5 * height + 0.4), layout="constrained")
    axes = drawn.subplots(height, len(titles), squeeze=False)
    for row, index in enumerate(shown):
        side = columns[0][0].shape[1]
        pictures = [resize_image(read_image(test[index].path), side), _truth(test[index], side)]
        for column, axis in enumerate(axes[row]):
            axis.set_axis_off()
            if column < 2:
                axis.imshow(pictures[column], cmap="gray")
            else:
                maps, low, high = columns[column - 2]
                axis.imshow(maps[row], cmap="inferno", vmin=low, vmax=high)
            if row == 0:
                axis.set_title(titles[column], fontsize=7)
    with atomic_path(file) as temporary:
        drawn.savefig(temporary, dpi=110, metadata={"Software": None})


def _maps(file: Path, shown: Sequence[int]) -> tuple[NDArray[np.float32], float, float]:
    """The shown maps, and the range of colours: from the median to the highest thousandth of all its maps."""
    with np.load(file) as kept:
        maps = kept["maps"].astype(np.float32)
    low, high = (float(v) for v in np.quantile(maps, (0.5, 0.999)))
    return maps[list(shown)], low, max(high, low + 1e-6)


def _truth(sample: Sample, side: int) -> NDArray[np.uint8]:
    if sample.mask_path is None:
        return np.zeros((side, side), np.uint8)
    return resize_mask(read_mask(sample.mask_path), side).astype(np.uint8) * 255

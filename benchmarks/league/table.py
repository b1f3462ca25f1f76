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
from league.cells import Cell
from league.methods import CANNOT

MEASURED = ("image_auroc", "image_f1_max", "pixel_auroc", "pixel_f1_max", "aupro")
_HEADER = (
    "| method | weights | input | image AUROC | image F1 | pixel AUROC | pixel F1 | AUPRO | epochs | fit s | ms/image "
    "| peak MB | seeds |"
)
_LEAST_ROWS, _MOST_ROWS = 1, 6


def table(rows: Sequence[dict[str, Any]], missing: dict[str, str]) -> str:
    """Markdown: one table a product and number of shots, then what could not be run.

    Args:
        rows: of `league.cells.run`.
        missing: reason by cell or method, of what was not even tried.
    """
    lines: list[str] = []
    done = [row for row in rows if "failed" not in row]
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
    lines += [f"- {name}: {reason}." for name, reason in (broken | missing | CANNOT).items()]
    return "\n".join(lines) + "\n"


def _line(rows: Sequence[dict[str, Any]]) -> str:
    first = rows[0]
    cells = [first["method"], first["network"] or "–", str(first["size"])]
    cells += [_mean([row[name] for row in rows], 4) for name in MEASURED]
    epochs = sorted({row["epochs"] for row in rows})
    reached = dict.fromkeys(f"{round(one, 3):.10g}" for one in (epochs[0], epochs[-1]))
    cells.append(f"{'–'.join(reached)} of {first['planned']}")
    cells += [_mean([row[name] for row in rows], 0) for name in ("fit_seconds", "inspect_ms", "peak_mb")]
    if card := [row["peak_gpu_mb"] for row in rows if "peak_gpu_mb" in row]:
        cells[-1] += f" + {_mean(card, 0)} on the card"
    return "| " + " | ".join([*cells, str(len(rows))]) + " |"


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


def figure(cells: Sequence[Cell], folder: Path, file: Path) -> None:
    """Draw image, truth and each method's map side by side (the paper's figure 4), the first test image of each kind
    of defect a row.

    Args:
        cells: run cells of one product, number of shots and seed, one a column.
        folder: where their files are.
        file: the PNG.
    """
    from matplotlib.figure import Figure

    test = open_folder(cells[0].product, cells[0].seed).test
    kinds = [kind for kind in dict.fromkeys(s.defect for s in test) if kind != "good"][:_MOST_ROWS]
    shown = [next(i for i, s in enumerate(test) if s.defect == kind) for kind in kinds]
    columns = [_maps(folder / f"{cell.name}.npz", shown) for cell in cells]
    titles = ["image", "truth", *(f"{cell.method.name}\n{cell.network.split('_patch')[0]}" for cell in cells)]
    rows = max(len(shown), _LEAST_ROWS)
    drawn = Figure(figsize=(1.5 * len(titles), 1.5 * rows + 0.4), layout="constrained")
    axes = drawn.subplots(rows, len(titles), squeeze=False)
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

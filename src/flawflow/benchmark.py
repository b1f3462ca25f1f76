"""Fit and evaluate every category of a dataset, once per seed, and keep what is done."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flawflow.choosing import fit_best
from flawflow.datasets import LAYOUTS, list_categories, open_category
from flawflow.datasets.generated import PRODUCTS, write_product_line
from flawflow.detector import DeviceName
from flawflow.errors import FlawflowError, OptionError
from flawflow.evaluation import check_test_images, evaluate, numbers, to_json
from flawflow.files import write_json
from flawflow.fitting import StoreOptions
from flawflow.pages import write_report
from flawflow.recipe import Recipe

GENERATED = "demo"


def run_benchmark(
    dataset: str,
    root: Path,
    recipes: Sequence[Recipe],
    *,
    categories: Sequence[str] | None = None,
    seeds: int = 1,
    weights: Path | None = None,
    shots: int | None = None,
    device: DeviceName = "auto",
    store: StoreOptions | None = None,
    select_on_test: bool = False,
    json_path: Path | None = None,
    report: Path | None = None,
    say: Callable[[str], None] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Fit and evaluate; a category that fails is named among the faults and the others go on.

    Args:
        dataset: a layout's name, or ``demo`` for the generated product line, which is written below ``root``.
        root: the dataset's folder.
        recipes: what to fit; of several, the best of each category.
        categories: names; None = all.
        seeds: seeds 0 … seeds − 1 for each category.
        weights, shots, device, store, select_on_test, say: as for `flawflow.fit`.
        json_path: rewritten after every fit.
        report: folder that gets ``<category>-seed<seed>/index.html`` of every fit.

    Returns:
        The JSON of all categories (means over seeds, with ``std`` and the single ``runs``), and the faults.

    Raises:
        InputError: the dataset or a category is unknown or laid out otherwise.
    """
    known_layouts = (*LAYOUTS, GENERATED)
    if dataset not in known_layouts:
        raise OptionError(f"unknown dataset layout '{dataset}'; choose one of {', '.join(known_layouts)}")
    layout = "mvtec_ad" if dataset == GENERATED else dataset
    if dataset == GENERATED:
        # Anew each time: the same bytes, and whole even where an earlier run was killed on the way.
        write_product_line(root, seed=0)
    known = PRODUCTS if dataset == GENERATED else list_categories(layout, root)
    names = tuple(categories) if categories is not None else known
    unknown = [name for name in names if name not in known]
    if unknown:
        raise OptionError(f"{root} has no category {', '.join(unknown)}: expected some of {', '.join(known)}")
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    faults: list[str] = []
    results: dict[str, Any] = {"categories": {}, "mean": {}}
    for seed, name in itertools.product(range(seeds), names):
        if say:
            say(f"{name}, seed {seed}")
        try:
            category = open_category(layout, root, name, seed)
            check_test_images(category)
            detector = fit_best(
                category,
                recipes,
                weights=weights,
                shots=shots,
                seed=seed,
                device=device,
                store=store,
                select_on_test=select_on_test,
                say=say,
            )
            evaluation = evaluate(detector, category)
            runs[name].append(numbers(detector, evaluation))
            results = to_json({n: _over_seeds(rows) for n, rows in runs.items() if rows})
            if json_path is not None:
                write_json(json_path, results)
            if report is not None:
                write_report(report / f"{name}-seed{seed}", f"{name}, seed {seed}", {name: (detector, evaluation)})
        except FlawflowError as error:
            faults.append(f"{name}, seed {seed}: {error}")
    return results, faults


def _over_seeds(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds of every number, beside the single runs; None where none is known."""
    keys = [key for key in rows[0] if key not in ("seed", "selected_on_test")]
    columns = {key: [row[key] for row in rows if row[key] is not None] for key in keys}
    mean = {key: float(np.mean(values)) if values else None for key, values in columns.items()}
    spread = {key: float(np.std(values)) if values else None for key, values in columns.items()}
    label = {"selected_on_test": rows[0]["selected_on_test"]}
    return mean | label | {"std": spread, "runs": list(rows)}

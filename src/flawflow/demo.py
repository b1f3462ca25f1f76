"""Everything once, offline: a generated product line is fitted, evaluated and reported on."""

from collections.abc import Callable
from pathlib import Path

from flawflow.choosing import fit_best
from flawflow.datasets import open_category
from flawflow.datasets.generated import PRODUCTS, write_product_line
from flawflow.detector import Detector
from flawflow.evaluation import Evaluation, evaluate
from flawflow.files import writable_folder
from flawflow.fitting import StoreOptions
from flawflow.pages import write_report
from flawflow.recipe import Recipe, named_recipe

RECIPES = ("default", "filters")
# The generated images have 256 pixels; their few good ones are learned in two epochs.
SIZE, EPOCHS = 256, 2


def recipes() -> list[Recipe]:
    """What the demo chooses from for each product: a learned network, and a fixed filter bank for textures."""
    return [named_recipe(name).change({"size": str(SIZE), "training.epochs": str(EPOCHS)}) for name in RECIPES]


def run_demo(output: Path, seed: int, say: Callable[[str], None] | None = None) -> Path:
    """Generate, fit, evaluate, report; returns the path of the page to open.

    Args:
        output: gets ``images/<product>`` (MVTec AD layout), ``<product>.flaw`` and ``report/index.html``.
        seed: fixes everything random.
        say: gets a line about each step; None = silent.

    Raises:
        OutputError: the folder cannot be written.
    """
    tell = say or (lambda _: None)
    writable_folder(output)
    tell(f"generating {len(PRODUCTS)} products in {output / 'images'}")
    write_product_line(output / "images", seed)
    results: dict[str, tuple[Detector, Evaluation]] = {}
    for product in PRODUCTS:
        category = open_category("mvtec_ad", output / "images", product, seed)
        detector = fit_best(category, recipes(), seed=seed, store=StoreOptions(keep=False))
        detector.save(output / f"{product}.flaw")
        evaluation = evaluate(detector, category)
        metrics = evaluation.metrics
        tell(
            f"{product}: image AUROC {metrics['image_auroc']:.3f}, pixel AUROC {metrics['pixel_auroc']:.3f} "
            f"(recipe {detector.recipe.name})"
        )
        results[product] = (detector, evaluation)
    return write_report(output / "report", "flawflow demo: a generated product line", results)

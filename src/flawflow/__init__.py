"""flawflow finds and outlines defects it has never seen, from good parts only.

    import flawflow
    detector = flawflow.fit(Path("good_parts"))
    detector.save(Path("part.flaw"))
    result = flawflow.Detector.load(Path("part.flaw")).inspect(Path("part_0815.png"))[0]
    result.score, result.p_value, result.anomaly_map

Everything public is named here and loaded when it is first used, so that importing the package stays quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flawflow._version import __version__

if TYPE_CHECKING:
    from flawflow.choosing import fit_best
    from flawflow.detector import Detector, Inspection
    from flawflow.errors import FlawflowError
    from flawflow.evaluation import Evaluation, evaluate
    from flawflow.fitting import StoreOptions, fit
    from flawflow.images import read_image
    from flawflow.recipe import Recipe, named_recipe

_HOMES = {
    "Detector": "detector",
    "Evaluation": "evaluation",
    "FlawflowError": "errors",
    "Inspection": "detector",
    "Recipe": "recipe",
    "StoreOptions": "fitting",
    "evaluate": "evaluation",
    "fit": "fitting",
    "fit_best": "choosing",
    "named_recipe": "recipe",
    "read_image": "images",
}

__all__ = [
    "Detector",
    "Evaluation",
    "FlawflowError",
    "Inspection",
    "Recipe",
    "StoreOptions",
    "__version__",
    "evaluate",
    "fit",
    "fit_best",
    "named_recipe",
    "read_image",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"flawflow.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'flawflow' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)

"""What a detector was made with, and of what; what names a training."""

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from flawflow._version import __version__
from flawflow.backbones import Backbone
from flawflow.features import CALIBRATION_IMAGES, LEARNED_IMAGES, VALIDATION_IMAGES, ImageSource, known_again
from flawflow.recipe import Recipe
from flawflow.store import make_key
from flawflow.types import Category


def made_with(category: Category, device: torch.device) -> dict[str, Any]:
    """What a detector was made with, and of which product."""
    return {
        "flawflow": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": device.type,
        "category": category.name,
        "layout": category.layout,
    }


def made_of(category: Category, sources: Sequence[ImageSource], select_on_test: bool) -> dict[str, Any]:
    """Which files a detector knows, by their digests; test images that chose the epoch count as learned.

    ``sources`` are of the images learned from and of those held out.
    """
    learned, held_out = (source.digests() for source in sources)
    seen = ImageSource([s.path for s in category.test], 1).digests() if select_on_test else []
    return {
        "selected_on": "test images" if select_on_test else "synthetic defects on held-out good images",
        "images": make_key({"images": learned + held_out}),
        LEARNED_IMAGES: known_again(learned + seen),
        VALIDATION_IMAGES: known_again(held_out),
        CALIBRATION_IMAGES: known_again(held_out),
    }


def run_key(recipe: Recipe, name: str, backbone: Backbone, provenance: Mapping[str, Any]) -> str:
    """Names a training: a checkpoint of another one is not gone on from."""
    known = {name: provenance[name] for name in ("flawflow", "images", "mirrors", "seed", "selected_on", "device")}
    return make_key(known | {"recipe": recipe.to_dict(), "flow": name, "weights": backbone.weights_hash})

"""What the validated epochs of a detector's flows are called, in its file, in checkpoints and for people."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flawflow.recipe import Recipe

# In a detector's provenance, by a branch's role: those of the flow that scores, and of the one that draws its map.
HISTORIES = {
    "first": ("history", "history_drawing"),
    "smaller": ("history_smaller", "history_smaller_drawing"),
    "beside": ("history_beside", "history_beside_drawing"),
}


@dataclass(frozen=True, slots=True)
class Learned:
    """How one flow of a detector learned.

    Attributes:
        label: what tells it from the others, for people.
        epochs: the validated ones, as a detector's provenance keeps them.
        scores, draws: whether it takes part in the score, and in the map.
    """

    label: str
    epochs: list[dict[str, Any]]
    scores: bool
    draws: bool


def branch_histories(provenance: Mapping[str, Any], recipe: Recipe) -> list[Learned]:
    """How each flow learned, as far as the provenance of a detector tells."""
    found, also = [], bool(recipe.scoring.drawn)
    for role, label, shown in zip(recipe.roles, recipe.labels, recipe.shown, strict=True):
        scoring, drawing = HISTORIES[role]
        alone = shown and drawing not in provenance
        found.append(Learned(label, provenance.get(scoring, []), scores=True, draws=alone))
        found.append(Learned(f"{label}, the map", provenance.get(drawing, []), scores=also, draws=True))
    return [one for one in found if one.epochs]


def branch_checkpoints(file: Path) -> list[Path]:
    """All files that the checkpoints of a fit with this one can be."""
    return [checkpoint_of(file, name) for names in HISTORIES.values() for name in names]


def checkpoint_of(file: Path, history: str) -> Path:
    """The checkpoint of the flow whose validated epochs have that name."""
    return file.with_name(file.name + history.removeprefix("history").replace("_", "."))

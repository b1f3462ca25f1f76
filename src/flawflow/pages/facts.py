"""What the pages of a fit and of an evaluation both tell of a detector: its promise, its settings, its provenance."""

import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch

from flawflow.calibration import Decision, confidence_percent, promise, promised_percent, rate_percent
from flawflow.detector import Detector
from flawflow.histories import branch_histories
from flawflow.recipe import RECIPES, named_recipe
from flawflow.report import Axis, Line, Mark, Markup, Section, Tone, line_chart
from flawflow.training import Epoch, kept_epoch

# Characters of pictures in one page: 15 MB can still be mailed, and text, curves and HTML need their share.
ROOM = 11_000_000
_UNTOLD = ("name", "automatic_synthesis")
_FEW = 40  # points of a curve that are dots too


def percent(share: float) -> str:
    """A share in [0, 1] as a percentage with the digits that it deserves."""
    return f"{100 * share:.3g} %"


def promise_text(decision: Decision) -> str:
    """The threshold and what it promises, in words."""
    if not decision.normals:
        return f"No image is called defective: {promise(decision)}."
    return (
        f"An image is called defective when its score is above {decision.threshold:.4g}. The promise: "
        f"{promise(decision)}. It holds for good images like those that were held out, whatever the distribution of "
        "their scores."
    )


def promise_facts(decision: Decision) -> list[tuple[str, str]]:
    """The threshold's numbers, large."""
    confidence = decision.budget.confidence
    return [
        ("threshold", f"{decision.threshold:.4g}" if decision.normals else "none"),
        ("promised false alarms", f"≤ {promised_percent(decision)}"),
        ("confidence", "on average" if confidence is None else confidence_percent(confidence)),
        ("good images behind it", f"{decision.normals}"),
        (f"needed for {rate_percent(decision.budget.rate)}", f"{decision.needed}"),
    ]


def selected_on_test(detector: Detector) -> bool:
    """Whether test images chose the epoch."""
    return detector.provenance.get("selected_on") == "test images"


def selection_warning(detector: Detector, prefix: str = "") -> list[Section]:
    """A card to be read first, where the epoch was chosen on test images; none otherwise."""
    if not selected_on_test(detector):
        return []
    text = (
        "The epoch was chosen on test images, as the paper's protocol has it. Every number measured on those images "
        "is therefore better than what images to come will show."
    )
    return [Section(f"{prefix}Selected on test images", text, warning=True)]


def training_section(detector: Detector, prefix: str = "") -> list[Section]:
    """The loss of each epoch, the AUROC of several validated ones, and which was kept; none without a history."""
    judged = f"judged on {detector.provenance.get('selected_on', 'nothing')}"
    known = histories(detector)
    told = f"The last epoch was kept, and {judged}."
    if any(len(history) > 1 for _, history in known):
        told = (
            f"Each of these epochs was {judged}. A later one takes the place of an earlier one only where it is better "
            "by more than its error."
        )
    charts = [chart for name, history in known for chart in _curves(name, history)]
    return [Section(f"{prefix}Training", told, charts=charts)] if known else []


def histories(detector: Detector) -> list[tuple[str, list[dict[str, Any]]]]:
    """The validated epochs of each flow, after what tells it from another one, in words; none without any."""
    known = branch_histories(detector.provenance, detector.recipe)
    return [(f", {one.label}" if len(known) > 1 else "", one.epochs) for one in known]


def _curves(name: str, history: Sequence[Mapping[str, Any]]) -> list[Markup]:
    """Of what there are several points of."""
    kept = [Mark(f"kept: epoch {kept_number(history)}", kept_number(history))]
    x = Axis("epoch", whole=True)
    losses = dict(chain.from_iterable(map(_losses, history)))
    loss = Line("", list(losses), list(losses.values()), dots=len(losses) <= _FEW)
    charts = [line_chart(f"Loss{name}", [loss], x, Axis("loss"), kept)] if len(losses) > 1 else []
    lines, tones = [], dict[str, Tone](image="bad", pixel="good")
    for key, tone in tones.items():
        points = {e["epoch"] + 1: e[f"{key}_auroc"] for e in history if e.get(f"{key}_auroc") is not None}
        if len(points) > 1:
            lines.append(Line(f"{key} AUROC", list(points), list(points.values()), tone, dots=len(points) <= _FEW))
    if lines:
        charts.append(line_chart(f"Validation{name}", lines, x, Axis("AUROC", high=1.0), kept))
    return charts


def _losses(entry: Mapping[str, Any]) -> Iterator[tuple[int, float]]:
    """The number, from 1, and the loss of an epoch that was validated and of those before it that were not."""
    told = entry.get("losses") or [entry["loss"]]
    return zip(range(entry["epoch"] + 2 - len(told), entry["epoch"] + 2), told, strict=True)


def kept_number(history: Sequence[Mapping[str, Any]]) -> int:
    """The number, from 1, of the epoch whose weights were kept."""
    return kept_epoch([Epoch(**entry) for entry in history]).epoch + 1


def settings_section(detector: Detector) -> Section:
    """The recipe, what was changed in it, and the synthesis as it was carried out."""
    recipe = detector.recipe
    values = _flat(recipe.to_dict())
    known = detector.provenance
    mirrors = known.get("mirrors", ())
    images = known.get("tiles") or known.get("learned_from", 1) * (1 + len(mirrors))
    base = {}
    if recipe.name in RECIPES:
        base = _flat(named_recipe(recipe.name).scheduled(images, selected_on_test(detector), mirrors).to_dict())
    changed = {k: v for k, v in values.items() if (k not in base or base[k] != v) and k not in _UNTOLD}
    found = {k: v for k, v in changed.items() if k.startswith("synthesis.nsa.") or k.endswith(".background")}
    usual = {key: base.get(key, base.get(f"{key}.name")) for key in changed}
    rows = [(key, _shown(usual[key]), _shown(value)) for key, value in changed.items() if key not in found]
    pairs = [
        ("recipe", recipe.name),
        ("input", f"{recipe.size} × {recipe.size} pixels"),
        *(("backbone", f"{one.name}, taps {', '.join(map(str, one.taps))}") for one in recipe.backbones),
        ("flow", f"{recipe.flow.blocks} blocks, {recipe.flow.subnet} subnets of {recipe.flow.hidden} channels"),
        ("objective", f"{recipe.training.objective.replace('_', ' ')}, at most {recipe.training.epochs} epochs"),
        ("synthetic defects", recipe.synthesis.method),
        *((key, _shown(value)) for key, value in found.items()),
    ]
    told = f"Settings changed from the recipe {recipe.name}:" if rows else "No setting of the recipe was changed."
    return Section("Settings", told, pairs=pairs, columns=("setting", "recipe", "here") if rows else (), rows=rows)


def provenance_section(detector: Detector, prefix: str = "") -> Section:
    """Versions, weights and data: what would be needed to make the same detector again."""
    known = detector.provenance
    file = detector.weights_file
    return Section(
        f"{prefix}Provenance",
        pairs=[
            ("flawflow", _shown(known.get("flawflow"))),
            ("PyTorch, Python", f"{_shown(known.get('torch'))}, {_shown(known.get('python'))}"),
            ("fitted on", f"{_shown(known.get('machine'))}, {_shown(known.get('device'))}"),
            ("product", f"{_shown(known.get('category'))} ({_shown(known.get('layout'))} layout)"),
            ("good images", f"{_shown(known.get('learned_from'))} learned, {_shown(known.get('held_out'))} held out"),
            ("shots, seed", f"{known.get('shots') or 'all'}, {_shown(known.get('seed'))}"),
            ("epochs judged on", _shown(known.get("selected_on"))),
            ("images' fingerprint", _shown(known.get("images"))),
            ("weights", file.name if file else "the backbone's own"),
            *(("weights' sha256", branch.backbone.weights_hash) for branch in detector.branches),
        ],
    )


def machine() -> str:
    """The machine that the page's timings were taken on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()}, {os.cpu_count()} logical cores, {torch.get_num_threads()} threads"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names, as ``--set`` takes them."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value)

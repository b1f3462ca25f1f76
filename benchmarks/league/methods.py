"""Who plays: every method with its published settings, and who cannot, with the reason."""

from dataclasses import dataclass, field
from typing import Any, Literal

DEIT, RESNET, DENSENET = "deit_tiny_patch16_224", "resnet18", "densenet169"
# What a method that takes several levels of a network is given; of DeiT-Tiny the blocks that ours is tapped at.
_STAGES = {
    DEIT: ["blocks.3", "blocks.5"],
    RESNET: ["layer1", "layer2", "layer3"],
    DENSENET: ["features.denseblock1", "features.denseblock2", "features.denseblock3"],
}


@dataclass(frozen=True, slots=True)
class Method:
    """One line of the league.

    Attributes:
        name: as the table and the files call it.
        kind: ``ours``, ``baseline`` (one of `league.baselines`) or ``anomalib``, in an environment of its own.
        weights: timm names of the frozen networks that it can be given; empty = it needs none.
        size: side of its input in pixels; None = the league's.
        model: its class in the anomalib package.
        arguments: that class's, beside the backbone's name and layers.
        layers: by network, where it looks at several.
        epochs, batch: the published schedule.
        steps: of a schedule that counts these; its epochs then follow from the number of images. 0 = it counts epochs.
        note: how it departs from what was published.
    """

    name: str
    kind: Literal["ours", "baseline", "anomalib"]
    weights: tuple[str, ...] = ()
    size: int | None = None
    model: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    layers: dict[str, list[str]] = field(default_factory=dict)
    epochs: int = 1
    steps: int = 0
    batch: int = 32
    note: str = ""

    @property
    def clocked(self) -> bool:
        """Whether a clock can end its training: ours takes a recipe's few steps, and PaDiM one pass."""
        return self.kind != "ours" and self.model != "Padim"


METHODS = (
    Method("ours", "ours", (DEIT, RESNET, DENSENET), note="recipe `deit`, at the league's size"),
    Method("ours-deit", "ours", (DEIT,), 512, note="recipe `deit` as it comes"),
    Method("ours-default", "ours", (), 448, note="recipe `default` as it comes, on the embedded network"),
    Method("differnet", "baseline", (RESNET,), 448, note="ResNet-18 up to its third stage instead of AlexNet"),
    Method("cutpaste", "baseline", (), 256, note="three-way, from scratch; an epoch is 256 updates"),
    Method("nsa", "baseline", (), 256, note="logistic labels, from scratch"),
    Method(
        "patchcore",
        "anomalib",
        (RESNET, DENSENET, DEIT),
        model="Patchcore",
        arguments={"coreset_sampling_ratio": 0.1, "num_neighbors": 9},
        layers={network: stages[-2:] for network, stages in _STAGES.items()},
        note="published with WideResNet-50, here two levels of each network; in place of epochs, how many of the cells "
        "to remember its minutes chose",
    ),
    Method(
        "padim",
        "anomalib",
        (RESNET, DENSENET, DEIT),
        model="Padim",
        arguments={"n_features": 100},
        layers=_STAGES,
        note="100 of all channels on each network, as published for ResNet-18",
    ),
    Method("fastflow", "anomalib", (RESNET,), model="Fastflow", epochs=500),
    Method(
        "cflow",
        "anomalib",
        (RESNET, DENSENET),
        model="Cflow",
        # "features.norm5" is what follows the fourth dense block.
        layers={RESNET: _STAGES[RESNET], DENSENET: [*_STAGES[DENSENET][1:], "features.norm5"]},
        epochs=200,
        note="published with stages 2–4 of WideResNet-50; 1–3 of ResNet-18, since the weights file holds no fourth; "
        "25 × 8 passes",
    ),
    Method(
        "supersimplenet",
        "anomalib",
        (RESNET, DENSENET),
        model="Supersimplenet",
        layers={network: _STAGES[network][-2:] for network in (RESNET, DENSENET)},
        epochs=300,
        note="published with WideResNet-50",
    ),
    Method("uflow", "anomalib", (RESNET,), 448, model="Uflow", epochs=200, batch=10, note="the package fixes its size"),
    Method(
        "dinomaly",
        "anomalib",
        (DEIT,),
        model="Dinomaly",
        steps=5000,
        batch=16,
        note="published with DINOv2 ViT-B; its learning rate follows 5000 steps as published, for which the package "
        "takes epochs",
    ),
    Method(
        "draem",
        "anomalib",
        model="Draem",
        epochs=700,
        batch=8,
        note="its textures are the images of --textures",
    ),
)

# The package looks into token networks whose name holds "vit" alone; this is DeiT-Tiny's network by another name.
_ALIASES = {DEIT: "vit_tiny_patch16_224"}


def model_arguments(method: Method, network: str) -> dict[str, Any]:
    """What a method's class in the package is told, for one of its networks ("" = none)."""
    if not network:
        return method.arguments
    if method.model == "Dinomaly":
        return method.arguments | {"encoder_name": network}
    if not method.layers:
        return method.arguments | {"backbone": network}
    return method.arguments | {"backbone": _ALIASES.get(network, network), "layers": method.layers[network]}


CANNOT = {
    "CS-Flow": "its features are EfficientNet-B5's, whose 304 channels the package fixes; no such weights are at hand",
    "EfficientAD": "its student learns from a teacher distilled beforehand, whose weights are not at hand",
    "FastFlow and U-Flow on CaiT": "no CaiT weights are at hand",
    "FastFlow and U-Flow on DenseNet-169 and DeiT-Tiny": "the package builds them on networks of a list, not on these",
    "Dinomaly on DINOv2": "no DINOv2 weights are at hand",
}


def chosen(names: list[str] | None) -> list[Method]:
    """The methods of these names, in the order of the table; None = all.

    Raises ValueError for an unknown name.
    """
    known = {method.name: method for method in METHODS}
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise ValueError(f"unknown methods {', '.join(unknown)}: expected some of {', '.join(known)}")
    return [method for name, method in known.items() if names is None or name in names]

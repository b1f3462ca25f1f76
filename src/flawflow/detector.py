"""The detector: backbone, flow and the scores of held-out good parts, in one file; it inspects images."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from flawflow.ahead import ahead
from flawflow.artefact import first_line, read_artefact, write_artefact
from flawflow.backbones import COMPACT, Backbone, PackedBackbone, build_backbone, unpack_backbone
from flawflow.branch import Branch, grid_of, look
from flawflow.calibration import Budget, Decision, decide, p_value
from flawflow.errors import DetectorFileError, OptionError, WeightsError
from flawflow.exported import SUFFIXES
from flawflow.flow import Flow
from flawflow.images import resize_image
from flawflow.inspection import Calibration, Inspection
from flawflow.recipe import Recipe
from flawflow.reference import Reference
from flawflow.roi import Roi
from flawflow.scorer import Scorer
from flawflow.types import AnomalyMap, Image

__all__ = ["Calibration", "Detector", "DeviceName", "Inspection", "resolve_device"]

_GROUP = 8  # images at once, and as many read meanwhile
_BUNDLED = "backbone:"  # before the names of a bundle's tensors
_WEIGHTS = f"{_BUNDLED}weights."  # … those that a network and its smaller copy share
# Before the names of a branch's tensors, by its role.
_PREFIXES = {"first": "", "smaller": "smaller:", "beside": "beside:"}
_DRAWING = "drawing:"  # before the names of a drawing flow's tensors
DeviceName = Literal["auto", "cpu", "cuda"]


def resolve_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one. Raises OptionError for an unknown or absent device."""
    if name not in ("auto", "cpu", "cuda"):
        raise OptionError(f"unknown device '{name}': expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise OptionError("device cuda was asked for, but PyTorch finds none here: use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


class Detector:
    """A fitted detector.

    Args:
        recipe: every choice of the fit.
        branches: the frozen networks with their flows, one for each of the recipe's roles.
        calibration: scores of held-out good images.
        provenance: where it comes from, JSON values.
        weights_file: the file that the backbone's weights came from, if any; tried again when the detector is loaded.
        bundle: the detector's file carries the backbone: it needs neither timm nor a weights file.
        reference: statistics of held-out good images, to tell drift from; None = none are kept.
    """

    def __init__(
        self,
        recipe: Recipe,
        branches: Sequence[Branch],
        calibration: Calibration,
        provenance: Mapping[str, Any],
        weights_file: Path | None = None,
        bundle: bool = False,
        reference: Reference | None = None,
    ) -> None:
        self.recipe = recipe
        self.branches = tuple(branches)
        self.calibration = calibration
        self.provenance = dict(provenance)
        self.weights_file = weights_file
        self.bundle = bundle
        self.reference = reference

    @property
    def backbone(self) -> Backbone:
        """The first branch's network, which the recipe names."""
        return self.branches[0].backbone

    @property
    def flow(self) -> Flow:
        """The first branch's flow that scores."""
        return self.branches[0].flow

    @property
    def device(self) -> torch.device:
        """Where the flow and the backbone compute."""
        return next(self.flow.parameters(), torch.empty(0)).device

    def decision(self, budget: Budget | None = None) -> Decision:
        """The threshold of the image score, and what it promises; None = the detector's own budget."""
        return decide(self.calibration.image_scores, budget or self.calibration.budget)

    def outline(self, budget: Budget | None = None) -> Decision:
        """The threshold of the map: with the budget's rate at most, a good image has any place above it."""
        return decide(self.calibration.map_peaks, budget or self.calibration.budget)

    @property
    def scorer(self) -> Scorer:
        """How an image of any size is scored: resized whole, or in tiles."""

        def network(images: Sequence[Image]) -> Tensor:
            return look(self.branches, self.recipe, images, self.device)

        known = self.calibration
        return Scorer(self.recipe, grid_of(self.branches), known.level_limits, known.good_map, network)

    def cell_size(self, shape: tuple[int, int]) -> tuple[float, float]:
        """Height and width of a cell of the map, in pixels of an image of (height, width)."""
        return self.scorer.cell_size(shape)

    def inspect(
        self, images: Sequence[Image | Path] | Image | Path, budget: Budget | None = None, roi: Roi | None = None
    ) -> list[Inspection]:
        """Inspect one image or several, each an RGB array uint8 (H, W, 3) of any size or a file.

        The maps of all come back together (0.8 MB each at 448 pixels): of very many, give some at a time.

        Args:
            images: what to inspect.
            budget: the false-alarm budget of the verdicts; None = the detector's own.
            roi: regions to ignore, or to look at more or less closely; see `Roi.keeps_promise` for the verdicts.

        Raises:
            ImageError: a file cannot be read, an array is not an RGB image, or the regions do not fit an image;
                the message names the file.
        """
        if isinstance(images, Path | np.ndarray):
            images = [images]
        scorer, tiled = self.scorer, bool(self.recipe.tiling.side)

        def read(one: Image | Path) -> Image:
            image = scorer.read(one, roi) if isinstance(one, Path) else one
            return image if tiled or roi is not None else resize_image(image, self.recipe.size)

        # In groups, so that few images are held at a time; one that is cut into tiles, or is alone,
        # has nothing read beside it.
        coming = ahead(read, images, 0 if tiled or len(images) == 1 else _GROUP)
        step = 1 if tiled else _GROUP
        scored: list[tuple[float, AnomalyMap]] = []
        while group := list(islice(coming, step)):
            scored += scorer(group, roi)
        normals = np.asarray(self.calibration.image_scores)
        line = self.decision(budget).threshold
        return [Inspection(score, p_value(score, normals), score > line, one) for score, one in scored]

    def save(self, path: Path) -> None:
        """Write the detector to one file, whole or not at all. Raises OutputError where that cannot be done.

        A bundle that cannot carry its backbone raises OptionError.
        """
        backbones = [branch.backbone for branch in self.branches]
        header = {
            "recipe": json.dumps(self.recipe.to_dict()),
            "backbones": json.dumps(
                [{"sha256": one.weights_hash, "channels": one.channels, "grid": one.grid} for one in backbones]
            ),
            "weights_file": json.dumps(str(self.weights_file.resolve()) if self.weights_file else None),
            "calibration": json.dumps(asdict(self.calibration)),
            "provenance": json.dumps(self.provenance),
        }
        if self.reference is not None:
            header["reference"] = json.dumps(self.reference.to_dict())
        tensors: dict[str, Tensor] = {}
        for role, branch in zip(self.recipe.roles, self.branches, strict=True):
            prefix = _PREFIXES[role]
            for kind, flow in zip(("", _DRAWING), branch.flows, strict=False):
                tensors |= {
                    prefix + kind + name: one.detach().cpu().contiguous() for name, one in flow.state_dict().items()
                }
        if self.bundle:
            packed = [one.pack() for one in backbones]
            header["bundle"] = json.dumps([{"graph": one.graph, "norm": one.norm} for one in packed])
            for role, carried in zip(self.recipe.roles, packed, strict=True):
                named = {_BUNDLED + name: one for name, one in carried.tensors.items()}
                if role == "smaller":  # the same network as the first
                    named = {name: one for name, one in named.items() if not name.startswith(_WEIGHTS)}
                tensors |= {_PREFIXES[role] + name: one for name, one in named.items()}
        write_artefact(path, tensors, header)

    @staticmethod
    def load(path: Path, weights: Path | None = None, device: DeviceName = "auto") -> "Detector":
        """Read a detector file.

        Args:
            path: the file that `save` wrote.
            weights: the backbone's weights; None = the bundled ones, or where the fit found them.
            device: where to compute.

        Raises:
            DetectorFileError: the file is missing, truncated, foreign or of another version.
            WeightsError: the backbone's weights are missing or other ones than at the fit.
        """
        if path.suffix.lower() in SUFFIXES:
            raise DetectorFileError(
                f"{path} is an exported detector, which inspects only: name the .flaw file that it was exported from"
            )
        header, tensors = read_artefact(path)
        try:
            recipe = Recipe.from_dict(json.loads(header["recipe"]))
            about = json.loads(header["backbones"])
            calibration = json.loads(header["calibration"])
            provenance = dict(json.loads(header["provenance"]))
            weights_file = json.loads(header["weights_file"])
            if len(about) != len(recipe.backbones):
                raise ValueError(f"{len(about)} networks where the recipe names {len(recipe.backbones)}")
            parts = [_part(tensors, _PREFIXES[role]) for role in recipe.roles]
            if "smaller" in recipe.roles:
                parts[1] |= {name: one for name, one in parts[0].items() if name.startswith(_WEIGHTS)}
            flows = [
                _flows(recipe, one["channels"], tuple(one["grid"]), shown, part)
                for one, shown, part in zip(about, recipe.shown, parts, strict=True)
            ]
            hashes = [one["sha256"] for one in about]
            if weights_file is not None and not isinstance(weights_file, str):
                raise ValueError(f"a weights file named {weights_file!r}")
            known = Calibration.from_dict(calibration)
            if len(known.level_limits) not in (0, len(about)):
                raise ValueError(f"{len(known.level_limits)} limits of levels for {len(about)} networks")
            packed = _packed(header, parts)
            reference = Reference.from_dict(json.loads(header["reference"])) if "reference" in header else None
        except (KeyError, TypeError, ValueError, RuntimeError) as cause:
            raise DetectorFileError(
                f"{path} is a detector file with contents that do not fit together ({first_line(cause)}): "
                "fit the detector again"
            ) from cause
        file = weights
        if weights is None and packed is None and weights_file is not None:
            file = _remembered(weights_file, recipe.backbone.name)
        target = resolve_device(device)
        branches = []
        for number, (spec, pair, sha256) in enumerate(zip(recipe.backbones, flows, hashes, strict=True)):
            brought = recipe.weights_of(spec, file)
            if packed is not None and brought is None:
                backbone = unpack_backbone(spec, recipe.size, packed[number])
            else:
                backbone = build_backbone(spec, recipe.size, brought)
            _require_weights(path, backbone, sha256, brought)
            branches.append(Branch(backbone.to(target), *(flow.to(target) for flow in pair)))
        return Detector(recipe, branches, known, provenance, file, packed is not None, reference)


def _require_weights(path: Path, backbone: Backbone, sha256: str, file: Path | None) -> None:
    """Raises WeightsError where the backbone's weights are other ones than at the fit."""
    if backbone.weights_hash == sha256:
        return
    if backbone.spec.name == COMPACT and file is None:
        raise WeightsError(
            f"{path} was fitted with the embedded network of another version, which this one does not have: "
            "fit the detector again"
        )
    raise WeightsError(
        f"the weights of {backbone.spec.name} are not those that {path} was fitted with (sha256 "
        f"{backbone.weights_hash[:12]}… came, {sha256[:12]}… was expected): name the right file with --weights"
    )


def _flows(recipe: Recipe, channels: int, grid: tuple[int, int], shown: bool, part: Mapping[str, Tensor]) -> list[Flow]:
    """The flow that scores, and where the recipe has one the flow that draws, from a branch's tensors."""
    configs = {"": recipe.flow} | ({_DRAWING: recipe.drawing} if shown and recipe.drawing else {})
    flows = []
    for kind, config in configs.items():
        flow = Flow(channels, config, 0, grid, recipe.scoring.views)
        named = {name.removeprefix(kind): one for name, one in part.items() if name.startswith(kind)}
        others = (_BUNDLED, _DRAWING) if len(configs) > 1 and not kind else (_BUNDLED,)
        flow.load_state_dict({name: one for name, one in named.items() if not name.startswith(others)})
        flows.append(flow)
    return flows


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of one branch, under its own names."""
    others = tuple(one for one in _PREFIXES.values() if one and one != prefix)
    return {
        name.removeprefix(prefix): one
        for name, one in tensors.items()
        if name.startswith(prefix) and not name.startswith(others)
    }


def _packed(header: Mapping[str, str], parts: Sequence[Mapping[str, Tensor]]) -> list[PackedBackbone] | None:
    """The networks that a bundle carries, one for each branch; None where the file is none."""
    if "bundle" not in header:
        return None
    packed = []
    for about, part in zip(json.loads(header["bundle"]), parts, strict=True):
        mean, spread = about["norm"]
        bundled = {name.removeprefix(_BUNDLED): one for name, one in part.items() if name.startswith(_BUNDLED)}
        packed.append(PackedBackbone(bundled, about["graph"], (mean, spread)))
    return packed


def _remembered(file: str, name: str) -> Path:
    if not Path(file).is_file():
        raise WeightsError(
            f"the weights of {name} were at {file} when the detector was fitted, and are not there now: "
            "name the file with --weights"
        )
    return Path(file)

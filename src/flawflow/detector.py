"""The detector: backbone, flow and the scores of held-out good parts, in one file; it inspects images."""

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flawflow.ahead import ahead
from flawflow.artefact import first_line, read_artefact, write_artefact
from flawflow.backbones import COMPACT, Backbone, PackedBackbone, build_backbone, unpack_backbone
from flawflow.calibration import Budget, Decision, decide, p_value
from flawflow.errors import DetectorFileError, InputError, OptionError, WeightsError
from flawflow.exported import SUFFIXES
from flawflow.features import shifted, views
from flawflow.flow import Flow
from flawflow.images import resize_image
from flawflow.inspection import Calibration, Inspection
from flawflow.recipe import Recipe
from flawflow.reference import Reference
from flawflow.replay import Network, Replayed
from flawflow.roi import Roi
from flawflow.scorer import Scorer
from flawflow.scoring import enlarge, location_scores, smooth
from flawflow.types import AnomalyMap, Image
from flawflow.workers import at_once

__all__ = ["Calibration", "Detector", "DeviceName", "Inspection", "calibrate", "resolve_device", "score_images"]

_GROUP = 8  # images at once, and as many read meanwhile
_BUNDLED = "backbone:"  # before the names of a bundle's tensors
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
        backbone: the frozen network.
        flow: the trained flow.
        calibration: scores of held-out good images; None until they have been scored.
        provenance: where it comes from, JSON values.
        weights_file: the file that the backbone's weights came from, if any; tried again when the detector is loaded.
        bundle: the detector's file carries the backbone: it needs neither timm nor a weights file.
        reference: statistics of held-out good images, to tell drift from; None = none are kept.
    """

    def __init__(
        self,
        recipe: Recipe,
        backbone: Backbone,
        flow: Flow,
        calibration: Calibration,
        provenance: Mapping[str, Any],
        weights_file: Path | None = None,
        bundle: bool = False,
        reference: Reference | None = None,
    ) -> None:
        self.recipe = recipe
        self.backbone = backbone.eval()
        self.flow = flow.eval()
        self.calibration = calibration
        self.provenance = dict(provenance)
        self.weights_file = weights_file
        self.bundle = bundle
        self.reference = reference
        self._replayed = _replayed(self.backbone, self.flow)

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
        return Scorer(self.recipe, self.backbone.grid, self.calibration.level_limit, self.score_maps)

    def cell_size(self, shape: tuple[int, int]) -> tuple[float, float]:
        """Height and width of a cell of the map, in pixels of an image of (height, width)."""
        return self.scorer.cell_size(shape)

    def inspect(
        self, images: Sequence[Image | Path] | Image | Path, budget: Budget | None = None, roi: Roi | None = None
    ) -> list[Inspection]:
        """Inspect one image or several, each an RGB array uint8 (H, W, 3) of any size or a file.

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

        # In groups, so that memory does not grow with the number of images; one that is cut into tiles, or is alone,
        # has nothing read beside it.
        coming = ahead(read, images, 0 if tiled or len(images) == 1 else _GROUP)
        step = 1 if tiled else _GROUP
        scored: list[tuple[float, AnomalyMap]] = []
        while group := list(islice(coming, step)):
            scored += scorer(group, roi)
        normals = np.asarray(self.calibration.image_scores)
        line = self.decision(budget).threshold
        return [Inspection(score, p_value(score, normals), score > line, one) for score, one in scored]

    def score_maps(self, images: Sequence[Image]) -> Tensor:
        """Anomaly maps (B, size, size), float32 on the CPU, of images that already have the input size."""
        return score_images(self.backbone, self.flow, self.recipe, images, self.device, network=self._replayed)

    def image_scores(self, maps: Tensor) -> Tensor:
        """Image scores (B,) of anomaly maps (B, size, size), in the units of the map; higher = more anomalous."""
        return self.scorer.image_scores(maps)

    def save(self, path: Path) -> None:
        """Write the detector to one file, whole or not at all. Raises OutputError where that cannot be done.

        A bundle that cannot carry its backbone raises OptionError.
        """
        packed = self.backbone.pack() if self.bundle else None
        header = {
            "recipe": json.dumps(self.recipe.to_dict()),
            "backbone": json.dumps(
                {
                    "sha256": self.backbone.weights_hash,
                    "channels": self.backbone.channels,
                    "grid": self.backbone.grid,
                    "weights_file": str(self.weights_file.resolve()) if self.weights_file else None,
                }
            ),
            "calibration": json.dumps(asdict(self.calibration)),
            "provenance": json.dumps(self.provenance),
        }
        if self.reference is not None:
            header["reference"] = json.dumps(self.reference.to_dict())
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.flow.state_dict().items()}
        if packed is not None:
            header["bundle"] = json.dumps({"graph": packed.graph, "norm": packed.norm})
            tensors |= {_BUNDLED + name: value for name, value in packed.tensors.items()}
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
            about = json.loads(header["backbone"])
            calibration = json.loads(header["calibration"])
            provenance = dict(json.loads(header["provenance"]))
            sha256, weights_file = about["sha256"], about["weights_file"]
            flow = Flow(about["channels"], recipe.flow, 0, tuple(about["grid"]))
            flow.load_state_dict({name: one for name, one in tensors.items() if not name.startswith(_BUNDLED)})
            known = Calibration.from_dict(calibration)
            packed = _packed(header, tensors)
            reference = Reference.from_dict(json.loads(header["reference"])) if "reference" in header else None
        except (KeyError, TypeError, ValueError, RuntimeError) as cause:
            raise DetectorFileError(
                f"{path} is a detector file with contents that do not fit together ({first_line(cause)}): "
                "fit the detector again"
            ) from cause
        file = weights
        if packed is not None and weights is None:
            backbone = unpack_backbone(recipe.backbone, recipe.size, packed)
        else:
            file = weights or _remembered(weights_file, recipe.backbone.name)
            backbone = build_backbone(recipe.backbone, recipe.size, file)
        if backbone.weights_hash != sha256 and recipe.backbone.name == COMPACT and file is None:
            raise WeightsError(
                f"{path} was fitted with the embedded network of another version, which this one does not have: "
                "fit the detector again"
            )
        if backbone.weights_hash != sha256:
            raise WeightsError(
                f"the weights of {recipe.backbone.name} are not those that {path} was fitted with (sha256 "
                f"{backbone.weights_hash[:12]}… came, {sha256[:12]}… was expected): name the right file "
                "with --weights"
            )
        target = resolve_device(device)
        bundle = packed is not None
        return Detector(recipe, backbone.to(target), flow.to(target), known, provenance, file, bundle, reference)


def _replayed(backbone: Backbone, flow: Flow) -> Replayed:
    def latents(images: Tensor) -> tuple[Tensor, ...]:
        z, log_det = flow(backbone(images))
        return z, log_det

    def state() -> Hashable:
        made_of = flow.state()
        return None if made_of is None else (made_of, backbone.mean.data_ptr())

    return Replayed(latents, state)


@torch.inference_mode()
def score_images(
    backbone: Backbone,
    flow: Flow,
    recipe: Recipe,
    images: Sequence[Image],
    device: torch.device,
    latents: list[Tensor] | None = None,
    network: Network | None = None,
) -> Tensor:
    """Anomaly maps (B, size, size), float32 on the CPU: the mean over the recipe's views of the images.

    A view is the image shifted, with the edge repeated; its map is shifted back. The latents z (B, C, h, w) of each
    view are added to ``latents``, where given, which is for one image alone. ``network`` takes the place of backbone
    and flow, where given.

    On the CPU each image by itself, as many at once as PyTorch has threads: that is faster than the threads of one
    product are, and products of another shape round differently, where what an image scores must not depend on those
    that are inspected with it.
    """
    if device.type == "cpu" and len(images) > 1:
        return torch.cat(at_once(lambda one: score_images(backbone, flow, recipe, [one], device), images))
    batch = torch.from_numpy(np.stack(images)).to(device)
    seen = views(recipe.scoring.shift)
    total = torch.zeros(len(images), recipe.size, recipe.size, device=device)
    for dy, dx in seen:
        seen_so = shifted(batch, dy, dx)
        z, log_det = flow(backbone(seen_so)) if network is None else network(seen_so)
        if latents is not None:
            latents.append(z.float().cpu())
        maps = location_scores(z, log_det, recipe.scoring.score)
        if flow.memory is not None:
            maps = flow.memory(z, log_det, maps)
        maps = smooth(maps, recipe.scoring.sigma)
        total += shifted(enlarge(maps.float(), recipe.size), -dy, -dx)
    return (total / len(seen)).cpu()


def calibrate(
    backbone: Backbone,
    flow: Flow,
    recipe: Recipe,
    images: Iterable[Image],
    device: torch.device,
    level_limit: float | None = None,
    roi: Roi | None = None,
) -> Calibration:
    """Score held-out good images of any size, just as inspection will; one is held in memory at a time."""

    def network(batch: Sequence[Image]) -> Tensor:
        return score_images(backbone, flow, recipe, batch, device)

    scorer = Scorer(recipe, backbone.grid, level_limit, network)
    scores: list[float] = []
    peaks: list[float] = []
    values: list[NDArray[np.float32]] = []
    for image in images:
        [(score, found)] = scorer([image], roi)
        scores.append(score)
        peaks.append(float(np.nanmax(found)))
        values.append(found[::4, ::4][~np.isnan(found[::4, ::4])])
        del image  # or it would stay until the next one has been decoded
    if not scores:
        raise InputError("no good images to calibrate on: expected at least one")
    median, high = np.quantile(np.concatenate(values), (0.5, 0.999)).tolist()
    return Calibration(tuple(sorted(scores)), tuple(sorted(peaks)), median, high, level_limit)


def _packed(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> PackedBackbone | None:
    if "bundle" not in header:
        return None
    about = json.loads(header["bundle"])
    mean, spread = about["norm"]
    bundled = {name.removeprefix(_BUNDLED): one for name, one in tensors.items() if name.startswith(_BUNDLED)}
    return PackedBackbone(bundled, about["graph"], (mean, spread))


def _remembered(file: str | None, name: str) -> Path | None:
    if file is None:
        return None
    if not Path(file).is_file():
        raise WeightsError(
            f"the weights of {name} were at {file} when the detector was fitted, and are not there now: "
            "name the file with --weights"
        )
    return Path(file)

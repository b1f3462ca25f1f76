"""Images → feature maps in the store: what training and validation read. One of the files that know the order."""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from flawflow.ahead import ahead
from flawflow.backbones import Backbone
from flawflow.files import digest, size_text
from flawflow.images import MIRRORS, mirrored, read_image, resize_image
from flawflow.store import ArraySpec, FeatureStore, Layout, Shard, make_key
from flawflow.synthesis import SynthesisSettings, draw_synthetic
from flawflow.types import Image, Mask
from flawflow.workers import at_once

Seen = tuple[NDArray[np.float16], NDArray[np.uint8]]  # an image's features and coverage
Draw = Callable[[int], tuple[Image, NDArray[np.uint8]]]
LEARNED_IMAGES = "learned_images"  # in a detector's provenance: files it learned from, or test images it was chosen on
VALIDATION_IMAGES = "validation_images"  # … files it was validated on, and calibrated on at first
CALIBRATION_IMAGES = "calibration_images"  # … and files whose scores make its thresholds now
_WORKERS = 2
_BATCH = 16
_STORE_FORMAT = 3
_MARK = 16  # 64 bits: no two of a million files would be taken for one another


def shifted(images: Tensor, dy: int, dx: int) -> Tensor:
    """Pixel (y, x) of the result is pixel (y + dy, x + dx) of the images (B, H, W, …), which are mirrored beyond.

    An edge repeated would be streaks that no texture has. No shift is longer than an image less one pixel.
    """
    if not dy and not dx:
        return images
    for dim, by in ((1, dy), (2, dx)):  # whole slices: an index a pixel takes ten times as long
        length, lost = images.shape[dim], min(abs(by), images.shape[dim] - 1)
        if lost:
            kept = images.narrow(dim, lost if by > 0 else 0, length - lost)
            mirrored = images.narrow(dim, length - 1 - lost if by > 0 else 1, lost).flip(dim)
            images = torch.cat([kept, mirrored] if by > 0 else [mirrored, kept], dim)
    return images


def posed(images: Tensor, pose: str) -> Tensor:
    """Images or maps (B, H, W, …) as one of `images.MIRRORS` shows them; ``none`` = as they are. Its own inverse."""
    return images if pose == "none" else images.flip([axis + 1 for axis in MIRRORS[pose]])


class ImageSource:
    """Image files by index, decoded and resized on demand; the latest ``keep`` stay in memory.

    Attributes:
        mirrors: which of `images.MIRRORS` of each file follow it, as images of their own.
        owners: for each index the file that it comes from, ascending.
    """

    def __init__(self, paths: Sequence[Path], size: int, keep: int = 512, mirrors: Sequence[str] = ()) -> None:
        self.paths, self.mirrors = tuple(paths), tuple(mirrors)
        self.owners = np.repeat(np.arange(len(self.paths)), 1 + len(self.mirrors))
        self.size = size
        self._keep = keep
        self._cache: OrderedDict[int, Image] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self.owners)

    def __call__(self, index: int) -> Image:
        file, turn = divmod(index, 1 + len(self.mirrors))
        image = self._read(file)
        return mirrored(image, self.mirrors[turn - 1]) if turn else image

    def _read(self, index: int) -> Image:
        with self._lock:
            if index in self._cache:
                self._cache.move_to_end(index)
                return self._cache[index]
        image = resize_image(read_image(self.paths[index]), self.size)
        with self._lock:
            self._cache[index] = image
            while len(self._cache) > self._keep:
                self._cache.popitem(last=False)
        return image

    def digests(self) -> list[str]:
        """SHA-256 of each file's bytes."""
        with ThreadPoolExecutor(_WORKERS) as pool:
            return list(pool.map(digest, self.paths))

    def about(self) -> dict[str, Any]:
        """What else, beside the files, tells the images of this source from others; JSON values."""
        return {"mirrors": list(self.mirrors)} if self.mirrors else {}


def known_marks(provenance: Mapping[str, Any], *kinds: str) -> set[str]:
    """The marks of `known_again` that a detector's provenance keeps under these names; all names without any."""
    names = kinds or (LEARNED_IMAGES, VALIDATION_IMAGES, CALIBRATION_IMAGES)
    return {mark for name in names for mark in provenance.get(name, ())}


def known_again(digests: Sequence[str]) -> list[str]:
    """The first digits of files' SHA-256: what a detector's provenance keeps, to know the files again."""
    return [digest[:_MARK] for digest in digests]


@dataclass(frozen=True, slots=True)
class FeatureSet:
    """Feature maps of good images and of their synthetic twins, half precision, memory-mapped.

    Attributes:
        normal: one array (N, C, h, w) a version; a single one where the versions do not differ.
        synthetic: one array (N, C, h, w) a version; none for a fit without synthetic defects.
        coverage: one uint8 array (N, h, w) a version: which share of a cell's pixels the defect changed, 255 = all.
            A row of zeros is an image that the synthesis left unchanged, and is never used as a defect.
    """

    normal: tuple[NDArray[np.float16], ...]
    synthetic: tuple[NDArray[np.float16], ...] = ()
    coverage: tuple[NDArray[np.uint8], ...] = ()


def grid_coverage(mask: Mask, grid: tuple[int, int]) -> NDArray[np.uint8]:
    """Share of True pixels in each cell of the grid, (h, w), 255 = all of them."""
    tensor = torch.from_numpy(mask.astype(np.float32))[None, None]
    share = torch.nn.functional.adaptive_avg_pool2d(tensor, grid)[0, 0]
    # Rounded up, so that a defect of a few pixels does not look like an unchanged image.
    rounded: NDArray[np.uint8] = np.ceil(share.numpy() * 255).astype(np.uint8)
    return rounded


@dataclass(frozen=True, slots=True)
class FeatureJob:
    """One set of good images and everything that its features depend on.

    Versions take turns through the views of ``shift``, so that the flow learns what inspection will show it.
    """

    source: ImageSource
    backbone: Backbone
    synthesis: SynthesisSettings
    seed: int
    device: torch.device
    shift: float = 0.0

    def _plan(self, versions: int, with_synthetic: bool) -> list[tuple[str, str, int]]:
        """(key, kind, version) of every shard."""
        base: dict[str, Any] = {
            "format": _STORE_FORMAT,
            "images": self.source.digests(),
            "size": self.source.size,
            "backbone": asdict(self.backbone.spec),
            "weights": self.backbone.weights_hash,
            "shift": self.backbone.views(self.shift)[-1][0],
        } | self.source.about()
        drawn = base | {"synthesis": asdict(self.synthesis), "seed": self.seed}
        plan = []
        if self.synthesis.sharpness > 0:
            plan += [(make_key(drawn | {"kind": "normal", "version": v}), "normal", v) for v in range(versions)]
        else:
            different = range(len(self.backbone.views(self.shift)))  # all that inspection will look through
            plan += [(make_key(base | {"kind": "plain", "version": v}), "normal", v) for v in different]
        if with_synthetic:
            plan += [(make_key(drawn | {"kind": "synthetic", "version": v}), "synthetic", v) for v in range(versions)]
        return plan

    def _layout(self, kind: str) -> Layout:
        count, (height, width) = len(self.source), self.backbone.grid
        layout = {"features": ArraySpec((count, self.backbone.channels, height, width), "float16")}
        if kind == "synthetic":
            layout["coverage"] = ArraySpec((count, height, width), "uint8")
        return layout

    def _draw(self, index: int, kind: str, version: int) -> tuple[Image, NDArray[np.uint8]]:
        """The image whose features are wanted, and the coverage of its defect."""
        image, mask = self._pair(index, kind, version)
        choices = self.backbone.views(self.shift)
        dy, dx = choices[version % len(choices)]
        image = shifted(torch.tensor(image)[None], dy, dx)[0].numpy()
        if mask is None:
            return image, np.zeros(self.backbone.grid, np.uint8)
        return image, grid_coverage(shifted(torch.tensor(mask)[None], dy, dx)[0].numpy(), self.backbone.grid)

    def _pair(self, index: int, kind: str, version: int) -> tuple[Image, Mask | None]:
        if kind == "normal" and self.synthesis.sharpness == 0:
            return self.source(index), None
        drawn = draw_synthetic(self.source, len(self.source), index, version, self.seed, self.synthesis)
        if drawn is None:
            return self.source(index), None
        return (drawn.normal, None) if kind == "normal" else (drawn.defective, drawn.mask)

    def _rows(self, kind: str, version: int, start: int, bar: "tqdm[Any]") -> Iterator[dict[str, NDArray[Any]]]:
        seen = self._on_processor if self.device.type == "cpu" else self._on_gpu
        for features, coverage in seen(range(start, len(self.source)), lambda index: self._draw(index, kind, version)):
            yield {"features": features, "coverage": coverage}
            bar.update()

    def _on_processor(self, indices: range, draw: Draw) -> Iterator[Seen]:
        """Drawing and the network take the same cores: a thread does both for an image, and waits for no other."""

        def see(index: int) -> Seen:
            image, coverage = draw(index)
            return extract(self.backbone, [image], self.device)[0], coverage

        for first in range(0, len(indices), _BATCH):
            yield from at_once(see, indices[first : first + _BATCH])

    def _on_gpu(self, indices: range, draw: Draw) -> Iterator[Seen]:
        coming = ahead(draw, indices, 2 * _BATCH, os.cpu_count() or 1)  # a GPU waits for all that draw
        while drawn := list(islice(coming, _BATCH)):
            images, coverages = zip(*drawn, strict=True)
            yield from zip(extract(self.backbone, images, self.device), coverages, strict=True)

    def build(
        self, store: FeatureStore, versions: int, with_synthetic: bool, say: Callable[[str], None] | None
    ) -> FeatureSet:
        """The features, from the store where it has them; ``say`` gets the estimate, None = silently.

        Raises:
            InputError: an image cannot be read.
            OutputError: the store cannot be written.
        """
        plan = self._plan(versions, with_synthetic)
        missing = [kind for key, kind, _ in plan if not store.has(key)]
        if missing and say:
            need, whole = (
                sum(spec.bytes for kind in kinds for spec in self._layout(kind).values())
                for kinds in (missing, [kind for _, kind, _ in plan])
            )
            say(f"features: {len(missing)} × {len(self.source)} maps to compute, {size_text(need)} in {store.root}")
            if whole > store.limit:
                say(
                    f"all of them take {size_text(whole)}, more than --store-limit keeps ({size_text(store.limit)}): "
                    "the next fit will compute them again"
                )
        shards: dict[tuple[str, int], Shard] = {}
        total = len(missing) * len(self.source)
        with tqdm(total=total, desc="features", unit="image", disable=say is None or not missing) as bar:
            for key, kind, version in plan:

                def rows(start: int, kind: str = kind, version: int = version) -> Iterator[dict[str, NDArray[Any]]]:
                    bar.update(start)
                    return self._rows(kind, version, start, bar)

                shards[kind, version] = store.shard(key, self._layout(kind), rows)
        normal = [shard["features"] for (kind, _), shard in shards.items() if kind == "normal"]
        synthetic = [shard for (kind, _), shard in shards.items() if kind == "synthetic"]
        return FeatureSet(
            tuple(normal),
            tuple(shard["features"] for shard in synthetic),
            tuple(shard["coverage"] for shard in synthetic),
        )


@torch.inference_mode()
def extract(backbone: Backbone, images: Sequence[Image], device: torch.device) -> NDArray[np.float16]:
    """Feature maps (B, C, h, w) in half precision of images that have the backbone's input size."""
    batch = torch.from_numpy(np.stack(images)).to(device)
    features = backbone(batch)
    # Half precision ends at 65504; a network whose features go further would otherwise store infinities.
    maps: NDArray[np.float16] = features.clamp(-65504, 65504).to(torch.float16).cpu().numpy()
    return maps

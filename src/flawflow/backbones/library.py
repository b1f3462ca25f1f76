"""What weights there are: the embedded ones, and a choice of timm's with their sizes and licences."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from flawflow.backbones.backbone import build_backbone, default_spec
from flawflow.backbones.compact import LICENCE, CompactNetwork, embedded_file
from flawflow.backbones.spec import COMPACT, FILTERS
from flawflow.backbones.weights import cached_file, fetch_tensors, read_tensors
from flawflow.errors import OptionError, WeightsError
from flawflow.files import atomic_path, digest

# Networks that suit flawflow, small to large; any other timm name can be fetched and used as well.
CHOICE = (
    "deit_tiny_patch16_224",
    "resnet18",
    "densenet169",
    "vit_small_patch14_dinov2",
    "wide_resnet50_2",
    "cait_s24_224",
    "cait_m48_448",
)
_SIDE = 224  # any that every network takes


@dataclass(frozen=True, slots=True)
class KnownWeights:
    """Weights that a backbone name stands for.

    Attributes:
        name: the backbone.
        parameters: of the whole network.
        licence: SPDX identifier, or "unknown".
        file: where they lie on this machine; None = to be fetched.
        sha256: of that file.
    """

    name: str
    parameters: int
    licence: str
    file: Path | None
    sha256: str | None

    @property
    def megabytes(self) -> float:
        """Size of the file, or of one in single precision where there is none."""
        return self.file.stat().st_size / 1e6 if self.file else self.parameters * 4 / 1e6


def known_weights() -> list[KnownWeights]:
    """The embedded weights, and the choice of timm's where timm is installed. Touches no network."""
    file = embedded_file()
    count = sum(weight.numel() for weight in CompactNetwork().parameters())
    known = [KnownWeights(COMPACT, count, LICENCE, file, digest(file))]
    return known + [_known(name) for name in CHOICE]


def _known(name: str) -> KnownWeights:
    import timm

    from flawflow.backbones.timm_models import make_network

    config: Any = timm.get_pretrained_cfg(name)
    about: dict[str, Any] = config.to_dict()
    count = sum(weight.numel() for weight in make_network(name, None, "meta").parameters())
    file = cached_file(about)
    return KnownWeights(name, count, about.get("license") or "unknown", file, digest(file) if file else None)


def fetch_weights(name: str, folder: Path) -> Path:
    """Get a timm network's pretrained weights, from its cache or over the network, as one safetensors file.

    Beside ``<name>.safetensors`` lies ``<name>.safetensors.sha256``, as `sha256sum` writes and checks it.

    Raises:
        OptionError: unknown name, or one that comes with the package.
        WeightsError: timm has none, or they cannot be reached; the message names the file to bring.
        OutputError: the folder cannot be written to.
    """
    if name in (COMPACT, FILTERS):
        raise OptionError(f"the {name} backbone comes with the package: there is nothing to fetch")
    default_spec(name)  # an unknown name fails here
    tensors = {key: tensor.contiguous() for key, tensor in fetch_tensors(name).items()}
    target = folder / f"{name}.safetensors"
    with atomic_path(target) as temporary:
        save_file(tensors, temporary)
    with atomic_path(_sidecar(target)) as temporary:
        temporary.write_text(f"{digest(target)}  {target.name}\n")
    return target


def verify_weights(file: Path, name: str | None = None, sha256: str | None = None) -> Mapping[str, str | int]:
    """Whether a weights file is whole, the one expected, and fits a backbone.

    Args:
        file: safetensors file or plain tensor state dict.
        name: the backbone that it should fit at its default taps; None = not asked.
        sha256: what the file's should be; None = what the ``.sha256`` file beside it says, if there is one.

    Returns:
        tensors, parameters, sha256, "expected" (where that came from) and "fits" (name and taps).

    Raises:
        WeightsError: the file is damaged, another one, or of another network.
    """
    tensors: dict[str, Tensor] = read_tensors(file)
    found = digest(file)
    expected, origin = (sha256, "--sha256") if sha256 else _noted(file)
    if expected is not None and expected.lower() != found:
        raise WeightsError(
            f"{file} has the sha256 {found}, but {origin} says {expected}: it is damaged or another file; get it again"
        )
    fits = "not asked"
    if name is not None:
        spec = default_spec(name)
        build_backbone(spec, _SIDE, file)
        fits = f"{name} at taps {', '.join(map(str, spec.taps))}"
    count = sum(tensor.numel() for tensor in tensors.values() if tensor.dtype != torch.int64)
    return {
        "tensors": len(tensors),
        "parameters": count,
        "sha256": found,
        "expected": origin if expected else "nothing to compare with",
        "fits": fits,
    }


def _sidecar(file: Path) -> Path:
    return file.with_name(file.name + ".sha256")


def _noted(file: Path) -> tuple[str | None, str]:
    note = _sidecar(file)
    if not note.is_file():
        return None, ""
    words = note.read_text(errors="replace").split()
    if not words or len(words[0]) != 64:
        raise WeightsError(f"{note} holds no sha256: expected 64 hexadecimal digits and the file's name")
    return words[0], str(note)

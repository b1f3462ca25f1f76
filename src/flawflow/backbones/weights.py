"""Where a backbone's weights come from: a file, or timm's hub; and what identifies them."""

import hashlib
import socket
import ssl
import struct
import sys
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.parse import urlsplit

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from flawflow.errors import WeightsError

HUB_FILE = "model.safetensors"
PROBE_SECONDS = 5.0
# Batch norm counts its training steps under this name; a frozen network never reads it.
UNUSED = "num_batches_tracked"
# What the two readers raise for bytes that are no weights file.
_UNREADABLE = (
    *(SafetensorError, UnpicklingError, struct.error, EOFError, RuntimeError, ValueError, LookupError),
    *(TypeError, AttributeError, AssertionError, OverflowError),
)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a safetensors file or a plain tensor state dict, on the CPU.

    A state dict may lie under ``"state_dict"`` or ``"model"``; the name prefixes ``"module."`` and
    ``"backbone."`` are taken off. torch files are read with ``weights_only=True``: no code in them runs.

    Raises:
        WeightsError: no such file, truncated, or not a weights file.
    """
    try:
        with path.open("rb") as file:
            head = file.read(9)
        # safetensors: eight bytes of header length, then JSON
        content = load_file(path) if head[8:9] == b"{" else _read_torch(path)
    except OSError as error:
        raise WeightsError(f"cannot read the weights file {path}: {error.strerror or error}") from error
    except _UNREADABLE as error:
        # torch would advise to load it in a way that runs the code in it.
        told = "no tensors as torch saves them" if isinstance(error, UnpicklingError) else _first_line(error)
        raise WeightsError(
            f"{path} is truncated or not a weights file ({told}): expected a safetensors file "
            "or a state dict of plain tensors saved by torch"
        ) from error
    return _named_tensors(content, path)


def _read_torch(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about odd pickle protocols, where an error follows
        return torch.load(path, map_location="cpu", weights_only=True)


def _named_tensors(content: Any, path: Path) -> dict[str, Tensor]:
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = content if isinstance(content, Mapping) else {}
    named = {
        str(name).removeprefix("module.").removeprefix("backbone."): tensor
        for name, tensor in tensors.items()
        if isinstance(tensor, Tensor)
    }
    if not named:
        raise WeightsError(f"{path} holds no named tensors: expected the state dict of a timm model")
    return named


def pick_tensors(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], resizable: Iterable[str], source: str
) -> dict[str, Tensor]:
    """The tensors that a network needs, in its own number type.

    Args:
        tensors: what there is.
        wanted: the network's state dict; shapes and types count, values do not.
        resizable: names whose shape may differ in the next to last dimension.
        source: what the tensors are, for messages, e.g. ``"resnet18.safetensors"``.

    Raises:
        WeightsError: a tensor is missing or has another shape; the first few are named and all counted.
    """
    needed = {name: tensor for name, tensor in wanted.items() if not name.endswith(UNUSED)}
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise WeightsError(
            f"{source} lacks {len(missing)} of the {len(needed)} tensors that are needed: {_few(missing)}. "
            "Bring the complete weights of this model under timm's names, or tap it earlier."
        )
    misfits = [
        f"{name} is {_shape(tensors[name])} instead of {_shape(tensor)}"
        for name, tensor in needed.items()
        if not _fits(tensors[name], tensor, name in resizable)
    ]
    if misfits:
        raise WeightsError(
            f"{source} belongs to another network: {len(misfits)} of {len(needed)} tensors have another "
            f"shape: {_few(misfits)}"
        )
    return {name: tensors[name].to(tensor.dtype).contiguous() for name, tensor in needed.items()}


def _fits(given: Tensor, wanted: Tensor, resizable: bool) -> bool:
    if resizable and given.ndim == wanted.ndim == 3:
        return given.shape[0] == wanted.shape[0] and given.shape[2] == wanted.shape[2]
    return given.shape == wanted.shape


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """sha256 (hex) over names, types, shapes and values: the same whichever file they came in."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name].detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def fetch_tensors(name: str) -> dict[str, Tensor]:
    """Pretrained tensors of a timm model, from its cache or over the network; says so on stderr.

    Raises:
        WeightsError: timm has none, or they cannot be reached; the message names the file to bring.
    """
    import timm
    from huggingface_hub.errors import HfHubHTTPError

    known: Any = timm.get_pretrained_cfg(name)
    config: dict[str, Any] = known.to_dict()
    cached = cached_file(config)
    if cached is None:
        print(f"fetching weights of {name} from timm's hub", file=sys.stderr)
        _require_hub(name, config)
    overlay = None if cached is None else {"file": str(cached)}
    # The hub's client raises its transport's errors too, which share a base with its own.
    unreachable: Any = (OSError, RuntimeError, ValueError, SafetensorError, *HfHubHTTPError.__bases__)
    try:
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
    except unreachable as error:
        raise WeightsError(f"{_first_line(error)}. {_remedy(name, config)}") from error
    state: dict[str, Tensor] = model.state_dict()
    return state


def cached_file(config: Mapping[str, Any]) -> Path | None:
    """Where the file that a timm configuration names lies on this machine, if it does."""
    from huggingface_hub import try_to_load_from_cache

    hub_id, url = config.get("hf_hub_id"), config.get("url")
    if hub_id:
        found = try_to_load_from_cache(hub_id, config.get("hf_hub_filename") or HUB_FILE)
        return Path(found) if isinstance(found, str) else None
    path = Path(torch.hub.get_dir(), "checkpoints", Path(urlsplit(url or "").path).name)
    return path if url and path.is_file() else None


def _require_hub(name: str, config: Mapping[str, Any]) -> None:
    # The hub's own client retries for most of a minute before it gives up.
    from huggingface_hub import constants

    hub_id, url = config.get("hf_hub_id"), config.get("url")
    if not hub_id and not url:
        raise WeightsError(f"timm has no pretrained weights for {name}: bring a file and pass --weights FILE")
    if hub_id and constants.HF_HUB_OFFLINE:
        raise WeightsError(f"HF_HUB_OFFLINE is set. {_remedy(name, config)}")
    address = constants.ENDPOINT if hub_id else url
    request = urllib.request.Request(str(address), method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()  # an answer, whichever
    except OSError as error:
        reason = getattr(error, "reason", error)
        # Certificates: the hub's client may know others than urllib does.
        if not isinstance(reason, ssl.SSLError):
            host = urlsplit(str(address)).hostname
            raise WeightsError(f"cannot reach {host} ({_cause(reason)}). {_remedy(name, config)}") from error


def _cause(reason: object) -> str:
    if isinstance(reason, TimeoutError | socket.gaierror):
        return "no network"
    return str(getattr(reason, "strerror", None) or reason)


def _remedy(name: str, config: Mapping[str, Any]) -> str:
    hub_id, url = config.get("hf_hub_id"), config.get("url")
    if hub_id:
        file = config.get("hf_hub_filename") or HUB_FILE
        command = f"hf download {hub_id} {file} --local-dir ."
    else:
        file = Path(urlsplit(str(url)).path).name
        command = f"curl -LO {url}"
    return (
        f"The weights of {name} are the file {file}: get it on a machine with network by `{command}`, "
        f"then pass it here: `--weights {file}`"
    )


def _few(items: list[str]) -> str:
    return ", ".join(items[:3]) + (", …" if len(items) > 3 else "")


def _shape(tensor: Tensor) -> str:
    return "×".join(str(side) for side in tensor.shape) or "a scalar"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")

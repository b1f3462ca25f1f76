"""The detector's one file: safetensors, with JSON texts in its header. What is in them is the detector's business."""

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from flawflow.errors import DetectorFileError
from flawflow.files import atomic_write

FORMAT = "flawflow detector"
FORMAT_VERSION = 9
_SUM = "sha256"  # in the header, of all the rest


def write_artefact(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write tensors and texts, whole or not at all; equal contents are equal bytes. Raises OutputError."""
    atomic_write(path, artefact_bytes(tensors, {"format": FORMAT, "version": str(FORMAT_VERSION), **header}))


def artefact_bytes(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> bytes:
    """The safetensors file with a sum of itself, its header sorted: equal detectors are then equal bytes."""
    data = save({name: value.clone() for name, value in tensors.items()}, dict(header))
    end = 8 + struct.unpack("<Q", data[:8])[0]
    parts = json.loads(data[8:end])
    parts["__metadata__"][_SUM] = _sum(parts, data[end:])
    text = _sorted(parts)
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[end:]


def _sorted(parts: Mapping[str, Any]) -> bytes:
    return json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()


def _sum(parts: Mapping[str, Any], tensors: bytes) -> str:
    """SHA-256 of a safetensors file's header and tensors, but for the sum itself."""
    texts = {name: text for name, text in parts["__metadata__"].items() if name != _SUM}
    found = hashlib.sha256(_sorted({**parts, "__metadata__": texts}))
    found.update(tensors)
    return found.hexdigest()


def read_artefact(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The header's texts and the tensors.

    Raises:
        DetectorFileError: the file is missing, truncated, damaged, foreign or of another version.
    """
    try:
        data = path.read_bytes()
    except OSError as cause:
        raise DetectorFileError(
            f"the detector file {path} cannot be read ({cause.strerror}): name a file that 'flawflow fit' wrote"
        ) from cause
    try:
        tensors = load(data)
        length = struct.unpack("<Q", data[:8])[0]
        parts = json.loads(data[8 : 8 + length])
        header = parts.get("__metadata__", {})
    except (SafetensorError, ValueError, struct.error) as cause:
        raise DetectorFileError(
            f"{path} is not a whole detector file ({len(data)} bytes, {first_line(cause)}): it is truncated or of "
            "another kind; copy it again or fit the detector again"
        ) from cause
    if header.get("format") != FORMAT:
        raise DetectorFileError(
            f"{path} is a safetensors file, but not a detector: name a file that 'flawflow fit' wrote"
        )
    if header.get("version") != str(FORMAT_VERSION):
        raise DetectorFileError(
            f"{path} is a detector file of version {header.get('version')}, this flawflow reads version "
            f"{FORMAT_VERSION}: use the flawflow that wrote it, or fit the detector again"
        )
    if header.pop(_SUM, None) != _sum(parts, data[8 + length :]):
        raise DetectorFileError(
            f"{path} is damaged: its bytes are not those that were written; copy it again or fit the detector again"
        )
    return header, tensors


def first_line(cause: BaseException) -> str:
    """The first line of what an error says, or its name."""
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0]

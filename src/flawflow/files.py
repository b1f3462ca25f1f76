"""Files and folders: whole or not at all, and an error that names the path and the cause."""

import errno
import fcntl
import hashlib
import json
import os
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from flawflow.errors import DatasetError, InputError, OutputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")

_DENIED = "permission denied; choose another place or change its permissions"
_FULL = "the disk is full; free some space or choose another disk"
_CAUSES = {
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "the file would be larger than this file system allows; choose another disk",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.EISDIR: "it is a folder; give the name of a file",
    errno.ENOTDIR: "a part of its path is a file, not a folder; choose another place",
    errno.EEXIST: "a file of that name is in the way; choose another name",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}


def write_error(path: Path, error: OSError) -> OutputError:
    """The one sentence for a failed write: the path, the cause, what to do."""
    cause = _CAUSES.get(error.errno or 0) or error.strerror or str(error)
    return OutputError(f"cannot write {path}: {cause}")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a hidden name beside ``path`` to write to; it becomes ``path`` when the block succeeds.

    The file is flushed to the disk and renamed, so ``path`` holds the old content or the whole new one,
    whenever the process is stopped. When the block fails, the temporary file is removed and ``path`` is
    untouched. Missing parent folders are created, so that no result is lost for the want of one. A
    symbolic link is followed; the temporary name keeps the suffix, which some writers look at.

    Raises:
        OutputError: ``path`` is a folder or a device, is read-only, or the system refuses the write.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".flawflow-{secrets.token_hex(6)}{target.suffix[:16]}")
    try:
        _check_target(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        temporary.replace(target)
    except OutputError:
        raise
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        _remove(temporary)
    # Some file systems cannot flush a folder; by now the rename has succeeded, which is what was promised.
    with suppress(OSError):
        _flush(target.parent)


def atomic_write(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all; a pipe or a device is written to directly.

    Raises:
        OutputError: the system refuses the write; ``path`` then still holds what it held before.
    """
    try:
        if _is_device(path):
            path.write_bytes(data)
            return
    except OSError as error:
        raise write_error(path, error) from error
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def held_alone(path: Path, refusal: str) -> Iterator[None]:
    """Hold ``path`` for this process alone while the block runs, by a lock file beside it that goes with the block.

    Args:
        path: need not exist; it may be replaced meanwhile.
        refusal: the sentence of the error, where another process holds it.

    Raises:
        InputError: another process holds it.
        OutputError: the lock file cannot be written.
    """
    target = Path(os.path.realpath(path))
    lock = target.with_name(f".{target.name}.lock")
    try:
        descriptor = _locked(lock)
    except BlockingIOError as error:
        raise InputError(refusal) from error
    except OSError as error:
        raise write_error(lock, error) from error
    try:
        yield
    finally:
        _remove(lock)  # before it is let go: whoever has opened it meanwhile sees that it is another one
        os.close(descriptor)


def _locked(lock: Path) -> int:
    """A descriptor that holds the lock of the file that now has this name. Raises BlockingIOError."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), lock.stat()):
                return descriptor
        except FileNotFoundError:  # removed just now
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def write_json(path: Path, values: Any) -> None:
    """Write JSON, whole or not at all. Raises OutputError."""
    atomic_write(path, (json.dumps(values, indent=1) + "\n").encode())


def writable_folder(path: Path, wanted: Path | None = None) -> Path:
    """Create the folder with its parents where absent, make sure that files can be written, return it.

    Raises:
        OutputError: the folder cannot be created or written to; names what is ``wanted`` there, if that is said.
    """
    probe = path / f".flawflow-{secrets.token_hex(6)}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
    except OSError as error:
        raise write_error(wanted or path, error) from error
    finally:
        _remove(probe)
    return path


def digest(path: Path) -> str:
    """The SHA-256 of the file's bytes in 64 hexadecimal digits.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def size_text(count: float) -> str:
    """Bytes in words: ``12 kB``, ``3.4 MB``, ``1.2 GB``."""
    if count < 1e6:
        return f"{count / 1e3:.0f} kB"
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def first_copies(paths: Sequence[Path]) -> list[int]:
    """Which of the files to keep so that none is a copy of another, byte for byte: the first of each, in order.

    Raises:
        InputError: a file cannot be read.
    """
    try:
        sizes = [path.stat().st_size for path in paths]
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror or error}") from error
    often = Counter(sizes)
    # Only files of one size can be copies; the others need not be read.
    marks = [digest(path) if often[size] > 1 else str(size) for path, size in zip(paths, sizes, strict=True)]
    return sorted({mark: i for i, mark in reversed(list(enumerate(marks)))}.values())


def list_images(folder: Path, *, recursive: bool = False) -> tuple[Path, ...]:
    """The image files of a folder by their extension (``IMAGE_SUFFIXES``, any case), sorted by path.

    Hidden files are left out, and so is what lies in hidden folders below ``folder``. The result is
    empty where there are no images.

    Raises:
        DatasetError: the folder does not exist, is a file, or cannot be listed.
    """
    try:
        if not folder.is_dir():
            state = "is a file" if folder.exists() else "does not exist"
            raise DatasetError(f"{folder} {state}; expected a folder of images ({', '.join(IMAGE_SUFFIXES)})")
        if not os.access(folder, os.R_OK | os.X_OK):  # what is below a folder is found silently, as far as it shows
            raise DatasetError(f"cannot list {folder}: permission denied; change its permissions")
        entries = list(folder.rglob("*") if recursive else folder.iterdir())
        return tuple(sorted(entry for entry in entries if _is_visible_image(entry, folder)))
    except OSError as error:
        raise DatasetError(f"cannot list {folder}: {error.strerror or error}") from error


def _is_visible_image(entry: Path, folder: Path) -> bool:
    if entry.suffix.lower() not in IMAGE_SUFFIXES:
        return False
    if any(part.startswith(".") for part in entry.relative_to(folder).parts):
        return False
    return entry.is_file()


def _check_target(target: Path) -> None:
    """Refuse what a rename would silently replace: a folder, a device, a write-protected file."""
    if target.is_dir():
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if _is_device(target):
        raise OutputError(f"cannot write {target}: it is a device or a pipe; give the name of a file")
    if target.exists() and not os.access(target, os.W_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def _is_device(path: Path) -> bool:
    return path.exists() and not path.is_file() and not path.is_dir()


def _flush(path: Path) -> None:
    """Have the system bring a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Remove a temporary file that may not exist; the failure worth reporting has come before this one."""
    with suppress(OSError):
        path.unlink(missing_ok=True)

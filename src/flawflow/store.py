"""Features computed once: half-precision arrays on disk, memory-mapped, named by what made them.

A *shard* is a folder ``<key>/`` of arrays with one row per image. While it is being filled it is called
``<key>.partial/``; a journal there counts the rows that are safely on disk, so a killed process loses no more than
the rows since the last entry, and the next run goes on from there. The last step renames the folder. A lock makes a
second process that wants the same shard wait and then read it. Rows are written with ordinary writes rather than
through a memory map, because a full disk is then an error and not a crash.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawflow.errors import OptionError, OutputError
from flawflow.files import size_text

Row = Mapping[str, NDArray[Any]]
_FLUSH_EVERY = 16
_SHARD_NAME = re.compile(r"[0-9a-f]{32}(\.partial|\.removed)?")


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array of a shard: its shape (rows first) and numpy dtype name."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def row_bytes(self) -> int:
        return int(np.dtype(self.dtype).itemsize * np.prod(self.shape[1:], dtype=np.int64))

    @property
    def bytes(self) -> int:
        return self.shape[0] * self.row_bytes


Layout = Mapping[str, ArraySpec]
Shard = dict[str, NDArray[Any]]


def make_key(parts: Mapping[str, Any]) -> str:
    """A name for what ``parts`` (JSON values) describe: 32 hexadecimal digits, equal for equal parts."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def default_root() -> Path:
    """``$FLAWFLOW_STORE``, else ``flawflow/features`` in the user's cache folder."""
    if "FLAWFLOW_STORE" in os.environ:
        return Path(os.environ["FLAWFLOW_STORE"])
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "flawflow" / "features"


class FeatureStore:
    """Shards below one folder.

    Args:
        root: the folder; made when it is missing.
        limit: the most bytes that all shards together may take; the least recently used ones make room.

    Raises:
        OutputError: the folder cannot be made or written.
    """

    def __init__(self, root: Path, limit: int) -> None:
        self.root = root
        self.limit = limit
        with _written_at(root):
            root.mkdir(parents=True, exist_ok=True)

    def has(self, key: str) -> bool:
        """Whether the shard is complete."""
        return (self.root / key).is_dir()

    def shard(self, key: str, layout: Layout, rows: Callable[[int], Iterator[Row]], extra: str = "") -> Shard:
        """The arrays of shard ``key``, read-only and memory-mapped; computed first where they are missing.

        Args:
            key: name of the shard, made by ``make_key``.
            layout: name → shape and dtype of each array.
            rows: called with the first missing row; yields one mapping a row, arrays of ``layout``'s row shapes.
            extra: what the message for a shard that is too large adds.

        Raises:
            OptionError: the shard is larger than the store's limit.
            OutputError: the disk is full or cannot be written.
        """
        final = self.root / key
        with _written_at(self.root), self._locked(key):
            if not final.is_dir():
                self._make_room(sum(spec.bytes for spec in layout.values()), key, extra)
                self._fill(self.root / f"{key}.partial", layout, rows)
                (self.root / f"{key}.partial").rename(final)
            os.utime(final)
            # Mapped while the lock is held: what is mapped stays readable, even when another process makes room.
            return {
                name: np.memmap(final / name, dtype=spec.dtype, mode="r", shape=spec.shape)
                for name, spec in layout.items()
            }

    def size(self) -> int:
        """Bytes that the store takes now."""
        return sum(_folder_bytes(folder) for folder in self._folders())

    def clear(self) -> int:
        """Remove every shard; returns the bytes set free."""
        return sum(self._drop(folder) for folder in self._folders())

    def _folders(self) -> list[Path]:
        # Only what this store made: its folder may be one where a user keeps other things.
        return [p for p in self.root.iterdir() if _SHARD_NAME.fullmatch(p.name) and p.is_dir()]

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        with (self.root / f"{key}.lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _drop(self, folder: Path) -> int:
        """Remove a shard, unless a process works on it right now; returns the bytes set free."""
        key = folder.name.split(".")[0]
        with (self.root / f"{key}.lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return 0
            freed = _folder_bytes(folder)
            # Under another name first: a shard that was removed by half must not look like a whole one.
            doomed = self.root / f"{key}.removed"
            shutil.rmtree(doomed, ignore_errors=True)
            with suppress(FileNotFoundError):
                folder.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
        return freed

    def _make_room(self, need: int, key: str, extra: str) -> None:
        if need > self.limit:
            raise OptionError(
                f"the features need {size_text(need)}, more than the store's limit of {size_text(self.limit)}: "
                f"raise --store-limit, or lower the input size or versions{extra}"
            )
        partial = self.root / f"{key}.partial"
        others = sorted((p for p in self._folders() if p != partial), key=_age)
        taken = sum(_folder_bytes(p) for p in others)
        while others and taken + need > self.limit:
            taken -= self._drop(others.pop(0))
        missing = need - (_folder_bytes(partial) if partial.is_dir() else 0)
        if missing > shutil.disk_usage(self.root).free:
            raise OutputError(
                f"the features need {size_text(missing)}, but the disk of {self.root} has "
                f"{size_text(shutil.disk_usage(self.root).free)} free: make room or name another folder with --store"
            )

    def _fill(self, folder: Path, layout: Layout, rows: Callable[[int], Iterator[Row]]) -> None:
        folder.mkdir(exist_ok=True)
        journal = folder / "rows.done"
        done = int(journal.read_text()) if journal.is_file() and journal.read_text().strip() else 0
        count = next(iter(layout.values())).shape[0]
        handles = {name: (folder / name).open("ab") for name in layout}
        # A file that lost rows, in a power cut say, must not be filled up with zeros.
        done = min(done, *(handle.tell() // layout[name].row_bytes for name, handle in handles.items()))
        try:
            for name, handle in handles.items():
                handle.truncate(done * layout[name].row_bytes)
            if done < count:
                for number, row in enumerate(rows(done), start=done + 1):
                    for name, handle in handles.items():
                        handle.write(np.ascontiguousarray(row[name], dtype=layout[name].dtype).tobytes())
                    if number % _FLUSH_EVERY == 0 or number == count:
                        _commit(journal, handles, number)
        finally:
            for handle in handles.values():
                handle.close()
        short = {n: s for n, s in layout.items() if (folder / n).stat().st_size != s.bytes}
        assert not short, f"rows() did not yield every row of {sorted(short)}"
        journal.unlink()


@contextmanager
def open_store(root: Path | None, limit: int, keep: bool) -> Iterator[FeatureStore]:
    """A store; with ``keep`` False one in a temporary folder that is removed at the end."""
    if keep:
        yield FeatureStore(root or default_root(), limit)
        return
    with _written_at(Path(os.environ.get("TMPDIR", "/tmp"))):
        holder = tempfile.TemporaryDirectory(prefix="flawflow-features-")
    with holder as folder:
        yield FeatureStore(Path(folder), limit)


def _commit(journal: Path, handles: Mapping[str, Any], number: int) -> None:
    """The rows first, then the count that vouches for them."""
    for handle in handles.values():
        handle.flush()
        os.fsync(handle.fileno())
    temporary = journal.with_suffix(".new")
    temporary.write_text(str(number))
    temporary.replace(journal)


def _folder_bytes(folder: Path) -> int:
    """What the files of a folder take; another process may remove any of them meanwhile."""
    total = 0
    with suppress(FileNotFoundError):
        for file in folder.iterdir():
            with suppress(FileNotFoundError):
                total += file.stat().st_size
    return total


def _age(folder: Path) -> float:
    """When a shard was last used; at once where another process has just removed it."""
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0


@contextmanager
def _written_at(root: Path) -> Iterator[None]:
    try:
        yield
    except OutputError:
        raise
    except OSError as cause:
        raise OutputError(
            f"the feature store {root} cannot be written ({cause.strerror or cause}): make room, name another folder "
            "with --store, or use --no-store"
        ) from cause

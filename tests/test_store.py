"""Laws of the feature store: computed once, the same bytes whatever is killed, never more than its limit."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flawflow.errors import OptionError, OutputError
from flawflow.store import ArraySpec, FeatureStore, Row, default_root, make_key, open_store

COUNT = 50
LAYOUT = {"features": ArraySpec((COUNT, 4, 3), "float16"), "coverage": ArraySpec((COUNT, 3), "uint8")}
BYTES = COUNT * (4 * 3 * 2 + 3)
PLENTY = 10**9


def key(number: int) -> str:
    return make_key({"number": number})


def row(index: int) -> dict[str, NDArray[Any]]:
    generator = np.random.default_rng(index)
    return {
        "features": generator.normal(size=(4, 3)).astype(np.float16),
        "coverage": generator.integers(1, 255, 3).astype(np.uint8),
    }


def rows(start: int) -> Iterator[Row]:
    return (row(index) for index in range(start, COUNT))


def breaks_at(stop: int) -> Callable[[int], Iterator[Row]]:
    def some(start: int) -> Iterator[Row]:
        for index in range(start, stop):
            yield row(index)
        raise KeyboardInterrupt

    return some


def forbidden(start: int) -> Iterator[Row]:
    raise AssertionError(f"computed again from row {start}")


def check(shard: dict[str, NDArray[Any]]) -> None:
    for index in range(COUNT):
        for name, value in row(index).items():
            assert np.array_equal(shard[name][index], value)


# A process that fills a shard slowly and says on which rows it works.
FILLER = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
import test_store as t
from flawflow.store import FeatureStore
def slow(start):
    print("start", start, flush=True)
    for index in range(start, t.COUNT):
        time.sleep({pause})
        yield t.row(index)
shard = FeatureStore(Path({root!r}), t.PLENTY).shard(t.key(0), t.LAYOUT, slow)
t.check(shard)
print("done", flush=True)
"""


def filler(root: Path, pause: float) -> "subprocess.Popen[str]":
    script = FILLER.format(tests=str(Path(__file__).parent), root=str(root), pause=pause)
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


def test_a_shard_is_computed_once(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, PLENTY)
    assert not store.has(key(0))
    check(store.shard(key(0), LAYOUT, rows))
    assert store.has(key(0)) and store.size() == BYTES
    again = FeatureStore(tmp_path, PLENTY).shard(key(0), LAYOUT, forbidden)
    check(again)
    assert not any(array.flags.writeable for array in again.values())


@settings(max_examples=30, deadline=None)
@given(stops=st.lists(st.integers(0, COUNT - 1), max_size=4), torn=st.integers(0, 200))
def test_an_interrupted_shard_goes_on_and_ends_with_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, stops: list[int], torn: int
) -> None:
    root = tmp_path_factory.mktemp("store")
    store, folder = FeatureStore(root, PLENTY), root / f"{key(0)}.partial"
    for stop in sorted(stops):
        with pytest.raises(KeyboardInterrupt):
            store.shard(key(0), LAYOUT, breaks_at(stop))
        for name in LAYOUT:
            with (folder / name).open("ab") as handle:
                handle.write(b"\xff" * torn)
    starts: list[int] = []

    def counted(start: int) -> Iterator[Row]:
        starts.append(start)
        return rows(start)

    check(store.shard(key(0), LAYOUT, counted))
    assert starts == [max(stops, default=0) // 16 * 16]
    assert sorted(p.name for p in (root / key(0)).iterdir()) == sorted(LAYOUT)


def test_rows_that_the_disk_lost_are_computed_again(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, PLENTY)
    with pytest.raises(KeyboardInterrupt):
        store.shard(key(0), LAYOUT, breaks_at(40))
    os.truncate(tmp_path / f"{key(0)}.partial" / "features", 5 * LAYOUT["features"].row_bytes + 3)
    check(store.shard(key(0), LAYOUT, rows))


def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    process = filler(tmp_path, 0.02)
    assert process.stdout is not None and process.stdout.readline() == "start 0\n"
    journal = tmp_path / f"{key(0)}.partial" / "rows.done"
    deadline = time.monotonic() + 20
    while not journal.is_file() and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    store = FeatureStore(tmp_path, PLENTY)
    assert not store.has(key(0))
    starts: list[int] = []

    def counted(start: int) -> Iterator[Row]:
        starts.append(start)
        return rows(start)

    check(store.shard(key(0), LAYOUT, counted))
    assert starts[0] >= 16


def test_two_processes_at_once_compute_once(tmp_path: Path) -> None:
    pair = [filler(tmp_path, 0.005) for _ in range(2)]
    said = [process.communicate(timeout=60)[0].split() for process in pair]
    assert [process.returncode for process in pair] == [0, 0]
    assert sorted(said, key=len) == [["done"], ["start", "0", "done"]]


def test_the_oldest_shards_make_room(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, 3 * BYTES)
    for number in range(3):
        store.shard(key(number), LAYOUT, rows)
        os.utime(tmp_path / key(number), (number, number))
    store.shard(key(0), LAYOUT, forbidden)  # used last, so no longer the oldest
    store.shard(key(3), LAYOUT, rows)
    assert [store.has(key(number)) for number in range(4)] == [True, False, True, True]
    assert store.size() <= store.limit


def test_arrays_in_use_outlive_their_shard(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, BYTES)
    first = store.shard(key(0), LAYOUT, rows)
    store.shard(key(1), LAYOUT, rows)
    assert not store.has(key(0))
    check(first)


def test_a_shard_that_another_process_fills_is_left_alone(tmp_path: Path) -> None:
    process = filler(tmp_path, 0.01)
    assert process.stdout is not None and process.stdout.readline() == "start 0\n"
    store = FeatureStore(tmp_path, BYTES)
    check(store.shard(key(1), LAYOUT, rows))
    store.clear()
    assert not store.has(key(1))
    assert process.communicate(timeout=60)[0] == "done\n" and process.returncode == 0


def test_other_peoples_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "photo.png").write_bytes(b"x" * 1000)
    store = FeatureStore(tmp_path, BYTES)
    for number in range(3):
        store.shard(key(number), LAYOUT, rows)
    assert store.clear() == BYTES
    assert store.size() == 0
    assert (tmp_path / "holiday" / "photo.png").stat().st_size == 1000


def test_a_shard_beyond_the_limit_is_refused_before_anything_is_removed(tmp_path: Path) -> None:
    FeatureStore(tmp_path, PLENTY).shard(key(0), LAYOUT, rows)
    with pytest.raises(OptionError, match=r"store's limit.*raise --store-limit"):
        FeatureStore(tmp_path, BYTES - 1).shard(key(1), LAYOUT, forbidden)
    check(FeatureStore(tmp_path, BYTES).shard(key(0), LAYOUT, forbidden))


def test_without_keeping_nothing_stays() -> None:
    with open_store(None, PLENTY, keep=False) as store:
        root = store.root
        shard = store.shard(key(0), LAYOUT, rows)
        assert root.is_dir()
    assert not root.exists()
    check(shard)


def test_where_the_store_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLAWFLOW_STORE", str(tmp_path / "a"))
    assert default_root() == tmp_path / "a"
    with open_store(None, PLENTY, keep=True) as store:
        assert store.root == tmp_path / "a"
    with open_store(tmp_path / "b", PLENTY, keep=True) as store:
        assert store.root == tmp_path / "b"
    monkeypatch.delenv("FLAWFLOW_STORE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    assert default_root() == tmp_path / "c" / "flawflow" / "features"


FULL_DISK = """
import resource, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import test_store as t
from flawflow.errors import OutputError
from flawflow.store import FeatureStore
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    FeatureStore(Path({root!r}), t.PLENTY).shard(t.key(0), t.LAYOUT, t.rows)
except OutputError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [3, 500, BYTES // 2])
def test_a_full_disk_is_an_error_and_the_next_run_goes_on(tmp_path: Path, limit: int) -> None:
    script = FULL_DISK.format(tests=str(Path(__file__).parent), root=str(tmp_path), limit=limit)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "cannot be written" in done.stdout and "make room" in done.stdout
    assert done.stderr == ""
    check(FeatureStore(tmp_path, PLENTY).shard(key(0), LAYOUT, rows))


def test_a_store_that_is_a_file_or_has_no_room_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="cannot be written"):
        FeatureStore(tmp_path / "file", PLENTY)
    with pytest.raises(OutputError, match="cannot be written"):
        FeatureStore(tmp_path / "file" / "below", PLENTY)
    assert (tmp_path / "file").read_text() == "mine"
    monkeypatch.setenv("TMPDIR", str(tmp_path / "absent"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    with pytest.raises(OutputError, match="absent"), open_store(None, PLENTY, keep=False):
        pass
    huge = {"features": ArraySpec((10**6, 10**6, 10**3), "float16")}
    with pytest.raises(OutputError, match=r"GB free.*--store"):
        FeatureStore(tmp_path / "new", 10**20).shard(key(0), huge, forbidden)


@settings(max_examples=50, deadline=None)
@given(parts=st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none(), max_size=4))
def test_keys_name_the_parts_and_nothing_else(parts: dict[str, Any]) -> None:
    reordered = dict(reversed(parts.items()))
    assert make_key(parts) == make_key(reordered)
    assert len(make_key(parts)) == 32 and set(make_key(parts)) <= set("0123456789abcdef")
    assert make_key(parts) != make_key(parts | {"another part": 1})

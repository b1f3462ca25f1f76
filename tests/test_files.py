"""Files: whole or not at all, errors that name the path and the cause."""

import errno
import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawflow.errors import DatasetError, InputError, OutputError
from flawflow.files import (
    IMAGE_SUFFIXES,
    atomic_path,
    atomic_write,
    digest,
    held_alone,
    list_images,
    writable_folder,
)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@settings(max_examples=20, deadline=None)
@given(before=st.binary(max_size=200), after=st.binary(max_size=200))
def test_atomic_write_replaces_the_whole_content_and_leaves_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, before: bytes, after: bytes
) -> None:
    path = tmp_path_factory.mktemp("write") / "part.flaw"
    for data in (before, after):
        atomic_write(path, data)
        assert path.read_bytes() == data
        assert digest(path) == hashlib.sha256(data).hexdigest()
        assert names(path.parent) == ["part.flaw"]


@pytest.mark.parametrize("failing", ["replace", "fsync"])
@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission denied"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
def test_a_failed_write_keeps_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, code: int, said: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    path = tmp_path / "part.flaw"
    atomic_write(path, b"old")
    if failing == "replace":
        monkeypatch.setattr(Path, "replace", refuse)
    else:
        monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OutputError, match=said) as caught:
        atomic_write(path, b"new")
    assert str(path) in str(caught.value)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["part.flaw"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interrupted_block_keeps_the_old_content(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "sheet.png"
    atomic_write(path, b"old")
    with pytest.raises(error), atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["sheet.png"]


def test_the_temporary_file_is_a_hidden_neighbour_with_the_same_suffix(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    with atomic_path(path) as temporary:
        assert temporary.parent.samefile(tmp_path)
        assert temporary.name.startswith(".")
        assert temporary.suffix == ".png"
        temporary.write_bytes(b"x")
        assert not path.exists()
    assert path.read_bytes() == b"x"


def test_links_are_followed_and_parents_created(tmp_path: Path) -> None:
    link = tmp_path / "link.flaw"
    link.symlink_to(tmp_path / "deep" / "er" / "part.flaw")
    atomic_write(link, b"x")
    assert link.is_symlink()
    assert (tmp_path / "deep" / "er" / "part.flaw").read_bytes() == b"x"


def test_what_cannot_be_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(OutputError, match="it is a folder"):
        atomic_write(tmp_path, b"")
    with pytest.raises(OutputError, match=r"cannot write .*file/below: .*a file"):
        atomic_write(tmp_path / "file" / "below", b"")
    with pytest.raises(OutputError, match="name is too long"):
        atomic_write(tmp_path / ("n" * 300), b"")
    with pytest.raises(OutputError, match="device or a pipe"), atomic_path(Path(os.devnull)) as _:
        pass
    assert names(tmp_path) == ["file"]


def test_a_write_protected_file_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "part.flaw"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "access", lambda *_: False)  # the superuser may write to everything
    with pytest.raises(OutputError, match="permission denied"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"


def test_devices_are_written_to_and_stay_devices() -> None:
    device = Path(os.devnull)
    atomic_write(device, b"x")
    assert device.is_char_device()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
def test_a_full_device_is_an_output_error() -> None:
    with pytest.raises(OutputError, match="disk is full"):
        atomic_write(Path("/dev/full"), b"x")


def test_writable_folder_creates_or_explains(tmp_path: Path) -> None:
    folder = writable_folder(tmp_path / "a" / "b")
    assert folder.is_dir()
    assert names(writable_folder(folder)) == []
    (tmp_path / "file").touch()
    for taken in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match=str(taken)):
            writable_folder(taken)


def test_digest_of_what_cannot_be_read_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent"):
        digest(tmp_path / "absent")
    with pytest.raises(InputError, match=str(tmp_path)):
        digest(tmp_path)


@settings(max_examples=20, deadline=None)
@given(stems=st.lists(st.text("abcXYZ012", min_size=1, max_size=4), min_size=1, max_size=8, unique_by=str.lower))
def test_list_images_takes_known_extensions_in_any_case_sorted(
    tmp_path_factory: pytest.TempPathFactory, stems: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("images")
    wanted = []
    for index, stem in enumerate(stems):
        suffix = IMAGE_SUFFIXES[index % len(IMAGE_SUFFIXES)]
        wanted.append(folder / (stem + (suffix.upper() if index % 2 else suffix)))
        for other in (f".{stem}.png", f"{stem}.txt", f"{stem}png"):
            (folder / other).touch()
    for path in wanted:
        path.touch()
    (folder / "folder.png").mkdir()
    assert list_images(folder) == tuple(sorted(wanted))


def test_list_images_looks_below_only_when_asked(tmp_path: Path) -> None:
    for name in ("top.png", "below/deep/a.png", ".hidden/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list_images(tmp_path) == (tmp_path / "top.png",)
    assert list_images(tmp_path, recursive=True) == (tmp_path / "below/deep/a.png", tmp_path / "top.png")


def test_list_images_of_no_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match="does not exist"):
        list_images(tmp_path / "absent")
    with pytest.raises(DatasetError, match="is a file"):
        list_images(tmp_path / "file")


def test_what_is_held_alone_is_refused_to_another_and_leaves_nothing_behind(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    with held_alone(file, "in use"):
        atomic_write(file, b"replaced meanwhile")
        with pytest.raises(InputError, match="in use"), held_alone(file, "in use"):
            raise AssertionError("two hold it")
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(ZeroDivisionError), held_alone(file, "in use"):
        _ = 1 // 0
    with held_alone(file, "in use"):
        pass
    with pytest.raises(OutputError, match="absent"), held_alone(tmp_path / "absent" / "x", "in use"):
        raise AssertionError("held without a folder")

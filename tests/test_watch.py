"""`flawflow watch`: every image once, nothing lost at a stop or a restart, drift told from single defects."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from commands import SMALLEST, Captured
from flawflow.cli import main
from flawflow.cli.commands.watch import Arrivals
from flawflow.datasets.generated import write_product_line
from flawflow.detector import Detector
from flawflow.drift import DriftMonitor, DriftSettings
from flawflow.errors import OutputError
from flawflow.files import held_alone
from flawflow.images import read_image
from flawflow.reference import STATISTICS, Reference, statistics
from flawflow.watching import follow, start_monitor, watch

QUICK = ("--interval", "0.05", "--device", "cpu")


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("line")
    write_product_line(root, 0, ("stone",), train=80, test_good=60, per_defect=2, size=64)
    return root / "stone"


@pytest.fixture(scope="module")
def part(line: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("fit") / "stone.flaw"
    assert main(["fit", str(line), "-o", str(file), *SMALLEST, "--set", "holdout=0.4"]) == 0
    return file


@pytest.fixture
def detector(part: Path) -> Detector:
    return Detector.load(part, device="cpu")


def good(line: Path) -> list[Path]:
    return sorted((line / "test/good").iterdir())


def put(files: list[Path], folder: Path) -> Path:
    """Copy files so that their times have the order of the list."""
    folder.mkdir(exist_ok=True)
    begin = 1_000_000_000 + len(list(folder.iterdir()))
    for number, file in enumerate(files):
        shutil.copyfile(file, folder / file.name)
        os.utime(folder / file.name, (begin + number, begin + number))
    return folder


def once(part: Path, folder: Path, state: Path, *more: str) -> int:
    return main(["watch", str(part), str(folder), "--once", "--state", str(state), *QUICK, *more])


def monitor_of(state: Path) -> dict[str, object]:
    monitor: dict[str, object] = json.loads(state.read_text())["monitor"]
    DriftMonitor.from_dict(monitor)
    return monitor


def test_follow_inspects_just_as_the_detector_does(detector: Detector, line: Path) -> None:
    for file in good(line)[:3]:
        found, row = follow(detector, file)
        expected = detector.inspect(file)[0]
        assert (found.score, found.p_value, found.is_defective) == pytest.approx(
            (expected.score, expected.p_value, expected.is_defective)
        )
        np.testing.assert_allclose(found.anomaly_map, expected.anomaly_map, rtol=1e-5)
        assert row.shape == (len(STATISTICS),) and np.isfinite(row).all() and row[0] == found.score


def test_the_reference_is_of_the_held_out_images_and_is_kept_in_the_file(detector: Detector, tmp_path: Path) -> None:
    assert detector.reference is not None and len(detector.reference.rows) == detector.provenance["held_out"] == 32
    scores = sorted(row[0] for row in detector.reference.rows)
    assert scores == pytest.approx(detector.calibration.image_scores, rel=1e-5)
    detector.save(tmp_path / "copy.flaw")
    assert Detector.load(tmp_path / "copy.flaw", device="cpu").reference == detector.reference
    detector.reference = None
    detector.save(tmp_path / "without.flaw")
    assert Detector.load(tmp_path / "without.flaw", device="cpu").reference is None


def test_a_reference_of_other_statistics_is_refused() -> None:
    with pytest.raises(ValueError, match="expected score"):
        Reference.from_dict({"names": ["speed"], "rows": []})


def test_an_odd_part_of_an_image_hardly_moves_what_tells_drift_and_a_common_shift_does() -> None:
    draw = torch.Generator().manual_seed(0)
    image = np.random.default_rng(0).integers(90, 110, (64, 64, 3)).astype(np.uint8)
    z = torch.randn(32, 16, 16, generator=draw)
    seen = z.square().mean(dim=0).repeat_interleave(4, 0).repeat_interleave(4, 1).numpy()

    def row(picture: np.ndarray, latent: torch.Tensor, anomaly: np.ndarray) -> np.ndarray:
        return statistics(picture, anomaly, 1.0, [latent, latent])[1:5]

    base = row(image, z, seen)
    assert base[1] == pytest.approx(1, abs=0.1) and base[2] < 0.05
    odd_image, odd_z, odd_map = image.copy(), z.clone(), seen.copy()
    odd_image[:16, :16], odd_z[:, :4, :4], odd_map[:16, :16] = 255, 50, 1e6  # one sixteenth
    local = np.abs(row(odd_image, odd_z, odd_map) - base)
    common = np.abs(row((image // 2).astype(np.uint8), z + 1, seen + 1) - base)
    assert (local < 0.1 * common).all() and (common > [0.9, 0.9, 0.8, 40]).all()


def test_every_image_is_inspected_once_and_a_restart_changes_nothing(part: Path, line: Path, tmp_path: Path) -> None:
    files = good(line)[:20]
    whole, parts = put(files, tmp_path / "folder"), tmp_path / "folder"
    assert once(part, whole, tmp_path / "whole.json", "--json", str(tmp_path / "whole.jsonl")) == 0
    shutil.rmtree(parts)
    for group in (files[:7], files[7:8], files[8:], []):
        put(group, parts)
        assert once(part, parts, tmp_path / "parts.json", "--json", str(tmp_path / "parts.jsonl")) == 0
    assert monitor_of(tmp_path / "whole.json") == monitor_of(tmp_path / "parts.json")
    lines = (tmp_path / "parts.jsonl").read_text().splitlines()
    assert lines == (tmp_path / "whole.jsonl").read_text().splitlines()
    assert [Path(json.loads(line)["image"]).name for line in lines] == [file.name for file in files]


def test_a_damaged_image_is_reported_once_and_the_others_go_on(
    part: Path, line: Path, tmp_path: Path, capsys: Captured
) -> None:
    folder = put(good(line)[:3], tmp_path / "folder")
    (folder / "broken.png").write_bytes(good(line)[4].read_bytes()[:300])
    state = tmp_path / "state.json"
    assert once(part, folder, state) == 2
    heard = capsys.readouterr()
    assert heard.err.count("broken.png") == 1 and heard.out.count(".png") == 3
    assert once(part, folder, state) == 0  # dealt with
    shutil.copyfile(good(line)[4], folder / "broken.png")  # the camera writes it again
    assert once(part, folder, state) == 0
    assert "broken.png" in capsys.readouterr().out and monitor_of(state)["images"] == 4


def test_a_file_is_not_touched_while_it_grows(tmp_path: Path) -> None:
    arrivals, file = Arrivals(tmp_path, {}), tmp_path / "a.png"
    for size in (1, 2, 3):
        file.write_bytes(b"x" * size)
        assert arrivals.poll() == []
    assert arrivals.poll() == [file] == arrivals.poll()
    arrivals.finish(file)
    assert arrivals.poll() == []
    file.write_bytes(b"another")
    assert (arrivals.poll(), arrivals.poll()) == ([], [file])
    arrivals.finish(file)
    assert arrivals.poll() == []


@pytest.mark.parametrize("left", [(), ("a.png",), ("new.png",)])
def test_files_that_a_listing_lacks_for_a_while_are_not_inspected_anew(tmp_path: Path, left: tuple[str, ...]) -> None:
    share, away = tmp_path / "share", tmp_path / "away"
    share.mkdir()
    away.mkdir()
    for name in "abc":
        (share / f"{name}.png").write_bytes(name.encode())
    arrivals = Arrivals(share, {})
    arrivals.poll()
    for file in arrivals.poll():
        arrivals.finish(file)
    for file in share.iterdir():
        if file.name not in left:
            file.rename(away / file.name)
    if "new.png" in left:
        (share / "new.png").write_bytes(b"new")
    arrivals.poll()
    assert [file.name for file in arrivals.poll()] == [name for name in left if name == "new.png"]
    arrivals = Arrivals(share, json.loads(json.dumps(arrivals.done)))  # a restart in the meantime
    arrivals.done = {name: (size, changed) for name, (size, changed) in arrivals.done.items()}
    arrivals.poll()
    for file in arrivals.poll():
        arrivals.finish(file)
    for file in away.iterdir():
        file.rename(share / file.name)
    assert len(list(share.iterdir())) == 3 + ("new.png" in left) and arrivals.poll() == arrivals.poll() == []
    (share / "b.png").write_bytes(b"another of that name")
    arrivals.poll()
    assert arrivals.poll() == [share / "b.png"]


def test_of_files_that_are_gone_the_last_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flawflow.cli.commands.watch._MOST_GONE", 3)
    arrivals = Arrivals(tmp_path, {})
    for number in range(6):
        file = tmp_path / f"{5 - number}.png"
        file.write_bytes(b"whole")
        arrivals.poll()
        assert arrivals.poll() == [file]
        arrivals.finish(file)
        if number < 5:
            file.unlink()
    assert arrivals.poll() == [] and list(arrivals.done) == ["3.png", "2.png", "1.png", "0.png"]
    file.unlink()  # nothing is forgotten for a folder that looks empty
    assert arrivals.poll() == [] and len(arrivals.done) == 4


def test_a_file_that_changes_has_all_its_looks_again(tmp_path: Path) -> None:
    arrivals, file = Arrivals(tmp_path, {}), tmp_path / "a.png"
    for size in (1, 2):
        file.write_bytes(b"x" * size)
        arrivals.poll()
        assert [arrivals.poll() and arrivals.try_again(file) for _ in range(2)] == [True, True]
    assert not arrivals.try_again(file)


def test_an_error_that_ends_the_run_keeps_what_was_inspected(
    part: Path, line: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    folder, state = put(good(line)[:5], tmp_path / "folder"), tmp_path / "state.json"

    def failing(detector: Detector, monitor: DriftMonitor, file: Path) -> object:
        if monitor.images == 3:
            raise OutputError("the disk is full")
        return watch(detector, monitor, file)

    with monkeypatch.context() as patched:
        patched.setattr("flawflow.cli.commands.watch.watch", failing)
        assert once(part, folder, state) == 2
    assert monitor_of(state)["images"] == len(json.loads(state.read_text())["done"]) == 3
    capsys.readouterr()
    assert once(part, folder, state) == 0
    assert capsys.readouterr().out.count(".png") == 2 and monitor_of(state)["images"] == 5


def test_two_watches_on_one_state_are_refused(part: Path, line: Path, tmp_path: Path, capsys: Captured) -> None:
    folder, state = put(good(line)[:1], tmp_path / "folder"), tmp_path / "state.json"
    with held_alone(state, "another watch"):
        assert once(part, folder, state) == 2
    assert "another 'flawflow watch' goes on from" in capsys.readouterr().err and not state.exists()
    assert once(part, folder, state) == 0
    assert sorted(one.name for one in tmp_path.iterdir()) == ["folder", "state.json"]


def test_the_rate_that_was_asked_for_is_said_and_written(
    part: Path, line: Path, tmp_path: Path, capsys: Captured
) -> None:
    folder, log = put(good(line)[:1], tmp_path / "folder"), tmp_path / "log.jsonl"
    options = ("--per-day", "1500", "--false-alarms-per-day", "1/20", "--json", str(log))
    assert once(part, folder, tmp_path / "state.json", *options) == 0
    said = capsys.readouterr().err
    assert "at most 1/20 false alarms of drift a day at 1,500 images a day, that is one in 30,000 images" in said
    rate = {"false_alarms_per_day": 0.05, "images_per_day": 1500, "images_per_false_alarm": 30_000}
    assert json.loads(log.read_text())["drift"]["promise"] == pytest.approx(rate)


def test_less_light_is_found_and_named_and_recalibration_advised(
    part: Path, line: Path, tmp_path: Path, capsys: Captured
) -> None:
    folder = put(good(line)[:20], tmp_path / "folder")
    dark = []
    (tmp_path / "dark").mkdir()
    for number, file in enumerate(good(line)[20:]):
        image = np.rint(read_image(file) * max(0.5, 1 - 0.04 * number)).astype(np.uint8)
        dark.append(tmp_path / "dark" / f"dark{file.name}")
        cv2.imwrite(str(dark[-1]), image[:, :, ::-1])
    put(dark, folder)
    assert once(part, folder, tmp_path / "state.json", "--per-day", "100") == 1
    out = capsys.readouterr().out
    assert "likely kind: brightness" in out and "check lamps" in out and "calibrate" in out
    first = json.loads((tmp_path / "state.json").read_text())["monitor"]["alarms"][0]
    assert 20 < first["image"] <= 60


def test_single_defects_are_no_drift(detector: Detector, line: Path) -> None:
    defects = sorted(file for file in (line / "test").rglob("*.png") if file.parent.name != "good")
    monitor = start_monitor(detector, DriftSettings(1 / 3000))
    for number, file in enumerate(good(line)):
        assert watch(detector, monitor, file)[1].alarm is None
        if number % 20 == 7:
            assert watch(detector, monitor, defects.pop())[1].alarm is None


def test_what_arrives_later_is_seen_and_sigterm_leaves_a_valid_state_that_goes_on(
    part: Path, line: Path, tmp_path: Path
) -> None:
    folder, state = put([], tmp_path / "folder"), tmp_path / "state.json"
    command = [sys.executable, "-m", "flawflow", "watch", str(part), str(folder), "--state", str(state), *QUICK]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and "verdict" in process.stdout.readline()
    put(good(line)[:1], folder)
    assert good(line)[0].name in process.stdout.readline()
    put(good(line)[1:30], folder)
    assert ".png" in process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    # `communicate` would read past the lines that came together with the last one that was read.
    assert process.stderr is not None
    too_late = threading.Timer(60, process.kill)
    too_late.start()
    out, error = process.stdout.read(), process.stderr.read()
    assert process.wait(timeout=60) == 0
    too_late.cancel()
    assert "Traceback" not in error and "images followed" in error
    images = monitor_of(state)["images"]
    assert images == 2 + len(out.splitlines())  # all that was said is in the state
    assert once(part, folder, state) == 0
    assert monitor_of(state)["images"] == 30


def test_interruption_ends_in_good_order(part: Path, line: Path, tmp_path: Path) -> None:
    folder, state = put(good(line)[:2], tmp_path / "folder"), tmp_path / "state.json"
    before = signal.getsignal(signal.SIGINT)
    timer = threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    assert main(["watch", str(part), str(folder), "--state", str(state), *QUICK]) == 0
    timer.join()
    assert monitor_of(state)["images"] == 2 and signal.getsignal(signal.SIGINT) is before


def test_unusable_options_and_states_get_one_sentence(
    part: Path, detector: Detector, line: Path, tmp_path: Path, capsys: Captured
) -> None:
    folder, state = put(good(line)[:2], tmp_path / "folder"), tmp_path / "state.json"
    detector.reference = None
    without = tmp_path / "without.flaw"
    detector.save(without)

    def refused(expected: str, *more: str, file: Path = part, where: Path = folder) -> None:
        capsys.readouterr()
        assert once(file, where, state, *more) == 2
        message = capsys.readouterr().err
        assert expected in message and message.count("flawflow: ") == 1 and "Traceback" not in message

    refused("--warm-up 100", file=without)
    refused("does not exist", where=tmp_path / "absent")
    for rate in ("often", "1/0", "0", "-1", "2000", "1e400", "1e999999999", "9" * 5000):
        refused("false", f"--false-alarms-per-day={rate}")
    for images in ("0", "9" * 401):
        refused("images a day", f"--per-day={images}")
    refused("--interval", "--interval", "0")
    refused("share of defects", "--defects", "0.9")
    refused("seed", "--seed", "-1")
    assert not state.exists()
    assert once(without, folder, state, "--warm-up", "20") == 0
    assert monitor_of(state)["images"] == 2
    refused("another detector", "--warm-up", "20")
    refused("another folder", "--warm-up", "20", file=without, where=tmp_path)
    refused("other options", file=without)
    whole = state.read_bytes()
    endless = whole.replace(b'"images": 2', b'"images": Infinity')
    assert endless != whole
    for damaged in (b"", b"{}", b"\xff\xfe", b"[]", whole[:-9], endless, b"[" * 100_000):
        state.write_bytes(damaged)
        refused("remove the file to begin anew", file=without)
        assert state.read_bytes() == damaged

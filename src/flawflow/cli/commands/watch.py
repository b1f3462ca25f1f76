"""`flawflow watch`: a folder that fills is inspected as it does, and followed for drift."""

import argparse
import json
import reprlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flawflow.calibration import parse_number
from flawflow.cli.common import check_outputs, detector_name, say, verdict
from flawflow.detector import Detector, Inspection
from flawflow.drift import DriftMonitor, DriftSettings, DriftState
from flawflow.errors import FlawflowError, ImageError, InputError, OptionError, OutputError
from flawflow.files import atomic_write, digest, held_alone, list_images
from flawflow.watching import check_whole, start_monitor, watch

_GROUP = 8  # images between two writings of the state
_MOST_PER_DAY = 1_000_000_000
_TRIES = 3  # looks at a file that does not change and cannot be read
_MOST_GONE = 100_000  # files no longer listed that are known still: some 6 MB of the state
Mark = tuple[int, int]  # bytes and nanoseconds of a file's last change


class _Stop:
    """Whether to stop. A signal's handler may interrupt anything, so there is no lock in it that it could wait for."""

    def __init__(self) -> None:
        self._asked = False

    def set(self) -> None:
        self._asked = True

    def is_set(self) -> bool:
        return self._asked

    def wait(self, seconds: float) -> None:
        """Until asked, or for so long."""
        end = time.monotonic() + seconds
        while not self._asked and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.2))


class Arrivals:
    """Which files of a folder are new and whole; a file changed later counts as new.

    Args:
        folder: the folder.
        done: the files that were dealt with, and their marks then; first those that are gone longest.
    """

    def __init__(self, folder: Path, done: dict[str, Mark]) -> None:
        self.folder = folder
        self.done = done
        self._seen: dict[str, Mark] = {}
        self._tries: dict[str, tuple[Mark, int]] = {}

    def poll(self) -> list[Path]:
        """New files that have not changed since the last poll, the oldest first."""
        marks = self._marks()
        self._tries = {name: tries for name, tries in self._tries.items() if name in marks}
        # A listing of a share can lack files for a while, or all of them: who returns unchanged is not new.
        gone = [name for name in self.done if name not in marks]
        listed = {name: mark for name, mark in self.done.items() if name in marks}
        if marks:
            gone = gone[-_MOST_GONE:]
        self.done = {name: self.done[name] for name in gone} | listed
        ready = [name for name, mark in marks.items() if self._seen.get(name) == mark != self.done.get(name)]
        self._seen = marks
        return [self.folder / name for name in sorted(ready, key=lambda name: (marks[name][1], name))]

    def finish(self, file: Path) -> None:
        """This file was dealt with, as it was at the last poll."""
        self.done[file.name] = self._seen[file.name]
        self._tries.pop(file.name, None)

    def try_again(self, file: Path) -> bool:
        """Whether a file that could not be read may still be on its way."""
        mark, tries = self._tries.get(file.name, (None, 0))
        now = self._seen[file.name]
        tries = tries + 1 if mark == now else 1
        self._tries[file.name] = (now, tries)
        return tries < _TRIES

    def _marks(self) -> dict[str, Mark]:
        marks: dict[str, Mark] = {}
        for file in list_images(self.folder):
            try:
                state = file.stat()
            except OSError:  # removed since it was listed, or out of reach for now
                continue
            marks[file.name] = (state.st_size, state.st_mtime_ns)
        return marks


@dataclass(frozen=True, slots=True)
class Rate:
    """The rate of false alarms of drift, as it was asked for.

    Attributes:
        daily: false alarms a day, at most.
        text: the same, as the user wrote it.
        images: images a day.
    """

    daily: float
    text: str
    images: int

    @property
    def images_per_alarm(self) -> float:
        """In how many images there is one false alarm at most."""
        return self.images / self.daily

    def values(self) -> dict[str, float]:
        """As JSON values."""
        return {
            "false_alarms_per_day": self.daily,
            "images_per_day": self.images,
            "images_per_false_alarm": self.images_per_alarm,
        }


class Log:
    """Lines on standard output, and one JSON object a line in a file.

    Args:
        file: to append to; None = no file.
        promise: what stands with every image, see `Rate.values`.
    """

    def __init__(self, file: Path | None, promise: dict[str, Any]) -> None:
        self.file = file
        self.promise = promise

    def image(self, file: Path, found: Inspection, state: DriftState) -> None:
        """One inspected image."""
        told = verdict(found.is_defective)
        print(f"{found.score:12.5g} {found.p_value:8.4f}  {told:<9}  {_state(state):<22}  {file}", flush=True)
        if state.alarm is not None:
            print(advice(state), flush=True)
        self._append(
            {
                "image": str(file),
                "score": found.score,
                "p_value": found.p_value,
                "defective": found.is_defective,
                "drift": asdict(state) | {"promise": self.promise},
            }
        )

    def unreadable(self, file: Path, error: FlawflowError) -> None:
        """One file that could not be read."""
        say(f"flawflow: {error}")
        self._append({"image": str(file), "error": str(error)})

    def _append(self, entry: dict[str, Any]) -> None:
        if self.file is None:
            return
        try:
            with self.file.open("a", encoding="utf-8", errors="surrogateescape") as out:
                out.write(json.dumps(entry) + "\n")
        except OSError as cause:
            raise OutputError(f"cannot write {self.file}: {cause.strerror or cause}") from cause


def run(arguments: argparse.Namespace) -> int:
    """Watch until stopped, or once; 0, or with ``--once`` 1 for drift and 2 for an unreadable image."""
    rate, interval = _rate(arguments), _interval(arguments)
    settings = DriftSettings(rate.daily / rate.images, arguments.defects, arguments.warm_up, arguments.seed)
    named = detector_name(arguments.detector)
    state_file: Path = arguments.state or named.with_name(named.name + ".watch.json")
    check_outputs({"--state": state_file, "--json": arguments.json}, [arguments.detector, arguments.weights])
    list_images(arguments.folder)  # a folder that is none is refused before the detector is loaded
    refusal = f"another 'flawflow watch' goes on from {state_file} just now: stop it, or name another file with --state"
    with held_alone(state_file, refusal):
        detector = Detector.load(arguments.detector, arguments.weights, arguments.device)
        check_whole(detector)
        identity = {"detector": digest(arguments.detector), "folder": str(arguments.folder.resolve())}
        monitor, done = _read_state(state_file, identity, settings) or (start_monitor(detector, settings), {})
        arrivals, log = Arrivals(arguments.folder, done), Log(arguments.json, rate.values())
        say(_greeting(monitor, rate, state_file))
        print(f"{'score':>12} {'p-value':>8}  {'verdict':<9}  {'drift':<22}  image", flush=True)

        def keep() -> None:
            _write_state(state_file, identity, monitor, arrivals.done)

        try:
            unreadable = _follow(detector, monitor, arrivals, log, keep, interval, arguments.once)
        finally:  # whatever has ended it: what was inspected is not inspected again
            keep()
    say(_farewell(monitor))
    if not arguments.once:
        return 0
    return 2 if unreadable else int(bool(monitor.alarms))


def _follow(
    detector: Detector,
    monitor: DriftMonitor,
    arrivals: Arrivals,
    log: Log,
    keep: Callable[[], None],
    interval: float,
    once: bool,
) -> int:
    """Look again and again, until stopped or once; the number of files that could not be read for good."""
    unreadable = polls = 0
    with _stopping() as stop:
        while not stop.is_set():
            files = arrivals.poll()
            polls += 1
            for start in range(0, len(files), _GROUP):
                unreadable += _inspect(files[start : start + _GROUP], detector, monitor, arrivals, log, stop)
                keep()
                if stop.is_set():
                    break
            # Once: a first poll to see the files, a second to see them unchanged, some more for damaged ones.
            if once and polls > _TRIES:
                break
            stop.wait(interval)
    return unreadable


def _rate(arguments: argparse.Namespace) -> Rate:
    """The rate of ``--false-alarms-per-day`` and ``--per-day``. Raises OptionError."""
    text, images = arguments.false_alarms_per_day, arguments.per_day
    exact = parse_number(text)
    if exact is None:
        shown = text if len(text) <= 40 else f"{text[:40]}…"
        raise OptionError(f"--false-alarms-per-day {shown}: expected a number such as 1/30 or 0.1")
    if not 1 <= images <= _MOST_PER_DAY:
        raise OptionError(f"--per-day {reprlib.repr(images)}: expected images a day, from 1 to {_MOST_PER_DAY}")
    if not 0 < exact < images:
        raise OptionError(
            f"--per-day {images} with {float(exact):g} false alarms a day: expected more than 0 false alarms, but "
            "fewer than images"
        )
    return Rate(float(exact), text.strip(), images)


def _interval(arguments: argparse.Namespace) -> float:
    if not 0 < arguments.interval <= 86_400:
        raise OptionError(f"--interval {arguments.interval:g}: expected seconds, more than 0 and at most 86400")
    return float(arguments.interval)


def _inspect(
    files: list[Path],
    detector: Detector,
    monitor: DriftMonitor,
    arrivals: Arrivals,
    log: Log,
    stop: _Stop,
) -> int:
    """Inspect these files, each once; the number of those that could not be read for good."""
    unreadable = 0
    for file in files:
        if stop.is_set():
            break
        try:
            found, state = watch(detector, monitor, file)
        except ImageError as error:
            if not arrivals.try_again(file):
                unreadable += 1
                arrivals.finish(file)
                log.unreadable(file, error)
            continue
        arrivals.finish(file)
        log.image(file, found, state)
    return unreadable


def advice(state: DriftState) -> str:
    """What an alarm means, and what to do about it."""
    assert state.alarm is not None
    checks = {
        "brightness": "check lamps, exposure and stray light",
        "blur": "check focus, lens and vibration",
        "shift": "check the camera's mount and the parts' position",
        "unknown": "compare recent images with the first ones",
    }
    changed = sorted(state.alarm.changes.items(), key=lambda item: -abs(item[1]))[:3]
    moved = ", ".join(f"{name} {value:+.1f}" for name, value in changed)
    return (
        f"DRIFT at image {state.alarm.image}, likely kind: {state.alarm.kind} (recent images, in standard deviations: "
        f"{moved}): {checks[state.alarm.kind]}; if the new look is to stay, recalibrate: "
        "flawflow calibrate DETECTOR RECENT_GOOD_IMAGES --replace"
    )


def _state(state: DriftState) -> str:
    if state.warming:
        return "warm-up"
    if state.drifted is not None:
        return f"drift: {state.drifted.kind} @{state.drifted.image}"
    return f"none ({state.evidence:.1e})"


def _greeting(monitor: DriftMonitor, rate: Rate, state_file: Path) -> str:
    return (
        f"at most {rate.text} false alarms of drift a day at {rate.images:,} images a day, that is one in "
        f"{rate.images_per_alarm:,.6g} images, with up to {monitor.settings.defects * 100:.3g} % of them defective; "
        f"{monitor.images} images so far; state in {state_file}"
    )


def _farewell(monitor: DriftMonitor) -> str:
    first = f", the first at image {monitor.alarms[0].image}" if monitor.alarms else ""
    return f"{monitor.images} images followed, {len(monitor.alarms)} alarms of drift{first}"


@contextmanager
def _stopping() -> Iterator[_Stop]:
    """What SIGINT and SIGTERM ask, so that the image at hand is finished and the state written."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(kind, lambda *_: stop.set()) for kind in kinds]
    try:
        yield stop
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)


def _read_state(
    file: Path, identity: dict[str, str], settings: DriftSettings
) -> tuple[DriftMonitor, dict[str, Mark]] | None:
    """Monitor and finished files of an earlier run, None without one."""
    if not file.exists():
        return None
    hint = "remove the file to begin anew, or name another with --state"
    try:
        values = json.loads(file.read_text())
        monitor = DriftMonitor.from_dict(values["monitor"])
        done = {str(name): (int(size), int(changed)) for name, (size, changed) in values["done"].items()}
        known = dict(values["identity"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as cause:
        raise InputError(f"{file} is not a whole state of 'flawflow watch' ({type(cause).__name__}): {hint}") from cause
    if known != identity:
        what = "detector" if known.get("detector") != identity["detector"] else "folder"
        raise InputError(f"{file} is the state of another {what}: {hint}")
    if monitor.settings != settings:
        raise InputError(f"{file} was begun with other options ({monitor.settings}): {hint}")
    return monitor, done


def _write_state(file: Path, identity: dict[str, str], monitor: DriftMonitor, done: dict[str, Mark]) -> None:
    values = {"identity": identity, "monitor": monitor.to_dict(), "done": done}
    atomic_write(file, json.dumps(values).encode())

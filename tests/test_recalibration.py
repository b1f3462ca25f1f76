"""Laws of calibrating anew: scores are those of inspection, an image counts once, the file is whole or untouched."""

import csv
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from commands import DOCS, SMALLEST, Captured, refused, shapes
from flawflow.calibration import Budget, share_interval
from flawflow.cli import main
from flawflow.datasets import open_folder
from flawflow.datasets.generated import write_product_line
from flawflow.detector import Detector
from flawflow.errors import ImageError, InputError
from flawflow.evaluation import at_budget, evaluate, known_images
from flawflow.recalibration import misses, recalibrate, with_budget, with_defects
from flawflow.types import Sample


@pytest.fixture(scope="module")
def stone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("line")
    write_product_line(root, 0, ("stone",), train=12, test_good=9, per_defect=2, size=64)
    return root / "stone"


@pytest.fixture(scope="module")
def part(stone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("fit") / "stone.flaw"
    assert main(["fit", str(stone), "-o", str(file), *SMALLEST, "--false-alarms", "1/20", "--confidence", "90%"]) == 0
    return file


@pytest.fixture
def copied(part: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(part, tmp_path / "part.flaw"))


@pytest.fixture
def detector(part: Path) -> Detector:
    return Detector.load(part, device="cpu")


def good(stone: Path) -> list[Path]:
    return sorted((stone / "test/good").iterdir())


def defects(stone: Path) -> list[Path]:
    return sorted((stone / "test/crack").iterdir())


def told(capsys: Captured, *arguments: str | Path) -> str:
    """Run a command that must succeed; what it prints."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 0
    return capsys.readouterr().out


def inspected(detector: Detector, files: Sequence[Path]) -> list[tuple[float, float]]:
    return [(one.score, float(one.anomaly_map.max())) for file in files for one in detector.inspect(file)]


def test_the_fit_remembers_its_images_and_its_budget(detector: Detector, stone: Path) -> None:
    learned, counted = detector.provenance["learned_images"], detector.provenance["calibration_images"]
    assert len(learned) + len(counted) == len({*learned, *counted}) == 12
    assert len(counted) == len(detector.calibration.image_scores)
    assert detector.calibration.budget == Budget(0.05, 0.9)
    assert known_images(detector, open_folder(stone, 0).train) == 12
    assert known_images(detector, open_folder(stone, 0).test) == 0


@pytest.mark.parametrize("anew", [False, True])
def test_images_added_later_score_as_inspection_scores_them(anew: bool, detector: Detector, stone: Path) -> None:
    before, found = detector.calibration, inspected(detector, good(stone))
    done = recalibrate(detector, good(stone), anew)
    kept = ((), ()) if anew else (before.image_scores, before.map_peaks)
    after = done.detector.calibration
    assert after.image_scores == tuple(sorted([*kept[0], *(score for score, _ in found)]))
    assert after.map_peaks == tuple(sorted([*kept[1], *(peak for _, peak in found)]))
    assert (done.added, done.learned, done.counted) == (len(found), 0, 0)
    assert after.budget == before.budget and after.level_limits == before.level_limits
    assert (after.map_high == before.map_high) == (not anew)
    # The detector that was given is left as it was, and both see the same maps.
    assert detector.calibration == before
    assert inspected(done.detector, good(stone)[:2]) == found[:2]


def test_colours_of_a_new_start_are_those_of_the_fit_on_these_images(detector: Detector, stone: Path) -> None:
    maps = np.stack([detector.inspect(file)[0].anomaly_map[::4, ::4] for file in good(stone)])
    after = recalibrate(detector, good(stone), start_anew=True).detector.calibration
    assert [after.map_median, after.map_high] == pytest.approx(np.quantile(maps, (0.5, 0.999)).tolist())


def test_the_order_and_the_number_of_steps_do_not_matter(detector: Detector, stone: Path) -> None:
    files = good(stone)
    once = recalibrate(detector, files[::-1]).detector
    twice = recalibrate(recalibrate(detector, files[:4]).detector, files[4:]).detector
    assert once.calibration == twice.calibration
    assert set(once.provenance["calibration_images"]) == set(twice.provenance["calibration_images"])


def test_an_image_counts_once_and_never_when_it_was_learned(detector: Detector, stone: Path, tmp_path: Path) -> None:
    train = sorted((stone / "train/good").iterdir())
    twin = Path(shutil.copy(good(stone)[0], tmp_path / "another name.png"))
    held = len(detector.calibration.image_scores)
    done = recalibrate(detector, [*train, *good(stone), twin])
    assert (done.added, done.learned, done.counted) == (9, 12 - held, held + 1)
    assert len(done.detector.calibration.image_scores) == held + 9
    with pytest.raises(InputError, match="learned from 0 of them or was validated on them, and 10 count already"):
        recalibrate(done.detector, [*good(stone), twin])
    with pytest.raises(InputError, match=rf"learned from {12 - held} of them .* and {held} count"):
        recalibrate(detector, train)
    # Counted images may make a new start; those that were learned from or chose the epoch never.
    anew = recalibrate(done.detector, [*train, *good(stone)[:3]], start_anew=True)
    assert (anew.added, anew.learned) == (3, 12)
    assert len(anew.detector.provenance["calibration_images"]) == 3
    with pytest.raises(InputError, match="learned from 12 of them or was validated on them"):
        recalibrate(anew.detector, train)
    held_out = [Sample(file, "good") for file in train]
    assert known_images(detector, held_out) == known_images(anew.detector, held_out) == 12


def test_a_known_defect_is_no_good_image(detector: Detector, stone: Path) -> None:
    knowing = with_defects(detector, defects(stone))
    with pytest.raises(InputError, match=r"000\.png is given as a good image, but"):
        recalibrate(knowing, [*good(stone), *defects(stone)[:1]])


def test_copies_are_not_both_learned_from_and_held_out(stone: Path, tmp_path: Path, capsys: Captured) -> None:
    for number in range(3):
        for file in sorted((stone / "train/good").iterdir())[:6]:
            shutil.copy(file, tmp_path / f"{number}-{file.name}")
    given = [*SMALLEST, "--set", "holdout=0.5", "--no-report"]
    assert main(["fit", str(tmp_path), "-o", str(tmp_path / "part.flaw"), *given]) == 0
    assert "12 of 18 good images are copies of others, byte for byte" in capsys.readouterr().err
    about = Detector.load(tmp_path / "part.flaw", device="cpu").provenance
    learned, held = about["learned_images"], about["calibration_images"]
    assert len(learned) == len(set(learned)) == 3 and len(held) == len(set(held)) == 3
    assert not set(learned) & set(held)


def test_a_score_does_not_depend_on_the_company(detector: Detector, stone: Path) -> None:
    files = [*good(stone), *defects(stone)]
    together = detector.inspect(files)
    alone = [detector.inspect(file)[0] for file in files]
    assert [one.score for one in together] == [one.score for one in alone]
    measured = evaluate(detector, open_folder(stone, 0))
    scores = dict(zip((sample.path for sample in measured.samples), measured.scores.tolist(), strict=True))
    assert [scores[file] for file in files] == [one.score for one in alone]


def test_test_images_that_chose_the_epoch_do_not_count(stone: Path, tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "peeking.flaw"
    assert main(["fit", str(stone), "-o", str(file), *SMALLEST, "--select-on-test"]) == 0
    assert "learned from 9 of them" in refused(capsys, "calibrate", file, stone / "test/good")
    out = told(capsys, "evaluate", file, stone, "-o", tmp_path / "out")
    count = len(open_folder(stone, 0).test)
    assert f"{count} of these {count} images are known to the detector" in out


def test_known_defects_estimate_misses_and_move_no_threshold(detector: Detector, stone: Path) -> None:
    assert misses(detector) is None
    knowing = with_defects(detector, [*defects(stone), defects(stone)[0]])
    assert knowing.calibration == detector.calibration and "defects" not in detector.provenance
    scores = [score for score, _ in inspected(detector, defects(stone))]
    assert knowing.provenance["defects"]["scores"] == scores
    for budget in (None, Budget(0.5, None), Budget(0.9, None)):
        found = misses(knowing, budget)
        assert found is not None
        assert found.missed == sum(score <= detector.decision(budget).threshold for score in scores)
        assert (found.low, found.high) == share_interval(found.missed, len(scores), 0.95)
    with pytest.raises(InputError, match=r"000\.png is given as a defect, but"):
        with_defects(recalibrate(detector, good(stone)).detector, good(stone)[:1])
    with pytest.raises(InputError, match="at least one"):
        with_defects(detector, [])


def test_what_is_written_of_misses_follows_the_threshold(detector: Detector, stone: Path) -> None:
    knowing = with_defects(detector, defects(stone))
    for later in (with_budget(knowing, Budget(0.9, None)), recalibrate(knowing, good(stone)).detector):
        found, written = misses(later), later.provenance["defects"]
        assert found is not None
        assert (written["missed"], written["interval"]) == (found.missed, [found.low, found.high])
        assert written["miss_rate"] == found.missed / 2


def test_calibrate_writes_what_inspection_then_uses(
    copied: Path, stone: Path, tmp_path: Path, capsys: Captured
) -> None:
    new = tmp_path / "new.flaw"
    before = copied.read_bytes()
    given = ("calibrate", copied, stone / "test/good", "--defects", stone / "test/crack", "-o", new)
    out = told(capsys, *given, "--false-alarms", "10%", "--confidence", "average")
    assert copied.read_bytes() == before
    assert "added 9 good images\n" in out and "misses: " in out and "of 2 known defects" in out
    assert shapes(out, "misses: ") == shapes((DOCS / "decisions.md").read_text(), "misses: ")
    assert f"promise: at most 10 % false alarms, on average, from {9 + 2} held-out good images\n" in out
    loaded = Detector.load(new, device="cpu")
    assert loaded.calibration.budget == Budget(0.1, None)
    expected = recalibrate(Detector.load(copied, device="cpu"), good(stone)).detector.calibration
    assert loaded.calibration.image_scores == expected.image_scores
    assert loaded.provenance["defects"]["interval_confidence"] == 0.95
    # Without -o the detector's own file; a budget alone needs no images.
    out = told(capsys, "calibrate", new, "--confidence", "0.8")
    assert "with 80 % confidence" in out and Detector.load(new, device="cpu").calibration.budget == Budget(0.1, 0.8)
    # Without anything to change it only tells, and writes nothing.
    stamp = new.stat().st_mtime_ns
    assert "wrote" not in told(capsys, "calibrate", new) and new.stat().st_mtime_ns == stamp


def test_calibrate_leaves_out_what_was_learned_and_says_so(copied: Path, stone: Path, capsys: Captured) -> None:
    both = copied.parent / "both"
    shutil.copytree(stone / "train/good", both)
    for file in good(stone)[:3]:
        shutil.copy(file, both / f"new-{file.name}")
    out = told(capsys, "calibrate", copied, both)
    left = "left out 10 that the detector learned from or was validated on, left out 2 that count already"
    assert f"added 3 good images, {left}\n" in out
    assert shapes(out, "added ") == shapes((DOCS / "decisions.md").read_text(), "added ")


@pytest.mark.parametrize(
    "fault", ["broken", "absent", "no image", "known", "defects absent", "masks", "no defects", "rate"]
)
def test_a_calibration_that_fails_leaves_the_file(
    fault: str, copied: Path, stone: Path, tmp_path: Path, capsys: Captured
) -> None:
    shutil.copytree(stone / "test/good", tmp_path / "good")
    (tmp_path / "empty").mkdir()
    if fault == "broken":
        (tmp_path / "good/003.png").write_bytes(b"no image")
    given, hint = {
        "broken": ([tmp_path / "good"], "003.png"),
        "absent": ([tmp_path / "nowhere"], "nowhere"),
        "no image": ([tmp_path / "empty"], "empty"),
        "known": ([stone / "train/good"], "has never seen"),
        "defects absent": ([tmp_path / "good", "--defects", tmp_path / "nowhere"], "nowhere"),
        "masks": ([tmp_path / "good", "--defects", stone / "ground_truth"], "is a mask"),
        "no defects": ([tmp_path / "good", "--defects", tmp_path / "empty"], "known defects"),
        "rate": ([tmp_path / "good", "--false-alarms", "2"], "1/1000"),
    }[fault]
    before = copied.read_bytes()
    assert hint in refused(capsys, "calibrate", copied, *given)
    assert copied.read_bytes() == before
    assert "folder of good images" in refused(capsys, "calibrate", copied, "--replace")


def test_an_unwritable_output_is_told_before_the_work(copied: Path, stone: Path, capsys: Captured) -> None:
    assert "it is a folder" in refused(capsys, "calibrate", copied, stone / "test/good", "-o", stone)


def test_a_detector_that_remembers_no_images_says_so(copied: Path, stone: Path, capsys: Captured) -> None:
    old = Detector.load(copied, device="cpu")
    old.provenance = {key: value for key, value in old.provenance.items() if not key.endswith("_images")}
    old.save(copied)
    assert main(["calibrate", str(copied), str(stone / "test/good")]) == 0
    assert "does not tell which images it learned from" in capsys.readouterr().err


def test_inspection_takes_another_budget_and_says_what_it_promises(
    part: Path, stone: Path, tmp_path: Path, capsys: Captured
) -> None:
    detector = Detector.load(part, device="cpu")
    before = part.read_bytes()
    for options, budget in (
        ([], Budget(0.05, 0.9)),
        (["--false-alarms", "1/3", "--confidence", "average"], Budget(1 / 3, None)),
        (["--false-alarms", "0.7"], Budget(0.7, 0.9)),
    ):
        out, file = tmp_path / f"out{budget.rate}", tmp_path / "r.json"
        text = told(capsys, "inspect", part, stone / "test", "-o", out, "--json", file, *options)
        rows, result = list(csv.DictReader((out / "table.csv").open())), json.loads(file.read_text())
        decision = detector.decision(budget)
        assert result["decision"]["threshold"] == decision.threshold
        assert result["outline"]["threshold"] == detector.outline(budget).threshold
        assert (result["decision"]["false_alarms"], result["decision"]["confidence"]) == (
            budget.rate,
            budget.confidence,
        )
        assert f"promise: {result['decision']['promise']}\n" in text
        page = shapes((DOCS / "decisions.md").read_text())
        assert "score p-value verdict image" in page & shapes(text)
        assert {line for line in shapes(text) if line.startswith("N N ")} <= page
        assert result["decision"]["kept"] == decision.kept == ("more (flawflow calibrate" not in text)
        for row, entry in zip(rows, result["images"], strict=True):
            expected = "defect" if entry["score"] > decision.threshold else "good"
            assert row["verdict"] == entry["verdict"] == expected
            assert f"{expected:<7}  {entry['image']}\n" in text
    assert part.read_bytes() == before


def test_the_outline_lies_where_the_map_exceeds_its_threshold(part: Path, stone: Path, tmp_path: Path) -> None:
    detector = Detector.load(part, device="cpu")
    drawn = 0
    assert main(["inspect", str(part), str(stone / "test"), "-o", str(tmp_path), "--false-alarms", "0.7"]) == 0
    line = detector.outline(Budget(0.7, 0.9)).threshold
    for row in csv.DictReader((tmp_path / "table.csv").open()):
        picture, image = cv2.imread(str(tmp_path / row["overlay"])), cv2.imread(row["image"])
        above = detector.inspect(Path(row["image"]))[0].anomaly_map > line
        white = (picture == 255).all(axis=2) & (image != 255).any(axis=2)
        assert white.any() == above.any()
        assert not (white & ~above).any()
        drawn += bool(above.any())
    assert 2 <= drawn < 15


def test_evaluation_counts_what_the_budget_does_to_the_test_images(
    part: Path, stone: Path, tmp_path: Path, capsys: Captured
) -> None:
    out, file = tmp_path / "out", tmp_path / "numbers.json"
    text = told(
        capsys, "evaluate", part, stone, "-o", out, "--json", file, "--false-alarms", "0.6", "--confidence", "0.5"
    )
    row = json.loads(file.read_text())["categories"]["stone"]
    rows = list(csv.DictReader((out / "table.csv").open()))
    bad = np.array([one["defect"] != "good" for one in rows])
    called = np.array([one["verdict"] == "defect" for one in rows])
    assert row["false_alarm_rate"] == pytest.approx(called[~bad].mean())
    assert row["miss_rate"] == pytest.approx((~called[bad]).mean())
    assert (called == (np.array([float(one["score"]) for one in rows]) > row["threshold"])).all()
    assert (row["false_alarms"], row["confidence"], row["promised_rate"]) == (0.6, 0.5, 0.6)
    assert 0 <= row["outline_false_alarm_rate"] <= 1 and row["known_test_images"] == 0
    assert "promise: at most 60 % false alarms, with 50 % confidence" in text and "on these test images: " in text
    assert shapes(text, "on these") == shapes((DOCS / "decisions.md").read_text(), "on these")


def test_without_calibration_images_nothing_is_called_defective(detector: Detector, stone: Path) -> None:
    category = open_folder(stone, 0)
    evaluation = evaluate(detector, category)
    bare = with_budget(detector, Budget(0.1))
    bare.calibration = type(bare.calibration)((), (), 0.0, 1.0)
    found = at_budget(bare, evaluation)
    assert found["threshold"] is None and found["false_alarm_rate"] == 0.0 and found["miss_rate"] == 1.0
    assert found["promised_rate"] == 1.0 and math.isinf(bare.decision().threshold)


def test_an_unreadable_image_stops_a_calibration(detector: Detector, stone: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    for change in (recalibrate, with_defects):
        with pytest.raises(ImageError, match=r"broken\.png"):
            change(detector, [*good(stone)[:2], tmp_path / "broken.png"])


def test_a_smaller_budget_costs_misses_never_alarms(detector: Detector, stone: Path) -> None:
    evaluation = evaluate(detector, open_folder(stone, 0))
    found = [at_budget(detector, evaluation, Budget(rate, None)) for rate in (0.1, 0.4, 0.7, 0.95)]
    for key, sign in (("false_alarm_rate", 1), ("outline_false_alarm_rate", 1), ("miss_rate", -1)):
        values = [sign * (one[key] or 0.0) for one in found]
        assert values == sorted(values)

"""Large images and regions, end to end: fitted on tiles, inspected through regions, written for other programs."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from commands import SMALL, Captured, refused
from flawflow.adaptation import Unseen, adapt, unseen
from flawflow.cli import main
from flawflow.datasets import open_folder
from flawflow.datasets.generated import write_product_line
from flawflow.detector import Detector
from flawflow.errors import ImageError, InputError, OptionError
from flawflow.evaluation import evaluate
from flawflow.files import digest
from flawflow.glare import without_glare
from flawflow.images import read_image, write_image
from flawflow.recalibration import recalibrate
from flawflow.roi import Roi, RoiMismatch, Zone, read_zones
from flawflow.sources import TileSource
from flawflow.tiling import TilingConfig
from flawflow.watching import follow
from test_flat_memory import Reader

WHOLE = ((0.0, 0.0), (160.0, 0.0), (160.0, 160.0), (0.0, 160.0))
LEFT = ((0.0, 0.0), (80.0, 0.0), (80.0, 160.0), (0.0, 160.0))


@pytest.fixture(scope="module")
def stone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("line")
    write_product_line(root, 0, ("stone",), train=10, test_good=3, per_defect=2, size=160)
    return root / "stone"


@pytest.fixture(scope="module")
def tiled(stone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("fit") / "tiled.flaw"
    assert main(["fit", str(stone), "-o", str(file), "--tile", "64:16", *SMALL]) == 0
    return file


@pytest.fixture(scope="module")
def whole(stone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("fit") / "whole.flaw"
    assert main(["fit", str(stone), "-o", str(file), *SMALL]) == 0
    return file


def a_defect(stone: Path) -> Path:
    return sorted((stone / "test" / "crack").glob("*.png"))[0]


def test_a_fit_on_tiles_calibrates_on_whole_held_out_images(tiled: Path, stone: Path) -> None:
    detector = Detector.load(tiled, device="cpu")
    assert detector.recipe.tiling == TilingConfig(64, 16)
    assert detector.provenance["tiles"] == 9 * detector.provenance["learned_from"]
    train = sorted((stone / "train" / "good").glob("*.png"))
    scores = [detector.inspect(file)[0].score for file in train]
    assert set(detector.calibration.image_scores) <= set(scores)
    assert len(detector.calibration.image_scores) == detector.provenance["held_out"]


def test_the_map_of_tiles_has_cells_of_the_image(tiled: Path, stone: Path) -> None:
    detector = Detector.load(tiled, device="cpu")
    image = read_image(a_defect(stone))
    wide = np.concatenate([image, image[:, :77]], axis=1)
    [one] = detector.inspect(wide)
    pitch = detector.scorer.pitch
    assert one.anomaly_map.shape == (-(-160 // pitch), -(-237 // pitch)) and one.anomaly_map.dtype == np.float32
    assert detector.scorer.cell_size((160, 237)) == (pitch, pitch)
    with pytest.raises(ImageError, match="uint8 RGB"):
        detector.inspect(image[:, :, 0])
    small = detector.inspect(image[:20, :33])[0]
    assert np.isfinite(small.anomaly_map).all() and np.isfinite(small.score)


def test_a_defect_is_not_thinned_out_by_a_larger_image(tiled: Path) -> None:
    """The oddest places are as many in a large image as in one of a tile."""
    detector = Detector.load(tiled, device="cpu")
    detector.recipe = replace(detector.recipe, scoring=replace(detector.recipe.scoring, level=0.0, top=0.05))
    cells = 64 // detector.scorer.pitch
    generator = np.random.default_rng(0)
    small = generator.random((1, cells, cells), np.float32)
    large = np.zeros((1, 5 * cells, 7 * cells), np.float32)
    large[:, 3:][:, :cells, :cells] = small
    score = float(detector.scorer.image_scores(torch.from_numpy(small)[None]))
    assert float(detector.scorer.image_scores(torch.from_numpy(large)[None])) == pytest.approx(score)
    highest = np.sort(small.ravel())[-round(0.05 * cells**2) :]
    assert score == pytest.approx(float(highest.mean()), rel=1e-5)


def test_what_is_ignored_or_played_down_can_only_lower_a_score(tiled: Path, whole: Path, stone: Path) -> None:
    files = sorted((stone / "test").rglob("*.png"))
    for detector in (Detector.load(tiled, device="cpu"), Detector.load(whole, device="cpu")):
        plain = detector.inspect(files)
        for zone in (Zone("a", LEFT), Zone("b", LEFT, "ignore"), Zone("c", LEFT, "weigh", 0.4)):
            for one, through in zip(plain, detector.inspect(files, roi=Roi((zone,))), strict=True):
                assert through.score <= one.score + 1e-3 and through.p_value >= one.p_value
                assert np.isnan(through.anomaly_map).any() == (zone.use != "weigh")
        everything = detector.inspect(files, roi=Roi((Zone("all", WHOLE),)))
        assert [one.score for one in everything] == [one.score for one in plain]
        with pytest.raises(RoiMismatch):
            detector.inspect(np.zeros((100, 100, 3), np.uint8), roi=Roi((Zone("a", LEFT),)))


def test_an_image_that_the_regions_do_not_fit_is_named(whole: Path, tiled: Path, stone: Path, tmp_path: Path) -> None:
    wide = tmp_path / "wide.png"
    write_image(wide, np.zeros((80, 160, 3), np.uint8))
    square = Roi(mask=np.ones((10, 10), bool))
    for detector in (Detector.load(whole, device="cpu"), Detector.load(tiled, device="cpu")):
        with pytest.raises(RoiMismatch, match=r"wide\.png: the regions were drawn on 10×10 .* has 160×80"):
            detector.inspect([a_defect(stone), wide], roi=square)


def test_an_ignored_place_changes_nothing_of_the_rest(whole: Path, stone: Path) -> None:
    detector = Detector.load(whole, device="cpu")
    image, known = read_image(a_defect(stone)), detector.calibration
    assert known.good_map is not None
    for good_map in (None, known.good_map):
        detector.calibration = replace(known, good_map=good_map)
        inside = detector.inspect(image, roi=Roi((Zone("a", LEFT, "ignore"),)))[0].anomaly_map
        plain = detector.inspect(image)[0].anomaly_map
        assert np.isnan(inside[:, :32]).all() and not np.isnan(inside[:, 32:]).any()
        if good_map is None:
            drawn = plain[:, 32:]
        # … but the glare of its own places: that of what is ignored is not there.
        expected = drawn if good_map is None else without_glare(drawn, drawn.max(), good_map, 3.0)
        np.testing.assert_allclose(inside[:, 32:], expected, rtol=1e-5, atol=1e-3)


def test_adapted_detectors_are_calibrated_as_they_inspect(whole: Path, tiled: Path, stone: Path) -> None:
    good = [read_image(file) for file in sorted((stone / "test" / "good").glob("*.png"))]
    roi = Roi((Zone("a", LEFT, "weigh", 3.0),))
    detector = Detector.load(whole, device="cpu")
    before = detector.calibration
    adapted = adapt(detector, good, TilingConfig(64), roi)
    assert detector.calibration is before and detector.recipe.tiling == TilingConfig()
    scores = sorted(one.score for one in adapted.inspect(good, roi=roi))
    assert list(adapted.calibration.image_scores) == scores
    assert adapted.calibration.budget == before.budget
    with pytest.raises(InputError, match="no good images"):
        adapt(detector, [], roi=roi)
    with pytest.raises(OptionError, match="fitted on tiles of 64 pixels"):
        adapt(Detector.load(tiled, device="cpu"), good, TilingConfig(96))


def test_inspect_writes_regions_everywhere(whole: Path, stone: Path, tmp_path: Path) -> None:
    out, found, notes = tmp_path / "out", tmp_path / "found.json", tmp_path / "coco.json"
    zones = {"regions": [{"name": "all but a rim", "polygon": [[5, 5], [155, 5], [155, 155], [5, 155]]}]}
    (tmp_path / "roi.json").write_text(json.dumps(zones))
    options = ["--roi", tmp_path / "roi.json", "--scale", "0.5", "--coco", notes, "-o", out, "--json", found]
    assert main([str(a) for a in ["inspect", whole, stone / "test", *options]]) == 0
    images = json.loads(found.read_text())["images"]
    rows = list(csv.DictReader((out / "regions.csv").open()))
    read = COCO(str(notes))
    counts = [len(one["regions"]) for one in images]
    assert sum(counts) == len(rows) == len(read.getAnnIds()) > 0
    assert len(read.getImgIds()) == len(images)
    for row in rows:
        assert float(row["x_px"]) >= 2.5 and float(row["x_px"]) + float(row["width_px"]) <= 157.5
        assert float(row["area_mm2"]) == pytest.approx(float(row["area_px"]) / 4, abs=1e-2)
    assert {row["image"] for row in rows} == {one["image"] for one in images if one["regions"]}
    picture = cv2.imread(str(out / images[0]["overlay"]))
    assert picture.shape == (160, 160, 3) and picture[0].mean() < 0.7 * cv2.imread(images[0]["image"])[0].mean()
    large = max(float(row["area_px"]) for row in rows) + 1
    assert (
        main([str(a) for a in ["inspect", whole, stone / "test", *options[:2], "--min-area", large, "--json", found]])
        == 0
    )
    assert not any(one["regions"] for one in json.loads(found.read_text())["images"])


def test_images_that_regions_do_not_fit_are_reported_and_the_others_go_on(
    whole: Path, stone: Path, tmp_path: Path, capsys: Captured
) -> None:
    other = tmp_path / "other.png"
    assert cv2.imwrite(str(other), np.zeros((80, 160, 3), np.uint8))
    assert cv2.imwrite(str(tmp_path / "mask.png"), np.full((20, 20), 255, np.uint8))
    message = refused(
        capsys, "inspect", whole, other, a_defect(stone), "--roi", tmp_path / "mask.png", "-o", tmp_path / "o"
    )
    assert "other.png" in message and "another aspect ratio" in message
    assert len(list(csv.DictReader((tmp_path / "o" / "table.csv").open()))) == 1


def test_what_is_not_promised_is_said(whole: Path, tiled: Path, stone: Path, tmp_path: Path, capsys: Captured) -> None:
    image = a_defect(stone)
    (tmp_path / "roi.json").write_text(
        json.dumps({"regions": [{"polygon": [[0, 0], [80, 0], [80, 160]], "use": "weigh", "sensitivity": 3}]})
    )
    through = ["--roi", str(tmp_path / "roi.json")]
    through += ["--json", str(tmp_path / "found.json")]
    assert main(["inspect", str(whole), str(image), *through]) == 0
    assert "\npromise: none: a sensitivity above 1 raises" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    for one in (found["decision"], found["outline"]):
        assert one["promised"] is None and one["kept"] is False and one["promise"].startswith("none: ")
    assert main(["inspect", str(whole), str(image), *through, "--good", str(stone / "test" / "good")]) == 0
    assert "\npromise: at most " in capsys.readouterr().out
    assert json.loads((tmp_path / "found.json").read_text())["decision"]["promised"] > 0
    assert "add --good" in refused(capsys, "inspect", whole, image, "--tile", "64")
    assert main(["inspect", str(whole), str(image), "--tile", "64", "--good", str(stone / "test" / "good")]) == 0
    assert "fitted on tiles of 64" in refused(capsys, "inspect", tiled, image, "--tile", "96")
    assert main(["inspect", str(tiled), str(image), "--tile", "64:16"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tile", "64x"], "SIDE or SIDE:OVERLAP"),
        (["--tile", "65"], "multiple of 16"),
        (["--tile", "64:50"], "0 to half"),
        (["--tile", "10000000"], "at most 8192"),
        (["--tile", "1" * 5000], "SIDE or SIDE:OVERLAP"),
        (["--scale", "1e200", "--json", "x.json"], "millimetres along a pixel"),
        (["--scale", "0.1"], "add -o or --json"),
        (["--scale", "0"], "millimetres along a pixel"),
        (["--scale", "nan"], "millimetres along a pixel"),
        (["--min-area", "-1"], "0 or more"),
        (["--roi", "absent.png"], "absent.png"),
        (["--roi", "absent.json"], "absent.json"),
        (["--good", "absent"], "absent"),
    ],
)
def test_options_that_cannot_be_used_are_explained(
    whole: Path, stone: Path, capsys: Captured, options: list[str], message: str
) -> None:
    assert message in refused(capsys, "inspect", whole, a_defect(stone), *options)


def test_an_empty_mask_and_a_choice_on_test_images_are_explained(
    whole: Path, stone: Path, tmp_path: Path, capsys: Captured
) -> None:
    assert cv2.imwrite(str(tmp_path / "mask.png"), np.zeros((20, 20), np.uint8))
    assert "zero everywhere" in refused(capsys, "inspect", whole, a_defect(stone), "--roi", tmp_path / "mask.png")
    fit: list[Any] = ["fit", stone, "-o", tmp_path / "x.flaw", *SMALL, "--tile", "64"]
    assert "leave one of them out" in refused(capsys, *fit, "--select-on-test")
    assert not (tmp_path / "x.flaw").exists()


def test_tiles_to_learn_from_are_those_that_inspection_cuts(stone: Path) -> None:
    files = sorted((stone / "train" / "good").glob("*.png"))[:3]
    source = TileSource(files, 64, TilingConfig(64, 16, most=20), 2, seed=1)
    assert len(source) == 20 and np.bincount(source.owners).tolist() == [7, 7, 6]
    again = TileSource(files, 64, TilingConfig(64, 16, most=20), 2, seed=1)
    corners = source.about()["corners"]
    number = 0
    for file, of_one in zip(files, corners, strict=True):
        image = read_image(file)
        for y, x in of_one:
            np.testing.assert_array_equal(source(number), image[y : y + 64, x : x + 64])
            np.testing.assert_array_equal(again(number), source(number))
            number += 1


def test_more_good_images_count_as_they_are_inspected(tiled: Path, stone: Path) -> None:
    detector = Detector.load(tiled, device="cpu")
    good = sorted((stone / "test" / "good").glob("*.png"))
    anew = recalibrate(detector, good, start_anew=True).detector
    assert list(anew.calibration.image_scores) == sorted(detector.inspect(file)[0].score for file in good)
    assert anew.reference is None and detector.reference is None


def test_what_cannot_be_done_in_tiles_is_explained(tiled: Path, stone: Path, tmp_path: Path, capsys: Captured) -> None:
    assert "fitted on tiles" in refused(capsys, "export", tiled, "-o", tmp_path / "tiled.onnx")
    with pytest.raises(OptionError, match="fitted on tiles"):
        follow(Detector.load(tiled, device="cpu"), a_defect(stone))
    for more in ([], ["--once"]):
        watching = ["watch", tiled, stone / "test" / "good", "--state", tmp_path / "s.json", "--warm-up", 20, *more]
        assert "fitted on tiles" in refused(capsys, *watching)
    assert not list(tmp_path.iterdir())


def test_evaluation_in_tiles_scores_what_inspection_scores(tiled: Path, stone: Path) -> None:
    detector = Detector.load(tiled, device="cpu")
    found = evaluate(detector, open_folder(stone, 0))
    scores = [detector.inspect(sample.path)[0].score for sample in found.samples]
    assert found.scores.tolist() == scores and found.maps.shape == (len(scores), 64, 64)


def test_the_example_of_the_page_is_read(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "large-images.md").read_text()
    block = re.search(r"```json\n(.*?)```", page, re.DOTALL)
    assert block
    (tmp_path / "roi.json").write_text(block.group(1))
    roi = read_zones(tmp_path / "roi.json")
    assert [zone.use for zone in roi.zones] == ["inspect", "weigh", "ignore"] and roi.keeps_promise
    values = roi.sensitivity((448, 448), (1.0, 1.0), (448, 448))
    assert set(np.unique(values)) == {0, 0.5, 1} and values[220, 50] == 0 and values[220, 220] == 0.5


def learned_and_held(whole: Path, stone: Path) -> tuple[list[Path], list[Path]]:
    """The files that the detector learned from, and those that were held out and chose its epoch."""
    detector = Detector.load(whole, device="cpu")
    files = sorted((stone / "train" / "good").glob("*.png"))
    known = set(detector.provenance["learned_images"])
    return [one for one in files if digest(one)[:16] in known], [one for one in files if digest(one)[:16] not in known]


def test_good_images_calibrate_a_run_once_and_never_when_they_were_learned_from(
    whole: Path, stone: Path, tmp_path: Path, capsys: Captured
) -> None:
    known = [*learned_and_held(whole, stone)[0][:2], learned_and_held(whole, stone)[1][0]]
    good, found = tmp_path / "good", tmp_path / "found.json"
    good.mkdir()
    command = ["inspect", whole, a_defect(stone), "--good", good, "--json", found]
    assert f"{good} holds no images" in refused(capsys, *command)
    for number, file in enumerate(known):
        shutil.copy(file, good / f"renamed{number}.png")
    assert "learned from every one of the 3 good images" in refused(capsys, *command)
    fresh = sorted((stone / "test" / "good").glob("*.png"))[:2]
    for file in fresh:
        shutil.copy(file, good / f"fresh{file.name}")
        shutil.copy(file, good / f"again{file.name}")
    assert main([str(one) for one in command]) == 0
    said = capsys.readouterr().err
    assert "of the 7 good images" in said and "learned from 3 or was validated on them, and 2 are there twice" in said
    assert json.loads(found.read_text())["decision"]["normals"] == 2


def test_images_that_chose_the_epoch_calibrate_nothing_where_the_detector_says_so(whole: Path, stone: Path) -> None:
    detector = Detector.load(whole, device="cpu")
    _, held = learned_and_held(whole, stone)
    with pytest.raises(InputError, match="was validated on"):
        unseen(detector, held)
    detector.provenance["validation_images"] = detector.provenance["validation_images"][:0]
    assert unseen(detector, held) == Unseen(tuple(held), 0, 0)


def test_regions_that_leave_nothing_of_an_image_stop_no_other(
    whole: Path, stone: Path, tmp_path: Path, capsys: Captured
) -> None:
    """A rim of less than half a cell holds no middle of a cell."""
    rim = {"name": "rim", "polygon": [[0, 0], [160, 0], [160, 0.4], [0, 0.4]]}
    (tmp_path / "roi.json").write_text(json.dumps({"image_size": [160, 160], "regions": [rim]}))
    tall = tmp_path / "tall.png"
    assert cv2.imwrite(str(tall), np.zeros((160, 160, 3), np.uint8))
    message = refused(capsys, "inspect", whole, tall, "--roi", tmp_path / "roi.json")
    assert "tall.png" in message and "'rim'" in message and "nothing to inspect" in message
    (tmp_path / "wide").mkdir()
    assert cv2.imwrite(str(tmp_path / "wide" / "wide.png"), np.zeros((80, 160, 3), np.uint8))
    roi = tmp_path / "half.json"
    roi.write_text(json.dumps({"regions": [{"name": "low", "polygon": [[0, 100], [160, 100], [160, 160]]}]}))
    given = ["inspect", whole, a_defect(stone), tmp_path / "wide", "--roi", roi, "-o", tmp_path / "out"]
    assert "wide.png" in refused(capsys, *given)
    assert len(list(csv.DictReader((tmp_path / "out" / "table.csv").open()))) == 1
    assert "wide.png" in refused(capsys, *given[:3], "--roi", roi, "--good", tmp_path / "wide")


def test_one_large_image_is_held_at_a_time(
    whole: Path, stone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flawflow.cli.commands.inspect._BATCH_PIXELS", 100)
    reader = Reader()
    monkeypatch.setattr("flawflow.scorer.read_image", reader)
    good = stone / "test" / "good"
    options = ["--good", str(good), "-o", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["inspect", str(whole), str(stone / "test"), *options]) == 0
    assert len(reader.held) > len(list(good.iterdir())) and set(reader.held) == {0}


def test_a_map_of_bounded_cells_is_scored_by_them(tiled: Path, stone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = Detector.load(tiled, device="cpu")
    image = read_image(a_defect(stone))
    detector.calibration = replace(detector.calibration, good_map=None)  # the map that scores, with its glare
    finest = detector.scorer.pitch
    monkeypatch.setattr("flawflow.tiling._MOST_CELLS", (160 // finest) ** 2 // 4)
    [one] = detector.inspect(image)
    assert one.anomaly_map.shape == (160 // (2 * finest), 160 // (2 * finest))
    assert detector.cell_size((160, 160)) == (2 * finest, 2 * finest)
    count = max(1, round(detector.recipe.scoring.top * (64 // (2 * finest)) ** 2))
    highest = float(np.sort(one.anomaly_map.ravel())[-count:].mean())
    detector.recipe = replace(detector.recipe, scoring=replace(detector.recipe.scoring, level=0.0))
    assert detector.inspect(image)[0].score == pytest.approx(highest, rel=1e-5)

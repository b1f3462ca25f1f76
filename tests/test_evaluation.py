"""Laws of the evaluation: defects of generated products are found, and numbers are what they are said to be."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from flawflow import Evaluation, StoreOptions, evaluate, fit
from flawflow.datasets import open_folder
from flawflow.datasets.generated import write_product_line
from flawflow.detector import Detector
from flawflow.errors import DatasetError, ImageError, OutputError
from flawflow.evaluation import read_masks, to_json
from flawflow.files import write_json
from flawflow.metrics import IMAGE_METRICS, PIXEL_METRICS, image_metrics, pixel_metrics
from flawflow.types import Category
from test_fitting import RECIPE


@pytest.fixture(scope="module")
def category(tmp_path_factory: pytest.TempPathFactory) -> Category:
    root = tmp_path_factory.mktemp("line")
    write_product_line(root, 0, ("metal",), train=24, test_good=8, per_defect=3, size=128)
    return open_folder(root / "metal", 0)


@pytest.fixture(scope="module")
def detector(category: Category) -> Detector:
    recipe = replace(RECIPE, size=128).change({"training.objective": "local_margin"})
    return fit(category, recipe, device="cpu", store=StoreOptions(keep=False))


@pytest.fixture(scope="module")
def result(detector: Detector, category: Category) -> Evaluation:
    return evaluate(detector, category)


def test_defects_are_found_and_outlined(result: Evaluation) -> None:
    numbers = result.metrics
    assert numbers["image_auroc"] is not None and numbers["image_auroc"] > 0.9
    assert numbers["pixel_auroc"] is not None and numbers["pixel_auroc"] > 0.85
    assert numbers["aupro"] is not None and numbers["aupro"] > 0.4
    share = result.masks.mean() if result.masks is not None else 1.0
    assert numbers["pixel_ap"] is not None and numbers["pixel_ap"] > 5 * share


def test_numbers_are_those_of_inspection(result: Evaluation, detector: Detector, category: Category) -> None:
    inspected = detector.inspect([s.path for s in category.test])
    assert result.samples == category.test
    for number, one in enumerate(inspected):
        assert np.allclose(result.maps[number], one.anomaly_map, rtol=1e-4, atol=1e-4)
        assert result.scores[number] == pytest.approx(one.score, rel=1e-4)
    assert all(0 < one.p_value <= 1 for one in inspected)
    assert result.masks is not None
    expected = image_metrics(result.scores, result.labels) | pixel_metrics(result.maps, result.masks)
    assert result.metrics == expected
    assert set(result.metrics) == {*IMAGE_METRICS, *PIXEL_METRICS}
    assert all(value is not None and 0 <= value <= 1 for value in result.metrics.values())
    assert result.inspect_ms > 0 and not result.selected_on_test


def test_masks_are_empty_for_good_images_and_outline_the_others(result: Evaluation) -> None:
    assert result.masks is not None
    assert result.masks.any(axis=(1, 2)).tolist() == result.labels.tolist()
    assert result.maps.dtype == np.float32 and result.maps.shape == result.masks.shape


def test_without_outlines_the_images_still_count(detector: Detector, category: Category) -> None:
    bare = replace(category, test=tuple(replace(s, mask_path=None) for s in category.test))
    result = evaluate(detector, bare)
    assert result.masks is None and set(result.metrics) == {*IMAGE_METRICS, *PIXEL_METRICS}
    assert all(result.metrics[name] is None for name in PIXEL_METRICS)
    assert result.metrics["image_auroc"] is not None


def test_one_kind_of_image_alone_cannot_be_told_apart(detector: Detector, category: Category) -> None:
    good = replace(category, test=tuple(s for s in category.test if not s.is_defective))
    assert set(evaluate(detector, good).metrics.values()) == {None}


def test_nothing_to_test_on_is_an_error(detector: Detector, category: Category) -> None:
    with pytest.raises(DatasetError, match="'metal' has no test images"):
        evaluate(detector, replace(category, test=()))


def test_a_broken_image_or_mask_is_named(detector: Detector, category: Category, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    bad = next(s for s in category.test if s.is_defective)
    for sample in (replace(bad, path=tmp_path / "broken.png"), replace(bad, mask_path=tmp_path / "broken.png")):
        with pytest.raises(ImageError, match=r"broken\.png"):
            evaluate(detector, replace(category, test=(*category.test, sample)))


def test_masks_of_another_size_are_brought_to_the_input_size(category: Category, tmp_path: Path) -> None:
    bad = next(s for s in category.test if s.is_defective)
    mask = np.zeros((256, 512), np.uint8)
    mask[:128, :256] = 3  # any number but zero is a defect
    assert cv2.imwrite(str(tmp_path / "mask.png"), mask)
    masks = read_masks([replace(bad, mask_path=tmp_path / "mask.png")], 64)
    assert masks is not None
    expected = np.zeros((64, 64), bool)
    expected[:32, :32] = True
    assert np.array_equal(masks[0], expected)


def test_test_selected_numbers_are_labelled(detector: Detector, category: Category) -> None:
    told = dict(detector.provenance) | {"selected_on": "test images"}
    peeking = Detector(detector.recipe, detector.branches, detector.calibration, told)
    assert evaluate(peeking, category).selected_on_test


def test_the_json_form_holds_each_category_and_the_mean() -> None:
    one = {"image_auroc": 0.9, "pixel_auroc": None, "inspect_ms": 10.0, "seed": 0, "selected_on_test": False}
    two = {"image_auroc": 1.0, "pixel_auroc": 0.8, "inspect_ms": 20, "seed": 0, "selected_on_test": True}
    form = to_json({"bottle": one, "cable": two})
    assert form["categories"] == {"bottle": one, "cable": two}
    expected = {"image_auroc": 0.95, "pixel_auroc": 0.8, "inspect_ms": 15.0, "selected_on_test": True}
    assert form["mean"] == pytest.approx(expected)
    assert to_json({}) == {"categories": {}, "mean": {}}


def test_json_is_written_whole_or_not_at_all(result: Evaluation, tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "numbers.json"
    form = to_json({"metal": dict(result.metrics)})
    write_json(path, form)
    assert json.loads(path.read_text()) == form

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flawflow.files._flush", full)
    with pytest.raises(OutputError, match="disk is full"):
        write_json(path, {"other": 1})
    assert json.loads(path.read_text()) == form

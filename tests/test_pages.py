"""Pages about a detector: they tell what was measured, label what is not honest, and look right in a real browser."""

import itertools
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from browser import measure
from commands import SMALL
from flawflow import Evaluation, StoreOptions, evaluate, fit
from flawflow.calibration import Budget, decide, promise, promised_percent
from flawflow.cli import main
from flawflow.cli.commands.fit import report_path
from flawflow.cli.parser import build_parser
from flawflow.datasets import open_folder
from flawflow.datasets.generated import write_product_line
from flawflow.detector import Detector
from flawflow.errors import OptionError
from flawflow.fitting import split
from flawflow.images import read_image, resize_image
from flawflow.pages import Twin, held_out_twins, write_fit_page, write_report
from flawflow.pages.facts import promise_facts, promise_text
from flawflow.report.style import STYLE
from flawflow.training import Epoch
from flawflow.types import Category
from test_fitting import RECIPE
from test_report import Reader

Reader.VOID = (*Reader.VOID, "input", "wbr")


@pytest.fixture(scope="module")
def category(tmp_path_factory: pytest.TempPathFactory) -> Category:
    root = tmp_path_factory.mktemp("line")
    write_product_line(root, 0, ("metal",), train=24, test_good=6, per_defect=2, size=96)
    return open_folder(root / "metal", 0)


@pytest.fixture(scope="module")
def detector(category: Category) -> Detector:
    recipe = replace(RECIPE, size=96).change({"training.objective": "local_margin"})
    return fit(category, recipe, device="cpu", store=StoreOptions(keep=False))


@pytest.fixture(scope="module")
def evaluation(detector: Detector, category: Category) -> Evaluation:
    return evaluate(detector, category)


@pytest.fixture(scope="module")
def page(detector: Detector, evaluation: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("report"), "metal: evaluation", {"metal": (detector, evaluation)})


@pytest.fixture(scope="module")
def twins(detector: Detector, category: Category) -> tuple[Twin, ...]:
    return held_out_twins(detector, category, None, 0)


@pytest.fixture(scope="module")
def fit_page(detector: Detector, twins: tuple[Twin, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("fit") / "metal.html"
    write_fit_page(file, detector, twins, Path("my parts.flaw"))
    return file


def peeking(detector: Detector) -> Detector:
    told = detector.provenance | {"selected_on": "test images"}
    return Detector(detector.recipe, detector.branches, detector.calibration, told)


def read(file: Path) -> str:
    """The page's text; the page is well-formed, of a size to be mailed, and loads nothing."""
    html = file.read_text("utf-8")
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == [] and len(html) < 15_000_000
    assert not {"script", "link", "iframe", "object"} & set(reader.tags)
    assert all(source.startswith("data:image/") for source in reader.sources)
    assert not re.search(r"https?:|url\(|@import", html)
    return "".join(reader.text)


def test_an_evaluation_shows_every_number_and_image(page: Path, evaluation: Evaluation, detector: Detector) -> None:
    text, html = read(page), page.read_text()
    for value in evaluation.metrics.values():
        assert value is not None
    for key in ("image_auroc", "image_ap", "pixel_auroc", "aupro"):
        assert f"{evaluation.metrics[key]:.4f}" in text
    shown = re.findall(r'alt="(\w+/\d+\.png), (good|defective), ([a-z ]+), score ([^"]+)"', html)
    names = [f"{s.defect}/{s.path.name}" for s in evaluation.samples]
    assert sorted(name for name, *_ in shown) == sorted(names)
    line = detector.decision().threshold
    for name, kind, verdict, score in shown:
        index = names.index(name)
        assert float(score) == pytest.approx(evaluation.scores[index], rel=1e-3)
        assert (kind == "defective") == evaluation.labels[index]
        assert (verdict in ("found", "false alarm")) == (evaluation.scores[index] > line)
    wrong = [verdict in ("missed", "false alarm") for _, _, verdict, _ in shown]
    assert wrong == sorted(wrong, reverse=True)
    assert {p.name for p in page.parent.iterdir()} == {"index.html", "metal-cases.png", "metal-scores.png"}


def test_every_kind_of_defect_has_a_row_that_adds_up(page: Path, evaluation: Evaluation, detector: Detector) -> None:
    rows = re.findall(r"<tr><td>(\w+)</td><td>(\d+)</td><td>([^<]+)</td><td>(\d+) \(", page.read_text())
    kinds = [sample.defect for sample in evaluation.samples]
    assert {kind: int(count) for kind, count, *_ in rows} == {kind: kinds.count(kind) for kind in set(kinds)}
    assert sum(int(called) for *_, called in rows) == int((evaluation.scores > detector.decision().threshold).sum())


def test_the_same_evaluation_gives_the_same_page(
    page: Path, detector: Detector, evaluation: Evaluation, tmp_path: Path
) -> None:
    again = write_report(tmp_path, "metal: evaluation", {"metal": (detector, evaluation)})
    assert again.read_bytes() == page.read_bytes()


def test_what_was_selected_on_test_images_says_so(
    detector: Detector, evaluation: Evaluation, page: Path, fit_page: Path, twins: tuple[Twin, ...], tmp_path: Path
) -> None:
    honest = "chosen on test images"
    assert honest not in read(page) and honest not in read(fit_page)
    told = peeking(detector)
    assert read(write_report(tmp_path, "t", {"metal": (told, evaluation)})).count(honest) >= 2
    write_fit_page(tmp_path / "fit.html", told, twins[:2], Path("x.flaw"))
    text = read(tmp_path / "fit.html")
    assert honest in text and "to judge the training by" in read(fit_page)
    for untrue in ("to choose the epoch", "to judge the training by"):
        assert untrue not in text


@pytest.mark.parametrize(
    ("history", "charts", "dots"),
    [
        ([(4, None)], 0, 0),  # a file that knows the loss of what was validated alone
        ([(0, [0.5])], 0, 0),
        ([(4, [5.0, 4.0, 3.0, 2.0, 1.0])], 1, 5),
        ([(1, [5.0, 4.0]), (3, [3.0, 2.0])], 2, 4 + 2 * 2),
        ([(1, None), (3, None)], 2, 2 + 2 * 2),
    ],
)
def test_curves_are_drawn_of_what_has_several_points(
    detector: Detector, tmp_path: Path, history: list[tuple[int, list[float] | None]], charts: int, dots: int
) -> None:
    """… and a training that was judged once, in the end, shows the losses on the way there."""
    entries = [asdict(Epoch(epoch, 1.0, 0.5, 1e-3, 0.9, 0.8, 0.01)) | {"losses": told} for epoch, told in history]
    bare = {k: v for k, v in detector.provenance.items() if not k.startswith("history")}
    known = Detector(detector.recipe, detector.branches, detector.calibration, bare | {"history": entries})
    write_fit_page(tmp_path / "fit.html", known, (), Path("x.flaw"))
    html = (tmp_path / "fit.html").read_text()
    training = html[html.index(">Training<") : html.index(">Threshold and promise<")]
    assert (training.count("<svg"), training.count("<circle")) == (charts, dots)
    assert ("The last epoch was kept" in training) == (len(history) == 1)


def test_test_images_that_the_detector_knows_are_told(
    detector: Detector, category: Category, page: Path, tmp_path: Path
) -> None:
    assert "known to the detector" not in read(page)
    learned = replace(category, test=(*category.test, *category.train[:3]))
    text = read(write_report(tmp_path, "t", {"metal": (detector, evaluate(detector, learned))}))
    assert f"3 of these {len(learned.test)} test images are known to the detector" in text


def test_another_budget_moves_the_line_of_the_page(
    detector: Detector, evaluation: Evaluation, page: Path, tmp_path: Path
) -> None:
    budget = Budget(0.9, None)
    line = detector.decision(budget).threshold
    assert line < detector.decision().threshold
    text = read(write_report(tmp_path, "t", {"metal": (detector, evaluation)}, budget))
    assert f"above {line:.4g}." in text and f"above {line:.4g}." not in read(page)


def test_several_products_share_a_page_and_its_size(
    detector: Detector, evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flawflow.pages.evaluated.ROOM", 40_000)
    results = dict.fromkeys(("metal", "other <b>"), (detector, evaluation))
    text = read(write_report(tmp_path, "two", results))
    assert "Overview" in text and "other <b>: Decision" in text
    html = (tmp_path / "index.html").read_text()
    left_out = [int(n) for n in re.findall(r"<p>(\d+) of \d+ images are not shown", html)]
    assert len(left_out) == 2 and all(0 < n < len(evaluation.samples) for n in left_out)


def test_without_outlines_and_without_defects_there_is_still_a_page(
    detector: Detector, category: Category, tmp_path: Path
) -> None:
    bare = replace(category, test=tuple(replace(s, mask_path=None) for s in category.test))
    text = read(write_report(tmp_path / "bare", "t", {"bare": (detector, evaluate(detector, bare))}))
    assert "ROC" in text and "Per-region" not in text and "pixel AP" not in text
    good = replace(category, test=tuple(s for s in category.test if not s.is_defective))
    text = read(write_report(tmp_path / "good", "t", {"good": (detector, evaluate(detector, good))}))
    assert "all of one kind" in text and "ROC, images" not in text and "false alarms" in text


def test_a_fit_tells_what_was_learned_and_what_is_promised(fit_page: Path, detector: Detector) -> None:
    text = read(fit_page)
    decision = detector.decision()
    assert promise_text(decision) in text and f"{decision.needed}" in text
    assert detector.backbone.weights_hash in text and detector.provenance["images"] in text
    assert "flawflow inspect 'my parts.flaw' IMAGES" in text
    kept = re.search(r"kept: epoch (\d+)<", fit_page.read_text())
    assert kept and int(kept[1]) in {entry["epoch"] + 1 for entry in detector.provenance["history"]}


@pytest.mark.parametrize(("normals", "confidence"), itertools.product((0, 5, 500), (None, 0.9)))
def test_a_promise_is_told_as_the_decision_has_it(normals: int, confidence: float | None) -> None:
    decision = decide(np.arange(normals, dtype=float), Budget(0.02, confidence))
    text = promise_text(decision)
    assert promise(decision) in text
    assert ("No image is called defective" in text) == (normals == 0)
    assert (f"above {decision.threshold:.4g}" in text) == (normals > 0)
    if normals:
        assert f"≤ {promised_percent(decision)}" in dict(promise_facts(decision)).values()


def test_twins_are_held_out_images_changed_under_their_mask(
    twins: tuple[Twin, ...], category: Category, detector: Detector
) -> None:
    learned, held = split(category, detector.recipe, None, 0)
    paths = {sample.path.name: sample.path for sample in held}
    assert twins and not {sample.path.name for sample in learned} & set(paths)
    for twin in twins:
        original = resize_image(read_image(paths[twin.name.split("/")[1]]), detector.recipe.size)
        change = np.abs(twin.image.astype(float) - original).max(axis=2)
        assert twin.mask.any() and change[twin.mask].mean() > 3 * change[~twin.mask].mean()
    again = held_out_twins(detector, category, None, 0, count=3)
    assert [t.name for t in again] == [t.name for t in twins[:3]]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(again, twins, strict=False))


def test_fit_writes_its_page_beside_the_detector(category: Category, tmp_path: Path) -> None:
    folder = str(category.train[0].path.parent)
    assert main(["fit", folder, "-o", str(tmp_path / "a/part.flaw"), *SMALL]) == 0
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"part.flaw", "part.html"}
    assert "Threshold and promise" in read(tmp_path / "a/part.html")
    assert main(["fit", folder, "-o", str(tmp_path / "b/part.flaw"), "--no-report", *SMALL]) == 0
    assert {p.name for p in (tmp_path / "b").iterdir()} == {"part.flaw"}


def test_the_page_never_takes_the_detectors_name() -> None:
    def chosen(*options: str) -> Path | None:
        return report_path(build_parser().parse_args(["fit", "good", *options]))

    assert chosen("-o", "part.flaw") == Path("part.html")
    assert chosen("-o", "part.html") == Path("part.html.html")
    assert chosen("-o", "a/part", "--report", "b.html") == Path("b.html")
    assert chosen("-o", "part", "--no-report") is None
    with pytest.raises(OptionError, match="exclude"):
        chosen("-o", "part.flaw", "--report", "x.html", "--no-report")


def luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1])
def test_text_has_the_contrast_that_accessibility_asks_for(scheme: int) -> None:
    block = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)[scheme]
    colours = {name: luminance(value) for name, value in re.findall(r"--([\w-]+): (#\w+)", block)}
    texts = [("ink", "page"), ("ink", "card"), ("ink", "warn"), ("soft", "card"), ("good", "card"), ("bad", "card")]
    for text, ground in [*texts, ("card", "accent"), ("ink", "field")]:
        low, high = sorted((colours[text], colours[ground]))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)


LOOK = """
const wide = [...doc.querySelectorAll("section, figure, ul, p, svg, h1")].filter(
  e => e.getBoundingClientRect().right > win.innerWidth + 1 && !e.closest(".wide, pre"));
const text = [...doc.querySelectorAll(".chart text")].map(e => e.getBoundingClientRect().height);
const pairs = [...doc.querySelectorAll(".pairs div")].map(e => e.children[1].clientWidth / e.children[0].clientWidth);
const cut = [...doc.querySelectorAll(".charts .wide")].filter(e => e.scrollWidth > e.clientWidth + 1);
return { width: win.innerWidth, cut: cut.length, values: pairs.length ? Math.min(...pairs) : 0,
  scroll: doc.documentElement.scrollWidth, wide: wide.length,
  background: style("body", "backgroundColor"), ink: style("body", "color"), least: Math.min(...text),
  requests: win.performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:")),
  pictures: [...doc.images].filter(i => i.naturalWidth === 0).length };
"""
SWITCH = """
const seen = selector => style(selector, "opacity"), out = [seen(".heat"), seen(".truth")];
const click = id => doc.getElementById(id).click();
click("g0-heat"); out.push(seen(".heat"), seen(".truth"));
click("g0-truth"); out.push(seen(".heat"), seen(".truth"));
click("g0-heat"); click("g0-truth");
doc.querySelector(".shot:has(.heat) input").click(); out.push(seen(".shot:has(.heat) .heat"));
const shown = () => [...doc.querySelectorAll(".shot")].filter(e => win.getComputedStyle(e).display !== "none").length;
out.push(shown()); for (const kind of ["wrong", "bad", "good"]) { click("g0-" + kind); out.push(shown()); }
return out;
"""


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_a_browser_finds_nothing_too_wide_too_small_or_outside(
    width: int, dark: bool, page: Path, fit_page: Path, tmp_path: Path
) -> None:
    for number, file in enumerate((page, fit_page)):
        (tmp_path / str(number)).mkdir()
        seen = measure(file, tmp_path / str(number), LOOK, width, dark)
        assert seen["width"] == width and seen["scroll"] <= width and seen["wide"] == 0
        assert seen["cut"] == 0 and seen["values"] > 1.5
        assert seen["requests"] == [] and seen["pictures"] == 0 and seen["least"] > 11
        grounds = [sum(map(int, re.findall(r"\d+", seen[key])[:3])) for key in ("background", "ink")]
        assert (grounds[0] < 120 and grounds[1] > 600) if dark else (grounds[0] > 700 and grounds[1] < 200)


def test_a_browser_notices_what_is_too_wide(tmp_path: Path) -> None:
    file = tmp_path / "wide.html"
    file.write_text("<!doctype html><body><p style='width:900px'>wide</p><figure class=chart><svg><text>t</text></svg>")
    seen = measure(file, tmp_path, LOOK, 390)
    assert seen["scroll"] > 390 and seen["wide"] == 1


def test_switches_switch(page: Path, evaluation: Evaluation, detector: Detector, tmp_path: Path) -> None:
    seen = measure(page, tmp_path, SWITCH)
    assert [float(one) for one in seen[:7]] == [1, 1, 0, 1, 0, 0, 0]
    wrong = int(((evaluation.scores > detector.decision().threshold) != evaluation.labels).sum())
    defective = int(evaluation.labels.sum())
    assert seen[7:] == [len(evaluation.samples), wrong, defective, len(evaluation.samples) - defective]

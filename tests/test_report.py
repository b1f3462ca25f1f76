"""Reports: pictures of the right size, the same bytes each time, and a page that needs nothing else."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawflow.errors import InputError, OutputError
from flawflow.report import (
    Case,
    Section,
    contact_sheet,
    encode_png,
    evaluation_figure,
    histogram_figure,
    overlay,
    pick_cases,
    write_page,
)

few = settings(max_examples=30, deadline=None)
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)
MAP = RNG.random((40, 60)).astype(np.float32)
MASK = np.zeros((40, 60), np.bool_)
MASK[10:20, 15:40] = True


def opened(png: bytes) -> PIL.Image.Image:
    picture = PIL.Image.open(io.BytesIO(png))
    picture.load()
    return picture


def make_case(title: str = "best defective", truth: np.ndarray | None = MASK) -> Case:
    return Case(title, IMAGE, truth, MAP, 1.5, True)


@few
@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(0.0, 1))
def test_overlay_tints_only_what_lies_above_low(seed: int, low: float, width: float) -> None:
    anomaly_map = np.random.default_rng(seed).random((40, 60)).astype(np.float32)
    tinted = overlay(IMAGE, anomaly_map, low, low + width)
    assert tinted.shape == IMAGE.shape and tinted.dtype == np.uint8
    untouched = anomaly_map <= low
    assert np.array_equal(tinted[untouched], IMAGE[untouched])


def test_overlay_grows_redder_with_the_map() -> None:
    grey = np.full((8, 8, 3), 128, np.uint8)
    levels = [overlay(grey, np.full((8, 8), v, np.float32), 0, 1)[0, 0].astype(int) for v in (0.2, 0.6, 1.0)]
    assert levels[0][1] > levels[0][0]  # green first
    assert levels[2][0] - levels[2][1] > 60  # red last
    change = [np.abs(level - 128).sum() for level in levels]
    assert change[0] < change[1] and change[0] < change[2]


def test_overlay_enlarges_small_maps_and_draws_the_outline() -> None:
    small = np.zeros((4, 6), np.float32)
    assert np.array_equal(overlay(IMAGE, small, 0.5, 1), IMAGE)
    outlined = overlay(IMAGE, small, 0.5, 1, MASK)
    assert (outlined[10, 15:40] == 255).all()
    assert np.array_equal(outlined[30:], IMAGE[30:])


def test_overlay_refuses_bad_input() -> None:
    with pytest.raises(InputError, match="range"):
        overlay(IMAGE, MAP, 1, 0)
    with pytest.raises(InputError, match="range"):
        overlay(IMAGE, MAP, 0, float("nan"))
    with pytest.raises(InputError, match="finite"):
        overlay(IMAGE, np.full_like(MAP, np.nan), 0, 1)
    with pytest.raises(InputError, match="outline"):
        overlay(IMAGE, MAP, 0, 1, MASK[:5])
    with pytest.raises(InputError, match="uint8"):
        overlay(IMAGE[:, :, 0], MAP, 0, 1)


@few
@given(st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_contact_sheet_has_a_cell_for_every_picture(rows: int, columns: int, captioned: bool) -> None:
    titles = [f"column {n}" for n in range(columns)]
    captions = ["a caption far too long for the sheet " * 5] * rows if captioned else []
    pictures = [[MASK if column == 2 else IMAGE for column in range(columns)] for _ in range(rows)]
    sheet = contact_sheet(pictures, titles, captions, cell=60)
    assert sheet.dtype == np.uint8
    assert sheet.shape == (32 + rows * (92 if captioned else 70), 10 + columns * 70, 3)
    assert np.array_equal(sheet, contact_sheet(pictures, titles, captions, cell=60))
    # Pictures of 60 × 40 pixels fit their cell without scaling: they are found again as they were.
    assert np.array_equal(sheet[42:82, 10:70], IMAGE)
    if columns > 2:
        assert np.array_equal(sheet[42:82, 150:210] == 255, np.repeat(MASK[:, :, None], 3, axis=2))


def test_contact_sheet_refuses_uneven_rows() -> None:
    with pytest.raises(InputError, match="titles"):
        contact_sheet([[IMAGE, IMAGE], [IMAGE]], ["a", "b"])
    with pytest.raises(InputError, match="titles"):
        contact_sheet([], ["a"])
    with pytest.raises(InputError, match="captions"):
        contact_sheet([[IMAGE]], ["a"], ["one", "two"])


@few
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=12))
def test_picked_cases_are_the_extremes_of_their_class(images: list[tuple[int, bool]]) -> None:
    scores = np.array([score for score, _ in images], float)
    labels = np.array([label for _, label in images])
    cases = pick_cases(scores, labels)
    indexes = [index for index, _ in cases]
    assert len(set(indexes)) == len(indexes)
    for index, title in cases:
        rank, name = title.split()
        assert (name == "defective") == labels[index]
        members = scores[labels == labels[index]]
        is_top = (rank == "best") == bool(labels[index])
        if rank != "median":
            assert scores[index] == (members.max() if is_top else members.min())
    for label in (True, False):
        assert sum(labels[i] == label for i in indexes) == min(3, int((labels == label).sum()))


@pytest.mark.parametrize("title", ["plain", "100 $ of $x_{ math", "部品 <b>&", "a\nb " * 40])
def test_evaluation_figure_is_a_png_with_any_title(title: str) -> None:
    cases = [make_case(title), make_case(title, truth=None)]
    png = evaluation_figure(cases)
    assert opened(png).size[0] == 792
    assert png == evaluation_figure(cases)
    assert opened(evaluation_figure(cases[:1])).size[1] < opened(png).size[1]


def test_figures_accept_the_least_there_can_be() -> None:
    flat = Case("good", IMAGE, None, np.zeros_like(MAP), 0.0, False)
    one = np.array([1.0], np.float32)
    for png in (
        evaluation_figure([flat]),
        histogram_figure(one, np.array([0])),
        histogram_figure(one, np.array([1]), threshold=0.5),
    ):
        assert opened(png).format == "PNG"


def test_figures_are_deterministic() -> None:
    scores, labels = RNG.normal(size=50), RNG.integers(0, 2, 50)
    assert histogram_figure(scores, labels, 0.0) == histogram_figure(scores, labels, 0.0)
    assert histogram_figure(scores, labels, 0.0) != histogram_figure(scores, labels, 1.0)


def test_figures_refuse_nothing_and_uneven_input() -> None:
    with pytest.raises(InputError, match="case"):
        evaluation_figure([])
    with pytest.raises(InputError, match="shape"):
        histogram_figure(np.zeros(0), np.zeros(0, int))
    with pytest.raises(InputError, match="finite"):
        pick_cases(np.array([np.nan]), np.array([1]))


class Reader(HTMLParser):
    """Collects tags, text and picture sources; remembers whether every tag was closed in order."""

    VOID = ("meta", "img", "!doctype")

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read_page(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text("utf-8"))
    reader.close()
    assert reader.open == []
    return reader


NASTY = """<script>alert("x")</script> & 'quoted' </p>"""


def test_page_stands_alone_and_shows_text_as_it_is(tmp_path: Path) -> None:
    png = encode_png(IMAGE)
    section = Section(NASTY, f"{NASTY}\n\nsecond", [(NASTY, NASTY)], [NASTY, "b"], [[NASTY, "1"]], png, caption=NASTY)
    path = tmp_path / "new" / "page.html"
    write_page(path, NASTY, [section, Section("only a heading")])
    reader = read_page(path)
    assert not {"script", "link", "iframe", "object"} & set(reader.tags)
    assert reader.sources == ["data:image/png;base64," + base64.b64encode(png).decode()]
    assert not re.search(r"https?:|url\(|@import", path.read_text("utf-8"))
    assert "".join(reader.text).count(NASTY) == 9
    assert reader.tags.count("p") == 2 and reader.tags.count("section") == 2


@few
@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=40))
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_page(path, "title", [Section("h", columns=["a"], rows=[[f"<{text}>"]], caption=text)])
    assert f"<{text}>" in "".join(read_page(path).text)


def test_file_names_that_are_not_text_do_not_stop_the_page(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_page(path, "title", [Section(Path("part\udcff.png").name)])
    assert "part?.png" in read_page(path).text


def test_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_page(path, "first", [])
    before = path.read_bytes()
    for bad in (Section("h", columns=["a", "b"], rows=[["1"]]), Section("h", png=b"GIF89a")):
        with pytest.raises(InputError):
            write_page(path, "second", [bad])
        assert path.read_bytes() == before
    with pytest.raises(OutputError):
        write_page(tmp_path, "a folder is in the way", [])
    with pytest.raises(OutputError):
        write_page(path / "below a file.html", "title", [])
    assert [entry.name for entry in tmp_path.iterdir()] == ["page.html"]


def test_encoded_pictures_come_back() -> None:
    assert np.array_equal(np.asarray(opened(encode_png(IMAGE))), IMAGE)

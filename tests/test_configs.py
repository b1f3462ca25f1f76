"""Laws of settings: what is written reads back equal, and what does not fit is named."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawflow.configs import change_settings, read_settings
from flawflow.errors import OptionError


@dataclass(frozen=True, slots=True)
class Inner:
    kind: Literal["a", "b"] = "a"
    bounds: tuple[float, float] = (0.0, 1.0)
    limit: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Outer:
    count: int = 1
    rate: float = 0.5
    name: str = "x"
    on: bool = False
    taps: tuple[int, ...] = (1, 2)
    note: str | None = None
    inner: Inner = field(default_factory=Inner)
    more: Inner | None = None


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
INNERS = st.builds(
    Inner,
    kind=st.sampled_from(["a", "b"]),
    bounds=st.tuples(NUMBERS, NUMBERS),
    limit=st.none() | st.tuples(st.integers(), st.integers()),
)
OUTERS = st.builds(
    Outer,
    count=st.integers(),
    rate=NUMBERS,
    name=st.text(),
    on=st.booleans(),
    taps=st.lists(st.integers()).map(tuple),
    note=st.none() | st.text(),
    inner=INNERS,
    more=st.none() | INNERS,
)


@settings(max_examples=100, deadline=None)
@given(chosen=OUTERS)
def test_settings_survive_json(chosen: Outer) -> None:
    assert read_settings(Outer, json.loads(json.dumps(asdict(chosen))), "outer") == chosen
    assert read_settings(Outer, asdict(chosen), "outer") == chosen


def test_what_is_left_out_takes_its_default() -> None:
    assert read_settings(Outer, {}, "outer") == Outer()
    assert read_settings(Outer, {"inner": {"kind": "b"}}, "outer") == Outer(inner=Inner(kind="b"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], r"outer is \[\]"),
        (None, "outer is None"),
        ({"counts": 1}, "outer has no setting counts.*count, rate"),
        ({"inner": {"kinds": 1}}, "outer.inner has no setting kinds"),
        ({"inner": []}, r"outer.inner is \[\]"),
        ({"inner": None}, "outer.inner is None"),
        ({"inner": {"kind": "c"}}, "outer.inner.kind is 'c': expected one of a, b"),
        ({"inner": {"kind": ["a"]}}, "outer.inner.kind"),
        ({"count": 1.0}, "outer.count is 1.0: expected a whole number"),
        ({"count": True}, "outer.count is True"),
        ({"count": "1"}, "outer.count is '1'"),
        ({"rate": "fast"}, "outer.rate is 'fast': expected a finite number"),
        ({"rate": False}, "outer.rate is False"),
        ({"rate": float("nan")}, "outer.rate is nan: expected a finite number"),
        ({"rate": float("inf")}, "outer.rate is inf"),
        ({"rate": 10**400}, "outer.rate is 1000"),
        ({"inner": {"bounds": [0, float("-inf")]}}, "outer.inner.bounds is -inf"),
        ({"on": 1}, "outer.on is 1: expected true or false"),
        ({"name": None}, "outer.name is None: expected a text"),
        ({"note": 3}, "outer.note is 3: expected a text or null"),
        ({"taps": 3}, "outer.taps is 3"),
        ({"taps": [1, "2"]}, "outer.taps is '2'"),
        ({"inner": {"bounds": [1, 2, 3]}}, "outer.inner.bounds is .*expected 2 values"),
        ({"inner": {"limit": [1]}}, "outer.inner.limit"),
    ],
)
def test_what_does_not_fit_is_named(values: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        read_settings(Outer, values, "outer")


def test_settings_that_are_none_can_be_begun_key_by_key() -> None:
    begun = change_settings(Outer(), {"more.kind": "b", "more.limit": "[1, 2]"}, "outer")
    assert begun == Outer(more=Inner(kind="b", limit=(1, 2)))
    assert change_settings(begun, {"more.kind": "a"}, "outer") == Outer(more=Inner(limit=(1, 2)))
    for key in ("more.kinds", "note.kind"):
        with pytest.raises(OptionError):
            change_settings(Outer(), {key: "b"}, "outer")


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("count", "4", Outer(count=4)),
        ("rate", "1", Outer(rate=1.0)),
        ("rate", "1e-3", Outer(rate=1e-3)),
        ("name", "deit", Outer(name="deit")),
        ("on", "true", Outer(on=True)),
        ("taps", "[3]", Outer(taps=(3,))),
        ("note", "null", Outer()),
        ("note", "hello there", Outer(note="hello there")),
        ("inner.kind", "b", Outer(inner=Inner(kind="b"))),
        ("inner.limit", "[1, 2]", Outer(inner=Inner(limit=(1, 2)))),
        ("inner.bounds", "[0, 2]", Outer(inner=Inner(bounds=(0.0, 2.0)))),
        ("more.kind", "b", Outer(more=Inner(kind="b"))),
        ("more", "null", Outer()),
    ],
)
def test_a_setting_can_be_changed_by_its_dotted_name(key: str, text: str, expected: Outer) -> None:
    before = Outer()
    assert change_settings(before, {key: text}, "outer") == expected
    assert before == Outer()


@pytest.mark.parametrize("key", ["", ".", "inner.", "inner.kind.deep", "count.x", "speed", "Inner.kind", "inner.speed"])
def test_an_unknown_dotted_name_lists_those_that_exist(key: str) -> None:
    with pytest.raises(OptionError, match=r"no setting .*inner\.kind"):
        change_settings(Outer(), {key: "1"}, "outer")


@pytest.mark.parametrize(("key", "text"), [("count", "many"), ("count", "NaN"), ("on", "yes"), ("inner", "3")])
def test_a_change_that_does_not_fit_is_named(key: str, text: str) -> None:
    with pytest.raises(OptionError, match=f"outer.{key} is"):
        change_settings(Outer(), {key: text}, "outer")


def test_changes_come_together() -> None:
    changed = change_settings(Outer(), {"count": "2", "inner.kind": "b"}, "outer")
    assert changed == Outer(count=2, inner=Inner(kind="b"))
    assert change_settings(Outer(), {}, "outer") == Outer()

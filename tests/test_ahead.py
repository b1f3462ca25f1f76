"""Laws of reading ahead: the order and results of a plain loop, and never more begun than may wait."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawflow.ahead import ahead


@given(st.lists(st.integers()), st.integers(0, 4))
def test_it_gives_what_a_plain_loop_gives(items: list[int], count: int) -> None:
    assert list(ahead(lambda one: (one, -one), items, count)) == [(one, -one) for one in items]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_no_more_is_begun_than_may_wait(count: int) -> None:
    begun: list[int] = []
    for number, result in enumerate(ahead(lambda one: begun.append(one) or one, range(20), count)):
        time.sleep(0.002)
        assert result == number
        assert len(begun) <= number + 1 + count


def test_the_next_is_worked_on_while_one_is_used() -> None:
    second = threading.Event()
    results = ahead(lambda one: second.set() if one else None, range(2), 1)
    next(results)
    assert second.wait(10)


@pytest.mark.parametrize("count", [0, 2])
def test_an_error_comes_in_its_items_turn(count: int) -> None:
    results = ahead(lambda one: 1 // one, [1, 1, 0, 1], count)
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_what_was_not_begun_is_not_begun_after_an_error() -> None:
    begun: list[int] = []

    def work(one: int) -> int:
        begun.append(one)
        time.sleep(0.01)
        return 1 // one

    with pytest.raises(ZeroDivisionError):
        list(ahead(work, [0, *range(1, 100)], 4))
    assert len(begun) <= 5

"""Laws of work on several items at once: what a plain loop gives, on the threads that there are."""

import threading
from collections.abc import Iterator

import pytest
import torch

from flawflow.workers import at_once


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("count", "share"), [(1, 4), (2, 2), (3, 1), (20, 1)])
def test_threads_are_shared_out_and_given_back(four_threads: None, count: int, share: int) -> None:
    results = at_once(lambda one: (one, torch.get_num_threads()), range(count))
    assert results == [(one, share) for one in range(count)]
    assert torch.get_num_threads() == 4
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [4]


def test_items_are_worked_on_at_once(four_threads: None) -> None:
    both = threading.Barrier(2)
    at_once(lambda _: both.wait(10), range(2))


def test_an_error_comes_through_and_threads_are_given_back(four_threads: None) -> None:
    with pytest.raises(ZeroDivisionError):
        at_once(lambda one: 1 // one, [1, 0, 1])
    assert torch.get_num_threads() == 4


def test_a_thread_that_begins_meanwhile_has_all_threads(four_threads: None) -> None:
    def begin(_: int) -> int:
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        return found[0]

    assert at_once(begin, range(3)) == [4, 4, 4]

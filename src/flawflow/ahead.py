"""The next items of a sequence are prepared while one is used."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(work: Callable[[Item], Result], items: Iterable[Item], count: int, threads: int = 2) -> Iterator[Result]:
    """``work`` of each item, in order; up to ``count`` more are worked on meanwhile, by ``threads`` threads at most.

    What ``work`` raises is raised in its item's turn. No more than ``count`` results wait, so memory stays flat; with
    a ``count`` of 0 nothing is begun before it is asked for.
    """
    if not count:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(min(count, threads)) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

"""Several items are worked on at once, each with its share of PyTorch's threads."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST = 8  # items at once, so that memory stays bounded on a processor with many cores


def at_once(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """``work`` of each item, in order; PyTorch's threads are shared out among as many items as there can be at once.

    One operation on two threads waits for the slower of them, and what lies between two operations runs on one.
    """
    threads = torch.get_num_threads()
    workers = min(threads, len(items), MOST)
    if workers < 2:
        return list(map(work, items))
    entered = Barrier(workers + 1)

    def enter() -> None:
        torch.get_num_threads()  # a thread takes over what was set last when it first asks, and here alone
        torch.set_num_threads(threads // workers)
        entered.wait()

    with ThreadPoolExecutor(workers, initializer=enter) as pool:
        try:
            futures = [pool.submit(work, item) for item in items]
            entered.wait()
        except BaseException:
            entered.abort()  # or those that have entered would wait for the others
            raise
        finally:
            torch.set_num_threads(threads)  # for threads to come, which begin with what was set last anywhere
        return [future.result() for future in futures]

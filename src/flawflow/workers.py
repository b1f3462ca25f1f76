"""Several items are worked on at once, each with its share of PyTorch's threads."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
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
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,)) as pool:
            return list(pool.map(work, items))
    finally:
        torch.set_num_threads(threads)  # for threads to come, which begin with what was set last anywhere

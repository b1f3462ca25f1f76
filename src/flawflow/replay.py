"""On a GPU, a few images take no longer than the processor needs to name each operation: here they are named once."""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

_FEW = 4  # images; with more, the operations themselves take longer than naming them
_WARM = 2

Network = Callable[[Tensor], tuple[Tensor, ...]]


class Replayed:
    """A network for inspection, of one tensor (B, …), recorded as a CUDA graph for each small batch on a GPU.

    Everywhere else, and where the network cannot be recorded, it is called as it is. What it gives of a small batch
    lies in memory that the next call writes to.

    Args:
        network: without gradients, the same operations for every batch of one shape.
        state: changes whenever what the network was made of does; then it is recorded again. None = it cannot tell.
    """

    def __init__(self, network: Network, state: Callable[[], Hashable]) -> None:
        self._network, self._state = network, state
        self._recorded: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor, tuple[Tensor, ...]] | None] = {}
        self._made_of: Hashable = None

    def __call__(self, batch: Tensor) -> tuple[Tensor, ...]:
        if not batch.is_cuda or len(batch) > _FEW or torch.is_grad_enabled():
            return self._network(batch)
        made_of = self._state()
        if made_of is None:
            return self._network(batch)
        if made_of != self._made_of:
            self._recorded, self._made_of = {}, made_of
        if batch.shape not in self._recorded:
            self._recorded[batch.shape] = self._record(batch)
        found = self._recorded[batch.shape]
        if found is None:
            return self._network(batch)
        graph, given, result = found
        given.copy_(batch)
        graph.replay()
        return result

    def _record(self, batch: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, tuple[Tensor, ...]] | None:
        given = batch.clone()
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(_WARM):  # kernels are compiled and chosen, and workspaces made, in the first runs
                self._network(given)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                result = self._network(given)
        except RuntimeError:
            return None
        return graph, given, result

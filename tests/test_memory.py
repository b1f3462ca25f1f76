"""Laws of the memory: the density it stands for, and what it must never do."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from flawflow.errors import OptionError
from flawflow.flow import Flow, FlowConfig, Memory
from flawflow.recipe import named_recipe
from flawflow.scoring import location_scores
from flawflow.untrained import remember

C, SIDE = 6, 5


def remembered(reach: int = 1, threshold: float = 2.0, count: int = 40) -> Memory:
    generator = torch.Generator().manual_seed(3)
    memory = Memory(C, reach)
    latents = 2 * torch.randn(count, C, generator=generator)
    places = torch.randint(0, SIDE, (count, 2), generator=generator)
    memory.fit(latents, places, torch.arange(count) % 8, threshold)
    return memory


def twins(jitter: torch.Tensor, count: int = 600) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents, places and images of marks far from the origin, each on two images, which differ by this (C,)."""
    generator = torch.Generator().manual_seed(5)
    marks = 6 * torch.randn(count, len(jitter), generator=generator)
    places = torch.randint(0, SIDE, (count, 2), generator=generator)
    seen = [marks + jitter / 2**0.5 * torch.randn(marks.shape, generator=generator) for _ in range(2)]
    return torch.cat(seen), places.repeat(2, 1), torch.arange(2).repeat_interleave(count)


def left_out(memory: Memory, latents: torch.Tensor, places: torch.Tensor, owners: torch.Tensor) -> float:
    """Mean NLL of each of these, by the origin and by what is remembered of other images at the same place."""
    difference = (latents[:, None] - latents[None]) / memory.width
    nats = 0.5 * difference.square().sum(dim=2) + memory.width.log().sum()
    nats[(places[:, None] != places[None]).any(dim=2) | (owners[:, None] == owners[None])] = torch.inf
    return float(torch.minimum(0.5 * latents.square().sum(dim=1), nats.amin(dim=1)).mean())


def latents(seed: int = 0, count: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(count, C, SIDE, SIDE, generator=generator)
    log_det = torch.randn(count, SIDE, SIDE, generator=generator)
    return z, log_det, location_scores(z, log_det, "nll")


@pytest.mark.parametrize("reach", [0, 1, 4])
def test_the_lowered_nll_is_the_least_over_all_centres_in_reach(reach: int) -> None:
    memory = remembered(reach)
    z, log_det, nll = latents()
    lowered = memory(z, log_det, nll)
    for b, y, x in np.ndindex(nll.shape):
        expected = float(nll[b, y, x])
        if expected > float(memory.threshold):
            for centre, (row, column) in zip(memory.latents.float(), memory.places.tolist(), strict=True):
                if max(abs(row - y), abs(column - x)) <= reach:
                    nats = -float(Normal(centre, memory.width).log_prob(z[b, :, y, x]).sum())
                    nats -= C / 2 * math.log(2 * math.pi) + float(log_det[b, y, x])
                    expected = min(expected, nats)
        assert float(lowered[b, y, x]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("reach", "images"), [(0, 1), (2, 1), (2, 4), (11, 2), (30, 1)])
@pytest.mark.parametrize("known", [False, True])
def test_a_large_map_is_compared_as_by_a_plain_search(reach: int, images: int, known: bool) -> None:
    generator = torch.Generator().manual_seed(reach)
    height, width = 47, 33
    places = torch.stack([torch.randint(0, side, (900,), generator=generator) for side in (height, width)], dim=1)
    kept = (places[:, 1] < 8) | (places[:, 1] > 25) | (places[:, 0] > 31)  # a hole of whole tiles
    places = places[kept]
    memory = Memory(C, reach, grid=(height, width) if known else None)
    found = 2 * torch.randn(len(places), C, generator=generator)
    memory.fit(found, places, torch.arange(len(places)) % 9, 2.0)
    z = 2 * torch.randn(images, C, height, width, generator=generator)
    log_det = torch.randn(images, height, width, generator=generator)
    nll = location_scores(z, log_det, "nll")
    image, row, column = torch.ones_like(nll).nonzero(as_tuple=True)
    cells = z[image, :, row, column]
    centres = memory.latents.float()
    squares = ((cells[:, None] - centres[None]) / memory.width).square().sum(dim=2)
    away = (torch.stack([row, column], dim=1)[:, None] - memory.places.long()[None]).abs().amax(dim=2) > reach
    nats = (0.5 * squares + memory.width.log().sum()).masked_fill(away, torch.inf).amin(dim=1) - log_det.flatten()
    expected = torch.where(nll > memory.threshold, torch.minimum(nll, nats.view_as(nll)), nll)
    assert (expected < nll).any()
    torch.testing.assert_close(memory(z, log_det, nll), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("grid", [None, (12, 12)])
@pytest.mark.parametrize(("reach", "cell", "near"), [(2, 11, True), (2, 10, True), (1, 11, False), (64, 0, True)])
def test_tiles_see_beyond_their_edge(reach: int, cell: int, near: bool, grid: tuple[int, int] | None) -> None:
    memory = Memory(C, reach, grid=grid)
    mark = torch.full((1, C), 5.0)
    memory.fit(mark, torch.tensor([[9, 9]]), torch.zeros(1, dtype=torch.int64), 0.0)
    z = torch.zeros(1, C, 12, 12)
    z[0, :, cell, cell] = 5.0
    nll = location_scores(z, torch.zeros(1, 12, 12), "nll")
    lowered = memory(z, torch.zeros(1, 12, 12), nll)
    assert float(lowered[0, cell, cell]) == (0 if near else 0.5 * 25 * C)


def test_what_an_image_gets_depends_on_no_other_and_on_no_number_of_threads() -> None:
    generator = torch.Generator().manual_seed(1)
    z = 2 * torch.randn(3, 96, 28, 28, generator=generator)
    image, row, column = (torch.randint(0, most, (3000,), generator=generator) for most in (3, 28, 28))
    marks = z[image, :, row, column] + 0.5 * torch.randn(3000, 96, generator=generator)
    memory = Memory(96, 2)
    memory.fit(marks, torch.stack([row, column], dim=1), image, 100.0)
    log_det = torch.randn(3, 28, 28, generator=generator)
    nll = location_scores(z, log_det, "nll")
    threads = torch.get_num_threads()
    together = memory(z, log_det, nll)
    assert (together < nll).any()
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            alone = [memory(z[i : i + 1], log_det[i : i + 1], nll[i : i + 1]) for i in range(3)]
            assert torch.equal(torch.cat(alone), together)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("trust", [0.25, 1.0])
def test_what_is_trusted_less_lowers_by_that_share(trust: float) -> None:
    memory = remembered()
    z, log_det, nll = latents()
    whole = memory(z, log_det, nll)
    memory.trust = trust
    torch.testing.assert_close(memory(z, log_det, nll), (1 - trust) * nll + trust * whole)
    with pytest.raises(OptionError, match="trust is 0: expected"):
        FlowConfig(trust=0)


def test_the_width_is_how_one_mark_differs_between_images() -> None:
    jitter = torch.tensor([0.8, 0.8, 1.0, 1.2, 1.5, 2.0])
    latents, places, owners = twins(jitter)
    memory = Memory(C, 0)
    memory.fit(latents, places, owners, 0.0)
    # Nearest neighbours are at times others than the twin, and nearer than it.
    assert (memory.width / jitter - 1).abs().max() < 0.2
    assert memory.width.argsort().tolist()[2:] == [2, 3, 4, 5]


def test_no_other_scale_of_the_width_explains_left_out_images_better() -> None:
    cells = twins(torch.linspace(0.7, 1.7, C))
    memory = Memory(C, 0)
    memory.fit(*cells, 0.0)
    best, width = left_out(memory, *cells), memory.width.clone()
    for factor in (0.7, 1.4, 1 / width):
        memory.width = width * factor
        assert left_out(memory, *cells) > best


def plain_width(
    latents: torch.Tensor, places: torch.Tensor, owners: torch.Tensor, reach: int, step: int
) -> torch.Tensor:
    """`Memory.width` by comparing every ``step``-th cell with all."""
    order = places[:, 0].argsort(stable=True)
    latents, places, owners = latents[order].half().float(), places[order], owners[order]
    some, width = slice(None, None, step), torch.ones(latents.shape[1])
    for _ in range(4):
        least = ((latents[some, None] - latents[None]) / width).square().sum(dim=2)
        away = ((places[some, None] - places[None]).abs() > reach).any(dim=2)
        least, nearest = least.masked_fill(away | (owners[some, None] == owners[None]), torch.inf).min(dim=1)
        explained = 0.5 * least + width.log().sum() < 0.5 * latents[some].square().sum(dim=1)
        squares = (latents[some] - latents[nearest])[explained].double().square()
        width = ((squares.sum(dim=0) + 200 * squares.mean()) / (len(squares) + 200)).clamp_min(0.25).sqrt().float()
    return width


@pytest.mark.parametrize(
    ("reach", "sample", "chunk"), [(0, 10_000, 16), (1, 10_000, 2048), (1, 100, 16), (3, 333, 2048)]
)
def test_the_width_is_that_of_a_plain_search(
    reach: int, sample: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flawflow.flow.memory._SAMPLE", sample)
    monkeypatch.setattr("flawflow.flow.memory._CHUNK", chunk)
    generator = torch.Generator().manual_seed(reach)
    places = torch.randint(0, 24, (700, 2), generator=generator) // torch.tensor([2, 1])
    places = places[places[:, 0] != 4]  # a row of which nothing is remembered
    marks = 3 * torch.randn(5, C, generator=generator)[torch.randint(0, 5, (len(places),), generator=generator)]
    latents = marks + torch.randn(marks.shape, generator=generator) * torch.linspace(0.4, 1.5, C)
    owners = torch.randint(0, 7, (len(places),), generator=generator)
    memory = Memory(C, reach)
    memory.fit(latents, places, owners, 0.0)
    step = -(-len(places) // sample)
    torch.testing.assert_close(memory.width, plain_width(latents, places, owners, reach, step))


@pytest.mark.parametrize(("owner", "width"), [(8, 0.5), (0, 1.0)])
def test_versions_and_tiles_of_an_image_are_not_other_images(owner: int, width: float) -> None:
    config = FlowConfig(blocks=1, subnet="pointwise", hidden=4, dropout=0.0, memory=0.2)
    flow = Flow(C, config, 0).eval()
    assert flow.memory is not None
    maps = np.random.default_rng(0).standard_normal((9, C, SIDE, SIDE)).astype(np.float16)
    maps[1:8] *= 0.01  # below the threshold; the last map, in a batch of its own, is the first one again
    maps[8] = maps[0]
    remember(flow, [maps, maps], np.array([*range(8), owner]), torch.device("cpu"))
    assert torch.equal(flow.memory.width, torch.full((C,), width))


def test_nothing_to_remember_leaves_an_empty_memory() -> None:
    memory = Memory(C, 1)
    memory.fit(torch.zeros(0, C), torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), 0.0)
    z, log_det, nll = latents()
    assert torch.equal(memory(z, log_det, nll), nll)


@pytest.mark.parametrize("images", [1, 2])
def test_without_others_the_width_is_one_and_copies_do_not_pull_it_to_nothing(images: int) -> None:
    latents, places, _ = twins(torch.zeros(C))
    memory = Memory(C, 0)
    memory.fit(latents, places, torch.arange(images).repeat_interleave(len(latents) // images), 0.0)
    assert torch.equal(memory.width, torch.full((C,), 1.0 if images == 1 else 0.5))


def test_it_never_raises_the_nll_and_leaves_the_likely_alone() -> None:
    memory = remembered(reach=SIDE)
    z, log_det, nll = latents()
    lowered = memory(z, log_det, nll)
    assert (lowered <= nll).all()
    assert (lowered < nll).any()
    likely = nll <= memory.threshold
    assert likely.any()
    assert torch.equal(lowered[likely], nll[likely])


def test_what_was_remembered_is_as_likely_as_a_centre_can_be() -> None:
    z, log_det, nll = latents()
    memory = Memory(C, 0)
    image, row, column = (nll > 2.0).nonzero(as_tuple=True)
    memory.fit(z[image, :, row, column], torch.stack([row, column], dim=1), image, 2.0)
    lowered = memory(z, log_det, nll)
    found = (lowered + log_det)[image, row, column]
    # Half precision of the remembered latents is all that is left.
    assert float(found.max()) < float(memory.width.log().sum()) + 1e-4
    assert torch.equal(memory(z[:0], log_det[:0], nll[:0]), nll[:0])


def test_an_empty_memory_changes_nothing() -> None:
    z, log_det, nll = latents()
    assert torch.equal(Memory(C, 2)(z, log_det, nll), nll)


def test_a_flow_brings_its_memory_back_whatever_its_size() -> None:
    config = FlowConfig(blocks=1, subnet="pointwise", hidden=4, dropout=0.0, memory=0.1)
    flow, other = Flow(C, config, 0), Flow(C, config, 1)
    assert flow.memory is not None
    assert other.memory is not None
    flow.memory = remembered(config.reach)
    other.load_state_dict(flow.state_dict())
    z, log_det, nll = latents()
    assert torch.equal(other.memory(z, log_det, nll), flow.memory(z, log_det, nll))


def test_the_least_likely_share_of_the_training_cells_is_remembered() -> None:
    config = FlowConfig(blocks=1, subnet="pointwise", hidden=4, dropout=0.0, memory=0.1)
    flow = Flow(C, config, 0).eval()
    assert flow.memory is not None
    maps = np.random.default_rng(0).standard_normal((30, C, SIDE, SIDE)).astype(np.float16)
    with torch.no_grad():
        z, log_det = flow(torch.from_numpy(maps.astype(np.float32)))
        nll = location_scores(z, log_det, "nll")
    remember(flow, [maps], np.arange(len(maps)), torch.device("cpu"))
    assert len(flow.memory.latents) == pytest.approx(0.1 * nll.numel(), abs=1)
    lowered = flow.memory(z, log_det, nll)
    above = nll > flow.memory.threshold
    assert float((lowered + log_det)[above].max()) < float(flow.memory.width.log().sum()) + 1e-3


@pytest.mark.parametrize("images", [10, 40])
def test_of_more_images_a_smaller_share_is_remembered(images: int) -> None:
    config = FlowConfig(blocks=1, subnet="pointwise", hidden=4, dropout=0.0, memory=0.1, memory_most=50)
    flow = Flow(C, config, 0).eval()
    assert flow.memory is not None
    maps = np.random.default_rng(0).standard_normal((images, C, SIDE, SIDE)).astype(np.float16)
    remember(flow, [maps, maps[:, :, ::-1]], np.arange(images), torch.device("cpu"))
    assert len(flow.memory.latents) == pytest.approx(50, abs=2)


def test_a_memory_without_the_likelihood_is_refused() -> None:
    with pytest.raises(OptionError, match="flow.memory=0"):
        named_recipe("default").change({"scoring.score": "density"})
    with pytest.raises(OptionError, match="share in"):
        Flow(C, FlowConfig(memory=1.5), 0)
    with pytest.raises(OptionError, match="count of at least 1"):
        Flow(C, FlowConfig(memory_most=0), 0)

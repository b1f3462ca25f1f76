"""Laws of the training: repeatable to the bit, whatever interrupts it, and it keeps its best epoch."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from flawflow import training
from flawflow.batches import covered, grid_cells, read_batch
from flawflow.errors import OptionError, OutputError
from flawflow.features import FeatureSet
from flawflow.flow import Flow, FlowConfig
from flawflow.recipe import TrainingConfig, named_recipe
from flawflow.scoring import ScoringConfig
from flawflow.training import (
    Epoch,
    Validation,
    batch_loss,
    kept_epoch,
    learning_rate,
    train,
)

CPU = torch.device("cpu")
CHANNELS, GRID, COUNT = 8, (4, 4), 10
FLOW = FlowConfig(blocks=2, subnet="residual", hidden=8, heads=2, dropout=0.2)
CONFIG = TrainingConfig(
    epochs=6,
    batch=4,
    learning_rate=5e-3,
    cosine_epochs=4,
    eps=1e-8,
    bound=100.0,  # the paper's belongs to features with far less noise than these
    per_dimension=True,
    evaluate_every=2,
    patience=0,
)
SCORING = ScoringConfig(score="nll")
OBJECTIVES = ("unsupervised", "self_supervised", "local_margin")


def make_data(seed: int = 0, count: int = COUNT, versions: int = 2) -> FeatureSet:
    """Good maps, and twins whose two upper left cells are shifted; one twin a version is unchanged."""
    generator = np.random.default_rng(seed)
    normal = generator.normal(size=(count, CHANNELS, *GRID)).astype(np.float16)
    synthetic, coverage = [], []
    for version in range(versions):
        twin, cover = normal.copy(), np.zeros((count, *GRID), np.uint8)
        twin[:, :, 0, :2] += np.float16(1.5)
        cover[:, 0, :2] = 255
        twin[version], cover[version] = normal[version], 0
        synthetic.append(twin)
        coverage.append(cover)
    return FeatureSet((normal,), tuple(synthetic), tuple(coverage))


DATA = make_data()
VALIDATION = Validation.from_synthetic(make_data(1, 5))


@pytest.fixture(autouse=True)
def saved_after_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """These trainings are over before the first checkpoint would be due."""
    monkeypatch.setattr(training, "_SAVE_AFTER", 0.0)


def run(
    config: TrainingConfig = CONFIG, seed: int = 0, flow_config: FlowConfig = FLOW, **more: Any
) -> tuple[Flow, list[Epoch]]:
    flow = Flow(CHANNELS, flow_config, seed)
    values = {"data": DATA, "validation": VALIDATION, "scoring": SCORING, "seed": seed, "device": CPU} | more
    history = train(flow, values.pop("data"), values.pop("validation"), config, values.pop("scoring"), **values)
    return flow, history


def same(one: Flow, other: Flow) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_seed_decides_every_bit(objective: Any) -> None:
    config = replace(CONFIG, objective=objective)
    torch.manual_seed(1)
    one, history = run(config)
    torch.manual_seed(2)
    np.random.default_rng(3)
    other, again = run(config)
    assert same(one, other) and history == again
    assert not same(one, run(config, seed=1)[0])


class Killed(BaseException):
    """Stands for a signal: nothing in the package may catch it."""


def cost(flow: Flow, data: FeatureSet, epoch: int, indices: NDArray[np.intp], config: TrainingConfig) -> float:
    """The loss of these rows."""
    return float(batch_loss(flow, read_batch(flow, data, epoch, indices, config, CPU), config)[0])


def run_killed_at(step: int, monkeypatch: pytest.MonkeyPatch, config: TrainingConfig, checkpoint: Path) -> None:
    """Train until the ``step``-th batch of this run."""
    calls = []

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == step:
            raise Killed
        return batch_loss(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training, "batch_loss", counted)
        run(config, checkpoint=checkpoint, run_key="mine")


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("steps", [(1,), (4,), (10, 3, 5), (18,), (16, 2)])
def test_a_killed_training_ends_as_one_that_was_not(
    objective: Any, steps: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = replace(CONFIG, objective=objective)
    whole, history = run(config)
    for step in steps:
        run_killed_at(step, monkeypatch, config, tmp_path / "run.ckpt")
    resumed, again = run(config, checkpoint=tmp_path / "run.ckpt", run_key="mine")
    assert same(whole, resumed) and history == again
    finished, third = run(config, checkpoint=tmp_path / "run.ckpt", run_key="mine")
    assert same(whole, finished) and history == third


@pytest.mark.parametrize("every", [0, 2, 4])
def test_epochs_that_were_not_validated_tell_their_loss_with_the_next_that_was(every: int) -> None:
    _, whole = run(replace(CONFIG, evaluate_every=1))
    _, history = run(replace(CONFIG, evaluate_every=every))
    assert [len(one.losses) for one in history] == {0: [6], 2: [2, 2, 2], 4: [4, 2]}[every]
    assert [loss for one in history for loss in one.losses] == [one.loss for one in whole]
    assert all(one.losses[-1] == one.loss for one in history)


def scripted(qualities: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let validation number n answer ``qualities[n]``, told by the epochs seen so far."""

    def answer(flow: Flow, *_: Any) -> tuple[float, float]:
        seen = int(flow.seen)  # type: ignore[arg-type]
        return qualities[seen - 1], qualities[seen - 1]

    monkeypatch.setattr(training, "validate", answer)


class CountingFlow(Flow):
    """Knows, through checkpoints too, for how many epochs it was trained."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.register_buffer("seen", torch.zeros(()))

    def train(self, mode: bool = True) -> "CountingFlow":
        if mode and hasattr(self, "seen"):
            self.seen += 1
        return super().train(mode)


def run_counting(config: TrainingConfig, judge: Validation | None = None, **more: Any) -> tuple[int, list[Epoch], Flow]:
    flow = CountingFlow(CHANNELS, FLOW, 0)
    history = train(flow, DATA, judge or VALIDATION, config, SCORING, seed=0, device=CPU, **more)
    return int(flow.seen), history, flow


@settings(max_examples=15, deadline=None)
@given(qualities=st.lists(st.sampled_from([0.5, 0.6, 0.7]), min_size=6, max_size=6), cautious=st.booleans())
def test_the_weights_are_those_of_the_epoch_that_is_kept(qualities: list[float], cautious: bool) -> None:
    config = replace(CONFIG, objective="unsupervised", evaluate_every=1)
    with pytest.MonkeyPatch.context() as patch:
        scripted(qualities, patch)
        seen, history, flow = run_counting(config, judge=replace(VALIDATION, cautious=cautious))
    assert seen == (kept_epoch(history).epoch if cautious else qualities.index(max(qualities))) + 1
    assert [e.image_auroc for e in history] == qualities
    assert not flow.training


@pytest.mark.parametrize("kill", [8, 11, 14])
def test_the_best_epoch_survives_a_kill_that_comes_after_it(
    kill: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = replace(CONFIG, objective="unsupervised", evaluate_every=1)
    checkpoint = tmp_path / "run.ckpt"
    scripted([0.5, 0.9, 0.6, 0.6, 0.6, 0.6], monkeypatch)  # the second of 6 epochs, of 3 steps each
    _, history, whole = run_counting(config)
    calls = []

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == kill:
            raise Killed
        return batch_loss(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training, "batch_loss", counted)
        run_counting(config, checkpoint=checkpoint)
    seen, again, resumed = run_counting(config, checkpoint=checkpoint)
    assert seen == 2 and same(whole, resumed) and history == again


def test_without_validations_in_between_the_last_epoch_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, objective="unsupervised", evaluate_every=0)
    scripted([0.5, 0.9, 0.8, 0.7, 0.6, 0.4], monkeypatch)
    seen, [only], _ = run_counting(config)
    assert seen == config.epochs and only.epoch == config.epochs - 1 and only.image_auroc == 0.4


def test_a_checkpoint_is_written_when_some_seconds_have_gone_and_in_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock, written = [0.0], []

    def passing(*arguments: Any) -> Any:
        clock[0] += 1.0
        return batch_loss(*arguments)

    def counted(path: Path, data: bytes) -> None:
        written.append(clock[0])

    monkeypatch.setattr(training, "batch_loss", passing)
    monkeypatch.setattr(training, "atomic_write", counted)
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(training, "_SAVE_AFTER", 5.0)
    run(CONFIG, checkpoint=tmp_path / "run.ckpt")
    assert written == [6.0, 12.0, 18.0]  # six epochs of three steps, a second each


@pytest.mark.parametrize("patience", [1, 2, 3, 0])
def test_patience_ends_a_training_that_no_longer_improves(
    patience: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = replace(CONFIG, objective="unsupervised", evaluate_every=1, epochs=8, patience=patience)
    scripted([0.5, 0.9, 0.8, 0.7, 0.6, 0.5, 0.5, 0.5], monkeypatch)
    seen, history, _ = run_counting(config, checkpoint=tmp_path / "run.ckpt")
    assert seen == 2
    assert len(history) == (2 + patience if patience else 8)
    resumed = run_counting(config, checkpoint=tmp_path / "run.ckpt")
    assert resumed[:2] == (seen, history)  # a training that stopped stays stopped


def test_patience_waits_while_either_number_improves(monkeypatch: pytest.MonkeyPatch) -> None:
    pixel = iter([0.5, 0.5, 0.6, 0.6, 0.7, 0.7, 0.7, 0.7])
    monkeypatch.setattr(training, "validate", lambda *_: (0.9, next(pixel)))
    config = replace(CONFIG, objective="unsupervised", evaluate_every=1, epochs=8, patience=2)
    assert len(run(config)[1]) == 7


def test_damaged_and_foreign_checkpoints_are_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.ckpt"
    whole, _ = run(CONFIG)
    run_killed_at(8, monkeypatch, CONFIG, checkpoint)
    data = checkpoint.read_bytes()
    for length in (0, 1, 8, 9, 100, len(data) // 2, len(data) - 1):
        checkpoint.write_bytes(data[:length])
        assert same(run(CONFIG, checkpoint=checkpoint, run_key="mine")[0], whole)
    for other in (b"\xff" * 1000, b"text", data[:8] + b"[" + data[9:]):
        checkpoint.write_bytes(other)
        assert same(run(CONFIG, checkpoint=checkpoint, run_key="mine")[0], whole)
    checkpoint.write_bytes(data)
    changed = replace(CONFIG, learning_rate=1e-3)
    expected, _ = run(changed)
    assert same(run(changed, checkpoint=checkpoint, run_key="another")[0], expected)


def test_a_checkpoint_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="folder"):
        run(CONFIG, checkpoint=tmp_path)


@pytest.mark.parametrize("cosine_epochs", [1, 7, 100])
def test_the_rate_is_torchs_cosine_also_past_its_end(cosine_epochs: int) -> None:
    config = replace(named_recipe("paper").training, cosine_epochs=cosine_epochs)
    weight = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.Adam([weight], lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, cosine_epochs, config.minimum_rate)
    for epoch in range(3 * cosine_epochs + 2):
        assert learning_rate(config, epoch) == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-6, abs=1e-12)
        optimiser.step()
        schedule.step()


def test_without_a_period_the_cosine_takes_the_whole_training() -> None:
    config = replace(CONFIG, cosine_epochs=0, epochs=10, minimum_rate=1e-6)
    assert learning_rate(config, 0) == config.learning_rate
    assert learning_rate(config, 10) == pytest.approx(1e-6)
    rates = [learning_rate(config, epoch) for epoch in range(11)]
    assert rates == sorted(rates, reverse=True)


def test_a_later_epoch_is_kept_only_if_it_beats_the_kept_one_by_more_than_its_error() -> None:
    def entry(epoch: int, quality: float, error: float = 0.02) -> Epoch:
        return Epoch(epoch, 0.0, 0.0, 0.0, quality, quality, error)

    assert kept_epoch([entry(0, 0.80), entry(1, 0.81), entry(2, 0.815)]).epoch == 0
    assert kept_epoch([entry(0, 0.80), entry(1, 0.81), entry(2, 0.83), entry(3, 0.84)]).epoch == 2
    assert kept_epoch([entry(0, 0.80, 0.0), entry(1, 0.81, 0.0), entry(2, 0.805, 0.0)]).epoch == 1
    assert kept_epoch([entry(0, 0.80, 0.0), entry(1, 0.80, 0.0)]).epoch == 0


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("whiten", [False, True])
def test_the_loss_falls_and_defects_come_to_stand_out(objective: Any, whiten: bool) -> None:
    config = replace(CONFIG, objective=objective, epochs=30, evaluate_every=1, cosine_epochs=0, margin=0.5)
    _, history = run(config, flow_config=replace(FLOW, whiten=whiten, dropout=0.0))
    assert history[-1].loss < history[0].loss
    best = max(history, key=lambda e: e.quality)
    assert best.image_auroc is not None and best.image_auroc > 0.8
    assert best.pixel_auroc is not None and best.pixel_auroc > 0.8
    assert all(0 <= e.active <= 1 for e in history)
    assert (objective == "unsupervised") == (max(e.active for e in history) == 0)


def test_bfloat16_trains_near_float32() -> None:
    config = replace(CONFIG, objective="self_supervised", epochs=10, evaluate_every=1)
    flow_config = replace(FLOW, dropout=0.0, whiten=True)
    _, full = run(config, flow_config=flow_config)
    half, history = run(replace(config, precision="bfloat16"), flow_config=flow_config)
    assert all(bool(torch.isfinite(value).all()) for value in half.state_dict().values())
    assert all(value.dtype != torch.bfloat16 for value in half.state_dict().values())
    for one, other in zip(full, history, strict=True):
        assert other.loss == pytest.approx(one.loss, abs=0.05)


class Untouchable:
    """Stands where synthetic maps would be."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError("synthetic images were read")

    def __len__(self) -> int:
        raise AssertionError("synthetic images were read")

    def __getitem__(self, index: object) -> Any:
        raise AssertionError("synthetic images were read")


def test_the_unsupervised_objective_never_reads_synthetic_images() -> None:
    guarded = FeatureSet(DATA.normal, Untouchable(), Untouchable())  # type: ignore[arg-type]
    config = replace(CONFIG, objective="unsupervised")
    assert same(run(config, data=guarded)[0], run(config)[0])
    with pytest.raises(AssertionError, match="were read"):
        run(replace(CONFIG, objective="self_supervised"), data=guarded)


@pytest.mark.parametrize("objective", ["self_supervised", "local_margin"])
def test_unchanged_twins_are_never_defects(objective: Any) -> None:
    config = replace(CONFIG, objective=objective)
    spoiled = tuple(maps.copy() for maps in DATA.synthetic)
    for version, maps in enumerate(spoiled):
        maps[version] = np.float16(np.nan)  # the unchanged ones: a NaN would spread to every weight
    poisoned = FeatureSet(DATA.normal, spoiled, DATA.coverage)
    assert same(run(config, data=poisoned)[0], run(config)[0])
    nothing = FeatureSet(DATA.normal, spoiled, tuple(np.zeros_like(c) for c in DATA.coverage))
    _, history = run(config, data=nothing)
    assert all(e.active == 0 and math.isfinite(e.loss) for e in history)


@pytest.mark.parametrize("subnet", ["pointwise", "local"])
def test_what_a_defect_grazes_takes_no_part_and_what_it_leaves_alone_is_good(subnet: str) -> None:
    """Of maps whose flow keeps cells apart: by the loss, and by which cells it depends on."""
    flow = Flow(CHANNELS, replace(FLOW, subnet=subnet, dropout=0.0, hidden=8), 0)
    config = replace(CONFIG, objective="local_margin", margin=100.0)
    coverage = DATA.coverage[0].copy()
    coverage[:, 3, 3] = 40 * coverage.any(axis=(1, 2))  # less than half, beside cells that are covered whole

    def loss(spoiled: tuple[int, int] | None) -> float:
        twins = DATA.synthetic[0].copy()
        if spoiled:
            twins[:, :, *spoiled] += 1
        return cost(flow, FeatureSet(DATA.normal, (twins,), (coverage,)), 0, np.arange(6), config)

    usual = loss(None)
    assert loss((0, 0)) != usual and loss((2, 0)) != usual
    if subnet == "pointwise":  # whose cells do not see each other
        assert loss((3, 3)) == usual


def test_validation_leaves_unchanged_twins_out() -> None:
    normal, *twins = Validation.from_synthetic(DATA).parts
    assert len(normal[0]) == COUNT and not normal[1].any() and not normal[2].any()
    for features, cells, flags in twins:
        assert len(features) == len(cells) == len(flags) == COUNT - 1
        assert flags.all() and cells[:, 0, :2].all() and cells.sum() == 2 * (COUNT - 1)


def test_without_any_defect_the_loss_chooses() -> None:
    empty = Validation.from_synthetic(FeatureSet(DATA.normal))
    _, history = run(replace(CONFIG, objective="unsupervised"), validation=empty)
    assert all(e.image_auroc is None and e.pixel_auroc is None and e.quality == -e.loss for e in history)


def test_a_step_is_adams_on_the_written_loss() -> None:
    """One batch of the self-supervised objective, in plain steps."""
    config = replace(CONFIG, objective="self_supervised", batch=COUNT, epochs=1, evaluate_every=1, per_dimension=False)
    sober = replace(FLOW, dropout=0.0)
    trained, history = run(config, flow_config=sober)
    flow = Flow(CHANNELS, sober, 0).train()
    optimiser = torch.optim.Adam(flow.parameters(), lr=config.learning_rate, eps=1e-8, weight_decay=1e-5)

    def nll(rows: Any) -> Tensor:
        z, log_det = flow(torch.from_numpy(rows.astype(np.float32)))
        return -(torch.distributions.Normal(0.0, 1.0).log_prob(z).sum((1, 2, 3)) + log_det.sum((1, 2)))

    good, bad = nll(DATA.normal[0]), nll(DATA.synthetic[0][1:])  # the first twin is unchanged
    kept = bad[(bad < config.bound * CHANNELS * 16) & (bad < good.max())]
    loss = good.mean() / 2 - kept.mean() / 2 if len(kept) else good.mean()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    assert history[0].loss == pytest.approx(loss.item(), rel=1e-5)
    for name, value in flow.state_dict().items():
        assert torch.allclose(value, trained.state_dict()[name], atol=1e-4), name


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 999), high=st.integers(0, 255))
def test_covered_cells_are_half_covered_or_the_fullest(seed: int, high: int) -> None:
    coverage = np.random.default_rng(seed).integers(0, high + 1, (3, 4, 5)).astype(np.uint8)
    cells = covered(coverage)
    assert cells.shape == coverage.shape and cells.dtype == np.bool_
    for one, flags in zip(coverage, cells, strict=True):
        assert flags.any() == one.any()
        assert flags[one >= 128].all() and not flags[one == 0].any()
        assert np.array_equal(flags, one >= 128) or one.max() < 128


def test_a_mask_smaller_than_a_cell_is_one_defective_cell() -> None:
    mask = np.zeros((64, 64), bool)
    mask[30, 40] = True
    assert np.argwhere(grid_cells(mask, (4, 4))).tolist() == [[1, 2]]


def test_a_diverging_training_says_so_and_keeps_its_checkpoint_sound(tmp_path: Path) -> None:
    config = replace(CONFIG, learning_rate=1e30, objective="unsupervised", per_dimension=False)
    with pytest.raises(OptionError, match=r"diverged in epoch \d+.*learning_rate"):
        run(config, checkpoint=tmp_path / "run.ckpt")
    assert sorted(p.name for p in tmp_path.iterdir()) in ([], ["run.ckpt"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_cuda_trains_as_the_cpu_does(precision: Any) -> None:
    config = replace(CONFIG, objective="self_supervised", precision=precision)
    sober = replace(FLOW, dropout=0.0)
    _, here = run(config, flow_config=sober)
    _, there = run(config, flow_config=sober, device=torch.device("cuda"))
    for one, other in zip(here, there, strict=True):
        assert other.loss == pytest.approx(one.loss, abs=0.05)


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_cells_of_single_images_cost_what_they_cost_in_whole_maps(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All good cells: the loss of whole maps. A share of them: that loss on average, over many draws."""
    flow = Flow(CHANNELS, replace(FLOW, subnet="pointwise", dropout=0.0), 0, GRID)
    data, config = make_data(), replace(CONFIG, objective="local_margin", weight=0.0 if share < 1 else 1.0)
    draws = 1 if share == 1 else 400
    torch.manual_seed(0)
    with torch.no_grad():
        some = [cost(flow, data, 0, np.arange(6), replace(config, cells=share)) for _ in range(draws)]
        monkeypatch.setattr(Flow, "by_cell", False)
        whole = cost(flow, data, 0, np.arange(6), config)
    assert np.mean(some) == pytest.approx(whole, rel=1e-5 if share == 1 else 0.02)
    assert share == 1 or np.std(some) > 0


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("by_cell", [False, True])
def test_a_batch_is_standardised_by_the_places_of_its_view(objective: Any, by_cell: bool) -> None:
    config = replace(CONFIG, objective=objective)
    subnet = "pointwise" if by_cell else FLOW.subnet
    flow = Flow(CHANNELS, replace(FLOW, subnet=subnet, dropout=0.0, places=True), 0, GRID, views=2).eval()
    data, indices = make_data(), np.arange(COUNT)
    assert flow.places is not None
    with torch.no_grad():
        before = [cost(flow, data, epoch, indices, config) for epoch in range(4)]
        flow.places.mean[1] += 1.0
        after = [cost(flow, data, epoch, indices, config) for epoch in range(4)]
    changed = [one != other for one, other in zip(before, after, strict=True)]
    # One array of good maps has one view; versions of synthetic ones take turns.
    assert changed == ([False] * 4 if objective == "unsupervised" else [False, True] * 2)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5])
def test_a_share_of_cells_is_a_share(share: float) -> None:
    with pytest.raises(OptionError, match="training.cells"):
        replace(CONFIG, cells=share)

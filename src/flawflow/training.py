"""The loop is a loop: feature maps in, a trained flow out. It is read top to bottom; nothing calls back."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from flawflow.batches import Batch, SomeRows, covered, maps_of, read_batch
from flawflow.errors import OptionError
from flawflow.features import FeatureSet
from flawflow.files import atomic_write
from flawflow.flow import Flow
from flawflow.metrics import auroc, auroc_error
from flawflow.objective import image_nll, local_margin_loss, local_nll, self_supervised_loss
from flawflow.recipe import TrainingConfig
from flawflow.scoring import ScoringConfig, image_levels, image_scores, location_scores, smooth

_SAVE_AFTER = 10.0  # seconds of training that a kill may lose: an epoch of few images takes less than a checkpoint


@dataclass(frozen=True, slots=True)
class Validation:
    """What epochs are validated on, and chosen by where there are several.

    Attributes:
        parts: features (N, C, h, w), their defective cells (N, h, w), defective images (N,).
        cautious: a later epoch must be better by more than a standard error; else by anything.
    """

    parts: tuple[tuple[NDArray[np.float16] | SomeRows, NDArray[np.bool_], NDArray[np.bool_]], ...]
    cautious: bool = True

    def error(self, image_auroc: float | None) -> float:
        """Standard error of an epoch's quality, as far as the number of images tells: half of its image AUROC's."""
        if image_auroc is None or not self.cautious:
            return 0.0
        defective = sum(int(flags.sum()) for _, _, flags in self.parts)
        return 0.5 * auroc_error(image_auroc, defective, sum(len(flags) for _, _, flags in self.parts) - defective)

    @staticmethod
    def from_synthetic(held_out: FeatureSet) -> "Validation":
        """Held-out normal images against their synthetic twins; unchanged twins are left out."""
        normal = held_out.normal[0]
        nothing = np.zeros((len(normal), *normal.shape[2:]), np.bool_)
        whole = SomeRows(normal, np.arange(len(normal)))
        parts = [(whole, nothing, np.zeros(len(normal), np.bool_))]
        for features, coverage in zip(held_out.synthetic, held_out.coverage, strict=True):
            changed = coverage.any(axis=(1, 2))
            some = SomeRows(features, np.flatnonzero(changed))
            parts.append((some, covered(coverage[changed]), np.ones(len(some), np.bool_)))
        return Validation(tuple(parts))


@dataclass(frozen=True, slots=True)
class Epoch:
    """One validated epoch, as the history keeps it.

    Losses are in nats per image; AUROC in [0, 1] or None; the error is that of the quality. ``losses`` are those of all
    epochs since the one validated before, this one's last.
    """

    epoch: int
    loss: float
    active: float
    rate: float
    image_auroc: float | None
    pixel_auroc: float | None
    error: float = 0.0
    losses: tuple[float, ...] = ()

    @property
    def quality(self) -> float:
        """What the choice of the epoch goes by: the mean of both AUROCs."""
        values = [v for v in (self.image_auroc, self.pixel_auroc) if v is not None]
        return sum(values) / len(values) if values else -self.loss


class Judged(Protocol):
    """What can be chosen: a quality, higher = better, and its standard error."""

    @property
    def quality(self) -> float: ...

    @property
    def error(self) -> float: ...


J = TypeVar("J", bound=Judged)


def kept_epoch(history: Sequence[J]) -> J:
    """The epoch whose weights are kept: an earlier one, unless a later one beats it by more than its error.

    Held-out images are few, and the longer a flow trains on synthetic defects, the more it becomes a classifier of
    those; what cannot be told apart goes to the flow that stayed closer to the likelihood.
    """
    kept = history[0]
    for entry in history[1:]:
        if entry.quality > kept.quality + kept.error:
            kept = entry
    return kept


@dataclass(slots=True)
class _Progress:
    """Where a training stands: all that a checkpoint must hold."""

    next_epoch: int
    history: list[Epoch]
    best: dict[str, Tensor]
    losses: list[float]  # of epochs that no validated one tells yet


def train(
    flow: Flow,
    data: FeatureSet,
    validation: Validation,
    config: TrainingConfig,
    scoring: ScoringConfig,
    *,
    seed: int,
    device: torch.device,
    checkpoint: Path | None = None,
    run_key: str = "",
    progress: bool = False,
) -> list[Epoch]:
    """Train ``flow`` in place and leave it with the weights of the epoch that validation keeps.

    Everything random in an epoch starts from (seed, epoch), so that a training that was killed and goes on from its
    checkpoint takes the very steps of one that was not.

    Args:
        flow: the flow; its whitening, if any, is already fitted.
        data: training features.
        validation: what the epochs are compared by.
        config, scoring: see each.
        seed: fixes order and dropout.
        device: where to train.
        checkpoint: file to go on from, and to write after an epoch where the last was written some seconds before, and
            after the last one; removed by whoever called, after saving.
        run_key: a checkpoint of another run is ignored.
        progress: show a bar with loss, share of active synthetic images and time left.

    Returns:
        The validated epochs, oldest first.

    Raises:
        OptionError: the loss left the finite numbers.
        OutputError: the checkpoint cannot be written.
    """
    flow.to(device)
    optimiser = torch.optim.Adam(
        flow.parameters(), lr=config.learning_rate, eps=config.eps, weight_decay=config.weight_decay
    )
    state = _resume(checkpoint, run_key, flow, optimiser) or _Progress(0, [], _weights(flow), [])
    saved = time.monotonic()
    count = len(data.normal[0])
    steps = math.ceil(count / config.batch)
    with tqdm(
        total=config.epochs * steps, initial=state.next_epoch * steps, desc="training", disable=not progress
    ) as bar:
        for epoch in range(state.next_epoch, config.epochs):
            if _out_of_patience(state.history, epoch, config.patience):
                break
            generator = np.random.default_rng((seed, epoch))
            torch.manual_seed(int(generator.integers(2**62)))
            rate = learning_rate(config, epoch)
            for group in optimiser.param_groups:
                group["lr"] = rate
            flow.train()
            total = active = 0.0
            for indices in np.array_split(generator.permutation(count), range(config.batch, count, config.batch)):
                batch = read_batch(flow, data, epoch, np.sort(indices), config, device)
                loss, share = batch_loss(flow, batch, config)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                total += float(loss.detach()) * len(indices) / count
                active += share * len(indices) / count
                bar.set_postfix(loss=f"{float(loss.detach()):.4g}", active=f"{share:.0%}", refresh=False)
                bar.update()
            if not math.isfinite(total):
                raise OptionError(
                    f"the training diverged in epoch {epoch + 1} (loss {total}): lower training.learning_rate, "
                    f"now {config.learning_rate}"
                )
            state.losses.append(total)
            if epoch + 1 == config.epochs or (config.evaluate_every and (epoch + 1) % config.evaluate_every == 0):
                image, pixel = validate(flow, validation, scoring, device)
                losses, state.losses = tuple(state.losses), []
                state.history.append(Epoch(epoch, total, active, rate, image, pixel, validation.error(image), losses))
                if kept_epoch(state.history) is state.history[-1]:
                    state.best = _weights(flow)
            state.next_epoch = epoch + 1
            if epoch + 1 == config.epochs or time.monotonic() - saved >= _SAVE_AFTER:
                _save(checkpoint, run_key, flow, optimiser, state)
                saved = time.monotonic()
    flow.load_state_dict(state.best)
    flow.eval()
    return state.history


def learning_rate(config: TrainingConfig, epoch: int) -> float:
    """Cosine from ``learning_rate`` to ``minimum_rate`` over ``cosine_epochs``, then up again, stepped per epoch."""
    period = config.cosine_epochs or config.epochs
    swing = 0.5 * (1 + math.cos(math.pi * epoch / period))
    return config.minimum_rate + (config.learning_rate - config.minimum_rate) * swing


def batch_loss(flow: Flow, batch: Batch, config: TrainingConfig) -> tuple[Tensor, float]:
    """Loss of one batch, and the share of its synthetic images or of their places that took part, in [0, 1]."""
    with torch.autocast(batch.x.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        z, log_det = flow(batch.x, batch.cells, batch.view)
    if config.objective == "local_margin":
        loss, active = _local_loss(local_nll(z, log_det), batch, config)
    else:
        nll = image_nll(z, log_det)
        found = self_supervised_loss(nll[: batch.good], nll[batch.good :], config.bound * batch.size)
        loss, active = found.loss, found.active * batch.changed
    return loss / batch.size if config.per_dimension else loss, active


def _local_loss(nll: Tensor, batch: Batch, config: TrainingConfig) -> tuple[Tensor, float]:
    """From the NLL in nats of each location, (B, h, w) or (1, 1, N)."""
    if batch.cells is None:
        good, bad = (
            torch.cat([nll[: batch.good].flatten(), nll[batch.good :][batch.clear]]),
            nll[batch.good :][batch.defective],
        )
    else:
        good, bad = nll.flatten()[: batch.good], nll.flatten()[batch.good :]
    margin = config.margin * batch.channels
    ceiling = torch.quantile(good[:1_000_000], 0.99)
    hinge = local_margin_loss(bad, batch.defective[0], ceiling, margin)
    active = (bad.detach() < ceiling.detach() + margin).float().mean()
    places = batch.size // batch.channels
    return (good.mean() + config.weight * hinge) * places, float(active.nan_to_num())


@torch.inference_mode()
def validate(
    flow: Flow, validation: Validation, scoring: ScoringConfig, device: torch.device
) -> tuple[float | None, float | None]:
    """Image and pixel AUROC of the validation set, on the flow's own grid; None where one class is missing."""
    flow.eval()
    maps = []
    for features, _, _ in validation.parts:
        for i in range(0, len(features), 8):
            z, log_det = flow(maps_of(features[i : i + 8], device).float())
            maps.append(smooth(location_scores(z, log_det, scoring.score), scoring.sigma).cpu())
    scored = torch.cat(maps)
    cells = np.concatenate([cells for _, cells, _ in validation.parts])
    images = np.concatenate([flags for _, _, flags in validation.parts])
    if images.all() or not images.any():
        return None, None
    normal = scored[~torch.from_numpy(images)]
    limit = float(image_levels(normal, scoring.level).max())
    image = auroc(image_scores(scored, scoring.top, scoring.level, limit).numpy(), images)
    return image, auroc(scored.numpy().ravel(), cells.ravel()) if cells.any() else None


def _out_of_patience(history: list[Epoch], epoch: int, patience: int) -> bool:
    """The paper's stop: neither AUROC has improved for ``patience`` epochs."""
    if not patience or not history:
        return False
    image = max(history, key=lambda e: e.image_auroc or 0.0)
    pixel = max(history, key=lambda e: e.pixel_auroc or 0.0)
    return epoch - 1 - max(image.epoch, pixel.epoch) >= patience


def _weights(flow: Flow) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in flow.state_dict().items()}


def _save(path: Path | None, run_key: str, flow: Flow, optimiser: torch.optim.Optimizer, state: _Progress) -> None:
    if path is None:
        return
    tensors = {f"flow.{k}": v for k, v in _weights(flow).items()} | {f"best.{k}": v for k, v in state.best.items()}
    for number, values in optimiser.state_dict()["state"].items():
        tensors |= {f"adam.{number}.{k}": v.cpu().contiguous() for k, v in values.items()}
    history = json.dumps([asdict(entry) for entry in state.history])
    losses = json.dumps(state.losses)
    header = {"run": run_key, "next_epoch": str(state.next_epoch), "history": history, "losses": losses}
    atomic_write(path, save({k: v.contiguous().clone() for k, v in tensors.items()}, header))


def _resume(path: Path | None, run_key: str, flow: Flow, optimiser: torch.optim.Optimizer) -> _Progress | None:
    """Load a checkpoint of this very run into flow and optimiser; None where there is none."""
    if path is None or not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            if header.get("run") != run_key or "losses" not in header:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError:
        return None
    flow.load_state_dict(_under(tensors, "flow."))
    whole = optimiser.state_dict()
    whole["state"] = _adam_state(_under(tensors, "adam."))
    optimiser.load_state_dict(whole)
    history = [Epoch(**entry | {"losses": tuple(entry["losses"])}) for entry in json.loads(header["history"])]
    losses = json.loads(header["losses"])
    return _Progress(int(header["next_epoch"]), history, _under(tensors, "best."), losses)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _adam_state(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Any]]:
    state: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        number, key = name.split(".", 1)
        state.setdefault(int(number), {})[key] = value
    return state

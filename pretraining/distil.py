"""Teaches the embedded backbone to see what its teachers see.

    python pretraining/distil.py --targets FOLDER --out FOLDER

goes on from ``checkpoint.pt`` in its folder, prints the curve, and writes ``compact.safetensors`` (half precision,
batch norms folded into the convolutions) with the curve beside it. ``--untrained`` writes the same network as it was
drawn, to compare with.
"""

import argparse
import copy
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from flawflow.backbones.compact import NORM, WIDTHS, CompactNetwork
from flawflow.files import atomic_path
from targets import DIMENSIONS, TEACHERS

BATCH = 16
HELD_OUT = 512  # pictures kept for the curve
RATE = 1e-3
WEIGHT_DECAY = 0.02
WEIGHTS = {"deit_tiny_patch16_224": 2.0}  # of a teacher's error; 1 for the others
SMALL = {"place.weight": 0.1, "project.weight": 0.2, "second.weight": 0.2}  # of what is drawn for attention's blocks
REPORT = 100  # steps between two points of the curve


class Pupil(nn.Module):
    """The network with batch norms behind its convolutions while it learns, and a linear head for each of two
    levels: the last one answers for all teachers, the one at stride 8 too, so that the convolutions learn their share.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.network = CompactNetwork()
        for name, module in list(self.network.named_modules()):
            if isinstance(module, nn.Conv2d) and module.groups == 1:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                _replace(self.network, name, nn.Sequential(module, nn.BatchNorm2d(module.out_channels)))
                if name.endswith("second"):  # residual branches begin small
                    nn.init.constant_(self.network.get_submodule(name)[1].weight, 0.2)  # type: ignore[index]
        with torch.no_grad():  # so do those of attention
            for name, weight in self.network.tokens.named_parameters():
                weight.mul_(SMALL.get(name.split(".", 1)[1], 1.0))
        self.head = nn.Conv2d(WIDTHS[-1], DIMENSIONS, 1)
        self.fine_head = nn.Conv2d(WIDTHS[1], DIMENSIONS, 1)
        self.register_buffer("mean", torch.tensor(NORM[0]).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("scale", 1 / (torch.tensor(NORM[1]).view(1, 3, 1, 1) * 255), persistent=False)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (B, 256, 256, 3) → what it believes the teachers see (B, D, 16, 16), from its last level and
        from the one at stride 8 alone."""
        pixels = (pictures.permute(0, 3, 1, 2).float() - self.mean) * self.scale
        images = pixels.contiguous(memory_format=torch.channels_last)
        _, fine, _, last = self.network(images)
        return self.head(last), self.fine_head(functional.avg_pool2d(fine, 2))


def _replace(parent: nn.Module, name: str, new: nn.Module) -> None:
    path, _, last = name.rpartition(".")
    setattr(parent.get_submodule(path), last, new)


def fold(network: CompactNetwork) -> CompactNetwork:
    """The network for use: each batch norm is folded into its convolution."""
    folded = copy.deepcopy(network).eval()
    for name, module in list(folded.named_modules()):
        if isinstance(module, nn.Sequential) and len(module) == 2 and isinstance(module[1], nn.BatchNorm2d):
            convolution, norm = module[0], module[1]
            assert isinstance(convolution, nn.Conv2d)
            _replace(folded, name, fuse_conv_bn_eval(convolution, norm))
    return folded


def explained(pupil: Pupil, pictures: Tensor, targets: Tensor) -> dict[str, float]:
    """Share of the held-out targets' variance that the last level explains, for each teacher's level."""
    pupil.eval()
    with torch.inference_mode():
        parts = zip(torch.split(pictures, BATCH), torch.split(targets, BATCH), strict=True)
        errors = [
            (pupil(part)[0].permute(0, 2, 3, 1) - wanted.float()).square().mean(dim=(0, 1, 2)) for part, wanted in parts
        ]
    share = 1 - torch.stack(errors).mean(dim=0) / targets.float().square().mean(dim=(0, 1, 2))
    names = [f"{name} {tap}" for name, tap, *_ in TEACHERS]
    sizes = [kept for *_, kept in TEACHERS]
    by_level = {name: round(float(part.mean()), 4) for name, part in zip(names, torch.split(share, sizes), strict=True)}
    return {"mean": round(float(share.mean()), 4), **by_level}


def take_over(pupil: Pupil, checkpoint: Path) -> None:
    """The tensors of an earlier training that have the same names and shapes, its heads left out."""
    earlier, known = torch.load(checkpoint, weights_only=True)["pupil"], pupil.state_dict()
    fitting = {k: v for k, v in earlier.items() if k in known and known[k].shape == v.shape and "head" not in k}
    print(f"begins with {len(fitting)} of {len(known)} tensors of {checkpoint}", flush=True)
    pupil.load_state_dict(fitting, strict=False)


def shares() -> Tensor:
    """The weight of each dimension's error (1, D, 1, 1), 1 on average."""
    share = torch.cat([torch.full((kept,), WEIGHTS.get(name, 1.0)) for name, *_, kept in TEACHERS])
    return (share / share.mean()).view(1, -1, 1, 1)


def distil(folder: Path, output: Path, steps: int, seed: int, begin: Path | None = None) -> None:
    """Learns for so many steps in all, whether in one sitting or several."""
    output.mkdir(parents=True, exist_ok=True)
    pictures = np.load(folder / "pictures.npy", mmap_mode="r")
    targets = np.load(folder / "targets.npy", mmap_mode="r")
    count = len(pictures) - HELD_OUT
    unseen = torch.from_numpy(pictures[count:].copy()), torch.from_numpy(targets[count:].copy())
    pupil = Pupil(seed).to(memory_format=torch.channels_last)
    if begin is not None:
        take_over(pupil, begin)
    decayed = [weight for weight in pupil.parameters() if weight.ndim > 1]
    rest = [weight for weight in pupil.parameters() if weight.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE)
    first, spent = 0, 0.0
    curve: list[dict[str, float]] = []
    checkpoint = output / "checkpoint.pt"
    share = shares()
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        pupil.load_state_dict(saved["pupil"])
        optimizer.load_state_dict(saved["optimizer"])
        first, spent, curve = saved["step"], saved["spent"], saved["curve"]
    began = time.time() - spent
    loss_sum = 0.0
    for step in range(first, steps):
        rate = RATE * min(1, (step + 1) / 100) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        rng = np.random.default_rng([seed, step])
        rows = np.sort(rng.choice(count, BATCH, replace=False))
        # Never turned or reflected: a teacher sees other things in a turned picture than turned ones.
        goal = torch.from_numpy(targets[rows]).float().permute(0, 3, 1, 2)
        pupil.train()
        last, fine = pupil(torch.from_numpy(pictures[rows]))
        loss = ((last - goal).square() * share).mean() + 0.25 * (fine - goal).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss_sum += loss.item()
        if (step + 1) % REPORT == 0 or step + 1 == steps:
            spent = time.time() - began
            point = {
                "step": step + 1,
                "minutes": round(spent / 60, 2),
                "loss": round(loss_sum / (step % REPORT + 1), 4),
            }
            curve.append(point | explained(pupil, *unseen))
            loss_sum = 0.0
            print(json.dumps(curve[-1]), flush=True)
            state = {"pupil": pupil.state_dict(), "optimizer": optimizer.state_dict()}
            with atomic_path(checkpoint) as temporary:
                torch.save(state | {"step": step + 1, "spent": spent, "curve": curve}, temporary)
    (output / "curve.json").write_text(json.dumps(curve, indent=1) + "\n")
    save_weights(pupil, output / "compact.safetensors")


def save_weights(pupil: Pupil, path: Path) -> None:
    """The folded network in half precision."""
    state = {name: tensor.half().contiguous() for name, tensor in fold(pupil.network).state_dict().items()}
    save_file(state, path)
    print(f"wrote {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Teaches the embedded backbone.")
    parser.add_argument("--targets", type=Path, required=True, help="what targets.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, curve and weights")
    parser.add_argument("--steps", type=int, default=2600, help="steps in all, whether in one sitting or several")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--begin", type=Path, help="checkpoint of a training that has some tensors in common")
    parser.add_argument("--untrained", action="store_true", help="write the network as it was drawn")
    given = parser.parse_args()
    if given.untrained:
        given.out.mkdir(parents=True, exist_ok=True)
        save_weights(Pupil(given.seed), given.out / "compact.safetensors")
    else:
        distil(given.targets, given.out, given.steps, given.seed, given.begin)

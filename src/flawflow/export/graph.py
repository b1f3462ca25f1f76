"""A detector as one network that can be written down: pixels of the input size → map and score.

The same modules as the detector's, but for two that search: the memory compares every cell and keeps the answer where
the detector would have asked, and the image score sorts once.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from flawflow.branch import Branch
from flawflow.detector import Detector
from flawflow.features import posed, shifted
from flawflow.flow import Flow, Memory
from flawflow.flow.memory import FAR
from flawflow.glare import without_glare
from flawflow.scoring import enlarge, location_scores, smooth


class DenseMemory(nn.Module):
    """`flow.Memory` without a step that depends on the data: what each row remembers against all cells near that row.

    Each remembered latent takes part in one product only, because runtimes write a constant down for each use.
    """

    def __init__(self, memory: Memory, grid: tuple[int, int]) -> None:
        super().__init__()
        self.height, self.columns = grid
        self.reach, self.trust = memory.reach, memory.trust
        self.threshold = float(memory.threshold)
        self.register_buffer("narrow", (1 / memory.width)[:, None, None])
        self.constant = float(memory.width.log().sum())
        # ‖u − v‖² = ‖u‖² + (‖v‖² − 2 u·v) with u = z / σ and v = c / σ; the bracket is one affine map of the cells u.
        centres = memory.latents.float() / memory.width
        self.register_buffer("factors", -2 * centres.T)
        self.register_buffer("norms", centres.square().sum(dim=1))
        rows = memory.places[:, 0]
        borders = torch.searchsorted(rows.contiguous(), torch.arange(self.height + 1, dtype=rows.dtype)).tolist()
        self.spans = list(pairwise(borders))  # first and last + 1 of what each row remembers; it is ordered by row
        away = (torch.arange(self.columns)[:, None] - memory.places[:, 1].long()[None]).abs() > self.reach
        self.register_buffer("away", away)

    def forward(self, z: Tensor, log_det: Tensor, nll: Tensor) -> Tensor:
        """As `flow.Memory`, of one image: z (1, C, h, w), log_det and nll (1, h, w) → (1, h, w)."""
        cells = z[0] * self.get_buffer("narrow")
        found = [self._beyond(cells, row, *span) for row, span in enumerate(self.spans) if span[0] < span[1]]
        if not found:
            return nll
        least = (torch.stack(found).amin(dim=0) + cells.square().sum(dim=0)).clamp_min(0)
        lowered = torch.minimum(nll, 0.5 * least[None] + self.constant - log_det)
        if self.trust < 1:
            lowered = nll + self.trust * (lowered - nll)
        return torch.where(nll > self.threshold, lowered, nll)

    def _beyond(self, cells: Tensor, row: int, first: int, last: int) -> Tensor:
        """Least ‖u − v‖² − ‖u‖² of each cell u to what one row remembers, (h, w)."""
        top, bottom = max(0, row - self.reach), min(self.height, row + self.reach + 1)
        factors, norms, away = (self.get_buffer(name)[..., first:last] for name in ("factors", "norms", "away"))
        beyond = functional.linear(cells[:, top:bottom].flatten(1).T, factors.T, norms)
        least = beyond.reshape(-1, self.columns, last - first).masked_fill(away, FAR).amin(dim=-1)
        return functional.pad(least, (0, 0, top, self.height - bottom), value=FAR)


class BranchGraph(nn.Module):
    """uint8 pixels (1, S, S, 3) in a view → local scores (1, h, w) of each flow of one branch."""

    def __init__(self, branch: Branch) -> None:
        super().__init__()
        self.backbone = branch.backbone
        self.flows = nn.ModuleList(FlowGraph(flow, branch.backbone.grid) for flow in branch.flows)

    def forward(self, pixels: Tensor, score: str, view: int) -> list[Tensor]:
        features = self.backbone(pixels)
        return [flow(features, score, view) for flow in self.flows]


class FlowGraph(nn.Module):
    """Features (1, C, h, w) of a view → local scores (1, h, w) of one flow."""

    def __init__(self, flow: Flow, grid: tuple[int, int]) -> None:
        super().__init__()
        self.flow = flow
        self.memory = None if flow.memory is None else DenseMemory(flow.memory, grid)

    def forward(self, features: Tensor, score: str, view: int) -> Tensor:
        z, log_det = self.flow(features, view=view)
        seen = location_scores(z, log_det, score)
        return seen if self.memory is None else self.memory(z, log_det, seen)


class DetectorGraph(nn.Module):
    """uint8 pixels (1, S, S, 3) → anomaly map (S, S) and score () as the detector gives them, float32.

    Args:
        detector: the fitted detector, on the CPU.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.recipe = detector.recipe
        limits = detector.calibration.level_limits
        self.good_map = detector.calibration.good_map
        self.shown = self.recipe.shown
        self.ways = [branch.ways(self.recipe) for branch in detector.branches]
        self.limits: tuple[float | None, ...] = limits or (None,) * len(detector.branches)
        self.branches = nn.ModuleList(BranchGraph(branch) for branch in detector.branches)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        scoring, maps, scores, drawn = self.recipe.scoring, [], [], []
        for branch, limit, shown, ways in zip(self.branches, self.limits, self.shown, self.ways, strict=True):
            for pose, view, (dy, dx) in ways:
                seen = branch(shifted(posed(pixels, pose), dy, dx), scoring.score, view)
                large = [posed(self._enlarged(one, dy, dx), pose)[0] for one in seen]
                maps += large[-1:] * shown  # a flow that draws comes after the one that scores
                scores.append(self._score(large[0].flatten(), limit))
                drawn += [self._highest(one.flatten()) for one in large[1:]]
        score = torch.stack(scores).mean()
        if drawn and scoring.drawn:
            score = torch.lerp(score, torch.stack(drawn).mean(), scoring.drawn)
        drawing = torch.stack(maps).mean(dim=0)
        if self.good_map is not None:
            drawing = without_glare(drawing, drawing.max(), self.good_map, scoring.glare)
        return drawing, score

    def _enlarged(self, seen: Tensor, dy: int, dx: int) -> Tensor:
        return enlarge(smooth(seen, self.recipe.scoring.sigma), self.recipe.size, -dy, -dx)

    def _highest(self, flat: Tensor) -> Tensor:
        return flat.topk(max(1, round(self.recipe.scoring.top * flat.numel()))).values.mean()

    def _score(self, flat: Tensor, limit: float | None) -> Tensor:
        """`scoring.image_scores` of one look's map (S²,)."""
        scoring, count = self.recipe.scoring, flat.numel()
        top = max(1, round(scoring.top * count))
        kept = count - max(1, round(scoring.level * count)) + 1 if scoring.level else 0
        ordered = flat.topk(max(top, kept)).values
        highest = ordered[:top].mean()
        if not scoring.level:
            return highest
        level = ordered[kept - 1]
        return highest - (level if limit is None else level.clamp(max=limit))

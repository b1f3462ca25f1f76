"""Every choice of a fit, as frozen dataclasses; each named recipe is a short function of literal numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from flawflow.backbones import COMPACT, EMBEDDED, BackboneSpec
from flawflow.configs import change_settings, read_settings
from flawflow.errors import OptionError
from flawflow.flow import FlowConfig
from flawflow.images import MIRRORS
from flawflow.objective import PAPER_BOUND_PER_DIMENSION
from flawflow.scoring import ScoringConfig
from flawflow.synthesis import SynthesisSettings
from flawflow.tiling import TilingConfig

LEARNED, NONE = "learned", "none"
Objective = Literal["unsupervised", "self_supervised", "local_margin"]


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """How the flow learns.

    Attributes:
        objective: ``unsupervised`` (mean NLL of normal images), ``self_supervised`` (the paper's conditional
            objective) or ``local_margin`` (NLL per location, with a hinge on the places under synthetic defects).
        epochs: passes over the training images, at most; 0 = as many as make ``steps``, and four at least.
        steps: how many steps a training takes that is not told its epochs; few images are passed over more often.
        batch: normal images in a step; as many synthetic ones join them unless the objective is unsupervised.
        cells: share of each image's cells that a step learns from, drawn anew each time; the defective ones of twins
            come on top. It counts for ``local_margin`` with the subnet ``pointwise``, which sees one cell; otherwise
            all are needed.
        learning_rate, minimum_rate: Adam's rate follows a cosine from the first to the second.
        cosine_epochs: epochs of half a cosine period; 0 = ``epochs``. Past it the rate rises again.
        eps, weight_decay: Adam's.
        bound: −c of the paper's condition, nats per feature dimension.
        margin: of ``local_margin``, nats per channel.
        weight: of the hinge against the likelihood, in ``local_margin``.
        per_dimension: divide the loss by C·h·w, so that rate and eps mean the same for every feature size.
        evaluate_every: epochs between two validations, the best of which is kept; 0 = the last is validated and kept.
        patience: epochs without a better one of several validations after which training stops; 0 = never.
        precision: ``float32``, or ``bfloat16`` for the subnets' products alone (couplings stay float32).
    """

    objective: Objective = "self_supervised"
    epochs: int = 500
    steps: int = 0
    batch: int = 16
    cells: float = 1.0
    learning_rate: float = 2e-4
    minimum_rate: float = 1e-6
    cosine_epochs: int = 100
    eps: float = 1e-4
    weight_decay: float = 1e-5
    bound: float = PAPER_BOUND_PER_DIMENSION
    margin: float = 0.5
    weight: float = 1.0
    per_dimension: bool = False
    evaluate_every: int = 10
    patience: int = 50
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        """Raises OptionError for a number that no training could follow."""
        if self.batch < 1:
            raise OptionError(f"training.batch is {self.batch}: expected at least 1")
        if self.epochs < 0 or self.steps < 0 or self.epochs == self.steps == 0:
            raise OptionError(
                f"training.epochs is {self.epochs} and steps {self.steps}: expected at least one epoch, or 0 and at "
                "least one step"
            )
        if not 0 <= self.minimum_rate <= self.learning_rate or self.learning_rate <= 0:
            raise OptionError(
                f"training.learning_rate is {self.learning_rate} and minimum_rate {self.minimum_rate}: expected "
                "0 ≤ minimum_rate ≤ learning_rate and learning_rate > 0"
            )
        if not 0 < self.cells <= 1:
            raise OptionError(f"training.cells is {self.cells}: expected a share above 0 and up to 1")
        for name in ("eps", "weight_decay", "bound", "margin", "weight", "patience", "cosine_epochs", "evaluate_every"):
            if getattr(self, name) < 0:
                raise OptionError(f"training.{name} is {getattr(self, name)}: expected 0 or more")


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that a fit depends on, but the images, the weights and the seed.

    Attributes:
        name: the named recipe it started from.
        size: side of the square that images are resized to, pixels.
        backbone: the frozen network and where it is tapped.
        flow, synthesis, training, scoring: see each.
        automatic_synthesis: find NSA's numbers from the images, or take the product's published row where the method is
            NSA alone; False = take ``synthesis.nsa`` as it stands.
        versions: how many sharpened and synthetic versions of each training image there are; epoch e uses
            version e mod versions (the paper draws anew each epoch). There are at least as many as views; 0 = as many
            as come nearest to ``twins``, each view as often, no more than epochs, and 64 at most.
        twins: how many synthetic images there are in all, about, where ``versions`` does not tell; few images get more
            each, so that a flow which sees them often does not learn the very defects.
        mirrors: with fewer images than this, mirror images that are as likely as they are, are learned too; 0 = never.
        second_look: one of `images.MIRRORS`: an inspection looks through that mirror image of an image too, which takes
            twice as long, and map and score are the means of both; ``learned`` = through one that is learned too, if
            any is, the half turn before the others; ``none`` = as it is alone. One that is not learned looks odd.
        holdout: share of the good images kept out of training, to calibrate on, and to choose the epoch if need be.
        tiling: whether images are cut into tiles instead of being resized whole.
        blur: the ``flow.blur`` of a second flow on the same features, which draws the map, while the first one scores
            (of few images both do, see ``scoring.few``); 0 = that one draws too. A density that tells the faintest
            marks apart is unquiet where nothing is wrong.
        trust: the ``flow.trust`` of that flow; of no effect without ``blur``.
        smaller: the network sees a smaller copy of the image too, the side of which is this share, and has a flow of
            its own there; 0 = it does not. A smaller copy tells whether something is odd rather than where: it takes
            part in the score, not in the map.
        beside: another network, which comes with the package or is the first one otherwise tapped, and gets a flow of
            its own. Scores, and maps before glare is taken from them, are the means of all, in nats.
    """

    name: str = "default"
    size: int = 448
    backbone: BackboneSpec = field(default_factory=BackboneSpec)
    flow: FlowConfig = field(default_factory=FlowConfig)
    synthesis: SynthesisSettings = field(default_factory=SynthesisSettings)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    automatic_synthesis: bool = True
    versions: int = 1
    twins: int = 0
    mirrors: int = 0
    second_look: str = NONE
    holdout: float = 0.1
    tiling: TilingConfig = field(default_factory=TilingConfig)
    blur: float = 0.0
    trust: float = 1.0
    smaller: float = 0.0
    beside: BackboneSpec | None = None

    def __post_init__(self) -> None:
        """Raises OptionError for a number out of range."""
        if not 16 <= self.size <= 8192:
            raise OptionError(f"size is {self.size}: expected an input side of 16 to 8192 pixels")
        if not 0 <= self.versions <= 1000 or self.twins < 0 or self.versions == self.twins == 0:
            raise OptionError(
                f"versions {self.versions}, twins {self.twins}: expected 1 to 1000, or 0 and at least one twin"
            )
        if not 0 < self.holdout < 1 or self.mirrors < 0:
            raise OptionError(f"holdout is {self.holdout}, mirrors {self.mirrors}: expected 0 to 1, and 0 or more")
        if self.second_look not in (NONE, LEARNED, *MIRRORS):
            known = ", ".join((NONE, LEARNED, *MIRRORS))
            raise OptionError(f"second_look is '{self.second_look}': expected one of {known}")
        replace(self.flow, blur=self.blur, trust=self.trust)  # refuses what no flow could learn with
        if not 0 <= self.smaller < 1:
            raise OptionError(f"smaller is {self.smaller}: expected a share above 0 and below 1, or 0 for no copy")
        if self.flow.memory and self.scoring.score != "nll":
            raise OptionError(
                f"flow.memory is {self.flow.memory} and scoring.score '{self.scoring.score}': what is remembered "
                "changes the likelihood alone; set scoring.score=nll, or flow.memory=0"
            )
        if self.beside is not None and self.beside in (self.backbone, self.roles.get("smaller")):
            raise OptionError("beside and backbone are the same network: name another, or other taps, or beside=null")
        if self.beside is not None and self.beside.name not in (self.backbone.name, *EMBEDDED):
            raise OptionError(
                f"beside.name is {self.beside.name}: expected {self.backbone.name} otherwise tapped, or one "
                f"of {', '.join(EMBEDDED)}, because weights can be brought for one network"
            )

    @property
    def roles(self) -> dict[str, BackboneSpec]:
        """The frozen networks, one for each branch of the detector: ``first``, ``smaller`` and ``beside`` if there."""
        found = {"first": self.backbone}
        copy = replace(self.backbone, scale=self.backbone.scale * self.smaller) if self.smaller else self.backbone
        if copy.side(self.size) < self.backbone.side(self.size):
            found["smaller"] = copy
        return found | ({} if self.beside is None else {"beside": self.beside})

    @property
    def backbones(self) -> tuple[BackboneSpec, ...]:
        """The frozen networks, one for each branch of the detector."""
        return tuple(self.roles.values())

    @property
    def shown(self) -> tuple[bool, ...]:
        """Of each branch whether it takes part in the map."""
        return tuple(role != "smaller" for role in self.roles)

    @property
    def drawing(self) -> FlowConfig | None:
        """The flow that draws the map of a branch that is `shown`; None = the one that scores does."""
        known = replace(self.flow, blur=self.blur, trust=self.trust)
        return known if self.blur and known != self.flow else None

    @property
    def poses(self) -> tuple[str, ...]:
        """How an image is shown to the networks: as it is, ``none``, and mirrored where there is a second look."""
        return (NONE,) if self.second_look in (NONE, LEARNED) else (NONE, self.second_look)

    @property
    def looks(self) -> int:
        """How many maps the flows that score give of an image: one for each branch, pose and view."""
        return len(self.roles) * len(self.poses) * self.scoring.views

    @property
    def labels(self) -> tuple[str, ...]:
        """What tells the branches from one another, for people: a network's name, and what it differs in."""
        names = {}
        for role, spec in self.roles.items():
            side = spec.side(self.size)
            names[role] = spec.name if side == self.size else f"{spec.name} at {side} px"
        if self.beside is not None and self.beside.name == self.backbone.name:
            for role, spec in (("first", self.backbone), ("beside", self.beside)):
                names[role] += f" ({', '.join(map(str, spec.taps))})"
        return tuple(names.values())

    @property
    def networks(self) -> str:
        """The frozen networks by name, for people."""
        return " and ".join(self.labels)

    def scheduled(self, images: int, choosing: bool = False, mirrors: Sequence[str] = ()) -> "Recipe":
        """The recipe with what depends on the images that are learned, how many they are with their mirror images and
        which ``mirrors`` these are, told outright: epochs, versions, what part the flow that draws has in the score,
        and the second look. ``choosing`` among epochs needs some sixteen of them."""
        training, views = self.training, self.scoring.views
        passes = max(4, training.steps / math.ceil(images / training.batch))
        epochs = training.epochs or math.ceil(passes / views) * views
        turns = min(epochs // views, 64 // views, round(self.twins / images / views))
        versions = self.versions or max(1, turns) * views
        every = training.evaluate_every or (math.ceil(epochs / 16) if choosing else 0)
        scoring = self.scoring
        if scoring.few and self.drawing and not scoring.drawn:
            scoring = replace(scoring, drawn=scoring.few / (scoring.few + images))
        training = replace(training, epochs=epochs, evaluate_every=every)
        second = self.second_look
        if second == LEARNED:
            second = max(mirrors, key=lambda how: len(MIRRORS[how]), default=NONE)
        return replace(self, versions=versions, training=training, scoring=scoring, second_look=second)

    def weights_of(self, spec: BackboneSpec, brought: Path | None) -> Path | None:
        """The file of that backbone's weights, where one was brought for the recipe's network."""
        return brought if spec.name == self.backbone.name else None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read back what `to_dict` wrote. Raises OptionError for unknown keys and values that do not fit."""
        return read_settings(cls, values, "recipe")

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON values."""
        return asdict(self)

    def change(self, changes: Mapping[str, str]) -> "Recipe":
        """Copy with dotted settings changed, e.g. ``{"flow.blocks": "4"}`` (the command line's ``--set``)."""
        return change_settings(self, changes, f"recipe {self.name}")


def paper() -> Recipe:
    """The paper's settings to the letter (its section 4.1 and the authors' experiments)."""
    return Recipe(
        name="paper",
        size=448,
        backbone=BackboneSpec(name="cait_m48_448", taps=(40,)),
        flow=FlowConfig(blocks=10, subnet="residual", hidden=128, heads=4, dropout=0.2, clamp=2.0),
        synthesis=SynthesisSettings(method="nsa", sharpness=0.5),
        training=TrainingConfig(
            objective="self_supervised",
            epochs=500,
            batch=16,
            learning_rate=2e-4,
            minimum_rate=1e-6,
            cosine_epochs=100,
            eps=1e-4,
            weight_decay=1e-5,
            evaluate_every=10,
            patience=50,
        ),
        scoring=ScoringConfig(score="density"),
        versions=4,
    )


def default() -> Recipe:
    """The best recipe found so far for two cores and a few minutes, on the network that comes with the package:
    nothing to bring, nothing to fetch; docs/experiments.md tells how it was found."""
    return Recipe(
        name="default",
        size=448,
        backbone=BackboneSpec(name=COMPACT, taps=(3,)),
        flow=FlowConfig(
            blocks=4,
            subnet="pointwise",
            hidden=128,
            dropout=0.0,
            clamp=0.3,
            whiten=True,
            places=True,
            floor=0.01,
            memory=0.05,
        ),
        synthesis=SynthesisSettings(method="mixture", sharpness=0.0),
        training=TrainingConfig(
            objective="local_margin",
            epochs=0,
            steps=320,
            batch=8,
            cells=0.125,
            learning_rate=1e-3,
            minimum_rate=1e-6,
            cosine_epochs=0,
            eps=1e-8,
            weight_decay=1e-5,
            margin=0.5,
            per_dimension=True,
            evaluate_every=0,
            patience=0,
        ),
        scoring=ScoringConfig(score="nll", top=0.01, level=0.9, shift=0.25, few=16, glare=3.0),
        versions=0,
        twins=448,
        mirrors=32,
        second_look=LEARNED,
        blur=0.1,
        smaller=0.7,
    )


def deit() -> Recipe:
    """The recipe `default` on DeiT-Tiny, whose weights have to be brought, at 512 pixels; what draws trusts what it
    remembers by half, and sees more noise."""
    network = BackboneSpec(name="deit_tiny_patch16_224", taps=(3, 5))
    return replace(default(), name="deit", size=512, backbone=network, blur=0.2, trust=0.5)


def pair() -> Recipe:
    """Both networks, that of `deit` and that of `default`, ours at seven eighths of the size, for what either sees."""
    return replace(deit(), name="pair", smaller=0.0, beside=BackboneSpec(name=COMPACT, taps=(3,), scale=0.875))


def fast() -> Recipe:
    """The recipe `default` for the edge: 256 pixels in one view, one look, one flow, and the network without its
    attention."""
    scoring = replace(default().scoring, shift=0)
    network = BackboneSpec(name=COMPACT, taps=(2,))
    one_look = replace(default(), second_look=NONE, scoring=scoring)
    return replace(one_look, name="fast", size=256, backbone=network, blur=0.0, smaller=0.0)


def filters() -> Recipe:
    """A small recipe for plain and regular textures: a fixed filter bank, which has learned nothing, under a flow."""
    return replace(
        default(),
        name="filters",
        size=256,
        backbone=BackboneSpec(name="filters", taps=(0, 1, 2, 3), stride=8),
        flow=FlowConfig(
            blocks=4, subnet="local", hidden=32, dropout=0.0, clamp=0.3, whiten=True, floor=0.001, memory=0.05
        ),
        # One view: a mirrored edge is no weave that a filter bank knows, and a second view costs more than it gains.
        scoring=ScoringConfig(score="nll", sigma=1.0, glare=3.0),
        blur=0.0,
        smaller=0.0,
    )


RECIPES = {"default": default, "fast": fast, "deit": deit, "pair": pair, "paper": paper, "filters": filters}
AUTO = "auto"


def candidates(brought: bool = False) -> list[Recipe]:
    """What `auto` chooses from, the best on most products first.

    Args:
        brought: a backbone or its weights are at hand, and `pair` and `deit` take part.
    """
    embedded = [default(), replace(default(), size=256), filters()]
    return [pair(), deit(), *embedded] if brought else embedded


def named_recipe(name: str) -> Recipe:
    """The recipe of that name. Raises OptionError for an unknown one."""
    if name == AUTO:
        raise OptionError(f"'{AUTO}' is no recipe but a choice among several: see `flawflow.fit_best`")
    if name not in RECIPES:
        raise OptionError(f"unknown recipe '{name}': expected one of {', '.join(RECIPES)}")
    return RECIPES[name]()

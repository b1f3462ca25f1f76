"""Draws one synthetic defect: the same for a seed, an image and a repetition, whoever draws it, and when."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal, get_args

import numpy as np
from PIL import Image as PilImage
from PIL import ImageEnhance

from flawflow.errors import OptionError
from flawflow.synthesis.cutpaste import CutPasteSettings, FpiSettings, cutpaste_patch, cutpaste_scar, fpi
from flawflow.synthesis.nsa import nsa
from flawflow.synthesis.perlin import PerlinSettings, perlin
from flawflow.synthesis.settings import NsaSettings
from flawflow.synthesis.stains import StainSettings, stains
from flawflow.synthesis.strokes import StrokeSettings, strokes
from flawflow.types import Image, Mask

Method = Literal["nsa", "cutpaste", "scar", "fpi", "perlin", "strokes", "stains", "mixture"]
METHODS: tuple[str, ...] = get_args(Method)
NEED_ANOTHER_IMAGE = ("nsa", "fpi", "mixture")
MAX_ATTEMPTS = 10


@dataclass(frozen=True, slots=True)
class Synthetic:
    """A normal image and its defective twin.

    Attributes:
        normal: the destination as it went into the synthesis (perhaps sharpened), uint8 (H, W, 3).
        defective: the same image with the defect, uint8 (H, W, 3).
        mask: bool (H, W), True where the two differ; never all False.
    """

    normal: Image
    defective: Image
    mask: Mask


@dataclass(frozen=True, slots=True)
class MixtureSettings:
    """With which probability the method ``"mixture"`` takes each synthesiser; the five sum to 1."""

    nsa: float = 0.3
    scar: float = 0.2
    perlin: float = 0.15
    strokes: float = 0.2
    stains: float = 0.15

    def __post_init__(self) -> None:
        """Raises OptionError unless these are probabilities that sum to 1."""
        values = tuple(asdict(self).values())
        if min(values) < 0.0 or abs(sum(values) - 1.0) > 1e-6:
            raise OptionError(
                f"mixture is {', '.join(f'{name}={value}' for name, value in asdict(self).items())}; "
                "expected five probabilities that sum to 1."
            )


@dataclass(frozen=True, slots=True)
class SynthesisSettings:
    """Every choice of the synthesis; `flawflow.configs.read_settings` reads it back from JSON.

    Attributes:
        method: which synthesiser; ``"mixture"`` picks one anew for every draw.
        nsa: settings of NSA, which the paper uses.
        sharpness: probability with which destination and source, each on its own, are sharpened twofold
            before the synthesis (the paper's augmentation).
        cutpaste: settings of ``"cutpaste"`` and ``"scar"``.
        fpi: settings of ``"fpi"``.
        perlin: settings of ``"perlin"``.
        strokes: settings of ``"strokes"``.
        stains: settings of ``"stains"``.
        mixture: probabilities of ``"mixture"``.
    """

    method: Method = "nsa"
    nsa: NsaSettings = field(default_factory=NsaSettings)
    sharpness: float = 0.5
    cutpaste: CutPasteSettings = field(default_factory=CutPasteSettings)
    fpi: FpiSettings = field(default_factory=FpiSettings)
    perlin: PerlinSettings = field(default_factory=PerlinSettings)
    strokes: StrokeSettings = field(default_factory=StrokeSettings)
    stains: StainSettings = field(default_factory=StainSettings)
    mixture: MixtureSettings = field(default_factory=MixtureSettings)

    def __post_init__(self) -> None:
        """Raises OptionError for an unknown method or a probability outside 0..1."""
        if self.method not in METHODS:
            raise OptionError(f"Unknown synthesis method {self.method!r}; expected one of {', '.join(METHODS)}.")
        if not 0.0 <= self.sharpness <= 1.0:
            raise OptionError(f"sharpness is {self.sharpness}; expected a probability in 0..1.")


def sharpen(image: Image) -> Image:
    """Sharpens twofold: the image plus its difference from a 3x3 smoothed copy, uint8 RGB (H, W, 3)."""
    return np.asarray(ImageEnhance.Sharpness(PilImage.fromarray(image)).enhance(2.0), np.uint8)


def draw_synthetic(
    images: Callable[[int], Image] | Sequence[Image],
    count: int,
    index: int,
    repetition: int,
    seed: int,
    settings: SynthesisSettings,
) -> Synthetic | None:
    """Draws the synthetic defect of one image for one repetition (an epoch, say).

    The result depends on the arguments alone, never on other draws, so that any number of workers in any
    order draws the same. The source is another image, drawn with the seed. A draw that leaves the image
    as it was is repeated, up to ten times.

    Args:
        images: the normal images by index, all uint8 RGB of one size (H, W, 3): a sequence, or a function
            that loads one.
        count: how many there are.
        index: the image that gets the defect, 0..count-1.
        repetition: 0 or more; another repetition is another defect.
        seed: 0 or more.
        settings: the method and its numbers.

    Returns:
        The pair, or None when no attempt changed the image: it must then not be used as a defect.

    Raises:
        OptionError: an index, seed or repetition out of range, or one image only for a method that needs two.
        ImageError: images of another type, or of different sizes.
    """
    if not 0 <= index < count or repetition < 0 or seed < 0:
        raise OptionError(
            f"Cannot draw a defect for image {index} of {count}, repetition {repetition}, seed {seed}; "
            "expected an index below the number of images, and no negative number."
        )
    if count < 2 and settings.method in NEED_ANOTHER_IMAGE:
        raise OptionError(
            f"Synthetic defects by {settings.method!r} need at least 2 images, but there is 1; add good "
            "images, or choose the method cutpaste, scar, perlin, strokes or stains."
        )
    load = images if callable(images) else images.__getitem__
    for attempt in range(MAX_ATTEMPTS):
        rng = np.random.default_rng(np.random.SeedSequence((seed, index, repetition, attempt)))
        other = int(rng.integers(count - 1)) if count > 1 else index
        pair = load(index), load(other + 1 if count > 1 and other >= index else other)
        image, source = (sharpen(one) if rng.random() < settings.sharpness else one for one in pair)
        defective, mask = _synthesise(image, source, rng, settings)
        if mask.any():
            return Synthetic(image, defective, mask)
    return None


def _synthesise(
    image: Image, source: Image, rng: np.random.Generator, settings: SynthesisSettings
) -> tuple[Image, Mask]:
    """Applies the chosen synthesiser."""
    method: str = settings.method
    if method == "mixture":
        chances = asdict(settings.mixture)
        method = str(rng.choice(list(chances), p=np.array(list(chances.values())) / sum(chances.values())))
    match method:
        case "cutpaste":
            made = cutpaste_patch(image, source, rng, settings.cutpaste)
        case "scar":
            made = cutpaste_scar(image, source, rng, settings.cutpaste)
        case "fpi":
            made = fpi(image, source, rng, settings.fpi)
        case "perlin":
            made = perlin(image, source, rng, settings.perlin)
        case "strokes":
            made = strokes(image, source, rng, settings.strokes)
        case "stains":
            made = stains(image, source, rng, settings.stains)
        case _:
            made = nsa(image, source, rng, settings.nsa)
    return made

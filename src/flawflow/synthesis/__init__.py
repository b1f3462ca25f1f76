"""Synthetic defects from normal images: pure functions (image, source, rng, settings) -> (image, mask)."""

from flawflow.synthesis.cutpaste import CutPasteSettings, FpiSettings, cutpaste_patch, cutpaste_scar, fpi
from flawflow.synthesis.draw import (
    METHODS,
    Method,
    MixtureSettings,
    SynthesisSettings,
    Synthetic,
    draw_synthetic,
    sharpen,
)
from flawflow.synthesis.nsa import nsa
from flawflow.synthesis.object_mask import changed_pixels, object_mask
from flawflow.synthesis.perlin import PerlinSettings, perlin
from flawflow.synthesis.settings import NSA_CLASSES, NsaSettings, automatic_settings, nsa_settings
from flawflow.synthesis.stains import StainSettings, stains
from flawflow.synthesis.strokes import StrokeSettings, strokes

__all__ = [
    "METHODS",
    "NSA_CLASSES",
    "CutPasteSettings",
    "FpiSettings",
    "Method",
    "MixtureSettings",
    "NsaSettings",
    "PerlinSettings",
    "StainSettings",
    "StrokeSettings",
    "SynthesisSettings",
    "Synthetic",
    "automatic_settings",
    "changed_pixels",
    "cutpaste_patch",
    "cutpaste_scar",
    "draw_synthetic",
    "fpi",
    "nsa",
    "nsa_settings",
    "object_mask",
    "perlin",
    "sharpen",
    "stains",
    "strokes",
]

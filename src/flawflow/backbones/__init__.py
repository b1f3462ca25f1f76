"""Frozen networks that turn images into feature maps: timm models by name, and a hand-made filter bank."""

from flawflow.backbones.backbone import Backbone, PackedBackbone, build_backbone, default_spec, unpack_backbone
from flawflow.backbones.spec import FILTERS, BackboneSpec

__all__ = [
    "FILTERS",
    "Backbone",
    "BackboneSpec",
    "PackedBackbone",
    "build_backbone",
    "default_spec",
    "unpack_backbone",
]

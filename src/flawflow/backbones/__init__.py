"""Frozen networks that turn images into feature maps: our own small one, timm models by name, a filter bank."""

from flawflow.backbones.backbone import Backbone, PackedBackbone, build_backbone, default_spec, unpack_backbone
from flawflow.backbones.compact import EMBEDDED_SHA256, embedded_file
from flawflow.backbones.spec import COMPACT, EMBEDDED, FILTERS, BackboneSpec

__all__ = [
    "COMPACT",
    "EMBEDDED",
    "EMBEDDED_SHA256",
    "FILTERS",
    "Backbone",
    "BackboneSpec",
    "PackedBackbone",
    "build_backbone",
    "default_spec",
    "embedded_file",
    "unpack_backbone",
]

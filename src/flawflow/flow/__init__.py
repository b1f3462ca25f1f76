"""The flow of the paper (section 3.2) and its variants."""

from flawflow.flow.cells import Cells
from flawflow.flow.coupling import CouplingBlock, PlaceAffine, Whitening
from flawflow.flow.memory import Memory
from flawflow.flow.model import Flow, FlowConfig
from flawflow.flow.subnets import SUBNETS, build_subnet

__all__ = [
    "SUBNETS",
    "Cells",
    "CouplingBlock",
    "Flow",
    "FlowConfig",
    "Memory",
    "PlaceAffine",
    "Whitening",
    "build_subnet",
]

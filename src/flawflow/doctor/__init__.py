"""What can be wrong with a folder of images, found by pure functions from measures of its files."""

from flawflow.doctor.duplicates import NEAR, Pair, find_pairs, groups
from flawflow.doctor.findings import SEVERITIES, Case, Finding, Severity, finding, rank
from flawflow.doctor.kinds import kind_findings
from flawflow.doctor.masks import SENTENCES, MaskFault, mask_faults
from flawflow.doctor.photometry import Measures, measure, out_of_line, robust_z
from flawflow.doctor.roles import Roles, find_roles
from flawflow.doctor.twins import twin_findings

__all__ = [
    "NEAR",
    "SENTENCES",
    "SEVERITIES",
    "Case",
    "Finding",
    "MaskFault",
    "Measures",
    "Pair",
    "Roles",
    "Severity",
    "find_pairs",
    "find_roles",
    "finding",
    "groups",
    "kind_findings",
    "mask_faults",
    "measure",
    "out_of_line",
    "rank",
    "robust_z",
    "twin_findings",
]

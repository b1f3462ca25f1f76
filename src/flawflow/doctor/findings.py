"""What a checked folder is told: findings, ranked, each with the images it concerns."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Severity = Literal["must fix", "look", "note"]
SEVERITIES: tuple[Severity, ...] = ("must fix", "look", "note")


@dataclass(frozen=True, slots=True)
class Case:
    """One instance of a fault.

    Attributes:
        text: what is wrong with these files, a few words.
        files: the image or mask files concerned; empty where it is the folder.
        weight: how serious among its kind, higher first; in the units of the kind.
    """

    text: str
    files: tuple[Path, ...] = ()
    weight: float = 0.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of fault in a folder.

    Attributes:
        severity: ``must fix`` (results or promises would be wrong), ``look`` (a person decides) or ``note``.
        kind: a short name, stable for programs, e.g. ``"near duplicates"``.
        sentence: what was found and what to do.
        cases: the instances, most serious first.
    """

    severity: Severity
    kind: str
    sentence: str
    cases: tuple[Case, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON values."""
        cases = [{"text": c.text, "files": [str(f) for f in c.files], "weight": c.weight} for c in self.cases]
        return {"severity": self.severity, "kind": self.kind, "sentence": self.sentence, "cases": cases}


def finding(severity: Severity, kind: str, sentence: str, cases: Iterable[Case]) -> list[Finding]:
    """One finding with its cases in order, or none where there are no cases."""
    ordered = sorted(cases, key=lambda case: (-case.weight, case.files))
    return [Finding(severity, kind, sentence, tuple(ordered))] if ordered else []


def rank(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Most serious first; among equals in the order in which they were found."""
    return tuple(sorted(findings, key=lambda found: SEVERITIES.index(found.severity)))

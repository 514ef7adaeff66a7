"""What a check of data files found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One line of a report.

    Attributes:
        subject: what was looked at.
        status: ``note``: worth knowing, and no reason to refuse the file.
        text: what was found.
    """

    subject: str
    status: Literal["ok", "note", "fault"]
    text: str

    def __str__(self) -> str:
        return f"  {self.subject:14} {self.status:6} {self.text}"


@dataclass(frozen=True)
class Report:
    """The findings of one file.

    Attributes:
        path: of the file.
        title: problem, size and shape.
        findings: in the order of the checks.
        inputs: channel -> a digest of every sample's permeability or initial state.
    """

    path: Path
    title: str
    findings: tuple[Finding, ...]
    inputs: Mapping[str, Sequence[bytes]]

    @property
    def is_sound(self) -> bool:
        """Whether no check failed."""
        return all(finding.status != "fault" for finding in self.findings)

    def __str__(self) -> str:
        return "\n".join([f"{self.path}: {self.title}", *map(str, self.findings)])


def judged(subject: str, faults: Mapping[str, str], count: int, otherwise: str) -> Finding:
    """A fault that quotes the first of the faulty samples, or that all is well.

    Args:
        subject: what was looked at.
        faults: sample -> what is wrong with it.
        count: samples in all.
        otherwise: what to say of a sound file.
    """
    if not faults:
        return Finding(subject, "ok", otherwise)
    sample, text = next(iter(faults.items()))
    return Finding(subject, "fault", f"{len(faults)} of {count} samples; {sample}: {text}")

"""Which code made a version."""

import importlib.metadata
import platform
import re
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DISTRIBUTION = "mno"


@dataclass(frozen=True)
class Provenance:
    """The package's version, and the commit where the code is a git checkout.

    Attributes:
        version: None where the package is not installed and lies beside no ``pyproject.toml``.
        commit: as git describes it, with ``-dirty`` for uncommitted changes; None outside a checkout.
        installed: whether the version is that of an installed package.
    """

    version: str | None
    commit: str | None
    installed: bool

    def __str__(self) -> str:
        version = self.version or "unknown version"
        return f"{version} ({self.commit})" if self.commit else version

    @property
    def gap(self) -> str | None:
        """Why nobody can fetch this very code again, None if one can."""
        if self.commit is not None:
            return "the checkout has uncommitted changes" if self.commit.endswith("-dirty") else None
        return None if self.installed else "the code is neither an installed package nor a git checkout"


def provenance(root: Path = ROOT, distribution: str = DISTRIBUTION) -> Provenance:
    """Of the code in ``root``."""
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        declared = _declared_version(root / "pyproject.toml", distribution)
        return Provenance(declared, _commit(root), installed=False)
    return Provenance(version, _commit(root), installed=True)


def _declared_version(pyproject: Path, distribution: str) -> str | None:
    if not pyproject.is_file():
        return None
    project = tomllib.loads(pyproject.read_text()).get("project", {})
    return str(project["version"]) if project.get("name") == distribution else None


def _commit(root: Path) -> str | None:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        described = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        # a machine without git
        return None
    return described.stdout.strip() or None


def processor() -> str:
    """The name of this machine's processor, as its maker has it."""
    path = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*:\s*(.+)$", path.read_text(), re.MULTILINE) if path.is_file() else None
    return named[1].strip() if named else platform.processor() or platform.machine()

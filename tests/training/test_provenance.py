"""What is known of the code, in checkouts and copies of it."""

import subprocess
from pathlib import Path

import pytest

from training.provenance import Provenance, provenance

ABSENT = "mno-of-the-tests"


def _git(directory: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=directory, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text(f'[project]\nname = "{ABSENT}"\nversion = "7.8.9"\n')
    _git(tmp_path, "init")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-m", "Begin")
    return tmp_path


def test_a_clean_checkout_says_it_all(checkout: Path) -> None:
    found = provenance(checkout, ABSENT)
    assert (found.version, found.installed, found.gap) == ("7.8.9", False, None)
    assert str(found) == f"7.8.9 ({found.commit})"


def test_uncommitted_changes_are_a_gap(checkout: Path) -> None:
    with (checkout / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    found = provenance(checkout, ABSENT)
    assert found.gap == "the checkout has uncommitted changes"
    assert str(found).endswith("-dirty)")


def test_a_bare_copy_is_a_gap(tmp_path: Path) -> None:
    found = provenance(tmp_path, ABSENT)
    assert found == Provenance(None, None, installed=False)
    assert str(found) == "unknown version"
    assert found.gap is not None
    assert "neither an installed package nor a git checkout" in found.gap


def test_another_packages_version_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "other"\nversion = "1.0"\n')
    assert provenance(tmp_path, ABSENT).version is None


def test_an_installed_package_has_its_version(tmp_path: Path) -> None:
    found = provenance(tmp_path, "pytest")
    assert (found.version, found.gap) == (pytest.__version__, None)

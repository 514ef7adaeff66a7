"""What holds for the repository as a whole."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ["problems", "operators", "model_store", "bulk", "training", "service", "benchmarks"]

# spelled so that this file does not contain what it forbids
FORBIDDEN = [
    r"/(home|root|Users|work|mnt)" + r"/[a-z]",
    r"/opt" + r"/wheels",
    r"files\.python" + r"hosted",
    r"py" + r"pi\.org",
    r"download\.py" + r"torch",
    r"registry\.np" + r"mjs",
    r"docker" + r"\.io/",
    r"gh" + r"cr\.io",
    r"\+" + r"cpu\b",
]


def tracked() -> list[Path]:
    """Files that git has or would take, the ones of the present tree."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def texts() -> dict[Path, str]:
    """Those of the files that are text."""
    found = {}
    for path in tracked():
        data = path.read_bytes()
        if b"\0" not in data[:4096]:
            found[path] = data.decode(errors="replace")
    return found


def direct_dependencies() -> set[str]:
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    names = {Requirement(line).name for group in [*groups, build] for line in group}
    return names - {PROJECT["name"]}


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def is_git_checkout() -> bool:
    return (ROOT / ".git").exists()


@pytest.mark.skipif(not is_git_checkout(), reason="needs the repository, not an export of it")
@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_no_file_names_a_machine_or_a_registry(pattern: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path, text in texts().items()
        if path != Path(__file__)
        for match in re.finditer(pattern, text)
    ]
    assert not found


def test_patterns_find_what_they_are_for() -> None:
    bad = [
        "/ho" + "me/me/x",
        "https://py" + "pi.org/simple",
        "torch==2.13.0+c" + "pu",
        "docker" + ".io/library/python",
    ]
    assert all(any(re.search(pattern, line) for pattern in FORBIDDEN) for line in bad)
    good = [
        "http://127.0.0.1:8080",
        "/v1/problems",
        "python:3.11-slim-bookworm",
        "https://www.apache.org/licenses",
    ]
    assert not any(re.search(pattern, line) for pattern in FORBIDDEN for line in good)


def test_every_direct_dependency_is_pinned() -> None:
    assert set(pins()) == direct_dependencies()


def test_pins_are_within_the_ranges() -> None:
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    requirements = [Requirement(line) for group in groups for line in group]
    outside = [r for r in requirements if r.name in pins() and not r.specifier.contains(pins()[r.name])]
    assert not outside


def test_torch_is_the_release_the_contract_names() -> None:
    assert pins()["torch"] == "2.13.0"


def test_import_contracts_hold() -> None:
    result = subprocess.run([BIN / "lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_every_package_is_typed_and_shipped() -> None:
    for package in PACKAGES:
        assert (ROOT / package / "__init__.py").is_file()
        assert (ROOT / package / "py.typed").is_file(), package


def test_tests_are_no_packages() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_hooks_are_local() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"repo: (.*)", text) == ["local"]
    entries = re.findall(r"entry: (.*)", text)
    assert entries
    assert all(entry.startswith(".venv/bin/") for entry in entries)


def test_image_is_unprivileged_and_asserts_the_cpu_build() -> None:
    lines = (ROOT / "deploy/Dockerfile").read_text().splitlines()
    assert "USER 10001:10001" in lines
    assert any("torch.version.cuda is None" in line for line in lines)
    assert any(line.startswith("HEALTHCHECK") for line in lines)
    assert not [line for line in lines if re.match(r"FROM .*:latest", line)]


def test_changelog_has_the_present_version() -> None:
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.skipif(not is_git_checkout(), reason="needs the repository, not an export of it")
def test_no_page_has_a_placeholder_left() -> None:
    pages = {path: text for path, text in texts().items() if path.suffix == ".md"}
    assert ROOT / "README.md" in pages
    assert not [str(path.relative_to(ROOT)) for path, text in pages.items() if "@" + "@" in text]

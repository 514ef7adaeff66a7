"""Write what an image is made of to the standard output, as CycloneDX 1.6 in JSON.

Run by the image's own Python: it lists that environment's distributions, and the packages of Debian that a
file names, one ``name<TAB>version`` a line as ``dpkg-query --show`` prints them.
"""

import argparse
import importlib.metadata
import json
import platform
import re
import sys
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

NAME = "mno"


def python_component(distribution: importlib.metadata.Distribution) -> dict[str, Any]:
    """A distribution of the environment."""
    name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
    component = _component(name, distribution.version, f"pkg:pypi/{name}@{quote(distribution.version)}")
    licence = distribution.metadata.get("License-Expression")
    return component if licence is None else {**component, "licenses": [{"expression": licence}]}


def debian_component(line: str) -> dict[str, Any]:
    """A package of Debian."""
    package, version = line.split("\t")
    name, _, architecture = package.partition(":")
    qualifier = f"?arch={architecture}" if architecture else ""
    return _component(name, version, f"pkg:deb/debian/{quote(name)}@{quote(version)}{qualifier}")


def _component(name: str, version: str, purl: str) -> dict[str, Any]:
    return {"type": "library", "name": name, "version": version, "purl": purl, "bom-ref": purl}


def document(
    distributions: Iterable[importlib.metadata.Distribution], debian: Iterable[str], device: str
) -> dict[str, Any]:
    """The whole bill; the same parts make the same one."""
    python = {each["purl"]: each for each in map(python_component, distributions)}
    ours = next(each for each in python.values() if each["name"] == NAME)
    system = {each["purl"]: each for each in map(debian_component, debian)}
    interpreter = _component(
        "python", platform.python_version(), f"pkg:generic/python@{platform.python_version()}"
    )
    rest = [each for each in python.values() if each is not ours]
    components = sorted([*rest, *system.values(), interpreter], key=lambda each: str(each["purl"]))
    content = json.dumps([ours, components, device], sort_keys=True)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, content)}",
        "version": 1,
        "metadata": {
            "component": {
                **ours,
                "type": "container",
                "properties": [{"name": "mno:device", "value": device}],
            }
        },
        "components": components,
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--debian", type=Path, required=True, help="what `dpkg-query --show` printed")
    parser.add_argument("--device", choices=["cpu", "cuda"], required=True)
    options = parser.parse_args()
    lines = filter(None, options.debian.read_text("utf-8").splitlines())
    json.dump(document(importlib.metadata.distributions(), lines, options.device), sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()

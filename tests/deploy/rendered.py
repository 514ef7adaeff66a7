"""The manifests as `kubectl kustomize` writes them, and what tests ask of them."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "deploy" / "k8s"
KUBECTL = Path(sys.executable).with_name("kubectl")

Document = Mapping[str, Any]

UNITS = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def kustomizations() -> list[str]:
    """Folders that are applied as they are, below ``deploy/k8s``; the base is none, it names no image."""
    files = K8S.rglob("kustomization.yaml")
    whole = [file.parent for file in files if yaml.safe_load(file.read_text())["kind"] == "Kustomization"]
    return sorted(folder.relative_to(K8S).as_posix() for folder in whole if folder.name != "base")


@functools.cache
def rendered(folder: str) -> Sequence[Document]:
    """The documents of a kustomization."""
    return build(K8S / folder)


def build(folder: Path) -> Sequence[Document]:
    """The documents of the kustomization in any folder."""
    command = [KUBECTL, "kustomize", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    # what kustomize merely warns of is an error later
    assert not result.stderr, result.stderr
    return [each for each in yaml.safe_load_all(result.stdout) if each]


def of_kind(documents: Sequence[Document], *kinds: str) -> list[Document]:
    """Those of some kinds."""
    return [each for each in documents if each["kind"] in kinds]


@dataclass(frozen=True)
class Template:
    """The pods that a document makes."""

    owner: Document
    labels: Mapping[str, str]
    spec: Document

    @property
    def name(self) -> str:
        """Of the document."""
        return f"{self.owner['kind']}/{self.owner['metadata']['name']}"

    @property
    def containers(self) -> list[Document]:
        """All of them."""
        return [*self.spec.get("initContainers", ()), *self.spec["containers"]]

    @property
    def serves(self) -> bool:
        """Whether it runs `mno serve`."""
        return any(each["args"][0] == "serve" for each in self.containers)

    def port(self, container: Document, port: str | int) -> int:
        """The number of a port that the container says it has."""
        ports = {each.get("name"): each["containerPort"] for each in container.get("ports", ())}
        assert port in ports or port in ports.values(), f"{self.name} has no port {port}, but {ports}"
        return ports[port] if port in ports else int(port)


def templates(documents: Sequence[Document]) -> list[Template]:
    """Everything that makes pods."""
    return list(_templates(documents))


def _templates(documents: Sequence[Document]) -> Iterator[Template]:
    for each in of_kind(documents, "Deployment", "Job"):
        yield _template(each, each["spec"]["template"])
    for each in of_kind(documents, "CronJob"):
        yield _template(each, each["spec"]["jobTemplate"]["spec"]["template"])
    for each in of_kind(documents, "InferenceService"):
        yield _template(each, _kserve_pod(documents, each["spec"]["predictor"]))


def _template(owner: Document, template: Document) -> Template:
    return Template(owner, template.get("metadata", {}).get("labels", {}), template["spec"])


def _kserve_pod(documents: Sequence[Document], predictor: Document) -> Document:
    """What KServe makes of a runtime and a predictor: the latter's container over the former's."""
    model = predictor["model"]
    (runtime,) = (
        each for each in of_kind(documents, "ServingRuntime") if each["metadata"]["name"] == model["runtime"]
    )
    (container,) = runtime["spec"]["containers"]
    env = [*container.get("env", ()), *model.get("env", ())]
    own = {name: value for name, value in predictor.items() if name not in ("model", "containers")}
    return {"spec": {**runtime["spec"], **own, "containers": [{**container, "env": env}]}}


def variables(documents: Sequence[Document], container: Document) -> dict[str, str]:
    """The variables of a container, but for those of secrets."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        if "configMapRef" in source:
            found |= config(documents, source["configMapRef"]["name"])
    return found | {each["name"]: each["value"] for each in container.get("env", ()) if "value" in each}


def config(documents: Sequence[Document], name: str) -> dict[str, str]:
    """The data of a ConfigMap."""
    (found,) = (each for each in of_kind(documents, "ConfigMap") if each["metadata"]["name"] == name)
    return dict(found["data"])


def mounted(documents: Sequence[Document], template: Template, container: Document, path: str) -> str | None:
    """The text of a file that a ConfigMap puts into a container."""
    volumes = {each["name"]: each for each in template.spec.get("volumes", ())}
    for mount in container.get("volumeMounts", ()):
        source = volumes[mount["name"]].get("configMap")
        if source is not None and mount["mountPath"] == path:
            return config(documents, source["name"])[mount["subPath"]]
    return None


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether the labels have all that is selected."""
    return selector.items() <= labels.items()


def quantity(text: str) -> float:
    """What ``500m`` or ``2Gi`` means."""
    match = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", text)
    assert match, f"expected a quantity, got {text!r}"
    return float(match[1]) * UNITS[match[2]]


def violations(template: Template) -> list[str]:
    """What Pod Security "restricted" (Kubernetes' Pod Security Standards) refuses about the pods."""
    return list(_violations(template.spec))


def _violations(spec: Document) -> Iterator[str]:
    pod = spec.get("securityContext", {})
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(name):
            yield name
    for volume in spec.get("volumes", ()):
        kinds = set(volume) - {"name"}
        if not kinds <= {"configMap", "secret", "emptyDir", "persistentVolumeClaim", "projected", "csi"}:
            yield f"volume {volume['name']}"
    for each in [*spec.get("initContainers", ()), *spec["containers"]]:
        own = each.get("securityContext", {})
        both = {**pod, **own}
        if own.get("privileged") or own.get("allowPrivilegeEscalation") is not False:
            yield f"{each['name']}: allowPrivilegeEscalation"
        if own.get("capabilities", {}).get("drop") != ["ALL"] or own["capabilities"].get("add"):
            yield f"{each['name']}: capabilities"
        if both.get("runAsNonRoot") is not True or both.get("runAsUser", 1) == 0:
            yield f"{each['name']}: runs as root"
        if both.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            yield f"{each['name']}: seccompProfile"
        if any("hostPort" in port for port in each.get("ports", ())):
            yield f"{each['name']}: hostPort"

"""What the tests of a cluster would apply fits the schemas, and is what they mean; without a cluster."""

import base64
import json
from collections.abc import Callable
from typing import Any

import kubernetes_validate
import pytest
from cluster import Cluster, Load, store_map, with_store
from rendered import of_kind, templates, variables

from service.settings import read_settings

KUBERNETES = "1.36"
# text and bytes, in folders as a store has them
STORE = {
    "darcy/aliases.json": b'{"production": 1}',
    "darcy/versions/1/card.json": b"{}\n",
    "darcy/versions/1/weights.safetensors": bytes(range(256)),
}


@pytest.fixture
def cluster() -> Cluster:
    """A name, which nobody made."""
    return Cluster()


@pytest.fixture
def served(cluster: Cluster) -> list[dict[str, Any]]:
    return with_store(cluster.overlay("overlays/cpu", "registry/mno:9"), STORE)


def test_an_overlay_moves_into_a_namespace_with_an_image(
    cluster: Cluster, served: list[dict[str, Any]]
) -> None:
    assert {each["metadata"]["namespace"] for each in served} == {cluster.namespace}
    assert of_kind(served, "Namespace") == []
    (template,) = templates(served)
    assert [each["image"] for each in template.containers] == ["registry/mno:9"]
    # the same overlay for somebody else is as it was
    (other,) = templates(Cluster().overlay("overlays/cpu", None))
    assert [each["image"].partition(":")[0] for each in other.containers] == ["localhost/mno"]


def test_what_is_applied_fits_the_schemas(cluster: Cluster, served: list[dict[str, Any]]) -> None:
    for each in (*served, store_map(cluster, STORE)):
        kubernetes_validate.validate(each, KUBERNETES, strict=True)


def test_a_store_comes_out_of_its_map_as_it_went_in(cluster: Cluster, served: list[dict[str, Any]]) -> None:
    (template,) = templates(served)
    (volume,) = (each for each in template.spec["volumes"] if each["name"] == "store")
    # as the kubelet reads it
    found = json.loads(json.dumps(store_map(cluster, STORE)))
    assert volume["configMap"]["name"] == found["metadata"]["name"]
    data = {key: text.encode() for key, text in found["data"].items()}
    data |= {key: base64.b64decode(text) for key, text in found["binaryData"].items()}
    assert {item["path"]: data[item["key"]] for item in volume["configMap"]["items"]} == STORE
    # no file is in two places, and none beside the volume
    assert len(data) == len(STORE)


def test_the_service_knows_its_settings(served: list[dict[str, Any]]) -> None:
    (template,) = templates(served)
    (container,) = template.containers
    found = variables(served, container)
    settings = read_settings(None, {name: value for name, value in found.items() if name.startswith("MNO_")})
    assert settings.alias_poll_seconds == 1
    (mount,) = (each for each in container["volumeMounts"] if each["name"] == "store")
    assert found["MNO_STORE"] == f"file:{mount['mountPath']}/..data"
    assert mount["readOnly"]


class Told:
    """A cluster where time is a list of answers, each of a pod and a version."""

    def __init__(self, *answers: tuple[str, str]) -> None:
        self._answers, self.load = answers, Load(self, "token")  # type: ignore[arg-type]

    def until(self, holds: Callable[[], object], what: str) -> None:
        for answer in self._answers:
            self.load.answers[answer] += 1
            if holds():
                return
        raise AssertionError(what)


OLD, NEW = ("one", "darcy@1"), ("two", "darcy@2")


@pytest.mark.parametrize("answers", [(NEW, NEW), (OLD, NEW, NEW), (NEW, OLD, OLD, NEW, NEW)])
def test_so_many_are_answered_by_those_that_should(answers: tuple[tuple[str, str], ...]) -> None:
    Told(*answers).load.until_answered(lambda pod, model: (pod, model) == NEW, 2)


@pytest.mark.parametrize("answers", [(), (NEW,), (OLD, OLD), (NEW, OLD, NEW)])
def test_answers_of_others_begin_the_count_anew(answers: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(AssertionError, match="answers of those that should answer"):
        Told(*answers).load.until_answered(lambda pod, model: (pod, model) == NEW, 2)

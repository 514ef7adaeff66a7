"""The manifests in a real cluster, which `KUBESMALL` names.

It needs no DNS, proxy of Services, metrics or storage. Its nodes have the image that `CLUSTER_IMAGE` names
(default: that of the overlay `cpu`). `CLUSTER_NEXT_IMAGE` is what the service is updated to; without, the
same image in new pods.
"""

import json
import os
import secrets
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from cluster import Cluster, Load, images, store_map, way_to, with_store
from rendered import Document, kustomizations, of_kind, rendered, templates
from small_models import SMALL, small_card

from model_store import open_store
from operators import surrogate_from_config
from service.access.tokens import TokenRecord, edit_tokens, new_token

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif("KUBESMALL" not in os.environ, reason="KUBESMALL names no cluster"),
]

# the kinds of a plain cluster: others need operators, and KServe's folder has no others
PLAIN = [folder for folder in kustomizations() if folder != "kserve"]
BUILT_IN = ("v1", "apps/", "autoscaling/", "batch/", "networking.k8s.io/", "policy/")
# a version whose weights are not those of its card
BROKEN = 3


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a store of three small versions; the last one is broken, production is the first."""
    folder = tmp_path_factory.mktemp("store")
    store = open_store(f"file:{folder}")
    card = small_card()
    for seed in range(BROKEN):
        torch.manual_seed(seed)
        store.publish("darcy", surrogate_from_config(SMALL).state_dict(), card)
    store.set_alias("darcy", "production", 1, expected=None)
    files = [path for path in folder.rglob("*") if path.is_file() and ".mno" not in path.parts]
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    weights = f"darcy/versions/{BROKEN}/weights.safetensors"
    return found | {weights: found[weights][:-1] + bytes([found[weights][-1] ^ 1])}


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A token that may solve, and the file that knows it."""
    path = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    secret, digest = new_token()
    with edit_tokens(path) as records:
        records.append(TokenRecord(name="tests", hash=digest, scopes=("solve", "metrics")))
    return secret, path.read_text("utf-8")


@pytest.fixture(scope="module")
def served(store: Mapping[str, bytes], token: tuple[str, str]) -> Iterator[Cluster]:
    """The overlay `cpu` on that store, in a namespace of its own, with two pods that are ready."""
    image, _ = images()
    with Cluster() as cluster:
        cluster.make(secret_of(cluster, token[1]), store_map(cluster, store))
        cluster.make(*with_store(cluster.overlay("overlays/cpu", image), store))
        cluster.until_ready(2)
        yield cluster


def secret_of(cluster: Cluster, tokens: str) -> Document:
    metadata = {"name": "mno-tokens", "namespace": cluster.namespace}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"tokens.toml": tokens}}


def move_alias(cluster: Cluster, store: Mapping[str, bytes], version: int) -> None:
    """Let production be another version, and have the kubelets look at the store again."""
    aliases = {"darcy/aliases.json": json.dumps({"production": version}).encode()}
    cluster.make(store_map(cluster, {**store, **aliases}))
    # a change of a pod has its volumes brought up to date, which otherwise takes a minute
    for pod in cluster.ready():
        cluster.do("annotate", "--overwrite", "pod", pod, f"mno-test-store={secrets.token_hex(4)}")


def page(address: str, path: str, token: str) -> str:
    """What a pod answers to a GET."""
    request = urllib.request.Request(f"http://{address}{path}", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(answer.read().decode())


@pytest.mark.parametrize("folder", PLAIN)
def test_overlays_are_taken_under_restricted(folder: str) -> None:
    with Cluster() as cluster:
        documents = [
            each for each in cluster.overlay(folder, None) if each["apiVersion"].startswith(BUILT_IN)
        ]
        # pods are looked at when they are made, and then their account has to be there
        cluster.make(*of_kind(documents, "ServiceAccount"))
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": documents})
        cluster.do("apply", "--server-side", "--dry-run=server", "-f", "-", given=text)
        for template in templates(documents):
            spec = {"restartPolicy": "Always", **template.spec}
            metadata = {"name": "one", "namespace": cluster.namespace, "labels": dict(template.labels)}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
            cluster.do("create", "--dry-run=server", "-f", "-", given=json.dumps(pod))


def test_pods_that_are_not_restricted_are_refused() -> None:
    with Cluster() as cluster:
        documents = cluster.overlay("overlays/dev", None)
        cluster.make(*of_kind(documents, "ServiceAccount"))
        (template,) = templates(documents)
        spec = {**template.spec, "hostNetwork": True}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": spec}
        result = cluster.ask("create", "--dry-run=server", "-f", "-", given=json.dumps(pod))
        assert "violates PodSecurity" in result.stderr


def test_two_pods_answer_both_protocols(served: Cluster, token: tuple[str, str]) -> None:
    with Load(served, token[0]) as load:
        load.until_answered(lambda pod, model: pod in served.ready() and model == "darcy@1", 40)
    assert len({pod for pod, _ in load.answers}) == 2
    assert load.failures == []
    for pod, address in served.ready().items():
        with way_to(served, pod, address) as (http, _):
            counted = page(http, "/metrics", token[0])
            assert 'protocol="http"' in counted
            assert 'protocol="grpc"' in counted


def test_a_new_image_and_the_way_back_lose_no_request(served: Cluster, token: tuple[str, str]) -> None:
    _, image = images()
    for step in ("update", "undo"):
        before = set(served.ready())
        with Load(served, token[0]) as load:
            load.until_answered(lambda pod, _, old=before: pod in old)
            if step == "undo":
                served.do("rollout", "undo", "deployment/mno")
            elif image is None:
                served.do("rollout", "restart", "deployment/mno")
            else:
                served.do("set", "image", "deployment/mno", f"mno={image}")
            served.do("rollout", "status", "deployment/mno", "--timeout=900s")
            load.until_answered(lambda pod, _, old=before: pod not in old)
            served.until_ready(2)
        assert load.failures == [], step
        assert not before & set(served.ready())


def test_versions_change_and_a_broken_one_does_not(
    served: Cluster, token: tuple[str, str], store: Mapping[str, bytes]
) -> None:
    with Load(served, token[0]) as load:
        move_alias(served, store, 2)
        load.until_answered(lambda _, model: model == "darcy@2")
        move_alias(served, store, BROKEN)
        for pod, address in served.ready().items():
            with way_to(served, pod, address) as (http, _):
                load.until(
                    lambda http=http: json.loads(page(http, "/healthz/ready", token[0]))["problems"],
                    "a pod that says what does not load",
                )
        load.until_answered(lambda _, model: model == "darcy@2")
        move_alias(served, store, 1)
        load.until_answered(lambda _, model: model == "darcy@1")
    assert load.failures == []
    # nobody had to start again for that
    pods = served.get("pods", "--selector", "app.kubernetes.io/component=server")["items"]
    assert [each["status"]["containerStatuses"][0]["restartCount"] for each in pods] == [0, 0]


def test_a_killed_pod_takes_nobody_along(served: Cluster, token: tuple[str, str]) -> None:
    killed, kept = sorted(served.ready())
    with Load(served, token[0]) as load:
        load.until_answered(lambda pod, _: pod in (killed, kept))
        served.do("delete", "pod", killed, "--grace-period=0", "--force")
        load.until(lambda: killed not in served.ready() and len(served.ready()) == 2, "a pod in its place")
        load.until_answered(lambda pod, _: pod != killed)
    # what it was asked when it died is lost: a client asks again. Nothing else is.
    assert {pod for pod, _ in load.failures} <= {killed}
    served.until_ready(2)


def test_a_drained_node_leaves_the_service_answering(served: Cluster, token: tuple[str, str]) -> None:
    pods = served.get("pods", "--selector", "app.kubernetes.io/component=server")["items"]
    node = pods[0]["spec"]["nodeName"]
    # only these pods, on whatever cluster this is
    mark = f"drained={served.namespace}"
    for pod in pods:
        served.do("label", "--overwrite", "pod", pod["metadata"]["name"], mark)
    try:
        with Load(served, token[0]) as load:
            # on a cluster of one node the last pod has nowhere to go, and the budget keeps it
            result = served.ask(
                "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=90s",
                f"--pod-selector={mark}",
            )  # fmt: skip
            assert result.returncode == 0 or "disruption budget" in result.stderr, result.stderr
            assert served.ready()
            load.until_answered(lambda pod, _: pod in served.ready())
        assert load.failures == []
    finally:
        served.do("uncordon", node)
    served.until_ready(2)


def test_everything_applied_is_in_the_namespace(served: Cluster) -> None:
    kinds = {each["kind"] for each in rendered("overlays/cpu")} - {"Namespace"}
    found: Any = served.get(",".join(sorted(kinds)))
    assert kinds <= {each["kind"] for each in found["items"]}

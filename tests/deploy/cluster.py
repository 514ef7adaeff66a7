"""A namespace in a real cluster, and clients that find its pods as a proxy of Services would."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import secrets
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
from rendered import KUBECTL, Document, of_kind, rendered

from service.client import Client

HTTP, GRPC = 8080, 8081
# pauses between two looks at the cluster, and how long something may take [s]
PAUSE = 0.5
PATIENCE = 600.0


class Cluster:
    """A namespace of its own, under Pod Security "restricted", that `KUBECONFIG` leads to."""

    def __init__(self) -> None:
        self.namespace = f"mno-test-{secrets.token_hex(4)}"

    def __enter__(self) -> Self:
        labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
        self.make(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace, "labels": labels}}
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.ask("delete", "namespace", self.namespace, "--wait=false")

    def ask(self, *arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
        """What kubectl answers, whatever it is."""
        command = [KUBECTL, "--namespace", self.namespace, *arguments]
        return subprocess.run(command, input=given, capture_output=True, text=True, check=False)

    def do(self, *arguments: str, given: str | None = None) -> str:
        """What kubectl says, having done it."""
        result = self.ask(*arguments, given=given)
        assert result.returncode == 0, f"kubectl {' '.join(arguments)}: {result.stderr}"
        assert "would violate PodSecurity" not in result.stderr, result.stderr
        return result.stdout

    def make(self, *documents: Document) -> None:
        """Have these documents be as they are here."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": documents})
        self.do("apply", "--server-side", "--force-conflicts", "-f", "-", given=text)

    def get(self, *what: str) -> Any:
        """An object, or a list of them."""
        return json.loads(self.do("get", *what, "--output", "json"))

    def placed(self, documents: Sequence[Document], image: str | None) -> list[dict[str, Any]]:
        """Documents for this namespace and with this image, if any; without their own namespace."""
        text = json.dumps([each for each in documents if each["kind"] != "Namespace"])
        if image is not None:
            text = re.sub(r'"localhost/mno:[^"]+"', json.dumps(image), text)
        found = json.loads(text)
        for each in found:
            each["metadata"]["namespace"] = self.namespace
        return list(found)

    def overlay(self, folder: str, image: str | None) -> list[dict[str, Any]]:
        """An overlay for this namespace."""
        return self.placed(rendered(folder), image)

    def ready(self) -> dict[str, str]:
        """Addresses of the pods that new connections go to, by their names."""
        slices = self.get("endpointslices", "--selector", "kubernetes.io/service-name=mno")["items"]
        return {
            endpoint["targetRef"]["name"]: endpoint["addresses"][0]
            for each in slices
            for endpoint in each.get("endpoints") or ()
            if endpoint["conditions"].get("ready") and not endpoint["conditions"].get("terminating")
        }

    def until(self, holds: Callable[[], object], what: str) -> None:
        """Wait until something holds."""
        clock, late = threading.Event(), time.monotonic() + PATIENCE
        while not holds():
            if time.monotonic() > late:
                events = self.ask("get", "events,pods", "--output", "wide").stdout
                raise AssertionError(f"expected {what} within {PATIENCE:g} s; the namespace has\n{events}")
            clock.wait(PAUSE)

    def until_ready(self, count: int) -> None:
        """Wait until so many pods are ready, and no others are there."""

        def settled() -> bool:
            pods = self.get("pods", "--selector", "app.kubernetes.io/component=server")["items"]
            return len(pods) == len(self.ready()) == count

        self.until(settled, f"{count} pods that are ready")


@contextmanager
def way_to(cluster: Cluster, pod: str, address: str) -> Iterator[tuple[str, str]]:
    """Where this machine reaches the HTTP and the gRPC port of a pod."""
    with contextlib.suppress(OSError), socket.create_connection((address, HTTP), 2.0):
        host = f"[{address}]" if ":" in address else address
        yield f"{host}:{HTTP}", f"{host}:{GRPC}"
        return
    command = [
        KUBECTL,
        "--namespace",
        cluster.namespace,
        "port-forward",
        f"pod/{pod}",
        f":{HTTP}",
        f":{GRPC}",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as forward:
        assert forward.stdout is not None
        try:
            ports: dict[str, str] = {}
            while len(ports) < 2:
                line = forward.stdout.readline()
                assert line, f"kubectl port-forward to {pod} ended"
                if match := re.search(r"127\.0\.0\.1:(\d+) -> (\d+)", line):
                    ports[match[2]] = f"127.0.0.1:{match[1]}"
            yield ports[str(HTTP)], ports[str(GRPC)]
        finally:
            forward.terminate()


class Load:
    """Clients that ask all the time, one over HTTP with a connection a request, one over gRPC.

    Like whoever balances, they send what is new to pods that are ready, and nowhere else.

    Attributes:
        answers: number of answers by pod and version.
        failures: what was not answered: pod, and why.
        broken: what ended a thread.
    """

    def __init__(self, cluster: Cluster, token: str) -> None:
        self._cluster = cluster
        self._token = token
        self._field = np.ones((32, 32), np.float32)
        self._over = threading.Event()
        self._ways: dict[str, tuple[str, str]] = {}
        self._held = contextlib.ExitStack()
        self.answers: Counter[tuple[str, str]] = Counter()
        self.failures: list[tuple[str, str]] = []
        self.broken: list[BaseException] = []
        work = (self._watch, self._ask_http, self._ask_grpc)
        self._threads = [threading.Thread(target=self._guarded, args=(each,)) for each in work]

    def __enter__(self) -> Self:
        self._look()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._held.close()
        assert not self.broken, self.broken

    def until(self, holds: Callable[[], object], what: str) -> None:
        """Wait until something holds, while clients ask."""
        self._cluster.until(lambda: self.broken or holds(), what)

    def until_answered(self, wanted: Callable[[str, str], bool], count: int = 20) -> None:
        """Wait for so many further answers of pods and versions that are wanted, and of no others between."""
        before = Counter(self.answers)

        def enough() -> bool:
            fresh = Counter(self.answers) - before
            if any(not wanted(*key) for key in fresh):
                before.update(fresh)
                return False
            return sum(fresh.values()) >= count

        self.until(enough, "answers of those that should answer")

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # the edge of a thread
            self.broken.append(error)

    def _watch(self) -> None:
        while not self._over.wait(PAUSE):
            self._look()

    def _look(self) -> None:
        ready = self._cluster.ready()
        fresh = {
            pod: self._held.enter_context(way_to(self._cluster, pod, address))
            for pod, address in ready.items()
            if pod not in self._ways
        }
        self._ways = {pod: way for pod, way in {**self._ways, **fresh}.items() if pod in ready}

    def _turns(self) -> Iterator[tuple[str, tuple[str, str]]]:
        while not self._over.is_set():
            ways = list(self._ways.items())
            if not ways:
                self.failures.append(("", "no pod is ready"))
                self._over.wait(PAUSE)
            for pod, way in ways:
                # one that left meanwhile is asked no more
                if pod in self._ways and not self._over.is_set():
                    yield pod, way

    def _ask_http(self) -> None:
        for pod, (address, _) in self._turns():
            with Client(f"http://{address}", token=self._token, retries=0) as client:
                self._ask(pod, client)

    def _ask_grpc(self) -> None:
        clients: dict[str, Client] = {}
        with contextlib.ExitStack() as stack:
            for pod, (_, address) in self._turns():
                if pod not in clients:
                    clients[pod] = stack.enter_context(
                        Client(f"grpc://{address}", token=self._token, retries=0)
                    )
                self._ask(pod, clients[pod])

    def _ask(self, pod: str, client: Client) -> None:
        try:
            answer = client.solve("darcy", self._field, method="surrogate", error="none")
        except Exception as error:  # whatever it is, it was no answer
            self.failures.append((pod, repr(error)))
        else:
            self.answers[pod, str(answer.model)] += 1


def with_store(documents: Sequence[dict[str, Any]], store: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """The documents, with a small model store in a ConfigMap: a cluster of tests has no other volumes.

    The kubelet puts each state of it there at once, behind the link ``..data``.
    """
    (deployment,) = of_kind(documents, "Deployment")
    spec = deployment["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    container["env"] = [
        *container.get("env", ()),
        {"name": "MNO_STORE", "value": "file:/var/lib/mno/store/..data"},
        {"name": "MNO_MODELS", "value": "darcy"},
        {"name": "MNO_ALIAS_POLL_SECONDS", "value": "1"},
    ]
    container["volumeMounts"].append({"name": "store", "mountPath": "/var/lib/mno/store", "readOnly": True})
    keys = [{"key": _key(path), "path": path} for path in store]
    spec["volumes"].append({"name": "store", "configMap": {"name": "mno-test-store", "items": keys}})
    # the cluster of tests may be one small machine
    container["resources"]["requests"] |= {"cpu": "100m", "memory": "700Mi"}
    return list(documents)


def store_map(cluster: Cluster, store: Mapping[str, bytes]) -> dict[str, Any]:
    """The ConfigMap of such a store."""
    texts, binaries = {}, {}
    for path, data in store.items():
        try:
            texts[_key(path)] = data.decode()
        except UnicodeDecodeError:
            binaries[_key(path)] = base64.b64encode(data).decode()
    metadata = {"name": "mno-test-store", "namespace": cluster.namespace}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "data": texts,
        "binaryData": binaries,
    }


def _key(path: str) -> str:
    return path.replace("/", "_")


def images() -> tuple[str | None, str | None]:
    """The image to use, and the one to update to; None: the manifests', and the same in new pods."""
    return os.environ.get("CLUSTER_IMAGE"), os.environ.get("CLUSTER_NEXT_IMAGE")

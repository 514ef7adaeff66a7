"""A service with tokens, as its users run it: who is let in, over HTTP and gRPC, and what is noted of it."""

import asyncio
import io
import json
import signal
import ssl
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import trustme
from prometheus_client.parser import text_string_to_metric_families
from server_process import ROOT, Server, running

from service.access.tokens import Scope, TokenRecord, edit_tokens, new_token
from service.pb import inference_pb2

SOLVE = "/v1/problems/darcy/solve"
NPY = "application/x-npy"
NPY_HEADERS = {"Content-Type": NPY, "Accept": NPY}
INDEX, LOAD, UNLOAD = (
    f"/inference.GRPCInferenceService/Repository{name}" for name in ("Index", "ModelLoad", "ModelUnload")
)

pytestmark = pytest.mark.timeout(300)


class Tokens:
    """The tokens file of the service, and the tokens themselves."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "tokens.toml"
        self.audit = folder / "audit.jsonl"
        self._secrets: dict[str, str] = {}

    def issue(self, name: str, *scopes: Scope, **limits: Any) -> None:
        secret, kept = new_token()
        self._secrets[name] = secret
        with edit_tokens(self.path) as records:
            records.append(TokenRecord(name=name, hash=kept, scopes=scopes, **limits))

    def revoke(self, name: str) -> None:
        with edit_tokens(self.path) as records:
            records[:] = [record for record in records if record.name != name]

    def header(self, name: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._secrets[name]}"}

    def noted(self) -> list[dict[str, Any]]:
        """The lines of the audit log."""
        return [json.loads(line) for line in self.audit.read_text().splitlines()]

    def given_away_by(self, text: str) -> list[str]:
        return [name for name, secret in self._secrets.items() if secret in text]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    tokens = Tokens(tmp_path_factory.mktemp("guarded"))
    tokens.issue("sim", "solve")
    tokens.issue("limited", "solve", requests_per_second=0.01, burst=2)
    tokens.issue("ops", "admin")
    tokens.issue("prometheus", "metrics")
    return tokens


@pytest.fixture(scope="module")
def server(tokens: Tokens) -> Iterator[Server]:
    variables = {
        "MNO_SECURITY__TOKENS": str(tokens.path),
        "MNO_SECURITY__AUDIT": str(tokens.audit),
        "MNO_MODELS": "slow",
        "MNO_IMPORTED": imported(tokens.path.parent),
    }
    with running("--fronts", "2", **variables) as server:
        yield server


def imported(folder: Path) -> str:
    """A model that takes no time."""
    arguments = {"seconds": 0, "log": str(folder / "computed")}
    return json.dumps({"slow": {"function": "served_models:slow", "arguments": arguments}})


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.address, timeout=60) as http:
        yield http


@pytest.fixture(scope="module")
def npy() -> bytes:
    body = io.BytesIO()
    np.save(body, np.ones((16, 16), dtype=np.float32))
    return body.getvalue()


def solve(http: httpx.Client, npy: bytes, header: dict[str, str]) -> httpx.Response:
    """The short way of the service."""
    return http.post(f"{SOLVE}?method=solver&error=none", content=npy, headers={**NPY_HEADERS, **header})


def solve_json(http: httpx.Client, header: dict[str, str]) -> httpx.Response:
    """The long way."""
    body = {"permeability": [[1.0] * 8] * 8, "method": "solver", "error": "none"}
    return http.post(SOLVE, json=body, headers=header)


def test_nobody_is_answered_without_a_token(http: httpx.Client, npy: bytes) -> None:
    for header in ({}, {"Authorization": "Bearer mno_" + 43 * "A"}, {"Authorization": "Basic eDp5"}):
        for answer in (
            solve(http, npy, header),
            solve_json(http, header),
            http.get("/v1/models", headers=header),
        ):
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["type"] == "unauthenticated"
            assert answer.headers["x-request-id"]


def test_health_needs_no_token(http: httpx.Client) -> None:
    for path in ("/healthz/live", "/healthz/ready", "/v2/health/live", "/v2/health/ready"):
        assert http.get(path).status_code == 200


def test_a_token_is_good_for_what_it_grants(http: httpx.Client, npy: bytes, tokens: Tokens) -> None:
    sim, ops = tokens.header("sim"), tokens.header("ops")
    assert solve(http, npy, sim).status_code == 200
    assert solve_json(http, sim).status_code == 200
    for answer in (
        solve(http, npy, ops),
        solve_json(http, ops),
        http.post("/v2/repository/models/slow/load", headers=sim),
        http.post("/v2/repository/models/slow/unload", headers=sim),
        http.get("/metrics", headers=sim),
    ):
        assert answer.status_code == 403
        # the Open Inference Protocol has a form of its own for errors
        document = answer.json()
        assert document.get("type", "forbidden") == "forbidden"
        assert "the token" in document.get("detail", document.get("error"))


def test_who_is_over_their_rate_hears_when_to_come_again(
    server: Server, http: httpx.Client, npy: bytes, tokens: Tokens
) -> None:
    limited = tokens.header("limited")
    assert solve(http, npy, limited).status_code == 200
    assert solve_json(http, limited).status_code == 200
    for answer in (solve(http, npy, limited), solve_json(http, limited)):
        assert answer.status_code == 429
        assert 0 < int(answer.headers["retry-after"]) <= 100
        assert answer.json()["type"] == "overloaded"
        assert "the token limited" in answer.json()["detail"]
    # whichever front answers: each connection may have another one
    for _ in range(8):
        with httpx.Client(base_url=server.address, timeout=60) as another:
            assert solve(another, npy, limited).status_code == 429
    assert solve(http, npy, tokens.header("sim")).status_code == 200


def test_loading_is_for_admins_and_noted_with_name_and_request(http: httpx.Client, tokens: Tokens) -> None:
    ops = tokens.header("ops") | {"X-Request-Id": "the-one"}
    assert http.post("/v2/repository/models/slow/load", headers=ops).status_code == 200
    assert http.post("/v2/repository/models/nothing/load", headers=ops).status_code >= 400
    noted = [line for line in tokens.noted() if line.get("request_id") == "the-one"]
    assert [(line["action"], line["principal"], line["outcome"]) for line in noted] == [
        ("load", "ops", "done"),
        ("load", "ops", "failed"),
    ]


def test_the_page_of_metrics_is_of_all_processes_and_has_no_word_of_a_client(
    http: httpx.Client, tokens: Tokens, npy: bytes
) -> None:
    header = tokens.header("prometheus")
    assert http.get("/metrics").status_code == 401
    http.get("/v1/models/chosen-by-a-client", headers=tokens.header("sim"))
    http.get("/chosen-by-a-client", headers=tokens.header("sim"))
    solve(http, npy, tokens.header("limited"))
    page = http.get("/metrics", headers=header).text
    families = {family.name: family for family in text_string_to_metric_families(page)}
    processes = {sample.labels["process"] for family in families.values() for sample in family.samples}
    assert processes == {"supervisor", "front-0", "front-1"}
    assert "chosen-by-a-client" not in page
    assert {sample.labels["client"] for sample in families["mno_rate_limited"].samples} == {"limited"}
    reasons = {sample.labels["reason"] for sample in families["mno_refused"].samples}
    assert {"unauthenticated", "forbidden", "overloaded"} <= reasons
    statuses = {
        sample.labels["status"]
        for sample in families["mno_requests"].samples
        if sample.labels["route"] == "/v1/problems/{problem}/solve"
    }
    assert {"200", "401", "403", "429"} <= statuses
    openmetrics = http.get(
        "/metrics", headers=header | {"Accept": "application/openmetrics-text; version=1.0.0"}
    )
    assert openmetrics.text.endswith("# EOF\n")


def call(
    server: Server,
    path: str,
    request: bytes,
    header: dict[str, str],
    credentials: grpc.ChannelCredentials | None = None,
) -> str:
    """The name of the status of a gRPC call."""

    def channel() -> grpc.aio.Channel:
        if credentials is None:
            return grpc.aio.insecure_channel(server.grpc_address)
        # a connection of its own, whose certificate is looked at
        return grpc.aio.secure_channel(
            server.grpc_address, credentials, [("grpc.use_local_subchannel_pool", 1)]
        )

    async def story() -> str:
        metadata = [(name.lower(), value) for name, value in header.items()]
        async with channel() as connected:
            method: Callable[..., Awaitable[bytes]] = connected.unary_unary(path, bytes, bytes)
            try:
                await method(request, metadata=metadata, timeout=60)
            except grpc.aio.AioRpcError as error:
                return str(error.code().name)
        return "OK"

    return asyncio.run(story())


def test_grpc_asks_the_same(server: Server, tokens: Tokens) -> None:
    index = inference_pb2.RepositoryIndexRequest().SerializeToString()
    load = inference_pb2.RepositoryModelLoadRequest(model_name="slow").SerializeToString()
    assert call(server, "/grpc.health.v1.Health/Check", b"", {}) == "OK"
    assert call(server, INDEX, index, {}) == "UNAUTHENTICATED"
    assert call(server, INDEX, index, {"authorization": "Bearer x"}) == "UNAUTHENTICATED"
    assert call(server, INDEX, index, tokens.header("sim")) == "OK"
    assert call(server, LOAD, load, tokens.header("sim")) == "PERMISSION_DENIED"
    assert call(server, LOAD, load, tokens.header("ops")) == "OK"
    assert [line["action"] for line in tokens.noted() if line["principal"] == "ops"][-1] == "load"
    tokens_left = [call(server, INDEX, index, tokens.header("limited")) for _ in range(3)]
    assert "RESOURCE_EXHAUSTED" in tokens_left


def test_tokens_change_at_sighup(server: Server, http: httpx.Client, tokens: Tokens, npy: bytes) -> None:
    tokens.issue("old", "solve")
    assert solve(http, npy, tokens.header("old")).status_code == 401
    reload(server, tokens)
    assert solve(http, npy, tokens.header("old")).status_code == 200
    tokens.revoke("old")
    tokens.issue("new", "solve")
    reload(server, tokens)
    assert solve(http, npy, tokens.header("new")).status_code == 200
    assert solve(http, npy, tokens.header("old")).status_code == 401
    # what is no tokens file changes nothing, and says so
    kept = tokens.path.read_text()
    tokens.path.write_text("= 1")
    reload(server, tokens)
    assert solve(http, npy, tokens.header("new")).status_code == 200
    assert [line["outcome"] for line in tokens.noted() if line["action"] == "reload"] == [
        "done",
        "done",
        "failed",
    ]
    tokens.path.write_text(kept)


def test_with_certificates_both_ports_speak_tls_and_ask_for_those_of_clients(
    tmp_path: Path, npy: bytes
) -> None:
    authority = trustme.CA()
    ours, theirs = authority.issue_cert("127.0.0.1"), authority.issue_cert("client")
    chain = b"".join(blob.bytes() for blob in theirs.cert_chain_pems)
    key = theirs.private_key_pem.bytes()
    (tmp_path / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in ours.cert_chain_pems))
    ours.private_key_pem.write_to_path(tmp_path / "key.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    names = {"CERT": "cert.pem", "KEY": "key.pem", "CLIENT_CA": "ca.pem"}
    files = {f"MNO_TLS__{name}": str(tmp_path / file) for name, file in names.items()}
    with running("--processes", "none", "--models", "darcy", **files) as server:
        known, stranger = ssl.create_default_context(), ssl.create_default_context()
        for context in (known, stranger):
            authority.configure_trust(context)
        theirs.configure_cert(known)
        with httpx.Client(base_url=server.address, verify=known, timeout=60) as http:
            assert solve(http, npy, {}).status_code == 200
            assert solve_json(http, {}).status_code == 200
        with httpx.Client(base_url=server.address, verify=stranger) as http, pytest.raises(httpx.HTTPError):
            http.get("/healthz/live")
        trusted = grpc.ssl_channel_credentials(authority.cert_pem.bytes(), key, chain)
        assert call(server, "/grpc.health.v1.Health/Check", b"", {}, trusted) == "OK"
        # certificates that were renewed are taken, and nobody is disturbed
        server.process.send_signal(signal.SIGHUP)
        with httpx.Client(base_url=server.address, verify=known, timeout=60) as http:
            assert solve(http, npy, {}).status_code == 200
        untrusted = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
        assert call(server, "/grpc.health.v1.Health/Check", b"", {}, untrusted) == "UNAVAILABLE"
        assert server.stop() == 0


def test_a_service_that_everybody_could_reach_does_not_start() -> None:
    command = [sys.executable, "-m", "mno", "serve", "--host", "0.0.0.0", "--http-port", "0"]
    for more in ([], ["--check-config"], ["--processes", "none"]):
        result = subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert result.returncode == 2
        assert "security.open = true" in result.stderr
        assert result.stderr.count("\n") == 1


def reload(server: Server, tokens: Tokens) -> None:
    """Have the tokens read, and wait until they are: the supervisor notes it after it has told the fronts."""
    before = sum(line["action"] == "reload" for line in tokens.noted())
    server.process.send_signal(signal.SIGHUP)
    while sum(line["action"] == "reload" for line in tokens.noted()) == before:
        pass
    # the order to the fronts is under way before they are all asked for this, and is heard first
    httpx.get(f"{server.address}/metrics", headers=tokens.header("prometheus"), timeout=60)


def test_no_token_is_in_the_audit_log(tokens: Tokens) -> None:
    text = tokens.audit.read_text()
    assert text
    assert tokens.given_away_by(text) == []

"""Who may call, over what, and what is said of the service itself."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import trustme
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from numpy.typing import NDArray

from service.access.audit import Audit
from service.access.gate import Guard
from service.access.rate import RateLimits, RateSettings
from service.access.security import SecuritySettings, open_security
from service.access.tls import Tls, TlsSettings
from service.access.tokens import TokenRecord, edit_tokens, new_token
from service.client import AsyncClient
from service.client.connection import ServiceError
from service.grpc.server import SERVERS
from service.pb import inference_pb2, solver_pb2
from service.settings import Settings
from service.telemetry.metrics import Metrics

SOLVE = "/mno.v1.Solver/Solve"
INFER = "/inference.GRPCInferenceService/ModelStreamInfer"
LOAD = "/inference.GRPCInferenceService/RepositoryModelLoad"
# channels share one otherwise
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


def request(field: NDArray[Any]) -> bytes:
    tensor = solver_pb2.Tensor(dtype=field.dtype.name, shape=field.shape, data=field.tobytes())
    wanted = solver_pb2.SolveRequest(problem="darcy", fields={"permeability": tensor})
    return wanted.SerializeToString()


FIELD = request(np.ones((32, 32), np.float32))


def bearer(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")]


@pytest.fixture
def tokens(tmp_path: Path) -> tuple[Path, str, str]:
    """A file, and the tokens in it: to solve, and for everything."""
    path = tmp_path / "tokens.toml"
    made = []
    with edit_tokens(path) as records:
        for name, scopes in (("alice", ("solve",)), ("root", ("solve", "admin"))):
            token, digest = new_token()
            records.append(TokenRecord(name=name, hash=digest, scopes=scopes))
            made.append(token)
    return path, made[0], made[1]


def code_of(channel: grpc.Channel, path: str, body: bytes, metadata: Any = None) -> grpc.StatusCode:
    try:
        channel.unary_unary(path)(body, metadata=metadata, timeout=60)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


def test_tokens_are_asked_for(
    tokens: tuple[Path, str, str], settings: Settings, store_parts: Any, thread_of: Any, tmp_path: Path
) -> None:
    path, alice, root = tokens
    security = open_security(SecuritySettings(tokens=path), "127.0.0.1", mutual_tls=False)
    load = inference_pb2.RepositoryModelLoadRequest(model_name="darcy").SerializeToString()
    metrics, audit = Metrics(), Audit(tmp_path / "audit.jsonl")

    def make() -> Any:
        return replace(store_parts(settings), guard=Guard(security, metrics=metrics, audit=audit))

    with thread_of(make) as address, grpc.insecure_channel(address) as channel:
        code = grpc.StatusCode
        assert code_of(channel, SOLVE, FIELD) is code.UNAUTHENTICATED
        assert code_of(channel, SOLVE, FIELD, bearer("mno_" + "x" * 43)) is code.UNAUTHENTICATED
        assert code_of(channel, SOLVE, FIELD, bearer(alice)) is code.OK
        assert code_of(channel, LOAD, load, bearer(alice)) is code.PERMISSION_DENIED
        assert code_of(channel, LOAD, b"\xff", bearer(alice)) is code.PERMISSION_DENIED
        assert code_of(channel, LOAD, load) is code.UNAUTHENTICATED
        assert code_of(channel, LOAD, load, bearer(root)) is code.OK
        # balancers have no token
        stub = health_pb2_grpc.HealthStub(channel)
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=60).status == 1
    page = metrics.render()[0].decode()
    assert 'reason="unauthenticated"' in page
    assert 'route="mno.v1.Solver/Solve"' in page
    assert 'status="PERMISSION_DENIED"' in page
    audit.close()
    noted = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    refused = [(each["subject"], each["principal"]) for each in noted if each["action"] == "refused"]
    assert refused == [(f"{LOAD[1:]} darcy", "alice"), (LOAD[1:], "alice")]


def test_limits_say_when_to_come_back(
    tokens: tuple[Path, str, str], settings: Settings, store_parts: Any, thread_of: Any
) -> None:
    path, alice, _ = tokens
    security = open_security(SecuritySettings(tokens=path), "127.0.0.1", mutual_tls=False)
    rates = RateLimits(RateSettings(requests_per_second=0.01, burst=1))

    def make() -> Any:
        return replace(store_parts(settings), guard=Guard(security, rates))

    with thread_of(make) as address, grpc.insecure_channel(address) as channel:
        assert code_of(channel, SOLVE, FIELD, bearer(alice)) is grpc.StatusCode.OK
        with pytest.raises(grpc.RpcError) as limited:
            channel.unary_unary(SOLVE)(FIELD, metadata=bearer(alice), timeout=60)
        assert limited.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        trailing = dict(limited.value.trailing_metadata())
        assert 1 <= int(trailing["retry-after"]) <= 100
        assert int(trailing["grpc-retry-pushback-ms"]) == 1000 * int(trailing["retry-after"])


def test_calls_under_way_hold_a_bounded_number_of_bytes(
    settings: Settings, store_parts: Any, serve_grpc: Any
) -> None:
    async def story() -> None:
        parts = store_parts(settings)
        parts = replace(parts, limits=parts.limits.model_copy(update={"inflight_bytes": 3 * len(FIELD)}))
        async with serve_grpc(parts) as (_, address), grpc.aio.insecure_channel(address) as channel:
            method = channel.unary_unary(SOLVE)
            found = await asyncio.gather(*(_answer(method) for _ in range(32)))
            assert grpc.StatusCode.OK in found
            assert set(found) <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
            # what was held is free again
            assert await _answer(method) is grpc.StatusCode.OK

    asyncio.run(story())


async def _answer(method: Any) -> grpc.StatusCode:
    try:
        await method(FIELD)
    except grpc.aio.AioRpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


def test_a_stream_holds_only_what_is_not_answered(
    settings: Settings, store_parts: Any, serve_grpc: Any
) -> None:
    async def story() -> None:
        parts = store_parts(settings)
        parts = replace(parts, limits=parts.limits.model_copy(update={"inflight_bytes": 3 * len(FIELD)}))
        async with serve_grpc(parts) as (_, address), grpc.aio.insecure_channel(address) as channel:
            other = channel.unary_unary(SOLVE)
            for path in ("/mno.v1.Solver/SolveStream", INFER):
                stream = channel.stream_stream(path)()
                for _ in range(10):
                    await stream.write(FIELD)
                    assert await stream.read()
                    assert await _answer(other) is grpc.StatusCode.OK
                await stream.done_writing()
                assert await stream.read() is grpc.aio.EOF

    asyncio.run(story())


def test_calls_at_once_are_bounded(settings: Settings, store_parts: Any, serve_grpc: Any) -> None:
    async def story() -> None:
        parts = store_parts(settings)
        parts = replace(parts, limits=parts.limits.model_copy(update={"connections": 1}))
        async with serve_grpc(parts) as (_, address), grpc.aio.insecure_channel(address) as channel:
            waiting = channel.stream_stream("/mno.v1.Solver/SolveStream")()
            await waiting.write(FIELD)
            assert await waiting.read()
            assert await _answer(channel.unary_unary(SOLVE)) is grpc.StatusCode.RESOURCE_EXHAUSTED
            # whichever of the servers that share the port a connection has come to
            for _ in range(2 * SERVERS):
                async with grpc.aio.insecure_channel(address, OWN_CONNECTION) as another:
                    assert await _answer(another.unary_unary(SOLVE)) is grpc.StatusCode.RESOURCE_EXHAUSTED
            with pytest.raises(ServiceError, match="overloaded"):
                async with AsyncClient(f"grpc://{address}", retries=0) as client:
                    await client.solve("darcy", np.ones((32, 32), np.float32))
            await waiting.done_writing()
            assert await waiting.read() is grpc.aio.EOF
            async with asyncio.timeout(20):
                # the end of a call is sent before it is counted
                while await _answer(channel.unary_unary(SOLVE)) is not grpc.StatusCode.OK:
                    pass

    asyncio.run(story())


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def mutual(tmp_path: Path, authority: trustme.CA) -> TlsSettings:
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    (tmp_path / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return TlsSettings(cert=tmp_path / "cert.pem", key=tmp_path / "key.pem", client_ca=tmp_path / "ca.pem")


def credentials(authority: trustme.CA, name: str | None) -> grpc.ChannelCredentials:
    if name is None:
        return grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    own = authority.issue_cert(name)
    chain = b"".join(blob.bytes() for blob in own.cert_chain_pems)
    return grpc.ssl_channel_credentials(authority.cert_pem.bytes(), own.private_key_pem.bytes(), chain)


def test_mutual_tls(
    mutual: TlsSettings, authority: trustme.CA, settings: Settings, store_parts: Any, thread_of: Any
) -> None:
    with thread_of(lambda: store_parts(settings), Tls.of(mutual)) as address:
        with grpc.secure_channel(address, credentials(authority, "client")) as channel:
            assert code_of(channel, SOLVE, FIELD) is grpc.StatusCode.OK
        for stranger in (credentials(authority, None), credentials(trustme.CA(), "client")):
            with grpc.secure_channel(address, stranger) as channel:
                assert code_of(channel, SOLVE, FIELD) is grpc.StatusCode.UNAVAILABLE
        with grpc.insecure_channel(address) as channel:
            assert code_of(channel, SOLVE, FIELD) is grpc.StatusCode.UNAVAILABLE


def test_health_follows_the_service(settings: Settings, store_parts: Any, serve_grpc: Any) -> None:
    async def story() -> None:
        leaving = False
        parts = replace(store_parts(settings), draining=lambda: leaving)
        async with serve_grpc(parts) as (server, address), grpc.aio.insecure_channel(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            for name in ("", "mno.v1.Solver", "inference.GRPCInferenceService"):
                assert (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status == 1
            with pytest.raises(grpc.aio.AioRpcError) as unknown:
                await stub.Check(health_pb2.HealthCheckRequest(service="heat"))
            assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
            watching = stub.Watch(health_pb2.HealthCheckRequest(service="mno.v1.Solver"))
            assert (await watching.read()).status == 1
            nothing = stub.Watch(health_pb2.HealthCheckRequest(service="heat"))
            assert (await nothing.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            nothing.cancel()
            leaving = True
            not_serving = health_pb2.HealthCheckResponse.NOT_SERVING
            assert (await stub.Check(health_pb2.HealthCheckRequest())).status == not_serving
            server.health.changed()
            assert (await watching.read()).status == not_serving
            # whoever watches goes on to do so
            leaving = False
            server.health.changed()
            assert (await watching.read()).status == 1

    asyncio.run(story())


def test_a_call_that_comes_too_late_is_told_to_come_again(
    settings: Settings, store_parts: Any, serve_grpc: Any
) -> None:
    async def story() -> None:
        async with (
            serve_grpc(store_parts(settings)) as (server, address),
            grpc.aio.insecure_channel(address) as channel,
        ):
            method = channel.unary_unary(SOLVE)
            assert await _answer(method) is grpc.StatusCode.OK
            draining = asyncio.create_task(server.drain(10.0))
            await asyncio.sleep(0)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await method(FIELD)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            assert dict(refused.value.trailing_metadata())["mno-fault"] == "not-ready"
            await draining

    asyncio.run(story())


def test_reflection_says_what_there_is(grpc_address: str) -> None:
    with grpc.insecure_channel(grpc_address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        services = set(database.get_services())
        assert {"mno.v1.Solver", "inference.GRPCInferenceService", "grpc.health.v1.Health"} <= services
        pool = DescriptorPool(database)
        for name in services:
            service = pool.FindServiceByName(name)
            assert service.methods
        fields = pool.FindMessageTypeByName("mno.v1.Tensor").fields_by_name
        assert set(fields) == {"dtype", "shape", "data"}
        with pytest.raises(KeyError):
            pool.FindMessageTypeByName("mno.v1.Nothing")

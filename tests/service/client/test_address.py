"""What clients read out of a URL; over gRPC, calls to several places take turns."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import grpc
import pytest

from service.client import AsyncClient, Client
from service.client.address import Address, address_of
from service.pb import inference_pb2 as inference

INDEX = "RepositoryIndex"


def address(url: str) -> Address:
    return address_of(url, None, 1.0, None, None)


@pytest.mark.parametrize(
    ("url", "host", "several"),
    [
        ("http://service:8080", "service:8080", False),
        ("grpc://127.0.0.1:8081", "127.0.0.1:8081", False),
        ("grpc://[::1]:8081", "[::1]:8081", False),
        ("grpc://dns:///mno-grpc.mno.svc:8081", "dns:///mno-grpc.mno.svc:8081", True),
        ("grpcs://dns://10.0.0.10/mno-grpc:8081", "dns://10.0.0.10/mno-grpc:8081", True),
        ("grpc://10.0.0.1:8081,10.0.0.2:8081", "ipv4:10.0.0.1:8081,10.0.0.2:8081", True),
        ("grpc://[::1]:8081,[fd00::2]:8081", "ipv6:[::1]:8081,[fd00::2]:8081", True),
    ],
)
def test_places(url: str, host: str, several: bool) -> None:
    found = address(url)
    assert (found.host, found.several) == (host, several)


@pytest.mark.parametrize(
    "places", ["one:8081,two:8081", "10.0.0.1:8081,[::1]:8081", "10.0.0.1,10.0.0.2", ","]
)
def test_a_list_is_of_addresses_of_one_kind(places: str) -> None:
    with pytest.raises(ValueError, match=r"all of IPv4 or all of IPv6.*grpc://dns:///name:port"):
        address(f"grpc://{places}")


@contextmanager
def service(name: str) -> Iterator[int]:
    """The port of a service that has one model, of this name."""
    answer = inference.RepositoryIndexResponse(models=[{"name": name, "version": "1", "state": "READY"}])

    def index(_: bytes, __: grpc.ServicerContext) -> bytes:
        return answer.SerializeToString()

    handlers = {INDEX: grpc.unary_unary_rpc_method_handler(index)}
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers)]
        )
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield port
        finally:
            server.stop(None).wait()


@contextmanager
def two_services() -> Iterator[str]:
    """The URL of both."""
    with ExitStack() as stack:
        ports = [stack.enter_context(service(name)) for name in ("one", "two")]
        yield "grpc://" + ",".join(f"127.0.0.1:{port}" for port in ports)


def names(described: object) -> str:
    return "one" if "one" in str(described) else "two"


def test_calls_take_turns() -> None:
    with two_services() as url, Client(url) as client:
        asked: list[str] = []
        # the first go to whoever is there first
        while len(set(asked)) < 2:
            asked.append(names(client.models()))
        assert Counter(names(client.models()) for _ in range(8)) == {"one": 4, "two": 4}


def test_calls_of_a_loop_take_turns() -> None:
    async def ask(url: str) -> list[str]:
        async with AsyncClient(url) as client:
            asked: list[str] = []
            while len(set(asked)) < 2:
                asked.append(names(await client.models()))
            return [names(await client.models()) for _ in range(8)]

    with two_services() as url:
        assert Counter(asyncio.run(ask(url))) == {"one": 4, "two": 4}


def test_a_name_is_looked_up() -> None:
    with service("one") as port, Client(f"grpc://dns:///localhost:{port}") as client:
        assert names(client.models()) == "one"


def test_one_of_several_that_is_gone_is_not_asked() -> None:
    with service("two") as gone:
        pass
    with service("one") as port, Client(f"grpc://127.0.0.1:{gone},127.0.0.1:{port}", retries=0) as client:
        assert {names(client.models()) for _ in range(20)} == {"one"}

"""The addresses of a service."""

import socket

import pytest

from service.processes.ports import Ports, listen_on
from service.settings import InvalidSettings, Settings


def test_two_services_cannot_have_one_address_even_before_they_are_warm() -> None:
    with listen_on("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(InvalidSettings, match=f"{port}.*choose another port with --http-port"):
            listen_on("127.0.0.1", port)


@pytest.mark.parametrize("fronts", [1, 3])
def test_every_front_has_a_socket_on_the_same_port(fronts: int) -> None:
    with Ports(Settings(http_port=0, grpc_port=0, fronts=fronts)) as ports:
        found = [ports.http(number) for number in range(fronts)]
        assert {each.getsockname()[1] for each in found} == {ports.http_port}
        # and it keeps everybody else off
        with pytest.raises(InvalidSettings, match=f"{ports.http_port}.*--http-port"):
            Ports(Settings(http_port=ports.http_port, grpc=False))
    assert all(each.fileno() == -1 for each in found)


def test_fronts_can_listen_on_the_grpc_port_and_nobody_else_can() -> None:
    with Ports(Settings(http_port=0, grpc_port=0)) as ports:
        assert ports.grpc_address is not None
        host, _, port = ports.grpc_address.partition(":")
        with pytest.raises(InvalidSettings, match=f"{port}.*--grpc-port"):
            Ports(Settings(http_port=0, grpc_port=int(port)))
        with socket.socket() as front:
            front.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            front.bind((host, int(port)))
            front.listen()
            # the socket that keeps the address takes no connection away from those who listen
            for _ in range(20):
                with socket.create_connection((host, int(port)), timeout=10):
                    front.accept()[0].close()


def test_a_service_without_grpc_takes_no_port_for_it() -> None:
    with Ports(Settings(http_port=0, grpc=False)) as ports:
        assert ports.grpc_address is None


def test_an_address_that_is_none_of_this_machine_is_refused() -> None:
    with pytest.raises(InvalidSettings, match=r"192\.0\.2\.1:0"):
        listen_on("192.0.2.1", 0)

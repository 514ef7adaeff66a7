"""TLS on a real server: who is trusted, who may connect, and what is said of files that are broken."""

import asyncio
import socket
import ssl
import threading
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import grpc
import httpx
import pytest
import trustme
import uvicorn
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from service.access.tls import Tls, TlsSettings
from service.errors import InvalidSettings
from service.http.abortable import AbortableProtocol
from service.processes.event_loop import FrontLoop


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def write(folder: Path, certificate: trustme.LeafCert) -> TlsSettings:
    """The files of a server's certificate."""
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    (folder / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    return TlsSettings(cert=folder / "cert.pem", key=folder / "key.pem")


@pytest.fixture
def settings(tmp_path: Path, authority: trustme.CA) -> TlsSettings:
    return write(tmp_path, authority.issue_cert("127.0.0.1"))


@pytest.fixture
def mutual(settings: TlsSettings, tmp_path: Path, authority: trustme.CA) -> TlsSettings:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return settings.model_copy(update={"client_ca": tmp_path / "ca.pem"})


def opened(settings: TlsSettings) -> Tls:
    tls = Tls.of(settings)
    assert tls is not None
    return tls


def client(authority: trustme.CA, certificate: trustme.LeafCert | None = None) -> ssl.SSLContext:
    """What a client trusts and shows."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if certificate is not None:
        certificate.configure_cert(context)
    return context


async def hello(_: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


@contextmanager
def over_http(tls: Tls, handshake_seconds: float = 5.0) -> Iterator[int]:
    """The port of a server in a thread."""
    config = uvicorn.Config(
        hello,
        port=0,
        http=AbortableProtocol,
        ssl_context_factory=tls.for_uvicorn,
        lifespan="off",
        log_config=None,
    )
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with asyncio.Runner(loop_factory=lambda: FrontLoop(handshake_seconds)) as runner:
            runner.run(server.serve(sockets=[listener]))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        listener.close()


def get(port: int, context: ssl.SSLContext) -> str:
    with httpx.Client(verify=context, timeout=30) as http:
        return http.get(f"https://127.0.0.1:{port}/").text


def test_a_client_that_trusts_the_authority_is_answered_and_another_is_not(
    settings: TlsSettings, authority: trustme.CA
) -> None:
    with over_http(opened(settings)) as port:
        assert get(port, client(authority)) == "hello"
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            get(port, client(trustme.CA()))
        # without TLS there is no answer that could be read
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://127.0.0.1:{port}/", timeout=30)


def test_old_versions_of_tls_are_not_spoken(settings: TlsSettings, authority: trustme.CA) -> None:
    eleven, twelve = client(authority), client(authority)
    eleven.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with warnings.catch_warnings():
        # the client may not speak it either, unless it is asked to
        warnings.simplefilter("ignore", DeprecationWarning)
        eleven.maximum_version = ssl.TLSVersion.TLSv1_1
    eleven.set_ciphers("ALL:@SECLEVEL=0")
    twelve.maximum_version = ssl.TLSVersion.TLSv1_2
    with over_http(opened(settings)) as port:
        assert get(port, twelve) == "hello"
        with pytest.raises(httpx.HTTPError):
            get(port, eleven)
    with (
        over_http(opened(settings.model_copy(update={"minimum_version": "1.3"}))) as port,
        pytest.raises(httpx.HTTPError),
    ):
        get(port, twelve)


def test_with_a_client_authority_only_those_it_signed_are_answered(
    mutual: TlsSettings, authority: trustme.CA
) -> None:
    known, unknown = authority.issue_cert("client"), trustme.CA().issue_cert("client")
    with over_http(opened(mutual)) as port:
        assert get(port, client(authority, known)) == "hello"
        for context in (client(authority), client(authority, unknown)):
            with pytest.raises(httpx.HTTPError):
                get(port, context)


def test_certificates_that_were_renewed_are_used_for_new_connections(
    settings: TlsSettings, authority: trustme.CA, tmp_path: Path
) -> None:
    tls, other = opened(settings), trustme.CA()
    with over_http(tls) as port:
        assert get(port, client(authority)) == "hello"
        write(tmp_path, other.issue_cert("127.0.0.1"))
        tls.reload()
        assert get(port, client(other)) == "hello"
        # half of a pair: the one that was read before stays
        settings_of_nobody = trustme.CA().issue_cert("127.0.0.1")
        settings_of_nobody.private_key_pem.write_to_path(tmp_path / "key.pem")
        with pytest.raises(InvalidSettings):
            tls.reload()
        assert get(port, client(other)) == "hello"


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_an_authority_of_clients_that_was_replaced_is_trusted_no_more(
    mutual: TlsSettings, authority: trustme.CA, tmp_path: Path, newest: ssl.TLSVersion
) -> None:
    tls, other = opened(mutual), trustme.CA()
    before, after = (client(authority, each.issue_cert("client")) for each in (authority, other))
    before.maximum_version = after.maximum_version = newest
    with over_http(tls) as port:
        assert get(port, before) == "hello"
        with pytest.raises(httpx.HTTPError):
            get(port, after)
        session = session_of(port, before)
        other.cert_pem.write_to_path(tmp_path / "ca.pem")
        tls.reload()
        assert get(port, after) == "hello"
        with pytest.raises(httpx.HTTPError):
            get(port, before)
        # a session of before is no way around it
        with pytest.raises((ssl.SSLError, ConnectionError)):
            session_of(port, before, session)


def session_of(
    port: int, context: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> ssl.SSLSession | None:
    """What a connection that was answered may be resumed by."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as wrapped,
    ):
        wrapped.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        if not wrapped.recv(1):
            raise ConnectionError("closed without an answer")
        return wrapped.session


def test_whoever_connects_and_says_nothing_is_left(settings: TlsSettings, authority: trustme.CA) -> None:
    with (
        over_http(opened(settings), handshake_seconds=0.1) as port,
        socket.create_connection(("127.0.0.1", port), timeout=30) as silent,
        socket.create_connection(("127.0.0.1", port), timeout=30) as slow,
    ):
        slow.sendall(b"\x16\x03\x01\x02\x00")
        assert silent.recv(100) == b""
        assert slow.recv(100) == b""
        assert get(port, client(authority)) == "hello"


@asynccontextmanager
async def over_grpc(tls: Tls) -> AsyncIterator[int]:
    """The port of a server with one method, ``/test/Echo``, of bytes."""

    async def echo(request: bytes, _: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        return request

    handler = grpc.unary_unary_rpc_method_handler(echo)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", {"Echo": handler}),))
    port = server.add_secure_port("127.0.0.1:0", tls.grpc_credentials())
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def call(port: int, credentials: grpc.ChannelCredentials) -> bool:
    """Whether the server answers."""
    # each call on a connection of its own
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
        echo: Callable[..., Awaitable[bytes]] = channel.unary_unary("/test/Echo", bytes, bytes)
        return await echo(b"hello", timeout=30) == b"hello"


def trusting(authority: trustme.CA, certificate: trustme.LeafCert | None = None) -> grpc.ChannelCredentials:
    chain = key = None
    if certificate is not None:
        chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
        key = certificate.private_key_pem.bytes()
    return grpc.ssl_channel_credentials(authority.cert_pem.bytes(), key, chain)


def test_grpc_is_answered_with_tls_and_follows_a_renewal(
    settings: TlsSettings, authority: trustme.CA, tmp_path: Path
) -> None:
    async def story() -> None:
        tls, other = opened(settings), trustme.CA()
        async with over_grpc(tls) as port:
            assert await call(port, trusting(authority))
            with pytest.raises(grpc.aio.AioRpcError):
                await call(port, trusting(other))
            write(tmp_path, other.issue_cert("127.0.0.1"))
            tls.reload()
            assert await call(port, trusting(other))

    asyncio.run(story())


def test_grpc_with_a_client_authority_answers_only_those_it_signed(
    mutual: TlsSettings, authority: trustme.CA
) -> None:
    async def story() -> None:
        async with over_grpc(opened(mutual)) as port:
            assert await call(port, trusting(authority, authority.issue_cert("client")))
            for stranger in (None, trustme.CA().issue_cert("client")):
                with pytest.raises(grpc.aio.AioRpcError):
                    await call(port, trusting(authority, stranger))

    asyncio.run(story())


def test_without_a_certificate_there_is_no_tls() -> None:
    assert Tls.of(TlsSettings()) is None


@pytest.mark.parametrize(
    "given", [{"cert": "a"}, {"key": "a"}, {"client_ca": "a"}, {"minimum_version": "1.1"}]
)
def test_half_a_configuration_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        TlsSettings.model_validate(given)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cert.pem", None),
        ("key.pem", None),
        ("ca.pem", None),
        ("cert.pem", b"not a certificate"),
        ("key.pem", b""),
        ("ca.pem", b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"),
    ],
)
def test_files_that_are_missing_or_broken_are_named_in_one_line(
    mutual: TlsSettings, tmp_path: Path, name: str, content: bytes | None
) -> None:
    assert Tls.of(mutual) is not None
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidSettings, match="expected") as refusal:
        Tls.of(mutual)
    assert "\n" not in str(refusal.value)
    assert str(tmp_path) in str(refusal.value)


def test_another_certificate_s_key_is_refused(settings: TlsSettings, tmp_path: Path) -> None:
    trustme.CA().issue_cert("x").private_key_pem.write_to_path(tmp_path / "key.pem")
    with pytest.raises(InvalidSettings, match="key values mismatch"):
        Tls.of(settings)


def test_a_key_with_a_passphrase_is_refused_instead_of_asked_for(
    settings: TlsSettings, tmp_path: Path
) -> None:
    from cryptography.hazmat.primitives import serialization

    plain = serialization.load_pem_private_key((tmp_path / "key.pem").read_bytes(), None)
    secret = plain.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"x"),
    )
    (tmp_path / "key.pem").write_bytes(secret)
    with pytest.raises(InvalidSettings, match="without a passphrase"):
        Tls.of(settings)

"""A small S3 server that does what is to be survived: ignores headers, loses answers, goes away."""

import hashlib
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class Refused(Exception):
    """Raised by a hook: the request is answered with this status and S3 code, and nothing is done."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(status, code)
        self.status, self.code = status, code


class LostAnswer(Exception):
    """Raised by a hook: the connection ends without an answer."""


@dataclass(frozen=True)
class Thing:
    """An object."""

    data: bytes
    meta: Mapping[str, str]
    modified: datetime

    @property
    def etag(self) -> str:
        return f'"{hashlib.md5(self.data, usedforsecurity=False).hexdigest()}"'


@dataclass(frozen=True)
class Request:
    """What came."""

    method: str
    key: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes

    @property
    def changes(self) -> bool:
        return self.method in ("PUT", "POST", "DELETE")


def nothing(_: Request) -> None:
    """What a hook does that a test does not set."""


class PlayedS3:
    """The objects of one bucket, and what is to happen around requests.

    Attributes:
        ignored: names of headers that this server does not know, in lower case.
        before: called with a request before anything is done for it.
        after: called when it is done, and not answered.
    """

    def __init__(self) -> None:
        self.things: dict[str, Thing] = {}
        self.ignored: set[str] = set()
        self.before: Callable[[Request], None] = nothing
        self.after: Callable[[Request], None] = nothing
        self.requests: list[Request] = []
        self._lock = threading.Lock()
        self.address = ""

    def environment(self) -> dict[str, str]:
        """The variables by which a program finds the server."""
        return {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "a-secret-of-somebody",
        }

    def age(self, by_seconds: float) -> None:
        """Let everything be older."""
        for key, thing in self.things.items():
            moved = datetime.fromtimestamp(thing.modified.timestamp() - by_seconds, UTC)
            self.things[key] = Thing(thing.data, thing.meta, moved)

    def answer(self, request: Request) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body."""
        self.requests.append(request)
        self.before(request)
        with self._lock:
            answer = self._answered(request)
        self.after(request)
        return answer

    def _answered(self, request: Request) -> tuple[int, Mapping[str, str], bytes]:
        match request.method:
            case "GET" if not request.key:
                return self._list(request.query.get("prefix", [""])[0])
            case "GET" | "HEAD":
                return self._get(request.key)
            case "PUT":
                return self._put(request)
            case "DELETE":
                self.things.pop(request.key, None)
                return 204, {}, b""
            case "POST":
                tree = ElementTree.fromstring(request.body)
                keys = [each.text or "" for each in tree.iter() if each.tag.endswith("Key")]
                for key in keys:
                    self.things.pop(key, None)
                rows = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
                return 200, {}, f"<DeleteResult>{rows}</DeleteResult>".encode()
        raise Refused(501, "NotImplemented")

    def _list(self, prefix: str) -> tuple[int, Mapping[str, str], bytes]:
        rows = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(thing.data)}</Size><ETag>{escape(thing.etag)}</ETag>"
            f"<LastModified>{thing.modified:%Y-%m-%dT%H:%M:%S.000Z}</LastModified></Contents>"
            for key, thing in sorted(self.things.items())
            if key.startswith(prefix)
        )
        text = f"<ListBucketResult><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>"
        return 200, {"Content-Type": "application/xml"}, text.encode()

    def _get(self, key: str) -> tuple[int, Mapping[str, str], bytes]:
        thing = self._there(key)
        modified = format_datetime(thing.modified, usegmt=True)
        return 200, {"ETag": thing.etag, "Last-Modified": modified, **thing.meta}, thing.data

    def _there(self, key: str) -> Thing:
        if key not in self.things:
            raise Refused(404, "NoSuchKey")
        return self.things[key]

    def _put(self, request: Request) -> tuple[int, Mapping[str, str], bytes]:
        headers = {name: value for name, value in request.headers.items() if name not in self.ignored}
        present = self.things.get(request.key)
        if "if-none-match" in headers and present is not None:
            raise Refused(412, "PreconditionFailed")
        if "if-match" in headers and (present is None or present.etag != headers["if-match"]):
            raise Refused(412, "PreconditionFailed")
        now = datetime.now(UTC)
        if "x-amz-copy-source" in headers:
            source = self._there(unquote(headers["x-amz-copy-source"]).lstrip("/").partition("/")[2])
            thing = self.things[request.key] = Thing(source.data, source.meta, now)
            return 200, {}, f"<CopyObjectResult><ETag>{escape(thing.etag)}</ETag></CopyObjectResult>".encode()
        meta = {name: value for name, value in headers.items() if name.startswith("x-amz-meta-")}
        thing = self.things[request.key] = Thing(request.body, meta, now)
        return 200, {"ETag": thing.etag}, b""


@contextmanager
def running() -> Iterator[PlayedS3]:
    """A server, until the block ends."""
    played = PlayedS3()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # headers and body in one piece: they would wait for each other
        wbufsize = 2**16

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except ConnectionError:
                self.close_connection = True

        def respond(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            # /bucket/key
            key = unquote(parts.path).lstrip("/").partition("/")[2]
            query = parse_qs(parts.query, keep_blank_values=True)
            headers = {name.lower(): value for name, value in self.headers.items()}
            try:
                status, more, body = played.answer(Request(self.command, key, query, headers, body))
            except LostAnswer:
                self.close_connection = True
                return
            except Refused as error:
                status, more = error.status, {}
                body = f"<Error><Code>{error.code}</Code></Error>".encode()
            self.send_response(status)
            for name, value in {**more, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = respond  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        played.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield played
        finally:
            server.shutdown()
            thread.join()

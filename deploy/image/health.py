"""Ask the service of this container whether it answers: exit status 0 or 1.

It reads the variables that say where; settings of a file it does not know. Of a service that asks clients for
certificates it only sees that somebody listens.
"""

import os
import socket
import ssl
import sys
from http.client import HTTPConnection, HTTPException, HTTPSConnection

PATH = "/healthz/live"
SECONDS = 2.0


def answers(port: int, *, tls: bool, mutual: bool) -> bool:
    """Whether the service on this port of this machine says that it lives."""
    if mutual:
        with socket.create_connection(("127.0.0.1", port), SECONDS):
            return True
    if tls:
        # it is this container: there is nobody else to be told apart
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection: HTTPConnection = HTTPSConnection("127.0.0.1", port, timeout=SECONDS, context=context)
    else:
        connection = HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        connection.request("GET", PATH)
        return connection.getresponse().status == 200
    finally:
        connection.close()


def main() -> int:
    """The exit status."""
    port = int(os.environ.get("MNO_HTTP_PORT", "8080"))
    tls, mutual = "MNO_TLS__CERT" in os.environ, "MNO_TLS__CLIENT_CA" in os.environ
    try:
        return 0 if answers(port, tls=tls, mutual=mutual) else 1
    except (OSError, HTTPException) as error:
        print(f"expected an answer on port {port}, got {error!r}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

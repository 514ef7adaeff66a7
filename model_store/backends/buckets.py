"""Opens buckets of S3, Google Cloud Storage and Azure by their URLs.

Endpoint, region and credentials are the environment's, under the names that the clouds' own SDKs use
(``AWS_ENDPOINT_URL``, ``AWS_REGION``, ``AWS_ACCESS_KEY_ID``, ...), or a machine's or pod's role; the library
reads them. A URL holds nothing secret, so it may stand in a log.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, S3Store

from model_store.backends.backend import Backend
from model_store.backends.object import Handles, ObjectBackend
from model_store.errors import InvalidStoreUrl

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

__all__ = ["open_bucket"]

STORES: Final[Mapping[str, type[S3Store | GCSStore | AzureStore]]] = {
    "s3": S3Store,
    "gs": GCSStore,
    "az": AzureStore,
}

CONNECT: Final = timedelta(seconds=2)
# whoever reads waits for one piece so long; a service asks for several things in its 30 s
PIECE: Final = timedelta(seconds=5)
# one request, with its body
REQUEST: Final = timedelta(minutes=10)


def open_bucket(url: str) -> Backend:
    """The place at ``s3://bucket/prefix``, ``gs://bucket/prefix`` or ``az://container/prefix``.

    Raises:
        InvalidStoreUrl: it names none, or says more than where.
    """
    parts = urlsplit(url)
    what = f"expected a store as {parts.scheme}://bucket/prefix"
    if "@" in parts.netloc or ":" in parts.netloc or parts.query or parts.fragment:
        # nothing of it is repeated: it may be a password
        raise InvalidStoreUrl(
            f"{what}, got one with more in it; endpoint and credentials belong into the environment, "
            "such as AWS_ENDPOINT_URL and AWS_ACCESS_KEY_ID"
        )
    if not parts.netloc:
        raise InvalidStoreUrl(f"{what}, got {url!r}")
    place = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
    return ObjectBackend(
        place,
        Handles(
            reading=_open(place, {"timeout": REQUEST, "read_timeout": PIECE}, _retry(2, PIECE * 1.6)),
            writing=_open(place, {"timeout": REQUEST}, _retry(4, REQUEST)),
            once=_open(place, {"timeout": 2 * PIECE}, _retry(0, REQUEST)),
        ),
    )


def _open(place: str, client: ClientConfig, retry: RetryConfig) -> ObjectStore:
    # an endpoint says by its scheme whether it is encrypted, as for the clouds' own SDKs
    options: ClientConfig = {"connect_timeout": CONNECT, "allow_http": True, **client}
    try:
        return STORES[urlsplit(place).scheme].from_url(place, client_options=options, retry_config=retry)
    except BaseError as error:
        why = str(error).partition("\n")[0]
        raise InvalidStoreUrl(f"{place} cannot be opened: {why}; see the variables of its SDK") from None


def _retry(tries: int, limit: timedelta) -> RetryConfig:
    return {
        "max_retries": tries,
        "retry_timeout": limit,
        "backoff": {
            "init_backoff": timedelta(milliseconds=100),
            "max_backoff": timedelta(seconds=2),
            "base": 2,
        },
    }

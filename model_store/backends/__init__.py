"""Kinds of storage for a model store. To add one, write ``backends/<name>.py`` and a row in ``BACKENDS``."""

from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from model_store.backends.backend import CARD, Backend, KeyNotFound, TreeExists
from model_store.backends.file import FileBackend
from model_store.backends.memory import MemoryBackend
from model_store.errors import InvalidStoreUrl


def open_backend(url: str) -> Backend:
    """The storage behind ``url``: ``file:/folder``, ``s3://bucket/prefix``, ``memory:``, or a plain path.

    Raises:
        InvalidStoreUrl: a scheme without a backend, or a URL or settings that name no place.
    """
    scheme = scheme_of(url)
    if scheme is None:
        return _open_folder(url)
    if scheme in BACKENDS:
        return BACKENDS[scheme](url)
    known = ", ".join(f"{name}:" for name in BACKENDS)
    # the rest of it is not repeated: there may be a password in it
    raise InvalidStoreUrl(f"expected a store in {known} or a plain path, got one in {scheme}:")


def scheme_of(url: str) -> str | None:
    """What stands before the colon; None for a plain path."""
    scheme, colon, _ = url.partition(":")
    return scheme if colon and "/" not in scheme else None


def _open_file(url: str) -> Backend:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path or parts.query or parts.fragment:
        raise InvalidStoreUrl(f"expected a folder as file:/absolute/path or file:relative/path, got {url!r}")
    return _open_folder(unquote(parts.path))


def _open_folder(path: str) -> Backend:
    if not path:
        raise InvalidStoreUrl("expected a store as file:/folder, memory: or a plain path, got an empty text")
    return FileBackend(Path(path).expanduser().absolute())


def _open_memory(url: str) -> Backend:
    if url != "memory:":
        raise InvalidStoreUrl(
            f"expected memory: with nothing behind it, got {url!r}; every memory store is a new one"
        )
    return MemoryBackend()


def _open_bucket(url: str) -> Backend:
    try:
        # imported here: who keeps versions in a folder need not have it
        from model_store.backends.buckets import open_bucket
    except ModuleNotFoundError as error:
        if error.name != "obstore":
            raise
        raise InvalidStoreUrl(
            'a store in an object store needs the package obstore: `pip install "mno[object-store]"`'
        ) from None
    return open_bucket(url)


# those that a network lies before: what is read of them is worth keeping
REMOTE: Mapping[str, Callable[[str], Backend]] = {
    "s3": _open_bucket,
    "gs": _open_bucket,
    "az": _open_bucket,
}
BACKENDS: Mapping[str, Callable[[str], Backend]] = {"file": _open_file, "memory": _open_memory, **REMOTE}

__all__ = [
    "BACKENDS",
    "CARD",
    "REMOTE",
    "Backend",
    "FileBackend",
    "KeyNotFound",
    "MemoryBackend",
    "TreeExists",
    "open_backend",
    "scheme_of",
]

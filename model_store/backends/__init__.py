"""Kinds of storage for a model store. To add one, write ``backends/<name>.py`` and a row in ``BACKENDS``."""

from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from model_store.backends.backend import Backend, KeyNotFound, TreeExists
from model_store.backends.file import FileBackend
from model_store.backends.memory import MemoryBackend
from model_store.errors import InvalidStoreUrl

# schemes of object stores: the layout suits them, the backend is not written yet
_LATER = ("s3", "gs", "az")


def open_backend(url: str) -> Backend:
    """The storage behind ``url``: ``file:/folder``, ``memory:``, or a plain path.

    Raises:
        InvalidStoreUrl: a scheme without a backend.
    """
    scheme, colon, _ = url.partition(":")
    if not colon or "/" in scheme:
        return _open_folder(url)
    if scheme in BACKENDS:
        return BACKENDS[scheme](url)
    known = ", ".join(f"{name}:" for name in BACKENDS)
    reason = "is not available yet" if scheme in _LATER else "is not known"
    raise InvalidStoreUrl(f"expected a store in {known} or a plain path, got {url!r}: {scheme}: {reason}")


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


BACKENDS: Mapping[str, Callable[[str], Backend]] = {"file": _open_file, "memory": _open_memory}

__all__ = ["BACKENDS", "Backend", "FileBackend", "KeyNotFound", "MemoryBackend", "TreeExists", "open_backend"]

"""Files in object stores, by their URLs: read in pieces, written whole.

Endpoint and credentials are the environment's, as for a model store: see ``model_store/backends/buckets.py``.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final, final
from urllib.parse import urlsplit

from bulk.engine import EngineUnavailable

if TYPE_CHECKING:
    from obstore.store import ObjectStore

__all__ = ["ObjectStoreFailed", "Place", "RemotePlace", "foreign_errors", "parse_place", "part_bytes"]

SCHEMES: Final = ("s3", "gs", "az")
# read at once, whatever was asked for: HDF5 asks for many small pieces that lie beside each other [B]
PIECE: Final = 2**20
# of an upload: as obstore has it, and so many that S3's limit of 10,000 is not reached [B]
LEAST_PART: Final = 5 * 2**20
MOST_PARTS: Final = 9000


class ObjectStoreFailed(OSError):
    """An object store refused, or did not answer."""


@final
@dataclass(frozen=True)
class RemotePlace:
    """An object, or all objects below it, such as ``s3://bucket/folder/fields.h5``."""

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of its path."""
        return PurePosixPath(urlsplit(self.url).path).name

    @property
    def suffix(self) -> str:
        """Of its name, with the dot."""
        return PurePosixPath(self.name).suffix

    def beside(self, name: str) -> RemotePlace:
        """The place of this name in the same folder."""
        return RemotePlace(f"{self.url.removesuffix(self.name)}{name}")

    def open_store(self) -> ObjectStore:
        """A store of what is below this place."""
        return _open(self.url)

    def open_file(self) -> io.BufferedReader:
        """The object, as a file that is read in pieces."""
        return io.BufferedReader(_Pieces(*self._object()), PIECE)

    def identify(self) -> list[tuple[str, int, str]]:
        """Name, size and version of the object, or of all objects below; empty where there is none."""
        folder, name = self._object()
        # after the store was opened, which says what to do where the package is missing
        import obstore

        with foreign_errors(self.url):
            found = [meta for page in obstore.list(folder, f"{name}/") for meta in page]
            with suppress(FileNotFoundError):
                found.append(obstore.head(folder, name))
        return sorted((meta["path"], meta["size"], meta["e_tag"] or "") for meta in found)

    def put(self, whole: Path) -> None:
        """Store a file, or a folder, of which ``zarr.json`` comes last: readers need it first."""
        folder, name = self._object()
        with foreign_errors(self.url):
            if whole.is_file():
                _put_file(folder, name, whole)
                return
            files = sorted(path for path in whole.rglob("*") if path.is_file())
            files.sort(key=lambda path: path == whole / "zarr.json")
            for path in files:
                _put_file(folder, f"{name}/{path.relative_to(whole).as_posix()}", path)

    def _object(self) -> tuple[ObjectStore, str]:
        return _open(self.url.removesuffix(self.name)), self.name


Place = Path | RemotePlace


def parse_place(text: str) -> Place:
    """A path, or the URL of an object.

    Raises:
        ValueError: a URL that names no object, or says more than where.
    """
    scheme, colon, rest = text.partition("://")
    if not colon:
        return Path(text)
    parts = urlsplit(text)
    if scheme not in SCHEMES or "@" in parts.netloc or not parts.netloc or parts.query or parts.fragment:
        # nothing of it is repeated: it may be a password
        raise ValueError("expected a path, or s3://bucket/key, gs://bucket/key or az://container/key, alone")
    place = RemotePlace(f"{scheme}://{rest.rstrip('/')}")
    if not place.name:
        raise ValueError(f"expected a key in the bucket, as in {place.url}/fields.h5, got {text!r}")
    return place


def part_bytes(size: int) -> int:
    """In what parts an object of this size is uploaded [B]."""
    return max(LEAST_PART, -(-size // MOST_PARTS))


def _put_file(folder: ObjectStore, name: str, path: Path) -> None:
    import obstore

    obstore.put(folder, name, path, chunk_size=part_bytes(path.stat().st_size))


def _open(url: str) -> ObjectStore:
    try:
        from obstore.exceptions import BaseError

        from model_store.backends.buckets import STORES
    except ModuleNotFoundError as error:
        message = f'{url} needs the package obstore: `pip install "mno[object-store]"`'
        raise EngineUnavailable(message) from error
    try:
        return STORES[urlsplit(url).scheme].from_url(
            url,
            # an endpoint says by its scheme whether it is encrypted, as for the clouds' own SDKs
            client_options={"allow_http": True, "timeout": timedelta(minutes=10)},
            retry_config={"max_retries": 6, "retry_timeout": timedelta(minutes=3)},
        )
    except BaseError as error:
        raise ObjectStoreFailed(f"{url} cannot be opened: {_line(error)}") from error


@contextmanager
def foreign_errors(url: str) -> Iterator[None]:
    """Raise what the library does as ``ObjectStoreFailed`` or ``FileNotFoundError``, in a line."""
    from obstore.exceptions import BaseError

    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{url}: nothing is stored there") from error
    except BaseError as error:
        raise ObjectStoreFailed(f"{url}: {_line(error)}; see the variables of its SDK") from error


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


@final
class _Pieces(io.RawIOBase):
    """An object, read where the position is."""

    def __init__(self, store: ObjectStore, name: str) -> None:
        import obstore

        self._store = store
        self._name = name
        self._at = 0
        with foreign_errors(name):
            self._size = obstore.head(store, name)["size"]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        import obstore

        view = memoryview(buffer).cast("B")
        stop = min(self._at + len(view), self._size)
        count = max(0, stop - self._at)
        if count:
            with foreign_errors(self._name):
                view[:count] = memoryview(
                    obstore.get_range(self._store, self._name, start=self._at, end=stop)
                )
        self._at += count
        return count

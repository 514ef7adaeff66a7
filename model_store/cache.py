"""What was read of a store behind a network, kept in a folder of this machine.

``files/HASH`` holds a version's file under the SHA-256 that its card gives it, so that a version of another
store, or of a bucket that was emptied and filled anew, is never mistaken for it. ``known/STORE/QUESTION`` has
the last answer where it may change (aliases) or has no hash (cards, lists of keys). Everything is verified as
it is read; what is damaged is as if it were not there. Files are written beside their places and renamed, so
that processes share the folder without locks.
"""

import contextlib
import hashlib
import logging
import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

__all__ = ["Cache", "CachePlace", "FolderCache", "NoCache", "open_cache"]

log = logging.getLogger("mno.model_store")

DIGEST: Final = hashlib.sha256().digest_size


@final
@dataclass(frozen=True)
class CachePlace:
    """A folder, and how many bytes of versions' files it may hold."""

    folder: Path
    limit: int


class Cache(ABC):
    """Keeps files of versions by their hashes, and last answers by their questions."""

    @abstractmethod
    def find(self, sha256: str) -> bytes | None:
        """The file with this hash, verified."""

    @abstractmethod
    def keep(self, sha256: str, data: bytes) -> None:
        """Have ``data``, whose hash this is, for the next time."""

    @abstractmethod
    def recall(self, store: str, question: str) -> bytes | None:
        """What was last remembered."""

    @abstractmethod
    def remember(self, store: str, question: str, answer: bytes) -> None:
        """Have the answer of the store at this URL for the time when it is away."""


@final
class NoCache(Cache):
    """Keeps nothing."""

    def find(self, sha256: str) -> None:  # noqa: ARG002
        return None

    def keep(self, sha256: str, data: bytes) -> None:
        pass

    def recall(self, store: str, question: str) -> None:  # noqa: ARG002
        return None

    def remember(self, store: str, question: str, answer: bytes) -> None:
        pass


@final
class FolderCache(Cache):
    """A folder; where it cannot be written, nothing is kept, and the log says so."""

    def __init__(self, place: CachePlace) -> None:
        self._files = place.folder / "files"
        self._known = place.folder / "known"
        self._limit = place.limit
        self._complained = False

    def find(self, sha256: str) -> bytes | None:
        path = self._files / sha256
        data = _read(path)
        if data is None:
            return None
        if hashlib.sha256(data).hexdigest() != sha256:
            log.warning("%s is damaged, and is fetched again", path)
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            # those that were not asked for longest go first
            os.utime(path)
        return data

    def keep(self, sha256: str, data: bytes) -> None:
        if len(data) <= self._limit:
            self._write(self._files / sha256, data)
            self._make_room(self._files / sha256)

    def recall(self, store: str, question: str) -> bytes | None:
        data = _read(self._place(store, question))
        if data is None or hashlib.sha256(data[DIGEST:]).digest() != data[:DIGEST]:
            return None
        return data[DIGEST:]

    def remember(self, store: str, question: str, answer: bytes) -> None:
        place, data = self._place(store, question), hashlib.sha256(answer).digest() + answer
        # whoever asks every few seconds mostly hears the same
        if _read(place) != data:
            self._write(place, data)

    def _place(self, store: str, question: str) -> Path:
        return self._known / _name(store) / _name(question)

    def _write(self, path: Path, data: bytes) -> None:
        beside = path.with_name(f".{uuid.uuid4().hex}")
        try:
            # others on this machine could put other aliases there
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                beside.write_bytes(data)
                beside.replace(path)
            finally:
                beside.unlink(missing_ok=True)
        except OSError as error:
            # whoever asks every few seconds says so once
            log.log(logging.DEBUG if self._complained else logging.WARNING, "%s is not kept: %s", path, error)
            self._complained = True

    def _make_room(self, new: Path) -> None:
        oldest_first = sorted(_sizes(self._files))
        total = sum(size for _, size, _ in oldest_first)
        for _, size, path in oldest_first:
            if total <= self._limit:
                return
            if path != new:
                with contextlib.suppress(OSError):
                    path.unlink()
                total -= size


def open_cache(place: CachePlace | None) -> Cache:
    """What keeps things there; None: nothing is kept."""
    return NoCache() if place is None else FolderCache(place)


def _name(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _sizes(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """When files were last used, their sizes, and the files."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            # another process may take it away
            with contextlib.suppress(OSError):
                status = path.stat()
                yield status.st_mtime, status.st_size, path

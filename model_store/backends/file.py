"""A store's bytes in a folder of a POSIX file system.

Object-store libraries' local stores offer neither compare-and-set nor a promise that bytes are on the disk,
so this one is written here. A tree is built in a hidden staging folder, brought to the disk, and appears by
one rename, which the kernel refuses where the target is there. A process that dies leaves at most a folder in
staging.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import final
from urllib.parse import quote

from model_store.backends.backend import CARD, Backend, KeyNotFound, TreeExists, checked_key, checked_tree

# hidden, so that it is no key; inside the root, so that a rename stays within one file system
PRIVATE = ".mno"


@final
class FileBackend(Backend):
    """A folder; reading never creates or changes anything in it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._staging = root / PRIVATE / "staging"

    @property
    def url(self) -> str:
        return f"file:{quote(str(self._root))}"

    @property
    def stale(self) -> str | None:
        return None

    def get(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise KeyNotFound(f"nothing is stored under {key} in {self.url}") from None

    def keys(self, prefix: str) -> list[str]:
        start = self._path(prefix) if prefix else self._root
        return sorted(path.relative_to(self._root).as_posix() for path in _visible_files(start))

    def create_tree(self, prefix: str, files: Mapping[str, bytes], last: str = CARD) -> None:
        target = self._path(prefix)
        with self._staging_folder() as folder:
            # the rename makes all files visible at once, so ``last`` needs no turn of its own
            for name, data in checked_tree(files, last).items():
                _write(folder / name, data, mode=0o444)
            _sync(folder)
            _make_folder(target.parent)
            _rename_to_new(folder, target)
            _sync(target.parent)

    def compare_and_set(self, key: str, old: bytes | None, new: bytes) -> bool:
        path = self._path(key)
        with self._locked("compare-and-set", fcntl.LOCK_EX), self._staging_folder() as folder:
            if (path.read_bytes() if path.exists() else None) != old:
                return False
            _make_folder(path.parent)
            _write(folder / path.name, new, mode=0o644)
            (folder / path.name).replace(path)
            _sync(path.parent)
            return True

    def delete(self, prefix: str) -> None:
        path = self._path(prefix)
        if path.is_dir():
            # moved away first: a reader sees the whole tree or none of it
            with self._staging_folder() as folder, contextlib.suppress(FileNotFoundError):
                path.rename(folder / path.name)
        else:
            path.unlink(missing_ok=True)

    def sweep(self) -> list[str]:
        if not self._staging.is_dir():
            return []
        # writers share the lock until they are done, and the kernel takes it from those that died
        with self._locked("staging", fcntl.LOCK_EX):
            leftovers = sorted(self._staging.iterdir())
            for leftover in leftovers:
                shutil.rmtree(leftover)
        return [leftover.relative_to(self._root).as_posix() for leftover in leftovers]

    def unfinished(self) -> set[str]:
        # a tree appears in one step
        return set()

    def require_atomic_writes(self) -> None:
        """The kernel sees to that."""

    def _path(self, key: str) -> Path:
        return self._root / checked_key(key)

    @contextlib.contextmanager
    def _staging_folder(self) -> Iterator[Path]:
        """A new hidden folder that ``sweep`` leaves alone as long as this process lives and works on it."""
        with self._locked("staging", fcntl.LOCK_SH):
            folder = self._staging / uuid.uuid4().hex
            folder.mkdir(parents=True)
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def _locked(self, name: str, mode: int) -> Iterator[None]:
        _make_folder(self._root / PRIVATE)
        with (self._root / PRIVATE / f"{name}.lock").open("a") as lock:
            fcntl.flock(lock, mode)
            yield


def _visible_files(start: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(start):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def _write(path: Path, data: bytes, mode: int) -> None:
    with path.open("xb") as file:
        file.write(data)
        os.fchmod(file.fileno(), mode)
        file.flush()
        os.fsync(file.fileno())


def _rename_to_new(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise TreeExists(f"{target} is already there") from None
        raise


def _make_folder(path: Path) -> None:
    """``mkdir -p``, with the new entries on the disk."""
    if not path.is_dir():
        _make_folder(path.parent)
        path.mkdir(exist_ok=True)
        _sync(path.parent)


def _sync(folder: Path) -> None:
    """Bring the entries of ``folder`` to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

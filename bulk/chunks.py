"""Results that wait until all are there: each is whole or absent, under the hash of its job and its number.

They wait beside the output, in the folder ``OUTPUT.partial`` or under that name in the same bucket::

    recipe.json                    what the results depend on, and nothing else
    0123456789abcdef-00000017.npz  the result of chunk 17 of the job with this hash

Only one command may work on an output at a time. On one machine a lock on the folder sees to that. In a
bucket nothing does: two with one recipe write the same bytes twice, and the first to end removes them.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from bulk.objects import ObjectStoreFailed, Place, RemotePlace, foreign_errors

__all__ = ["Arrays", "Chunks", "OtherJob", "open_chunks", "publish"]

Arrays = Mapping[str, NDArray[Any]]

RECIPE: Final = "recipe.json"


class OtherJob(RuntimeError):
    """What waits there is another job's."""


class Chunks(ABC):
    """The results of one job, by the numbers of its chunks."""

    def __init__(self, recipe: str) -> None:
        """``recipe``: all that the results depend on, as one text."""
        self._prefix = f"{hashlib.sha256(recipe.encode()).hexdigest()[:16]}-"

    @property
    @abstractmethod
    def shared(self) -> bool:
        """Whether workers on other machines reach it too."""

    @abstractmethod
    def done(self) -> frozenset[int]:
        """The numbers of those that are there."""

    @abstractmethod
    def put(self, number: int, arrays: Arrays) -> None:
        """Store a result; one that is there is replaced by its equal."""

    @abstractmethod
    def get(self, number: int) -> Arrays:
        """A result."""

    @abstractmethod
    def workspace(self) -> Any:
        """A context: a folder of this machine for the whole output."""

    @abstractmethod
    def remove(self) -> None:
        """Remove all results of this job, when the output is in its place."""

    def _name(self, number: int) -> str:
        return f"{self._prefix}{number:08d}.npz"

    def _numbers(self, names: Iterator[str]) -> frozenset[int]:
        own = (name for name in names if name.startswith(self._prefix) and name.endswith(".npz"))
        return frozenset(int(name.removeprefix(self._prefix).removesuffix(".npz")) for name in own)


@final
class FolderChunks(Chunks):
    """A folder of this machine."""

    def __init__(self, folder: Path, recipe: str) -> None:
        super().__init__(recipe)
        self._folder = folder

    @property
    def shared(self) -> bool:
        return False

    def done(self) -> frozenset[int]:
        return self._numbers(path.name for path in self._folder.iterdir())

    def put(self, number: int, arrays: Arrays) -> None:
        _write_whole(self._folder / self._name(number), _packed(arrays))

    def get(self, number: int) -> Arrays:
        return _unpacked((self._folder / self._name(number)).read_bytes())

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        yield self._folder

    def remove(self) -> None:
        shutil.rmtree(self._folder)


@final
class BucketChunks(Chunks):
    """A place in an object store, which makes an object whole or not at all."""

    def __init__(self, place: RemotePlace, recipe: str) -> None:
        super().__init__(recipe)
        self._place = place

    @property
    def shared(self) -> bool:
        return True

    def done(self) -> frozenset[int]:
        return self._numbers(Path(name).name for name, _, _ in self._place.identify())

    def put(self, number: int, arrays: Arrays) -> None:
        store = self._place.open_store()
        # after the store was opened, which says what to do where the package is missing
        import obstore

        with foreign_errors(self._place.url):
            obstore.put(store, self._name(number), _packed(arrays))

    def get(self, number: int) -> Arrays:
        store = self._place.open_store()
        import obstore

        with foreign_errors(self._place.url):
            found = obstore.get(store, self._name(number))
            return _unpacked(bytes(found.bytes()))

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="mno-") as folder:
            yield Path(folder)

    def remove(self) -> None:
        names = [Path(name).name for name, _, _ in self._place.identify()]
        own = [name for name in names if name.startswith(self._prefix) or name == RECIPE]
        store = self._place.open_store()
        import obstore

        with foreign_errors(self._place.url):
            # the recipe last: as long as it is there the rest is known to be this job's
            for name in sorted(own, key=lambda name: name == RECIPE):
                obstore.delete(store, name)


@contextmanager
def open_chunks(output: Place, recipe: Mapping[str, Any]) -> Iterator[Chunks]:
    """Continue with the results of a job, or begin.

    Only one command may work on an output at a time; in a bucket nothing sees to that.

    Raises:
        EngineUnavailable: they are in an object store, and the package for it is missing.
        OtherJob: those of a job with another recipe wait there, or another process works there.
    """
    text = json.dumps(recipe, sort_keys=True)
    if isinstance(output, RemotePlace):
        place = output.beside(f"{output.name}.partial")
        _begin_in_bucket(place, text)
        yield BucketChunks(place, text)
        return
    folder = output.with_name(f"{output.name}.partial")
    folder.mkdir(exist_ok=True)
    lock = _locked(folder)
    try:
        _begin_in_folder(folder, text)
        yield FolderChunks(folder, text)
    finally:
        os.close(lock)


def publish(whole: Path, output: Place) -> None:
    """Put the whole output into its place; when it is there no crash of the machine takes it away."""
    if isinstance(output, RemotePlace):
        output.put(whole)
        return
    for path in (whole, *whole.rglob("*")):
        _sync(path)
    if output.is_dir():
        # a folder cannot be replaced by one rename; what is there goes with the workspace
        replaced = whole.with_name("replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        output.rename(replaced)
    whole.replace(output)
    _sync(output.parent)


def _begin_in_folder(folder: Path, recipe: str) -> None:
    known = folder / RECIPE
    if known.is_file() and known.read_text() != recipe and any(folder.glob("*.npz")):
        raise _other(folder)
    if not known.is_file() or known.read_text() != recipe:
        _write_whole(known, recipe.encode())


def _begin_in_bucket(place: RemotePlace, recipe: str) -> None:
    store = place.open_store()
    import obstore
    from obstore.exceptions import AlreadyExistsError

    try:
        with foreign_errors(place.url):
            obstore.put(store, RECIPE, recipe.encode(), mode="create")
    except ObjectStoreFailed as error:
        if not isinstance(error.__cause__, AlreadyExistsError):
            raise
        with foreign_errors(place.url):
            found = bytes(obstore.get(store, RECIPE).bytes())
        if found == recipe.encode():
            return
        if len(place.identify()) > 1:
            raise _other(place) from None
        with foreign_errors(place.url):
            obstore.put(store, RECIPE, recipe.encode())


def _other(where: Place) -> OtherJob:
    return OtherJob(f"{where} was begun for another input, version or option; remove it to begin anew")


def _locked(folder: Path) -> int:
    """The open folder, locked until it is closed."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        message = f"{folder}: another process writes this output; wait for it, or choose another output"
        raise OtherJob(message) from error
    return descriptor


def _packed(arrays: Arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def _unpacked(data: bytes) -> Arrays:
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return dict(archive)


def _write_whole(path: Path, data: bytes) -> None:
    new = path.with_name(f".{path.name}.new")
    with new.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Have the disk hold the content of a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""The byte interface that every kind of storage offers to a model store."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from model_store.errors import StoreError

# the file by which readers know a whole tree
CARD = "card.json"


class KeyNotFound(StoreError, LookupError):
    """Nothing is stored under this key."""


class TreeExists(StoreError):
    """Something is already stored below this prefix."""


class Backend(ABC):
    """Bytes by key. Keys are paths with ``/``; a *prefix* is a key's leading segments, ``""`` is all.

    Segments never begin with a dot: a backend may keep its own affairs in hidden places.
    """

    @property
    @abstractmethod
    def url(self) -> str:
        """What opens this backend again."""

    @property
    @abstractmethod
    def stale(self) -> str | None:
        """Why the answers given now may be older than the store; None: they are not."""

    @abstractmethod
    def get(self, key: str) -> bytes:
        """The bytes under ``key``.

        Raises:
            KeyNotFound: there are none.
        """

    @abstractmethod
    def keys(self, prefix: str) -> list[str]:
        """All keys below ``prefix``, sorted; empty when there are none."""

    @abstractmethod
    def create_tree(self, prefix: str, files: Mapping[str, bytes], last: str = CARD) -> None:
        """Store ``files`` (name -> bytes) below ``prefix``, all of them or none, lasting once this returns.

        Args:
            prefix: where; nothing may be there yet.
            files: at least ``last``.
            last: the file by which readers know a whole tree; never visible before the others.

        Raises:
            TreeExists: something is there; it is left as it was.
        """

    @abstractmethod
    def compare_and_set(self, key: str, old: bytes | None, new: bytes) -> bool:
        """Replace ``old`` (None: no such key) by ``new`` in one step; False when something else is there."""

    @abstractmethod
    def delete(self, prefix: str) -> None:
        """Remove the key or everything below the prefix; nothing there is no error."""

    @abstractmethod
    def sweep(self) -> list[str]:
        """Remove what interrupted writers left behind, not what running ones need; names what was removed."""

    @abstractmethod
    def unfinished(self) -> set[str]:
        """Prefixes whose trees may be half there although nobody was interrupted: leave them alone."""

    @abstractmethod
    def require_atomic_writes(self) -> None:
        """Make sure that two writers cannot overwrite each other.

        Raises:
            UnsafeStore: they could.
            AccessRefused: nothing can be written here at all.
        """


def checked_key(key: str) -> str:
    """``key``, if it is a relative path of visible segments: no caller may leave the store's root."""
    segments = key.split("/")
    if any(
        not segment or segment.startswith(".") or "\\" in segment or "\0" in segment for segment in segments
    ):
        raise ValueError(
            f"expected a key of visible segments such as darcy/versions/1/card.json, got {key!r}"
        )
    return key


def checked_tree(files: Mapping[str, bytes], last: str) -> Mapping[str, bytes]:
    """``files``, if they can be a tree: flat visible names, ``last`` among them."""
    for name in files:
        if "/" in checked_key(name):
            raise ValueError(f"expected flat file names, got {name!r}")
    if last not in files:
        raise ValueError(f"expected {last} among the files, got {sorted(files)}")
    return files


def checked_prefix(prefix: str) -> str:
    """``prefix``, if it is empty or a key."""
    return checked_key(prefix) if prefix else prefix

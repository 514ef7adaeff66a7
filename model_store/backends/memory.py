"""A store's bytes in this process's memory: for tests, and for trying things out."""

import threading
from collections.abc import Mapping
from typing import final

from model_store.backends.backend import CARD, Backend, KeyNotFound, TreeExists, checked_key, checked_tree


@final
class MemoryBackend(Backend):
    """A locked dictionary; every instance is a store of its own."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return "memory:"

    @property
    def stale(self) -> str | None:
        return None

    def get(self, key: str) -> bytes:
        with self._lock:
            try:
                return self._values[checked_key(key)]
            except KeyError:
                raise KeyNotFound(f"nothing is stored under {key}") from None

    def keys(self, prefix: str) -> list[str]:
        with self._lock:
            return self._below(prefix)

    def create_tree(self, prefix: str, files: Mapping[str, bytes], last: str = CARD) -> None:
        tree = {
            f"{checked_key(prefix)}/{name}": bytes(data) for name, data in checked_tree(files, last).items()
        }
        with self._lock:
            if self._below(prefix):
                raise TreeExists(f"{prefix} is already there")
            self._values.update(tree)

    def compare_and_set(self, key: str, old: bytes | None, new: bytes) -> bool:
        with self._lock:
            if self._values.get(checked_key(key)) != old:
                return False
            self._values[key] = bytes(new)
            return True

    def delete(self, prefix: str) -> None:
        with self._lock:
            for key in [checked_key(prefix), *self._below(prefix)]:
                self._values.pop(key, None)

    def sweep(self) -> list[str]:
        return []

    def unfinished(self) -> set[str]:
        # a tree appears in one step
        return set()

    def require_atomic_writes(self) -> None:
        """The lock sees to that."""

    def _below(self, prefix: str) -> list[str]:
        return sorted(key for key in self._values if not prefix or key.startswith(f"{checked_key(prefix)}/"))

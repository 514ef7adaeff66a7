"""A backend behind a network, which is remembered for the time when that is down."""

import json
import time
from collections.abc import Callable, Mapping
from typing import Final, final

from model_store.backends.backend import CARD, Backend, KeyNotFound
from model_store.cache import Cache
from model_store.errors import StoreUnreachable

__all__ = ["RememberingBackend"]

# whoever has just waited in vain does not wait for the next answer too [s]
PAUSE: Final = 2.0
# cards, aliases and lists of keys are smaller [B]
LARGEST: Final = 8 * 2**20
ABSENT: Final = b"absent"
PRESENT: Final = b"present\n"


@final
class RememberingBackend(Backend):
    """Answers for another backend with what that said last, where it does not answer by itself.

    Writing needs the other backend.
    """

    def __init__(self, backend: Backend, cache: Cache) -> None:
        self._backend = backend
        self._cache = cache
        self._stale: str | None = None
        self._failure = ""
        self._asks_again = 0.0

    @property
    def url(self) -> str:
        return self._backend.url

    @property
    def stale(self) -> str | None:
        return self._stale

    def get(self, key: str) -> bytes:
        if _has_hash(key):
            return self._asked(lambda: self._backend.get(key))
        answer = self._answer(f"get {key}", lambda: self._get(key))
        if answer == ABSENT:
            raise KeyNotFound(f"nothing is stored under {key} in {self.url}")
        return answer.removeprefix(PRESENT)

    def keys(self, prefix: str) -> list[str]:
        found: list[str] = json.loads(
            self._answer(f"keys {prefix}", lambda: json.dumps(self._backend.keys(prefix)).encode())
        )
        return found

    def create_tree(self, prefix: str, files: Mapping[str, bytes], last: str = CARD) -> None:
        self._backend.create_tree(prefix, files, last)

    def compare_and_set(self, key: str, old: bytes | None, new: bytes) -> bool:
        return self._backend.compare_and_set(key, old, new)

    def delete(self, prefix: str) -> None:
        self._backend.delete(prefix)

    def sweep(self) -> list[str]:
        return self._backend.sweep()

    def unfinished(self) -> set[str]:
        return self._backend.unfinished()

    def require_atomic_writes(self) -> None:
        self._backend.require_atomic_writes()

    def _get(self, key: str) -> bytes:
        try:
            return PRESENT + self._backend.get(key)
        except KeyNotFound:
            return ABSENT

    def _answer(self, question: str, ask: Callable[[], bytes]) -> bytes:
        try:
            answer = self._asked(ask)
        except StoreUnreachable:
            known = self._cache.recall(self.url, question)
            if known is None:
                raise
            return known
        if len(answer) <= LARGEST:
            self._cache.remember(self.url, question, answer)
        return answer

    def _asked(self, ask: Callable[[], bytes]) -> bytes:
        if time.monotonic() < self._asks_again:
            raise StoreUnreachable(self._failure)
        try:
            answer = ask()
        except StoreUnreachable as error:
            self._failure = str(error)
            self._stale = f"versions and aliases are the last known ones: {error}"
            self._asks_again = time.monotonic() + PAUSE
            raise
        self._stale = None
        return answer


def _has_hash(key: str) -> bool:
    """Whether it is a version's file: the cache keeps those by the hashes in their cards, up to its limit."""
    return "/versions/" in key and not key.endswith(f"/{CARD}")

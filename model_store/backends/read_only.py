"""A backend that can be read and not changed: the built-in models inside the package."""

from collections.abc import Mapping
from typing import NoReturn, final

from model_store.backends.backend import CARD, Backend
from model_store.errors import ReadOnlyStore


@final
class ReadOnlyBackend(Backend):
    """Passes reading on to another backend and refuses the rest."""

    def __init__(self, backend: Backend, url: str) -> None:
        self._backend = backend
        self._url = url

    @property
    def url(self) -> str:
        return self._url

    @property
    def stale(self) -> str | None:
        return self._backend.stale

    def get(self, key: str) -> bytes:
        return self._backend.get(key)

    def keys(self, prefix: str) -> list[str]:
        return self._backend.keys(prefix)

    def create_tree(self, prefix: str, files: Mapping[str, bytes], last: str = CARD) -> None:  # noqa: ARG002
        self._refuse()

    def compare_and_set(self, key: str, old: bytes | None, new: bytes) -> bool:  # noqa: ARG002
        self._refuse()

    def delete(self, prefix: str) -> None:  # noqa: ARG002
        self._refuse()

    def sweep(self) -> list[str]:
        self._refuse()

    def unfinished(self) -> set[str]:
        return self._backend.unfinished()

    def require_atomic_writes(self) -> None:
        """Nobody writes."""

    def _refuse(self) -> NoReturn:
        raise ReadOnlyStore(
            f"{self._url} cannot be changed; name a store of your own, such as --store file:./store"
        )

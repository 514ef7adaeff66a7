"""Several stores seen as one: a user's store over the built-in models."""

from collections.abc import Sequence
from typing import final

from model_store.alias import AliasTarget
from model_store.cache import CachePlace
from model_store.card import Card
from model_store.errors import UnknownModel
from model_store.reference import Reference, Selector
from model_store.store import LoadedVersion, Store, builtin_store, open_kept_store


@final
class Catalog:
    """Stores in the order they are asked.

    A model of an earlier store hides the one of the same name in a later store whole: numbers of versions in
    different stores have nothing to do with each other.
    """

    def __init__(self, stores: Sequence[Store]) -> None:
        self.stores = tuple(stores)

    @property
    def stale(self) -> tuple[str, ...]:
        """Why what is told now may be older than the stores; empty: it is not."""
        return tuple(why for store in self.stores if (why := store.stale) is not None)

    def models(self) -> list[str]:
        """Names in any of the stores."""
        return sorted({name for store in self.stores for name in store.models()})

    def store_of(self, name: str) -> Store:
        """The first store that has the model.

        Raises:
            UnknownModel: none has.
        """
        for store in self.stores:
            if store.versions(name):
                return store
        raise UnknownModel(f"expected one of the models {self.models()}, got {name!r}")

    def versions(self, name: str) -> list[int]:
        """See ``Store.versions``; an unknown name is an error here."""
        return self.store_of(name).versions(name)

    def aliases(self, name: str) -> dict[str, int]:
        """See ``Store.aliases``; an unknown name is an error here."""
        return self.store_of(name).aliases(name)

    def targets(self, name: str) -> dict[str, AliasTarget]:
        """See ``Store.targets``; an unknown name is an error here."""
        return self.store_of(name).targets(name)

    def resolve(self, wanted: str | Selector | Reference) -> Reference:
        """See ``Store.resolve``."""
        selector = wanted if isinstance(wanted, Selector) else Selector.parse(str(wanted))
        return self.store_of(selector.name).resolve(selector)

    def card(self, name: str, version: int) -> Card:
        """See ``Store.card``."""
        return self.store_of(name).card(name, version)

    def load(self, name: str, version: int) -> LoadedVersion:
        """See ``Store.load``."""
        return self.store_of(name).load(name, version)


def open_catalog(url: str | None, kept: CachePlace | None = None) -> Catalog:
    """The user's store at ``url``, if any, over the built-in models.

    Args:
        url: of the user's store.
        kept: where to keep what is read of a store behind a network; None: nowhere.
    """
    return Catalog([*([open_kept_store(url, kept)] if url else []), builtin_store()])

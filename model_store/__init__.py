"""Published versions of surrogates: numbered, immutable, verified on loading."""

from model_store.card import Card, FieldRecord, FileRecord
from model_store.catalog import Catalog, open_catalog
from model_store.errors import (
    AliasMoved,
    CorruptStore,
    CorruptVersion,
    InvalidReference,
    InvalidStoreUrl,
    ReadOnlyStore,
    RefusedVersion,
    StoreError,
    UnknownModel,
    UnknownVersion,
)
from model_store.reference import Reference, Selector
from model_store.store import LoadedVersion, Store, builtin_store, open_store

__all__ = [
    "AliasMoved",
    "Card",
    "Catalog",
    "CorruptStore",
    "CorruptVersion",
    "FieldRecord",
    "FileRecord",
    "InvalidReference",
    "InvalidStoreUrl",
    "LoadedVersion",
    "ReadOnlyStore",
    "Reference",
    "RefusedVersion",
    "Selector",
    "Store",
    "StoreError",
    "UnknownModel",
    "UnknownVersion",
    "builtin_store",
    "open_catalog",
    "open_store",
]

"""Published versions of surrogates: numbered, immutable, verified on loading.

What is named here is imported when it is first used: a process that only speaks of versions, as the front of
the service does, asks for a ``Reference`` and does not load PyTorch for it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model_store.calibration import CALIBRATION, Calibration, FeatureSpace, Origin
    from model_store.card import Card, FieldRecord, FileRecord
    from model_store.catalog import Catalog, open_catalog
    from model_store.errors import (
        AccessRefused,
        AliasMoved,
        CorruptStore,
        CorruptVersion,
        InvalidReference,
        InvalidStoreUrl,
        ReadOnlyStore,
        RefusedVersion,
        StoreError,
        StoreUnreachable,
        UnknownModel,
        UnknownVersion,
        UnsafeStore,
    )
    from model_store.reference import Reference, Selector
    from model_store.store import LoadedVersion, Store, builtin_store, open_store

__all__ = [
    "CALIBRATION",
    "AccessRefused",
    "AliasMoved",
    "Calibration",
    "Card",
    "Catalog",
    "CorruptStore",
    "CorruptVersion",
    "FeatureSpace",
    "FieldRecord",
    "FileRecord",
    "InvalidReference",
    "InvalidStoreUrl",
    "LoadedVersion",
    "Origin",
    "ReadOnlyStore",
    "Reference",
    "RefusedVersion",
    "Selector",
    "Store",
    "StoreError",
    "StoreUnreachable",
    "UnknownModel",
    "UnknownVersion",
    "UnsafeStore",
    "builtin_store",
    "open_catalog",
    "open_store",
]

_MODULES = ("errors", "reference", "calibration", "card", "catalog", "store")


def __getattr__(name: str) -> Any:
    if name in __all__:
        # the light ones first
        for module in map(importlib.import_module, (f"{__name__}.{module}" for module in _MODULES)):
            if name in vars(module):
                globals()[name] = vars(module)[name]
                return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

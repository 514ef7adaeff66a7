"""Buckets that are folders: what is stored and listed is real, the network is not."""

from pathlib import Path
from typing import Any, cast, final

import pytest
from obstore.store import LocalStore

from model_store.backends import buckets


@final
class _Folders:
    """Opens ``s3://bucket/key`` as the folder ``bucket/key`` below a root."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def from_url(self, url: str, **_: Any) -> LocalStore:
        return LocalStore(self._root / url.removeprefix("s3://"), mkdir=True)


def keep_in(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Have this process take the folders of ``root`` for the buckets of S3, until the patch is undone."""
    patch.setitem(cast(dict[str, Any], buckets.STORES), "s3", _Folders(root))

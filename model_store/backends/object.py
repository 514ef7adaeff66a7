"""A store's bytes in an object store (S3, Google Cloud Storage, Azure), or in the memory of one.

Object stores replace one object in one step and no more than one, so a tree is published by one object::

    .mno/staging/WRITER/FILE      1. the files of a writer, under a name that nobody else has
    .mno/claims/PREFIX            2. created if it is not there: from now on the tree below PREFIX is this one
    PREFIX/FILE ...               3. copies of the files, made by the store itself
    PREFIX/card.json              4. the last of them: readers see the tree

Whoever creates the claim has won; from then on all that anybody writes below that prefix are copies of the
same files. A writer that dies before the claim leaves its staging, which is removed when it is old. One that
dies after it leaves a tree that the next writer, or ``sweep``, finishes: no number is blocked, and none is
left out. Claims stay: they are what says that a number is taken.

Conditional writes are not repeated blindly. Each carries its writer's name as metadata: where an answer got
lost, a look at the object says whose it is. Sources: the semantics of ``If-None-Match`` and ``If-Match``, RFC
9110, sections 13.1.1 and 13.1.2.
"""

from __future__ import annotations

import contextlib
import logging
import random
import re
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, Self, cast, final

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from pydantic import BaseModel, ConfigDict

from model_store.backends.backend import (
    CARD,
    Backend,
    KeyNotFound,
    TreeExists,
    checked_key,
    checked_prefix,
    checked_tree,
)
from model_store.errors import (
    AccessRefused,
    CorruptStore,
    InvalidStoreUrl,
    StoreError,
    StoreUnreachable,
    UnsafeStore,
)

if TYPE_CHECKING:
    from obstore.store import ObjectStore

__all__ = ["Handles", "ObjectBackend"]

log = logging.getLogger("mno.model_store")

STAGING: Final = ".mno/staging"
CLAIMS: Final = ".mno/claims"
PROBES: Final = ".mno/probes"
# what a writer may still need is younger than this
LEFT_ALONE: Final = timedelta(days=1)
# larger files are sent in parts, of which some may stay behind, unseen, if the writer dies [B]
ONE_PIECE: Final = 2**30
# tries of a conditional write whose outcome is not known, and the pause after the first [s]
TRIES: Final = 5
FIRST_PAUSE: Final = 0.1
WRITER: Final = "mno-writer"


@final
@dataclass(frozen=True)
class Handles:
    """Three ways to one place, which differ in how long they wait and how often they try.

    Attributes:
        reading: gives up soon, since somebody waits.
        writing: has time for long bodies; whatever it does may be done twice.
        once: tries once: after a lost answer a second try could not tell its own object from another's.
    """

    reading: ObjectStore
    writing: ObjectStore
    once: ObjectStore

    @classmethod
    def all_of(cls, store: ObjectStore) -> Self:
        """One that has no network to wait for."""
        return cls(store, store, store)


@final
class _Claim(BaseModel):
    """Says which tree is the one below a prefix.

    Attributes:
        writer: whose staging it is copied from.
        files: names.
        last: the one among them that is copied last.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    writer: str
    files: tuple[str, ...]
    last: str


@final
@dataclass(frozen=True)
class _Found:
    data: bytes
    version: obstore.UpdateVersion
    writer: str | None
    modified: datetime


@final
class ObjectBackend(Backend):
    """An object store that honors conditional writes; the first write makes sure that it does."""

    def __init__(self, url: str, handles: Handles, left_alone: timedelta = LEFT_ALONE) -> None:
        """Nothing is asked yet.

        Args:
            url: what opens this backend again.
            handles: the place.
            left_alone: ``sweep`` removes nothing younger.
        """
        self._url = url
        self._handles = handles
        self._left_alone = left_alone
        self._probing = threading.Lock()
        self._is_safe = False

    @property
    def url(self) -> str:
        return self._url

    @property
    def stale(self) -> str | None:
        return None

    def get(self, key: str) -> bytes:
        found = self._find(checked_key(key))
        if found is None:
            raise KeyNotFound(f"nothing is stored under {key} in {self._url}")
        return found.data

    def keys(self, prefix: str) -> list[str]:
        return [key for key in self._all_keys(checked_prefix(prefix)) if not key.startswith(".")]

    def create_tree(self, prefix: str, files: Mapping[str, bytes], last: str = CARD) -> None:
        checked_key(prefix)
        claim = _Claim(writer=uuid.uuid4().hex, files=tuple(checked_tree(files, last)), last=last)
        self.require_atomic_writes()
        self._require_free(prefix)
        self._stage(claim, files)
        if self._create(f"{CLAIMS}/{prefix}", claim.model_dump_json().encode()):
            self._finish(prefix, claim)
        else:
            self._remove(_staged(claim))
            self._require_free(prefix)
            raise TreeExists(f"{prefix} of {self._url} is another writer's")

    def compare_and_set(self, key: str, old: bytes | None, new: bytes) -> bool:
        self.require_atomic_writes()
        found = self._find(checked_key(key))
        if (None if found is None else found.data) != old:
            return False
        return self._create(key, new) if found is None else self._replace(key, found, new)

    def delete(self, prefix: str) -> None:
        keys = self._all_keys(checked_key(prefix))
        if self._find(prefix) is not None:
            keys.append(prefix)
        # without its card it is no version any more
        cards = [key for key in keys if key.endswith(f"/{CARD}")]
        self._remove(cards)
        self._remove([key for key in keys if key not in cards])
        # as long as the claim is there nobody writes below this prefix
        claims = self._all_keys(f"{CLAIMS}/{prefix}")
        self._remove([*claims, *([] if self._find(f"{CLAIMS}/{prefix}") is None else [f"{CLAIMS}/{prefix}"])])

    def sweep(self) -> list[str]:
        hidden = self._objects(".mno")
        if not hidden:
            return []
        oldest = self._server_time() - self._left_alone
        taken = self._settle_claims(oldest)
        # the claims were read after the staging was listed: what was claimed in between is among them
        old = [
            key
            for key, modified in hidden
            if modified <= oldest and key.startswith((f"{STAGING}/", f"{PROBES}/"))
        ]
        leftovers = [key for key in old if key.split("/")[2] not in taken.writers]
        self._remove(leftovers)
        folders = dict.fromkeys("/".join(key.split("/")[:3]) for key in leftovers)
        return sorted([*folders, *taken.removed])

    def unfinished(self) -> set[str]:
        return {key.removeprefix(f"{CLAIMS}/") for key in self._all_keys(CLAIMS)}

    def require_atomic_writes(self) -> None:
        with self._probing:
            if not self._is_safe:
                self._probe()
                self._is_safe = True

    # --- trees

    def _require_free(self, prefix: str) -> None:
        """Finish what another writer began there.

        Raises:
            TreeExists: there is something.
        """
        # in this order: a writer's claim is older than its files
        keys = self._all_keys(prefix)
        claim = self._find_claim(prefix)
        if claim is not None and not self._finish(prefix, claim):
            log.warning("%s of %s was claimed by a writer whose files are gone", prefix, self._url)
        if keys or claim is not None:
            raise TreeExists(f"{prefix} of {self._url} is already there")

    def _stage(self, claim: _Claim, files: Mapping[str, bytes]) -> None:
        began = time.monotonic()
        for key, data in zip(_staged(claim), files.values(), strict=True):
            with self._foreign_errors():
                obstore.put(self._handles.writing, key, data, use_multipart=len(data) > ONE_PIECE)
        if self._left_alone and time.monotonic() - began > self._left_alone.total_seconds() / 2:
            # a sweep might take them for a dead writer's
            self._remove(_staged(claim))
            raise StoreUnreachable(
                f"{self._url} took more than {self._left_alone / 2} for {len(files)} files; publish again"
            )

    def _finish(self, prefix: str, claim: _Claim) -> bool:
        """Copy what is claimed to its place, whoever began; False: its files are gone."""
        last = f"{prefix}/{claim.last}"
        if self._find(last) is not None:
            return True
        if not self._copy(prefix, claim):
            # somebody else may have finished it, and cleared its staging away
            return self._find(last) is not None
        self._remove(_staged(claim))
        return True

    def _copy(self, prefix: str, claim: _Claim) -> bool:
        ordered = [name for name in claim.files if name != claim.last] + [claim.last]
        try:
            for name in ordered:
                with self._foreign_errors():
                    obstore.copy(
                        self._handles.writing, f"{STAGING}/{claim.writer}/{name}", f"{prefix}/{name}"
                    )
        except FileNotFoundError:
            return False
        return True

    def _find_claim(self, prefix: str) -> _Claim | None:
        key = f"{CLAIMS}/{prefix}"
        found = self._find(key)
        try:
            return None if found is None else _Claim.model_validate_json(found.data)
        except ValueError:
            raise CorruptStore(
                f"{key} of {self._url} is damaged: expected writer, files and last as JSON; "
                f"remove it if {prefix}/{CARD} is there"
            ) from None

    def _settle_claims(self, oldest: datetime) -> _Settled:
        """Finish what is claimed; what nobody can finish, and is not newer than ``oldest``, is removed."""
        claims = self._objects(CLAIMS)
        keys = set(self._all_keys(""))
        writers, removed = set[str](), list[str]()
        for key, modified in claims:
            prefix = key.removeprefix(f"{CLAIMS}/")
            if f"{prefix}/{CARD}" in keys or (claim := self._find_claim(prefix)) is None:
                continue
            if f"{prefix}/{claim.last}" in keys:
                continue
            if self._finish(prefix, claim):
                log.info("finished %s of %s, which another writer had begun", prefix, self._url)
            elif modified <= oldest:
                self.delete(prefix)
                removed.append(prefix)
            else:
                writers.add(claim.writer)
        return _Settled(frozenset(writers), tuple(removed))

    # --- conditional writes

    def _create(self, key: str, data: bytes) -> bool:
        """Store if nothing is there; whether this call did."""
        return self._write_if(key, data, "create", None)

    def _replace(self, key: str, found: _Found, data: bytes) -> bool:
        """Store if still the same is there; whether this call did."""
        return self._write_if(key, data, found.version, found)

    def _write_if(self, key: str, data: bytes, mode: obstore.PutMode, expected: _Found | None) -> bool:
        writer, is_known = uuid.uuid4().hex, True
        for pause in _pauses():
            try:
                with self._foreign_errors():
                    obstore.put(
                        self._handles.once,
                        key,
                        data,
                        mode=mode,
                        attributes={WRITER: writer},
                        use_multipart=False,
                    )
                return True
            except (AlreadyExistsError, PreconditionError, FileNotFoundError):
                found = self._find(key)
                if found is not None and found.writer == writer:
                    # an earlier try had arrived; only its answer had not
                    return True
                if not _is_same(found, expected):
                    return False
                # as it was: the store was busy with another's write that came to nothing
                is_known = True
            except StoreUnreachable:
                # it may have been stored: the next try tells
                is_known = False
            time.sleep(pause)
        if is_known:
            raise self._unsafe("refuses conditional writes whose condition holds")
        raise StoreUnreachable(
            f"{self._url} does not say whether {key} was written ({TRIES} tries); look, and repeat it if not"
        )

    def _probe(self) -> None:
        """See that conditions are honored.

        Raises:
            UnsafeStore: one is not.
        """
        key = f"{PROBES}/{uuid.uuid4().hex}"
        try:
            self._probe_create(key)
            self._probe_replace(key)
        finally:
            with contextlib.suppress(StoreError):
                self._remove([key])

    def _probe_create(self, key: str) -> None:
        self._create(key, b"first")
        if self._create(key, b"second"):
            raise self._unsafe("ignores If-None-Match: * and overwrites what is there")

    def _probe_replace(self, key: str) -> None:
        first = self._find(key)
        if first is None or first.data != b"first":
            raise self._unsafe("does not give back what was written a moment ago")
        self._replace(key, first, b"third")
        if self._replace(key, first, b"fourth"):
            raise self._unsafe("ignores If-Match and overwrites what is newer")

    def _unsafe(self, what: str) -> UnsafeStore:
        return UnsafeStore(
            f"expected a store that honors conditional writes, {self._url} {what}: two publishers would "
            "overwrite each other; use another server, or a newer version of this one"
        )

    # --- the library

    def _find(self, key: str) -> _Found | None:
        try:
            with self._foreign_errors():
                found = obstore.get(self._handles.reading, key)
                data = bytes(found.bytes())
        except FileNotFoundError:
            return None
        meta = found.meta
        return _Found(data, _version(meta), found.attributes.get(WRITER), meta["last_modified"])

    def _all_keys(self, prefix: str) -> list[str]:
        return [key for key, _ in self._objects(prefix)]

    def _objects(self, prefix: str) -> list[tuple[str, datetime]]:
        """Keys below ``prefix``, hidden ones too, and when they were written by the store's clock."""
        with self._foreign_errors():
            found = obstore.list(self._handles.reading, prefix or None).collect()
        return sorted((each["path"], each["last_modified"]) for each in found)

    def _remove(self, keys: Iterable[str]) -> None:
        wanted = list(keys)
        with self._foreign_errors():
            try:
                obstore.delete(self._handles.writing, wanted)
            except FileNotFoundError:
                # some stores call it an error when one is not there, and then leave the others
                for key in wanted:
                    with contextlib.suppress(FileNotFoundError):
                        obstore.delete(self._handles.writing, key)

    def _server_time(self) -> datetime:
        """Now, by the clock that the age of objects is told by."""
        key = f"{PROBES}/{uuid.uuid4().hex}"
        with self._foreign_errors():
            obstore.put(self._handles.writing, key, b"")
        found = self._find(key)
        self._remove([key])
        if found is None:
            raise self._unsafe("does not give back what was written a moment ago")
        return found.modified

    @contextlib.contextmanager
    def _foreign_errors(self) -> Iterator[None]:
        """Raise our own errors, in our own words: the library's may quote requests with what they carry."""
        try:
            yield
        except (AlreadyExistsError, PreconditionError):
            raise
        except FileNotFoundError as error:
            if "NoSuchBucket" in _reason(error):
                raise self._no_bucket() from None
            raise
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise self._refused(_reason(error)) from None
        except (BaseError, OSError) as error:
            reason = _reason(error)
            if reason.startswith(("HTTP 401", "HTTP 403")):
                raise self._refused(reason) from None
            if "NoSuchBucket" in reason:
                raise self._no_bucket() from None
            raise StoreUnreachable(f"{self._url} cannot be reached: {reason}") from None

    def _no_bucket(self) -> InvalidStoreUrl:
        return InvalidStoreUrl(
            f"expected a bucket, {self._url} has none; create it, or look for a slip of the pen"
        )

    def _refused(self, reason: str) -> AccessRefused:
        return AccessRefused(
            f"{self._url} refuses this access: {reason}; see its policy, and the environment's credentials"
        )


@final
@dataclass(frozen=True)
class _Settled:
    """After claims were settled.

    Attributes:
        writers: whose staging is still needed.
        removed: prefixes of trees that nobody could finish.
    """

    writers: frozenset[str]
    removed: tuple[str, ...]


def _staged(claim: _Claim) -> list[str]:
    return [f"{STAGING}/{claim.writer}/{name}" for name in claim.files]


def _version(meta: obstore.ObjectMeta) -> obstore.UpdateVersion:
    """What tells one state of an object from another; which of both there are is the store's affair."""
    version: dict[str, str] = {}
    if meta["e_tag"] is not None:
        version["e_tag"] = meta["e_tag"]
    if meta["version"] is not None:
        version["version"] = meta["version"]
    return cast("obstore.UpdateVersion", version)


def _is_same(found: _Found | None, expected: _Found | None) -> bool:
    if found is None or expected is None:
        return found is expected
    return (found.version, found.writer) == (expected.version, expected.writer)


def _pauses() -> Iterator[float]:
    """Longer and longer, by chance, so that those who failed together do not come again together [s]."""
    return (FIRST_PAUSE * 2**number * random.uniform(0.5, 1.0) for number in range(TRIES))


def _reason(error: Exception) -> str:
    """Why a request failed, in words that quote nothing of it but the store's own code."""
    text = str(error)
    status = re.search(r"status code: (\d{3})", text)
    if status is not None:
        code = re.search(r"<Code>(\w{1,64})</Code>", text) or re.search(r'"code": ?"(\w{1,64})"', text)
        return f"HTTP {status[1]}{f' {code[1]}' if code else ''}"
    if "kind: Timeout" in text:
        return "it did not answer in time"
    if "kind: Connect" in text:
        return "no connection"
    return f"{type(error).__name__} of the library; does the bucket exist, is the endpoint right?"

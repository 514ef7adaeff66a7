"""Published versions of models: numbered, immutable, verified; and aliases that move between them.

Layout: ``NAME/versions/N/{card.json,weights.safetensors,...}`` and ``NAME/aliases.json``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from pydantic import ValidationError
from torch import Tensor

from model_store import weights
from model_store.alias import AliasTarget, alias_json, parse_aliases
from model_store.backends import (
    CARD,
    REMOTE,
    Backend,
    FileBackend,
    KeyNotFound,
    TreeExists,
    open_backend,
    scheme_of,
)
from model_store.backends.read_only import ReadOnlyBackend
from model_store.backends.remembering import RememberingBackend
from model_store.cache import Cache, CachePlace, NoCache, open_cache
from model_store.calibration import CALIBRATION, Calibration
from model_store.card import Card, FileRecord
from model_store.errors import (
    AliasMoved,
    CorruptStore,
    CorruptVersion,
    RefusedVersion,
    UnknownModel,
    UnknownVersion,
)
from model_store.reference import Reference, Selector, checked_alias, checked_name
from operators import AnySurrogate

PRODUCTION = "production"
BUILTIN = "builtin:"


@dataclass(frozen=True)
class LoadedVersion:
    """A version in memory, its hashes verified.

    Attributes:
        calibration: what its estimates are made from; None: it has none, as older versions do.
    """

    reference: Reference
    card: Card
    surrogate: AnySurrogate
    calibration: Calibration | None = None


@final
class Store:
    """The versions and aliases that a backend holds."""

    def __init__(self, backend: Backend, cache: Cache | None = None) -> None:
        """``cache`` holds files of versions that were loaded before; None: nothing does."""
        self._backend = backend
        self._cache = cache or NoCache()

    @property
    def url(self) -> str:
        """What opens this store again."""
        return self._backend.url

    @property
    def stale(self) -> str | None:
        """Why what is told now may be older than the store; None: it is not."""
        return self._backend.stale

    def require_atomic_writes(self) -> None:
        """Make sure that two publishers cannot overwrite each other.

        Raises:
            UnsafeStore: they could.
            AccessRefused: nothing can be published here at all.
        """
        self._backend.require_atomic_writes()

    def models(self) -> list[str]:
        """Names that have at least one version."""
        return sorted({key.split("/")[0] for key in self._backend.keys("") if _version_of_card(key)})

    def versions(self, name: str) -> list[int]:
        """Numbers of the versions of ``name``, oldest first; empty when there are none."""
        keys = self._backend.keys(f"{checked_name(name)}/versions")
        return sorted(filter(None, map(_version_of_card, keys)))

    def aliases(self, name: str) -> dict[str, int]:
        """The version that each alias of ``name`` means."""
        return {alias: target.version for alias, target in self.targets(name).items()}

    def targets(self, name: str) -> dict[str, AliasTarget]:
        """Where the aliases of ``name`` point, with their canaries and shadows."""
        return _parse_aliases(name, self._alias_bytes(name))

    def resolve(self, wanted: str | Selector | Reference) -> Reference:
        """The version that ``name``, ``name@alias`` or ``name@number`` means now.

        Raises:
            UnknownModel: no version of that name.
            UnknownVersion: no such number or alias.
        """
        selector = wanted if isinstance(wanted, Selector) else Selector.parse(str(wanted))
        versions = self.versions(selector.name)
        if not versions:
            raise UnknownModel(
                f"expected one of the models {self.models()} of {self.url}, got {selector.name!r}"
            )
        if isinstance(selector.wanted, int):
            return _among(versions, Reference(selector.name, selector.wanted))
        aliases = self.aliases(selector.name)
        if selector.wanted is None:
            return _among(versions, Reference(selector.name, aliases.get(PRODUCTION, versions[-1])))
        if selector.wanted not in aliases:
            raise UnknownVersion(
                f"expected an alias among {sorted(aliases)} of {selector.name}, got {selector.wanted!r}"
            )
        return _among(versions, Reference(selector.name, aliases[selector.wanted]))

    def publish(
        self,
        name: str,
        surrogate_state: Mapping[str, Tensor],
        card: Card,
        extra_files: Mapping[str, bytes] | None = None,
    ) -> int:
        """Store a new version, whole or not at all; returns its number.

        Raises:
            RefusedVersion: the state does not fit the card's operator, a file's name is taken, or a
                calibration belongs to other weights.
        """
        files = {weights.WEIGHTS: weights.to_bytes(surrogate_state, card.operator)}
        if taken := {CARD, weights.WEIGHTS} & set(extra_files or {}):
            raise RefusedVersion(
                f"expected extra files under other names than the store's own, got {sorted(taken)}"
            )
        files |= extra_files or {}
        records = {file: FileRecord.of(data) for file, data in sorted(files.items())}
        card = card.model_copy(update={"files": records})
        try:
            _calibration(card, files)
        except CorruptVersion as error:
            raise RefusedVersion(str(error)) from None
        return self._add_version(name, files | {CARD: card.to_json()})

    def set_alias(
        self, name: str, alias: str, target: int | AliasTarget, expected: int | AliasTarget | None
    ) -> None:
        """Point ``alias`` at ``target`` in one step, if it points at ``expected`` (None: no such alias) now.

        A bare number is expected whatever canary and shadow there are beside it.

        Raises:
            AliasMoved: it points elsewhere; somebody else moved it.
            UnknownVersion: there is no such version.
        """
        new = AliasTarget(version=target) if isinstance(target, int) else target
        versions = self.versions(name)
        for number in new.versions:
            _among(versions, Reference(name, number))
        while True:
            old = self._alias_bytes(name)
            aliases = _parse_aliases(name, old)
            found = aliases.get(checked_alias(alias))
            if (found and found.version if isinstance(expected, int) else found) != expected:
                raise AliasMoved(
                    f"expected {name}@{alias} at {expected or 'no version'}, found it at "
                    f"{found or 'no version'}; look again and repeat"
                )
            # false only when some alias of this model moved since it was read
            if self._backend.compare_and_set(_alias_key(name), old, alias_json(aliases | {alias: new})):
                return

    def card(self, name: str, version: int) -> Card:
        """The card of a version.

        Raises:
            UnknownVersion: there is no such version.
            CorruptVersion: its card is damaged.
        """
        reference = Reference(checked_name(name), version)
        return self._card(reference, self._card_bytes(reference))

    def load(self, name: str, version: int) -> LoadedVersion:
        """The version in memory, every file's size and hash verified, its surrogate in evaluation mode.

        Raises:
            UnknownVersion: there is no such version.
            CorruptVersion: a file is missing, damaged, not listed on the card, or a calibration that belongs
                to other weights.
        """
        reference = Reference(checked_name(name), version)
        card, files = self._verified(reference, self._cache)
        try:
            surrogate = weights.to_surrogate(files[weights.WEIGHTS], card.operator)
            return LoadedVersion(reference, card, surrogate, _calibration(card, files))
        except CorruptVersion as error:
            raise CorruptVersion(f"{reference}: {error}") from None

    def verify(self, name: str, version: int) -> None:
        """Check every file of a version against its card.

        Raises:
            UnknownVersion: there is no such version.
            CorruptVersion: a file is missing, damaged, or not listed on the card.
        """
        self._verified(Reference(checked_name(name), version), NoCache())

    def copy(self, reference: Reference, destination: "Store", name: str | None = None) -> int:
        """Copy a version byte for byte; returns its number there (an equal version is not copied again).

        Raises:
            CorruptVersion: the version here is not whole.
        """
        _, files = self._verified(reference, NoCache())
        card = files[CARD] = self._card_bytes(reference)
        target = name or reference.name
        for version in destination.versions(target):
            if destination._card_bytes(Reference(target, version)) == card:
                return version
        return destination._add_version(target, files)

    def gc(self) -> list[str]:
        """Remove what interrupted publishers left behind, never a version; names what was removed."""
        swept = self._backend.sweep()
        # what is unfinished is asked last: a tree that was seen begins to be finished before it is seen
        incomplete = self._trees_without_card()
        unfinished = self._backend.unfinished()
        return swept + [self._delete(prefix) for prefix in incomplete if prefix not in unfinished]

    def _add_version(self, name: str, files: Mapping[str, bytes]) -> int:
        while True:
            version = max(self.versions(name), default=0) + 1
            try:
                self._backend.create_tree(_prefix(Reference(name, version)), files, last=CARD)
            except TreeExists:
                # another publisher was faster: take the next number, unless what is there is no version
                if version not in self.versions(name):
                    raise CorruptStore(
                        f"{name}/versions/{version} of {self.url} has files but no {CARD}; run `mno store gc`"
                    ) from None
            else:
                return version

    def _verified(self, reference: Reference, cache: Cache) -> tuple[Card, dict[str, bytes]]:
        card = self._card(reference, self._card_bytes(reference))
        prefix = _prefix(reference)
        found = {key.removeprefix(f"{prefix}/") for key in self._backend.keys(prefix)} - {CARD}
        if unlisted := sorted(found - set(card.files)):
            raise CorruptVersion(f"{reference} holds {unlisted[0]}, which its card does not list; remove it")
        if weights.WEIGHTS not in card.files:
            raise CorruptVersion(f"the card of {reference} lists no {weights.WEIGHTS}; publish it again")
        return card, {
            file: self._verified_bytes(reference, file, record, cache) for file, record in card.files.items()
        }

    def _verified_bytes(self, reference: Reference, file: str, expected: FileRecord, cache: Cache) -> bytes:
        kept = cache.find(expected.sha256)
        if kept is not None:
            return kept
        try:
            data = self._backend.get(f"{_prefix(reference)}/{file}")
        except KeyNotFound:
            raise CorruptVersion(f"{reference} lacks {file}; copy or publish the version again") from None
        found = FileRecord.of(data)
        if found != expected:
            raise CorruptVersion(
                f"{reference}: {file} is damaged: expected {expected.size} bytes, SHA-256 {expected.sha256}, "
                f"found {found.size} bytes, {found.sha256}; copy or publish the version again"
            )
        cache.keep(expected.sha256, data)
        return data

    def _card(self, reference: Reference, data: bytes) -> Card:
        try:
            return Card.from_json(data)
        except CorruptVersion as error:
            raise CorruptVersion(f"{reference} in {self.url}: {error}") from None

    def _card_bytes(self, reference: Reference) -> bytes:
        try:
            return self._backend.get(f"{_prefix(reference)}/{CARD}")
        except KeyNotFound:
            versions = self.versions(reference.name)
            raise UnknownVersion(
                f"expected a version among {versions} of {reference.name}, got {reference}"
            ) from None

    def _alias_bytes(self, name: str) -> bytes | None:
        try:
            return self._backend.get(_alias_key(name))
        except KeyNotFound:
            return None

    def _trees_without_card(self) -> list[str]:
        trees = {
            "/".join(key.split("/")[:3])
            for key in self._backend.keys("")
            if key.split("/")[1:2] == ["versions"]
        }
        whole = {
            _prefix(Reference(name, version)) for name in self.models() for version in self.versions(name)
        }
        return sorted(trees - whole)

    def _delete(self, prefix: str) -> str:
        self._backend.delete(prefix)
        return prefix


def open_store(url: str) -> Store:
    """The store at ``file:/folder``, ``s3://bucket/prefix``, ``memory:``, a plain path, or ``builtin:``.

    ``builtin:`` is shipped with the package.

    Raises:
        InvalidStoreUrl: a scheme that is not supported.
    """
    return builtin_store() if url == BUILTIN else Store(open_backend(url))


def open_kept_store(url: str, place: CachePlace | None) -> Store:
    """As ``open_store``; what is read over a network is kept in ``place``, and goes on when that is down."""
    if scheme_of(url) not in REMOTE:
        return open_store(url)
    cache = open_cache(place)
    return Store(RememberingBackend(open_backend(url), cache), cache)


def builtin_store() -> Store:
    """The read-only store of the models shipped with the package."""
    return Store(ReadOnlyBackend(FileBackend(Path(__file__).parent / "builtin"), BUILTIN))


def _calibration(card: Card, files: Mapping[str, bytes]) -> Calibration | None:
    """What is among the files of a version, if it belongs to it."""
    if CALIBRATION not in files:
        return None
    found = Calibration.from_bytes(files[CALIBRATION])
    found.require(card.files[weights.WEIGHTS].sha256, card.scheme)
    return found


def _prefix(reference: Reference) -> str:
    return f"{reference.name}/versions/{reference.version}"


def _alias_key(name: str) -> str:
    return f"{checked_name(name)}/aliases.json"


def _version_of_card(key: str) -> int | None:
    """The number in ``NAME/versions/N/card.json``, None for any other key."""
    match key.split("/"):
        case [_, "versions", number, file] if file == CARD and number.isdecimal():
            return int(number)
    return None


def _among(versions: list[int], reference: Reference) -> Reference:
    if reference.version not in versions:
        raise UnknownVersion(
            f"expected a version among {versions} of {reference.name}, got {reference.version}"
        )
    return reference


def _parse_aliases(name: str, data: bytes | None) -> dict[str, AliasTarget]:
    try:
        return {} if data is None else parse_aliases(data)
    except ValidationError:
        raise CorruptStore(
            f'{_alias_key(name)} is damaged: expected JSON such as {{"production": 3}}'
        ) from None

"""Which models there are, which are served, and how to change that: what the protocols know of the stores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, Literal, final

from pydantic import BaseModel, ConfigDict

from model_store.alias import AliasTarget
from model_store.reference import Reference

__all__ = ["AliasTarget", "ModelEntry", "Readiness", "Repository", "VersionState"]

State = Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]


@final
class VersionState(BaseModel):
    """Whether a version is served; ``reason`` says why not, where something went wrong."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int
    state: State
    reason: str = ""


@final
class ModelEntry(BaseModel):
    """A model of the stores.

    Attributes:
        problem: what its newest version solves.
        aliases: where they point.
        versions: all of them, oldest first.
        error: what is damaged, in words that a client may read; then the rest is empty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    problem: str = ""
    aliases: Mapping[str, AliasTarget] = {}
    versions: tuple[VersionState, ...] = ()
    error: str | None = None

    @property
    def loaded(self) -> list[int]:
        """Versions that are served."""
        return [each.version for each in self.versions if each.state == "READY"]

    def with_states(self, ready: Collection[Reference], reasons: Mapping[Reference, str]) -> ModelEntry:
        """The same with what is known of its versions: which are served, and why others are not."""
        states = []
        for each in self.versions:
            reference = Reference(self.name, each.version)
            state: State = "READY" if reference in ready else "UNAVAILABLE"
            states.append(VersionState(version=each.version, state=state, reason=reasons.get(reference, "")))
        return self.model_copy(update={"versions": tuple(states)})

    def summary(self) -> dict[str, Any]:
        """As ``/v1/models`` shows it."""
        if self.error is not None:
            return {"name": self.name, "error": self.error}
        return {
            "name": self.name,
            "problem": self.problem,
            "aliases": {alias: target.version for alias, target in self.aliases.items()},
            "traffic": {
                alias: target.model_dump()
                for alias, target in self.aliases.items()
                if target.canary is not None or target.shadow is not None
            },
            "versions": [each.version for each in self.versions],
            "loaded": self.loaded,
        }


@final
class Readiness(BaseModel):
    """Whether requests are answered, and what is wrong where not all is well.

    Attributes:
        ready: False before the start and while stopping.
        problems: a version that does not load, a worker that keeps dying; the rest goes on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ready: bool
    problems: tuple[str, ...] = ()


class Repository(ABC):
    """The models of the stores, as the operators of a service see them."""

    @abstractmethod
    async def index(self) -> tuple[ModelEntry, ...]:
        """All models in the stores; one that is damaged says so."""

    @abstractmethod
    async def describe(self, name: str) -> dict[str, Any]:
        """The summary of a model with the cards of all its versions.

        Raises:
            UnknownModel: no store has it.
        """

    @abstractmethod
    async def load(self, name: str) -> None:
        """Serve what a model's name and aliases mean now; returns when it is served.

        ``name`` may be ``darcy`` (with all its aliases) or ``darcy@3``.

        Raises:
            UnknownModel: no store has it.
            LoadFailed: it does not load; what was served goes on.
        """

    @abstractmethod
    async def unload(self, name: str) -> None:
        """Serve a model no more; requests under way are answered.

        Raises:
            UnknownModel: it is not served.
        """

    @abstractmethod
    async def readiness(self) -> Readiness:
        """How the service is; answered at once."""

    @abstractmethod
    async def pages(self, accept: str) -> tuple[bytes, ...]:
        """The metrics of the service's other processes, as each of them writes its page.

        Args:
            accept: the formats that the reader knows, as in the header of this name.
        """

"""What an alias means: a version, and perhaps a second one that gets a share, and one for comparison."""

import re
from collections.abc import Mapping
from typing import Any, Self, final

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, TypeAdapter, model_serializer, model_validator

_SHARE = re.compile(r"([1-9][0-9]{0,8})=([0-9]+(?:\.[0-9]+)?)%")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@final
class Canary(_Record):
    """A version that answers a share ``weight`` of the requests."""

    version: PositiveInt
    weight: float = Field(gt=0, le=1)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``4=5%``.

        Raises:
            ValueError: anything else.
        """
        match = _SHARE.fullmatch(text)
        if match is None or not 0 < float(match[2]) <= 100:
            raise ValueError(f"expected a version and its share, such as 4=5%, got {text!r}")
        return cls(version=int(match[1]), weight=float(match[2]) / 100)

    def __str__(self) -> str:
        return f"{self.version}={100 * self.weight:g}%"


@final
class AliasTarget(_Record):
    """Where an alias points; written as a bare number where it is no more than that.

    Attributes:
        version: answers.
        canary: answers a share of the requests instead.
        shadow: answers too, for comparison: nobody sees its numbers.
    """

    version: PositiveInt
    canary: Canary | None = None
    shadow: PositiveInt | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_number(cls, value: Any) -> Any:
        return {"version": value} if isinstance(value, int) and not isinstance(value, bool) else value

    @model_serializer
    def _write(self) -> int | dict[str, Any]:
        if self.canary is None and self.shadow is None:
            return self.version
        fields: dict[str, Any] = {"version": self.version}
        if self.canary is not None:
            fields["canary"] = self.canary.model_dump()
        if self.shadow is not None:
            fields["shadow"] = self.shadow
        return fields

    @property
    def versions(self) -> tuple[int, ...]:
        """All numbers that it names."""
        canary = () if self.canary is None else (self.canary.version,)
        return (self.version, *canary, *(() if self.shadow is None else (self.shadow,)))

    def __str__(self) -> str:
        canary = "" if self.canary is None else f", canary {self.canary}"
        return f"{self.version}{canary}{'' if self.shadow is None else f', shadow {self.shadow}'}"


_TARGETS = TypeAdapter(dict[str, AliasTarget])


def parse_aliases(data: bytes) -> dict[str, AliasTarget]:
    """Read ``aliases.json``.

    Raises:
        ValueError: it is none.
    """
    return _TARGETS.validate_json(data)


def alias_json(aliases: Mapping[str, AliasTarget]) -> bytes:
    """The bytes of ``aliases.json``."""
    return _TARGETS.dump_json(dict(sorted(aliases.items())), indent=1) + b"\n"

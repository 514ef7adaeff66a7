"""The tokens file: who may ask. It holds names, scopes and hashes; a token is shown once, when it is made.

A token is 256 random bits, so that a fast salted hash is the right one: nobody can guess it. A slow hash
(scrypt, argon2) protects words that people choose, and would let anybody who sends wrong tokens keep the
service busy. ``mno token new|list|revoke`` keep the file; a running service reads it again at SIGHUP.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import secrets
import stat
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, final

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from service.errors import InvalidSettings

__all__ = ["LONGEST_TOKEN", "NAME", "Scope", "TokenRecord", "edit_tokens", "new_token", "read_tokens"]

# what a token grants: asking for answers; loading and unloading versions, and metrics; metrics alone
Scope = Literal["solve", "admin", "metrics"]

# a token says what it is, so that scanners for leaked secrets can find it
PREFIX: Final = "mno_"
LONGEST_TOKEN: Final = 256
NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
SALT_BYTES: Final = 16
HASH: Final = r"^sha256:[0-9a-f]{32}:[0-9a-f]{64}$"

HEADER: Final = """\
# Tokens of the service. `mno token new|list|revoke` keep this file; a running service reads it at SIGHUP.
"""


@final
class TokenRecord(BaseModel):
    """One token as the file has it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=NAME, description="whose token it is; names it in metrics and the audit log")
    hash: str = Field(pattern=HASH, repr=False, description="sha256:SALT:DIGEST, both in hexadecimal")
    scopes: tuple[Scope, ...] = Field(min_length=1, description="what it allows: solve, admin, metrics")
    created: AwareDatetime | None = None
    not_after: AwareDatetime | None = Field(default=None, description="when it stops being accepted")
    requests_per_second: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="default: `[rate]`"
    )
    burst: int | None = Field(default=None, gt=0, description="requests at once; default: a second of them")
    concurrent: int | None = Field(default=None, gt=0, description="requests under way; default: `[rate]`")

    def matches(self, token: bytes) -> bool:
        """Whether this is the record of ``token``; takes as long whether it is or not."""
        _, salt, digest = self.hash.split(":")
        return hmac.compare_digest(_digest(bytes.fromhex(salt), token), bytes.fromhex(digest))


@final
class _TokensFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    token: tuple[TokenRecord, ...] = ()


def new_token() -> tuple[str, str]:
    """A new token, and its hash for the file."""
    token = PREFIX + secrets.token_urlsafe(32)
    salt = secrets.token_bytes(SALT_BYTES)
    return token, f"sha256:{salt.hex()}:{_digest(salt, token.encode()).hex()}"


def read_tokens(path: Path) -> tuple[TokenRecord, ...]:
    """The records of a tokens file.

    Raises:
        InvalidSettings: it cannot be read, or is not what it should be.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            records = _TokensFile(**tomllib.load(file)).token
    except ValidationError as error:
        raise InvalidSettings(f"{path}: {_one_line(error)}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidSettings(
            f"{path}: expected a tokens file, which `mno token new` makes: {error}"
        ) from error
    if mode & stat.S_IWOTH:
        raise InvalidSettings(f"{path}: everybody on this machine may change it; `chmod 600 {path}`")
    _refuse_doubles(path, records)
    return records


@contextmanager
def edit_tokens(path: Path) -> Iterator[list[TokenRecord]]:
    """The records, to be changed; written back when the block ends well, in one piece or not at all.

    Raises:
        InvalidSettings: the file is there and is no tokens file, or the change makes it none.
    """
    with _alone_in(path.parent):
        records = list(read_tokens(path)) if path.exists() else []
        yield records
        _refuse_doubles(path, records)
        _write(path, HEADER + "".join(map(_toml, records)))


def _digest(salt: bytes, token: bytes) -> bytes:
    return hashlib.sha256(salt + token).digest()


def _refuse_doubles(path: Path, records: Sequence[TokenRecord]) -> None:
    names = [record.name for record in records]
    doubles = sorted({name for name in names if names.count(name) > 1})
    if doubles:
        raise InvalidSettings(f"{path}: expected one token a name, got several of {', '.join(doubles)}")


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Two editors at the same time would lose one's change: the second waits."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, text: str) -> None:
    # mkstemp makes files that only their owner may read
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _toml(record: TokenRecord) -> str:
    # no value needs escaping: the patterns of the record see to it
    lines = ["", "[[token]]", f'name = "{record.name}"', f'hash = "{record.hash}"']
    quoted = ", ".join(f'"{scope}"' for scope in record.scopes)
    lines.append(f"scopes = [{quoted}]")
    times = {"created": record.created, "not_after": record.not_after}
    lines += [f"{name} = {_timestamp(time)}" for name, time in times.items() if time is not None]
    numbers = ("requests_per_second", "burst", "concurrent")
    lines += [f"{name} = {value}" for name in numbers if (value := getattr(record, name)) is not None]
    return "\n".join([*lines, ""])


def _timestamp(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _one_line(error: ValidationError) -> str:
    # without the input: it may be a token that somebody wrote where its hash belongs
    return "; ".join(f"{'.'.join(map(str, issue['loc']))}: {issue['msg']}" for issue in error.errors())

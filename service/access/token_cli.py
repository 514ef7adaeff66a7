"""The commands ``mno token ...``: make, list and revoke the tokens of a service."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from service.access.tokens import Scope, TokenRecord, edit_tokens, new_token, read_tokens
from service.errors import InvalidSettings

__all__ = ["token"]

# a century: a token that is to last longer needs no end
MOST_DAYS = 36500
SCOPES = click.Choice(["solve", "admin", "metrics"])
_FILE = click.option(
    "--file",
    "path",
    envvar="MNO_SECURITY__TOKENS",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The tokens file, `security.tokens` of the service.",
)


@click.group()
def token() -> None:
    """Make, list and revoke the tokens of a service."""


@token.command()
@click.argument("name")
@click.option(
    "--scope", "scopes", type=SCOPES, multiple=True, default=["solve"], show_default=True, help="Repeatable."
)
@click.option("--days", type=click.FloatRange(0, MOST_DAYS, min_open=True), help="How long it is accepted.")
@click.option("--requests-per-second", type=click.FloatRange(min=0, min_open=True))
@click.option("--burst", type=click.IntRange(1), help="Requests at once.")
@click.option("--concurrent", type=click.IntRange(1), help="Requests under way.")
@_FILE
def new(
    name: str,
    scopes: tuple[Scope, ...],
    days: float | None,
    requests_per_second: float | None,
    burst: int | None,
    concurrent: int | None,
    path: Path,
) -> None:
    """Make a token for NAME and print it, this once."""
    if days is not None and math.isnan(days):
        # not less than any number, and not more
        raise click.BadParameter("expected a number of days, got nan", param_hint="'--days'")
    made = datetime.now(UTC).replace(microsecond=0)
    secret, digest = new_token()
    record = TokenRecord(
        name=name,
        hash=digest,
        scopes=tuple(dict.fromkeys(scopes)),
        created=made,
        not_after=None if days is None else made + timedelta(days=days),
        requests_per_second=requests_per_second,
        burst=burst,
        concurrent=concurrent,
    )
    with edit_tokens(path) as records:
        records.append(record)
    click.echo(secret)
    click.echo(f"{path} has its hash; a running service reads it at SIGHUP", err=True)


@token.command("list")
@_FILE
def list_(path: Path) -> None:
    """List the names, scopes and limits; the tokens themselves are nowhere."""
    for record in read_tokens(path):
        click.echo(_line(record))


@token.command()
@click.argument("name")
@_FILE
def revoke(name: str, path: Path) -> None:
    """Take the token of NAME out of the file."""
    with edit_tokens(path) as records:
        kept = [record for record in records if record.name != name]
        if len(kept) == len(records):
            known = ", ".join(record.name for record in records) or "none"
            raise InvalidSettings(f"{path}: expected one of {known}, got {name}")
        records[:] = kept
    click.echo(f"{name} is out of {path}; a running service reads it at SIGHUP", err=True)


def _line(record: TokenRecord) -> str:
    facts = [record.name, "+".join(record.scopes)]
    if record.created is not None:
        facts.append(f"since {record.created:%Y-%m-%d}")
    if record.not_after is not None:
        facts.append(f"until {record.not_after:%Y-%m-%d %H:%M}")
    if record.requests_per_second is not None:
        facts.append(f"{record.requests_per_second:g} requests/s")
    if record.burst is not None:
        facts.append(f"{record.burst} at once")
    if record.concurrent is not None:
        facts.append(f"{record.concurrent} under way")
    return "  ".join(facts)

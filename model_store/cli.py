"""The commands ``mno store ...``: look at and look after published versions."""

import json
from typing import Any

import click

from model_store.alias import AliasTarget, Canary
from model_store.errors import CorruptVersion, StoreError
from model_store.reference import Reference, Selector
from model_store.store import BUILTIN, Store, open_store


class BrokenVersions(StoreError):
    """Some versions are not what their cards say."""


_AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
_REFERENCE = click.argument("wanted", metavar="MODEL[@VERSION|@ALIAS]")


@click.group()
@click.option(
    "--store",
    "url",
    envvar="MNO_STORE",
    default=BUILTIN,
    show_default=True,
    metavar="URL",
    help="file:/folder, a plain path, s3://bucket/prefix, or builtin: (shipped with the package).",
)
@click.pass_context
def store(context: click.Context, url: str) -> None:
    """Look at and look after published versions."""
    context.obj = open_store(url)


@store.command("list")
@click.argument("name", required=False)
@_AS_JSON
@click.pass_obj
def list_(store: Store, name: str | None, as_json: bool) -> None:
    """List the versions of all models, or of NAME."""
    names = [store.resolve(name).name] if name else store.models()
    rows = [_summary(store, Reference(name, version)) for name in names for version in store.versions(name)]
    if as_json:
        _print_json(rows)
    elif rows:
        click.echo(_table(rows))
    else:
        click.echo(f"{store.url} holds no versions", err=True)


@store.command()
@_REFERENCE
@_AS_JSON
@click.pass_obj
def show(store: Store, wanted: str, as_json: bool) -> None:
    """Show the card of a version."""
    reference = store.resolve(wanted)
    card = store.card(reference.name, reference.version).model_dump(mode="json")
    if as_json:
        _print_json({"reference": str(reference), **card})
        return
    run = card.pop("run")
    click.echo(f"{reference}  {', '.join(_aliases_at(store, reference))}".rstrip())
    click.echo("\n".join(_lines(card)))
    click.echo(f"run ({len(run.splitlines())} lines of TOML, printed by --json)")


@store.command()
@click.argument("name")
@click.argument("alias")
@click.argument("version", type=click.IntRange(min=1))
@click.option(
    "--expected",
    type=click.IntRange(min=0),
    help="Move it only from this version (0: only if it is new); default: from wherever it is now.",
)
@click.option("--canary", metavar="VERSION=SHARE%", help="Let a second version answer a share: 4=5%.")
@click.option("--shadow", type=click.IntRange(min=1), help="Let a version answer too, for comparison only.")
@click.pass_obj
def alias(
    store: Store,
    name: str,
    alias: str,
    version: int,
    expected: int | None,
    canary: str | None,
    shadow: int | None,
) -> None:
    """Point ALIAS of model NAME at VERSION; without --canary and --shadow it has none from then on."""
    target = AliasTarget(
        version=store.resolve(Selector(name, version)).version, canary=_share(canary), shadow=shadow
    )
    before = store.targets(name).get(alias)
    store.set_alias(name, alias, target, before if expected is None else expected or None)
    click.echo(f"{name}@{alias}: {before or 'new'} -> {target}")


def _share(text: str | None) -> Canary | None:
    try:
        return None if text is None else Canary.parse(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--canary") from error


@store.command()
@click.argument("wanted", required=False, metavar="[MODEL[@VERSION|@ALIAS]]")
@click.pass_obj
def verify(store: Store, wanted: str | None) -> None:
    """Check every file of a version, of all versions of a model, or of all models, against the cards."""
    references = _references(store, wanted)
    broken = [reference for reference in references if not _is_whole(store, reference)]
    if broken:
        raise BrokenVersions(
            f"{len(broken)} of {len(references)} versions are damaged: {', '.join(map(str, broken))}"
        )


@store.command()
@click.pass_obj
def gc(store: Store) -> None:
    """Remove what interrupted publishers left behind; never a version."""
    removed = store.gc()
    click.echo("\n".join([*(f"removed {what}" for what in removed), f"{len(removed)} leftovers removed"]))


@store.command()
@_REFERENCE
@click.option("--to", "destination", required=True, metavar="URL", help="The store that gets the copy.")
@click.option("--name", help="What the model is called there; default: as here.")
@click.pass_obj
def copy(store: Store, wanted: str, destination: str, name: str | None) -> None:
    """Copy a version, byte for byte, to another store, which numbers it anew."""
    reference = store.resolve(wanted)
    target = open_store(destination)
    version = store.copy(reference, target, name)
    click.echo(f"{reference} of {store.url} is {Reference(name or reference.name, version)} of {target.url}")


def _references(store: Store, wanted: str | None) -> list[Reference]:
    if wanted is not None and Selector.parse(wanted).wanted is not None:
        return [store.resolve(wanted)]
    names = store.models() if wanted is None else [store.resolve(wanted).name]
    return [Reference(name, version) for name in names for version in store.versions(name)]


def _is_whole(store: Store, reference: Reference) -> bool:
    try:
        store.verify(reference.name, reference.version)
    except CorruptVersion as error:
        click.echo(f"{reference}: damaged: {error}")
        return False
    click.echo(f"{reference}: ok")
    return True


def _summary(store: Store, reference: Reference) -> dict[str, Any]:
    """A row of the list; a damaged version is a row too, not the end of the list."""
    row: dict[str, Any] = {"reference": str(reference), "aliases": _aliases_at(store, reference)}
    try:
        card = store.card(reference.name, reference.version)
    except CorruptVersion as error:
        return {**row, "error": str(error)}
    return {
        **row,
        "problem": card.problem,
        "scheme": card.scheme,
        "grids": [f"{ny}x{nx}" for ny, nx in card.grids],
        "operator": card.operator.kind,
        "bytes": sum(record.size for record in card.files.values()),
        "created": card.created.isoformat(timespec="seconds"),
        "metrics": {split: dict(metrics) for split, metrics in card.metrics.items()},
    }


def _aliases_at(store: Store, reference: Reference) -> list[str]:
    return [alias for alias, version in store.aliases(reference.name).items() if version == reference.version]


def _table(rows: list[dict[str, Any]]) -> str:
    cells = [("VERSION", "ALIASES", "GRIDS", "SIZE", "CREATED", "SCHEME"), *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    start = (row["reference"], ",".join(row["aliases"]) or "-")
    if "error" in row:
        return (*start, "-", "-", "-", "damaged; see `mno store verify`")
    return (*start, ",".join(row["grids"]), f"{row['bytes'] / 2**20:.2f} MiB", row["created"], row["scheme"])


def _lines(value: Any, indent: str = "") -> list[str]:
    """Nested values as indented lines, the innermost on one line each."""
    lines = []
    for name, item in value.items():
        if isinstance(item, dict) and item:
            lines += [f"{indent}{name}", *_lines(item, indent + "  ")]
        else:
            lines.append(f"{indent}{name}: {item if isinstance(item, str) else json.dumps(item)}")
    return lines


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1))

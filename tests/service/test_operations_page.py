"""``docs/operations.md`` names every setting and every metric, with what the code says of them.

``python tests/service/test_operations_page.py`` writes its tables anew.
"""

import re
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from service.access.security import check_exposure
from service.settings import Settings
from service.telemetry.metrics import Metrics

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"


def settings_table() -> str:
    """Name, default and meaning of every setting."""
    rows = [f"| `{name}` | {_default(field)} | {field.description} |" for name, field in _settings(Settings)]
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows])


def metrics_table() -> str:
    """Name, kind, labels and meaning of every metric."""
    rows = [
        f"| `{each.name}` | {each.kind} | {', '.join(each.labels)} | {each.text} |"
        for each in Metrics().descriptions()
    ]
    return "\n".join(["| metric | kind | labels | meaning |", "|---|---|---|---|", *rows])


def _settings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        annotation: Any = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _settings(annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is None or value in ((), {}):
        return ""
    if isinstance(value, bool):
        return f"`{value}`".lower()
    if isinstance(value, int) and value >= 2**20 and value % 2**20 == 0:
        return f"{value // 2**20} MiB"
    return f"`{value}`"


def with_tables(page: str) -> str:
    """The page with the tables as they have to be."""
    for name, table in (("settings", settings_table()), ("metrics", metrics_table())):
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
        before, _, rest = page.partition(begin)
        _, found, after = rest.partition(end)
        assert found, f"expected {begin}...{end} on the page"
        page = f"{before}{begin}{table}\n{end}{after}"
    return page


def test_the_tables_are_those_of_the_code() -> None:
    page = PAGE.read_text("utf-8")
    assert page == with_tables(page), f"python {Path(__file__).name} writes them anew"


def test_the_configuration_on_the_page_is_one() -> None:
    _, _, rest = PAGE.read_text("utf-8").partition("with `service.toml`:\n")
    block, _, _ = rest.partition("\nand ask it:")
    settings = Settings(**tomllib.loads(textwrap.dedent(block)))
    check_exposure(settings.security, settings.host, mutual_tls=False)
    assert settings.tls.cert is not None


def test_every_setting_says_what_it_means() -> None:
    assert [name for name, field in _settings(Settings) if not field.description] == []


def test_a_page_without_a_setting_is_noticed() -> None:
    page = PAGE.read_text("utf-8")
    assert "| `rate.burst` |" in page
    spoilt = re.sub(r"\n\| `rate\.burst` .*", "", page)
    assert with_tables(spoilt) == with_tables(page) != spoilt


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text("utf-8")), "utf-8")

"""What the HTTP service says about itself: schema parts, and a page that needs no other host."""

from __future__ import annotations

import re
from html import escape
from importlib.metadata import PackageNotFoundError, version
from typing import Any

__all__ = ["LATER", "SOLVE_BODY", "VERSION", "docs"]

LATER = ("rollout", "vjp", "jvp")

try:
    VERSION = version("mno")
except PackageNotFoundError:  # run from a checkout that is not installed
    VERSION = "0+unknown"

_OPTIONS: dict[str, Any] = {
    "source": {"type": "number", "default": 1.0, "description": "uniform right-hand side [1/s]"},
    "model": {"type": "string", "description": "name, name@alias or name@3", "example": "darcy@production"},
    "method": {"enum": ["auto", "surrogate", "solver"], "default": "auto"},
    "error": {"enum": ["bound", "none"], "default": "bound"},
    "timeout_ms": {"type": "number", "exclusiveMinimum": 0, "description": "deadline [ms]"},
}

_FIELD: dict[str, Any] = {
    "type": "array",
    "items": {},
    "description": "(ny, nx) or (batch, ny, nx), y before x, each number > 0",
}

_ESTIMATE = (
    "JSON. One field: kind, norm, lower, upper, l2_estimate, steps. A batch: the same, with an array for "
    "each of lower, upper and l2_estimate, the bounds rounded outwards to four digits; where that exceeds "
    "6 KiB only kind, norm, upper_max, l2_estimate_median, steps (the most) and fields (how many)"
)

SOLVE_BODY: dict[str, Any] = {
    "responses": {
        "200": {
            "description": "JSON, or .npy with everything but the array in headers",
            "headers": {"Mno-Error-Estimate": {"schema": {"type": "string"}, "description": _ESTIMATE}},
        }
    },
    "parameters": [
        {
            "name": name,
            "in": "query",
            "required": False,
            "schema": schema,
            "description": "for application/x-npy",
        }
        for name, schema in _OPTIONS.items()
    ],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["permeability"],
                    "properties": {"permeability": _FIELD, **_OPTIONS},
                    "additionalProperties": False,
                }
            },
            "application/x-npy": {"schema": {"type": "string", "format": "binary"}},
        },
    },
}

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>mno</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem}}
td{{padding:.2rem 1rem .2rem 0;vertical-align:top}}
pre{{background:#f2f2f2;padding:1rem;overflow:auto}}</style>
<h1>mno {version}</h1>
<p>A served solver for partial differential equations. The machine-readable form of this page is
<a href="/openapi.json">/openapi.json</a>.</p>
<table>{rows}</table>
<p>A request to solve has, in JSON or as query parameters of an <code>application/x-npy</code> body:</p>
<table>{options}</table>
<p>Answers as <code>application/x-npy</code> have the rest in headers.
<code>Mno-Error-Estimate</code> is {estimate}.</p>
<pre>curl -H 'Content-Type: application/x-npy' --data-binary @permeability.npy \\
     -H 'Accept: application/x-npy' -o pressure.npy '{address}/v1/problems/darcy/solve?source=1.0'</pre>
</html>
"""


def docs(openapi: dict[str, Any], address: str) -> str:
    """A plain page that lists the endpoints of an OpenAPI document and the options of a request.

    Args:
        openapi: the document.
        address: where the service was asked, ``http://host:port``; for the example.
    """
    rows = "".join(
        f"<tr><td><code>{method.upper()}</code><td><code>{escape(path)}</code><td>{_text(operation['description'])}"
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    )
    options = "".join(
        f"<tr><td><code>{escape(name)}</code><td>{_text(_option(schema))}"
        for name, schema in {"permeability": _FIELD, **_OPTIONS}.items()
    )
    return _PAGE.format(
        version=escape(VERSION),
        rows=rows,
        options=options,
        estimate=escape(_ESTIMATE),
        address=escape(address),
    )


def _option(schema: dict[str, Any]) -> str:
    """What an option may be, in words."""
    choices = " or ".join(f"``{choice}``" for choice in schema.get("enum", ()))
    default = f"default ``{schema['default']}``" if "default" in schema else ""
    return "; ".join(filter(None, (schema.get("description"), choices, default)))


def _text(docstring: str) -> str:
    """A docstring as HTML."""
    return re.sub("``(.*?)``", r"<code>\1</code>", escape(docstring))

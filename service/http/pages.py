"""What the HTTP service says about itself: schema parts, and a page that needs no other host."""

from __future__ import annotations

import re
from html import escape
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import orjson

from service.http.schemas import URGENCY

__all__ = ["JVP_BODY", "QUANTITIES_BODY", "ROLLOUT_BODY", "SOLVE_BODY", "VERSION", "VJP_BODY", "docs"]

QUOTE = '"'

try:
    VERSION = version("mno")
except PackageNotFoundError:  # run from a checkout that is not installed
    VERSION = "0+unknown"

_OPTIONS: dict[str, Any] = {
    "source": {"type": "number", "default": 1.0, "description": "uniform right-hand side [1/s]"},
    "model": {"type": "string", "description": "name, name@alias or name@3", "example": "darcy@production"},
    "method": {
        "enum": ["auto", "surrogate", "hybrid", "solver"],
        "default": "auto",
        "description": "who answers; ``solver`` is the reference solver, ``hybrid`` starts it from the "
        "surrogate's answer; ``auto`` is the surrogate, and with a tolerance the cheaper of the other two",
    },
    "error": {
        "enum": ["bound", "certified", "none"],
        "default": "bound",
        "description": "what is said of the answer's error: a guaranteed upper bound; bounds from both sides "
        "within 5 %, down to what rounding leaves unknown; or nothing, which saves a Poisson solve",
    },
    "tolerance": {
        "oneOf": [
            {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
            {"enum": ["discretization"]},
        ],
        "description": "largest guaranteed relative error in the energy norm, or ``discretization``: as "
        "exact as the grid resolves the equation; the answer is float64. What cannot be met is refused",
    },
    **URGENCY,
}

_FIELD: dict[str, Any] = {
    "type": "array",
    "items": {},
    "description": "(ny, nx) or (batch, ny, nx), y before x, each number > 0",
}

_COTANGENT: dict[str, Any] = {
    "type": ["object", "array"],
    "items": {},
    "additionalProperties": {"type": "array", "items": {}},
    "description": "in the shape of the solution, numbers of any sign, or several such on a leading axis; by "
    "field, or alone where there is one",
}

_ESTIMATE = (
    "JSON. One field: ``kind``, ``norm``, ``lower``, ``upper``, ``l2_estimate``, ``steps``"
    " (and ``reference``: ``discrete``, or ``pde`` where the distance to the equation's own solution "
    "is meant; ``l2_lower``, ``l2_upper``, ``max_lower``, ``max_upper`` where they are known). A batch: the "
    "same, with an array for each of ``lower``, ``upper`` and ``l2_estimate``, the bounds rounded "
    "outwards to four digits; where that exceeds 6 KiB only ``kind``, ``norm``, ``upper_max``, "
    "``l2_estimate_median``, ``steps`` (the most) and ``fields`` (how many)"
)

SOLVE_BODY: dict[str, Any] = {
    "responses": {
        "200": {
            "description": "JSON; or .npy or a picture (of one field), with all the rest in headers",
            "headers": {"Mno-Error-Estimate": {"schema": {"type": "string"}, "description": _ESTIMATE}},
            "content": {
                "application/json": {"schema": {"type": "object"}},
                "application/x-npy": {"schema": {"type": "string", "format": "binary"}},
                "image/png": {"schema": {"type": "string", "format": "binary"}},
            },
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

_VJP_OPTIONS: dict[str, Any] = {
    "source": _OPTIONS["source"],
    "wrt": {
        "type": "string",
        "description": "the input field, or ``log_`` and its name for its logarithm; default: the first",
    },
    "model": _OPTIONS["model"],
    "method": {
        "enum": ["auto", "adjoint", "surrogate"],
        "default": "auto",
        "description": "``adjoint`` differentiates the discrete problem, with a guaranteed error; "
        "``surrogate`` the network, without any; ``auto`` is the surrogate where a model is named, "
        "else the adjoint",
    },
    "tolerance": {
        "type": "number",
        "exclusiveMinimum": 0,
        "exclusiveMaximum": 1,
        "description": "of the adjoint, the relative energy error of each of its solves; default: a few "
        "steps of each, whose error is told like any other",
    },
    **URGENCY,
}

_TANGENT: dict[str, Any] = {
    "type": "array",
    "items": {},
    "description": "in the shape of the input, numbers of any sign; or several such, on a leading axis",
}

_STACK: dict[str, Any] = {
    "type": "string",
    "format": "binary",
    "description": "(1 + n, ny, nx) or (1 + n, batch, ny, nx): the field, then n directions: cotangents "
    "of the solution (``vjp``), tangents of the input (``jvp``); through a rollout "
    "(1 + n, channel, ny, nx): the state, then n cotangents of the frame or tangents of the state",
}


def _derivative_body(direction: str, schema: dict[str, Any], answer: str) -> dict[str, Any]:
    return {
        "responses": {
            "200": {
                "description": f"JSON, or .npy with everything but the {answer} in headers",
                "content": {
                    "application/json": {"schema": {"type": "object", "required": [answer]}},
                    "application/x-npy": {"schema": {"type": "string", "format": "binary"}},
                },
            }
        },
        "parameters": [
            {
                "name": name,
                "in": "query",
                "required": False,
                "schema": option,
                "description": "for application/x-npy",
            }
            for name, option in _VJP_OPTIONS.items()
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": ["permeability", direction],
                        "properties": {"permeability": _FIELD, direction: schema, **_VJP_OPTIONS},
                        "additionalProperties": False,
                    }
                },
                "application/x-npy": {"schema": _STACK},
            },
        },
    }


_QUANTITY_OPTIONS: dict[str, Any] = {
    "source": _OPTIONS["source"],
    "model": {**_OPTIONS["model"], "description": "whose answer the solves start from; default: none's"},
    "tolerance": {
        "type": "number",
        "exclusiveMinimum": 0,
        "exclusiveMaximum": 1,
        "description": "each half-width is to be no more than this part of its value; default: what a few "
        "steps of the solver give",
    },
    **URGENCY,
}

_QUANTITY_NAMES = (
    "``mean`` of the pressure; ``outflow`` through all walls, or ``outflow.left``, ``outflow.left+top`` "
    "(left, right, bottom, top); ``reading(y, x)``, the pressure at a point [m]"
)

_QUANTITIES: dict[str, Any] = {
    "type": "array",
    "items": {"type": "string"},
    "minItems": 1,
    "maxItems": 64,
    "description": _QUANTITY_NAMES,
    "example": ["mean", "outflow.left", "reading(0.5, 0.25)"],
}

QUANTITIES_BODY: dict[str, Any] = {
    "responses": {
        "200": {
            "description": "``quantities``, a list in the order asked for: ``quantity``, ``unit``, ``value`` "
            "and ``half_width``, numbers of one field, lists of a batch; the exact value is within it",
            "content": {"application/json": {"schema": {"type": "object", "required": ["quantities"]}}},
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
        for name, schema in {
            "quantities": {"type": "string", "description": "comma-separated"},
            **_QUANTITY_OPTIONS,
        }.items()
    ],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["permeability", "quantities"],
                    "properties": {
                        "permeability": _FIELD,
                        "quantities": _QUANTITIES,
                        **_QUANTITY_OPTIONS,
                    },
                    "additionalProperties": False,
                }
            },
            "application/x-npy": {"schema": {"type": "string", "format": "binary"}},
        },
    },
}

_ROLLOUT_OPTIONS: dict[str, Any] = {
    "steps": {
        "type": "integer",
        "minimum": 1,
        "default": 100,
        "description": "the last step, counted from the initial state",
    },
    "every": {"type": "integer", "minimum": 1, "default": 1, "description": "send every so-many-th step"},
    "start_step": {
        "type": "integer",
        "minimum": 0,
        "default": 0,
        "description": "the step that the state belongs to: a broken stream goes on from its last frame, and "
        "with the same frames where this is a multiple of ``Mno-Block``",
    },
    "model": {"type": "string", "description": "name, name@alias or name@3"},
    "method": {"enum": ["auto", "surrogate", "solver"], "default": "auto"},
    "walls": {
        "type": "string",
        "description": "boundary conditions; a surrogate knows those of its card only",
    },
    "defects": {
        "anyOf": [{"type": "integer", "minimum": 0, "maximum": 2**32 - 1}, {"enum": ["all"]}],
        "default": 0,
        "description": "of a surrogate: so many of the frames, or ``all``, are compared with one step of the "
        "reference solver from the frame before",
    },
    **URGENCY,
    "timeout_ms": {
        "type": "number",
        "exclusiveMinimum": 0,
        "description": "deadline for the last frame [ms]",
    },
}

_STATE: dict[str, Any] = {
    "type": "object",
    "additionalProperties": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
    "description": "fields (ny, nx) by name; of shallow water ``h``, and ``hu`` and ``hv`` where water moves",
}

_CHANNELS: dict[str, Any] = {
    "type": "string",
    "description": "the channels of an ``application/x-npy`` body (channel, y, x), such as ``h,hu,hv``; "
    "default: those of the problem",
}

_FRAMES = (
    "``application/x-ndjson``: a line for each frame with ``step``, ``time``, ``fields``, ``invariants``, "
    "``error``, ``in_distribution`` and ``ood_score`` (the share of the calibration data that resembles the "
    "training data more than the state before the frame's block, or null); of the "
    "invariants, ``mass_defect`` counts from the state that was "
    "sent, and ``error`` is null where nothing is known. With ``defects``, a frame that was compared has "
    "``defect``, its root mean square difference from the solver's step, an estimate of what goes wrong in a "
    "step; while all frames up to it were, and that tells something, one of diffusion-reaction also has "
    "``exponential_bound``, how far it may be from the discrete solution, but for the time error of the "
    "solver's own steps. ``application/x-npy-stream``: records, each of "
    "eight bytes with a length (little-endian) and as many bytes; a frame is a record of JSON (``step``, "
    "``time`` and all that a line has but the fields) and one of ``.npy`` "
    "(channel, y, x); the stream ends with a record of length 0. A failure after the stream began is a last "
    "line or record "
    '``{"error": problem document}`` without a step, and no record of length 0'
)

_ROLLOUT_HEADERS: dict[str, str] = {
    "Mno-Model": "the version that steps, empty for the reference solver",
    "Mno-Method": "surrogate or solver",
    "Mno-Operator": "the discrete operator that the frames approximate",
    "Mno-Walls": "the boundary conditions",
    "Mno-In-Distribution": "whether the state resembles the training data: true or false",
    "Mno-Explanation": "what is unusual about the state; empty where it resembles the training data",
    "Mno-Frame-Interval": "time between two steps [s]",
    "Mno-Fields": "the channels of a frame, comma-separated",
    "Mno-Steps": "the last step",
    "Mno-Frames": "how many frames a whole stream has",
    "Mno-Block": "how many steps are computed at once",
}

ROLLOUT_BODY: dict[str, Any] = {
    "responses": {
        "200": {
            "description": _FRAMES,
            "headers": {
                name: {"schema": {"type": "string"}, "description": text}
                for name, text in _ROLLOUT_HEADERS.items()
            },
            "content": {"application/x-ndjson": {}, "application/x-npy-stream": {}},
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
        for name, schema in {"fields": _CHANNELS, **_ROLLOUT_OPTIONS}.items()
    ],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["state"],
                    "properties": {"state": _STATE, **_ROLLOUT_OPTIONS},
                    "additionalProperties": False,
                }
            },
            "application/x-npy": {"schema": {"type": "string", "format": "binary"}},
        },
    },
}

_ROLLOUT_COTANGENT: dict[str, Any] = {
    "type": "object",
    "additionalProperties": {"type": "array", "items": {}},
    "description": "of the frame, by field, each in the shape of the state's, numbers of any sign, or "
    "several such on a leading axis; fields that are left out do not count",
}

_ROLLOUT_TANGENT: dict[str, Any] = {
    "type": "object",
    "additionalProperties": {"type": "array", "items": {}},
    "description": "of the state, by field, each in its shape, numbers of any sign, or several such on a "
    "leading axis; fields that are left out do not change",
}

_ROLLOUT_VJP_OPTIONS: dict[str, Any] = {
    "steps": {
        "type": "integer",
        "minimum": 1,
        "description": "the step of the frame, counted from the initial state; the server limits how many a "
        "derivative goes through (``limits.gradient_steps``), those of all directions together",
    },
    "start_step": {
        "type": "integer",
        "minimum": 0,
        "default": 0,
        "description": "the step that the state belongs to",
    },
    "wrt": {
        "type": "string",
        "description": "the field of the state, or ``log_`` and its name for its logarithm; default: the "
        "first",
    },
    "model": _ROLLOUT_OPTIONS["model"],
    "method": {
        "enum": ["auto", "surrogate"],
        "default": "auto",
        "description": "the network is differentiated, and nothing bounds the error; there is no other way",
    },
    "walls": _ROLLOUT_OPTIONS["walls"],
    **URGENCY,
}


_ROLLOUT_JVP_OPTIONS: dict[str, Any] = {
    **_ROLLOUT_VJP_OPTIONS,
    "every": {
        "type": "integer",
        "minimum": 1,
        "description": "the tangents of the frames of all steps that this divides, up to ``steps``, on an "
        "axis of their own; default: of that of ``steps`` alone",
    },
    "wrt": {
        "type": "string",
        "description": "``log_`` and a field of the state: its tangents are those of its logarithm",
    },
}


def _with_rollouts(
    body: dict[str, Any], direction: str, schema: dict[str, Any], options: dict[str, Any]
) -> dict[str, Any]:
    """What a derivative of a solution has, or one through a rollout."""
    content = body["requestBody"]["content"]
    through_rollouts = {
        "type": "object",
        "required": ["state", direction, "steps"],
        "properties": {"state": _STATE, direction: schema, **options},
        "additionalProperties": False,
    }
    either = {"oneOf": [content["application/json"]["schema"], through_rollouts]}
    own = [name for name in ("steps", "every", "start_step", "walls") if name in options]
    others = {"fields": _CHANNELS} | {name: options[name] for name in own}
    more = [
        {
            "name": name,
            "in": "query",
            "required": False,
            "schema": schema,
            "description": "for application/x-npy, through a rollout",
        }
        for name, schema in others.items()
    ]
    content = {**content, "application/json": {"schema": either}}
    return {
        **body,
        "parameters": [*body["parameters"], *more],
        "requestBody": {**body["requestBody"], "content": content},
    }


VJP_BODY: dict[str, Any] = _with_rollouts(
    _derivative_body("cotangent", _COTANGENT, "gradient"),
    "cotangent",
    _ROLLOUT_COTANGENT,
    _ROLLOUT_VJP_OPTIONS,
)
JVP_BODY: dict[str, Any] = _with_rollouts(
    _derivative_body("tangent", _TANGENT, "tangent"), "tangent", _ROLLOUT_TANGENT, _ROLLOUT_JVP_OPTIONS
)

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>mno</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem}}
h2{{margin-top:2.5rem}}table{{display:block;overflow-x:auto}}
td{{padding:.2rem 1rem .2rem 0;vertical-align:top}}
pre{{background:#f2f2f2;padding:1rem;white-space:pre-wrap;overflow-wrap:anywhere;font-size:14px}}
details{{margin-top:1rem}}summary{{cursor:pointer}}</style>
<h1>mno {version}</h1>
<p>A served solver for partial differential equations: <a href="#solve">solutions</a>,
<a href="#vjp">gradients</a>, <a href="#quantities">quantities</a>,
<a href="#rollout">rollouts</a>, and <a href="#endpoints">all endpoints</a>. The
machine-readable form of this page is <a href="/openapi.json">/openapi.json</a>;
<a href="/v1/problems">/v1/problems</a> has the problems with their fields and units,
<a href="/v1/models">/v1/models</a> the models.</p>
<h2 id="solve">Solve</h2>
<pre>python -c "import numpy as np
np.save('permeability.npy', np.random.lognormal(size=(128, 128)))"
curl -H 'Content-Type: application/x-npy' --data-binary @permeability.npy \\
     -H 'Accept: application/x-npy' -o pressure.npy -D - \\
     '{address}/v1/problems/darcy/solve?source=1.0'</pre>
<p>A request has, in a JSON object or as query parameters beside an <code>application/x-npy</code> body:</p>
<table>{options}</table>
<p>Answers are JSON, <code>application/x-npy</code> or, of one field, <code>image/png</code>, as
<code>Accept</code> says. All but JSON have the rest in headers; of these,
<code>Mno-Error-Estimate</code> is {estimate}.</p>
<p>What is refused is answered with <code>application/problem+json</code>: <code>type</code> is a stable word,
<code>detail</code> says what was expected, what was found, and the way out.</p>
<h2 id="vjp">Gradients</h2>
<p>The gradient of the sum of <code>cotangent</code> times solution with respect to the input field
(<code>vjp</code>) is asked for in the same ways, and answered as <code>gradient</code>; what a change of the
input (<code>tangent</code>) does to the solution (<code>jvp</code>), as <code>tangent</code>. As
<code>application/x-npy</code> the body is {pair}. <code>error</code> is guaranteed, or <code>null</code>: of
a gradient <code>norm</code> is <code>directional</code>, and it differs from the exact one by no more than
<code>upper</code> in any direction along which the logarithm of the input changes by no more than 1; of a
tangent it is the relative energy error. A request has:</p>
<table>{vjp_options}</table>
<h2 id="quantities">Quantities</h2>
<pre>curl -H 'Content-Type: application/x-npy' --data-binary @permeability.npy \\
     '{address}/v1/problems/darcy/quantities?quantities=mean,outflow.left,reading(0.5,0.25)'</pre>
<p>Numbers that are read off the discrete solution, each with a half-width that is guaranteed. A request has,
in JSON or as query parameters of an <code>application/x-npy</code> body:</p>
<table>{quantity_options}</table>
<h2 id="rollout">Roll out</h2>
<pre>python -c "import numpy as np
h = np.ones((1, 128, 128)); h[:, :64] = 2
np.save('state.npy', h)"
curl -N -H 'Content-Type: application/x-npy' --data-binary @state.npy \\
     '{address}/v1/problems/shallow_water/rollout?steps=100&amp;every=10'</pre>
<p>A rollout starts from one state. It has, in JSON or as query parameters of an
<code>application/x-npy</code> body (channel, y, x):</p>
<table>{rollout_options}</table>
<p>Its frames are streamed as they are computed. {frames}.</p>
<p>What holds for all of them is in headers:</p>
<table>{rollout_headers}</table>
<p>The gradient of the sum of <code>cotangent</code> times the frame of a step with respect to a field of the
state (<code>vjp</code>), and what a change of the state (<code>tangent</code>) does to frames
(<code>jvp</code>), are those of the network, through the whole rollout. <code>error</code> is
<code>null</code> and <code>certified</code> is <code>false</code>: nothing bounds them. As
<code>application/x-npy</code> the body is (1 + n, channel, ny, nx), the state and n cotangents or tangents. A
gradient has:</p>
<table>{rollout_vjp_options}</table>
<p>Tangents have:</p>
<table>{rollout_jvp_options}</table>
<h2 id="endpoints">Endpoints</h2>
<table>{rows}</table>
<details><summary>Open Inference Protocol: the same models for <code>tritonclient</code> and KServe</summary>
<table>{tagged_rows}</table></details>
</html>
"""


def docs(openapi: dict[str, Any], address: str) -> str:
    """A plain page that says how to ask, and lists the endpoints of an OpenAPI document.

    Args:
        openapi: the document.
        address: where the service was asked, ``http://host:port``; for the examples.
    """
    rows = {True: "", False: ""}
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            rows["tags" in operation] += (
                f"<tr><td><code>{method.upper()}</code><td><code>{escape(path)}</code>"
                f"<td>{_text(operation['description'])}"
            )
    return _PAGE.format(
        version=escape(VERSION),
        rows=rows[False],
        tagged_rows=rows[True],
        options=_table({"permeability": _FIELD, **_OPTIONS}),
        estimate=_text(_ESTIMATE),
        pair=_text(_STACK["description"]),
        vjp_options=_table(
            {"permeability": _FIELD, "cotangent": _COTANGENT, "tangent": _TANGENT, **_VJP_OPTIONS}
        ),
        quantity_options=_table({"permeability": _FIELD, "quantities": _QUANTITIES, **_QUANTITY_OPTIONS}),
        rollout_options=_table({"state": _STATE, "fields": _CHANNELS, **_ROLLOUT_OPTIONS}),
        rollout_vjp_options=_table(
            {"state": _STATE, "cotangent": _ROLLOUT_COTANGENT, **_ROLLOUT_VJP_OPTIONS}
        ),
        rollout_jvp_options=_table({"state": _STATE, "tangent": _ROLLOUT_TANGENT, **_ROLLOUT_JVP_OPTIONS}),
        frames=_text(_FRAMES),
        rollout_headers=_table({name: {"description": text} for name, text in _ROLLOUT_HEADERS.items()}),
        address=escape(address),
    )


def _table(schemas: dict[str, Any]) -> str:
    return "".join(
        f"<tr><td><code>{escape(name)}</code><td>{_text(_option(schema))}" for name, schema in schemas.items()
    )


def _option(schema: dict[str, Any]) -> str:
    """What an option may be, in words."""
    choices = " or ".join(f"``{choice}``" for choice in schema.get("enum", ()))
    # as JSON has it, but for the quotes around a word
    default = (
        f"default ``{orjson.dumps(schema['default']).decode().strip(QUOTE)}``" if "default" in schema else ""
    )
    return "; ".join(filter(None, (schema.get("description"), choices, default)))


def _text(docstring: str) -> str:
    """A docstring as HTML."""
    return re.sub("``(.*?)``", r"<code>\1</code>", escape(docstring))

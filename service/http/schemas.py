"""Parts of the OpenAPI document that the signatures of the handlers do not say."""

from __future__ import annotations

from typing import Any, Final

__all__ = [
    "CONTROL_BODY",
    "INDEX_BODY",
    "INFER_BODY",
    "LISTS_OF_A_REQUEST",
    "METRICS",
    "OIP_ERROR",
    "PROBLEM_ANSWER",
    "URGENCY",
]

# of an inference request, beside those of its tensors' data
LISTS_OF_A_REQUEST: Final = 512

_PROBLEM: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "request_id"],
    "properties": {
        "type": {
            "type": "string",
            "description": "stable word for what is wrong",
            "example": "invalid-field",
        },
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "expected, found, way out"},
        "request_id": {"type": "string"},
        "field": {"type": "string", "description": "the field or option that breaks a rule"},
        "rule": {"type": "string", "description": "the rule"},
        "index": {
            "type": ["array", "null"],
            "items": {"type": "integer"},
            "description": "first offending element",
        },
    },
}

# a media type of its own keeps FastAPI from describing its own form of errors
PROBLEM_ANSWER: Final[dict[int | str, dict[str, Any]]] = {
    "default": {
        "description": "what went wrong (RFC 9457)",
        "content": {"application/problem+json": {"schema": _PROBLEM}},
    }
}

OIP_ERROR: Final[dict[int | str, dict[str, Any]]] = {
    "default": {
        "description": "what went wrong, as the Open Inference Protocol says it",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["error"],
                    "properties": {"error": {"type": "string"}},
                }
            }
        },
    }
}

URGENCY: Final[dict[str, Any]] = {
    "timeout_ms": {"type": "number", "exclusiveMinimum": 0, "description": "deadline [ms]"},
    "priority": {
        "enum": ["interactive", "bulk"],
        "default": "interactive",
        "description": "bulk requests let interactive ones go first",
    },
    "reproducible": {
        "type": "boolean",
        "default": False,
        "description": "the same bits whatever else is computed, in batches of one size; takes longer",
    },
}

_ANY_OBJECT: Final[dict[str, Any]] = {"type": "object"}

METRICS: Final[dict[str, Any]] = {
    "responses": {
        "200": {
            "description": "Prometheus' text, or OpenMetrics where it is asked for",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        }
    }
}

_PARAMETERS: Final[dict[str, Any]] = {
    "type": "object",
    "description": "timeout [us], priority (0 and 1: interactive, more: bulk), error, method, tolerance, "
    "reproducible, the problem's parameters such as source, start_step; binary_data_output",
    "additionalProperties": {"type": ["string", "number", "boolean"]},
}

_TENSOR: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 80},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 1},
        "datatype": {"enum": ["FP16", "BF16", "FP32", "FP64"]},
        "parameters": _ANY_OBJECT,
        "data": {"type": "array", "items": {}, "description": "numbers, flat or nested, row by row"},
    },
}

_ANSWER_TENSOR: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "datatype": {"enum": ["FP32", "FP64", "BOOL"]},
        "parameters": _ANY_OBJECT,
        "data": {"type": "array", "items": {}},
    },
}

INFER_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {
                        "id": {"type": "string"},
                        "parameters": _PARAMETERS,
                        "inputs": {"type": "array", "items": _TENSOR, "minItems": 1},
                        "outputs": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "required": ["name"],
                                "properties": {"name": {"type": "string"}, "parameters": _ANY_OBJECT},
                            },
                        },
                    },
                    "additionalProperties": False,
                }
            },
            "application/octet-stream": {
                "schema": {
                    "type": "string",
                    "format": "binary",
                    "description": "JSON and the bytes of tensors; the header "
                    "``Inference-Header-Content-Length`` says how long the JSON is",
                }
            },
        },
    },
    "responses": {
        "200": {
            "description": "JSON, or JSON and the bytes of tensors",
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": ["model_name", "model_version", "outputs"],
                        "properties": {
                            "model_name": {"type": "string"},
                            "model_version": {"type": "string"},
                            "id": {"type": "string"},
                            "outputs": {"type": "array", "items": _ANSWER_TENSOR},
                        },
                    }
                },
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            },
        }
    },
}

INDEX_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {"ready": {"type": "boolean"}},
                    "additionalProperties": False,
                }
            }
        }
    }
}

CONTROL_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "parameters": {
                            "type": "object",
                            "properties": {"unload_dependents": {"type": "boolean"}},
                            "additionalProperties": False,
                        }
                    },
                    "additionalProperties": False,
                }
            }
        }
    }
}

"""What a file says of itself, so that it means something without the store it came from."""

import json
from collections.abc import Mapping

from model_store.card import FieldRecord
from model_store.export.signature import Signature
from model_store.store import LoadedVersion
from model_store.weights import WEIGHTS


def describe(version: LoadedVersion, form: str) -> dict[str, str]:
    """Names and texts; what is no text is JSON. ``form``: ``onnx opset 20``, for example."""
    card, signature = version.card, Signature.of(version)
    described: dict[str, object] = {
        "model": version.reference.name,
        "version": version.reference.version,
        "problem": card.problem,
        "scheme": card.scheme,
        "operator": card.operator.kind,
        "inputs": signature.inputs,
        "outputs": signature.outputs,
        "fields": {"inputs": _units(card.inputs), "outputs": _units(card.outputs)},
        "open_axes": {"batch": "any", "y": str(signature.sides), "x": str(signature.sides)},
        "extent_m": card.extent,
        "frame_interval_s": card.frame_interval,
        "walls": card.walls,
        "tested_grids": card.grids,
        "weights_sha256": card.files[WEIGHTS].sha256,
        "code_version": card.code_version,
        "form": form,
    }
    return {f"mno.{name}": _text(value) for name, value in described.items() if value is not None}


def _units(fields: tuple[FieldRecord, ...]) -> Mapping[str, str]:
    return {field.name: field.unit for field in fields}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)

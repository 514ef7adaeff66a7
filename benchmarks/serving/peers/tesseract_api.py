"""Tesseract's file of endpoints: one forward a request."""

import os

import torch
from pydantic import BaseModel
from tesseract_core.runtime import Array, Float32

from benchmarks.serving.models import build

_forward = build(os.environ["BENCH_MODELS"].split(",")[0], os.environ["BENCH_FROZEN"] == "1")


class InputSchema(BaseModel):
    """What comes in."""

    permeability: Array[(None, None), Float32]


class OutputSchema(BaseModel):
    """What goes out."""

    pressure: Array[(None, None), Float32]


def apply(inputs: InputSchema) -> OutputSchema:
    """One forward."""
    field = torch.as_tensor(inputs.permeability)[None]
    return OutputSchema(pressure=_forward(field)[0].contiguous().numpy())

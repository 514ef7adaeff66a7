"""A traced surrogate as an ONNX model that a stock runtime runs."""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import onnx
import onnxruntime  # type: ignore[import-untyped]
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.onnx.errors import OnnxExporterError

from model_store.export.errors import CannotExport
from model_store.export.functions import FUNCTIONS, OPSET, translations
from model_store.export.signature import Signature


def translate(program: ExportedProgram, signature: Signature, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """The model of a program.

    Raises:
        CannotExport: an operation of the program has no form in ONNX.
    """
    # they tell of every library that they could translate operations of, and of all that they do not fold
    for name in ("torch.onnx._internal.exporter._registration", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        # the exporter warns of its own ways
        with warnings.catch_warnings(action="ignore"):
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(signature.inputs),
                output_names=list(signature.outputs),
                custom_translation_table=dict(translations()),
                verbose=False,
            )
    except OnnxExporterError as error:
        raise CannotExport(
            f"expected operations that have a form in ONNX, got {_last_line(error)}; export it as a program: "
            "OUT.pt2"
        ) from error
    assert exported is not None
    model: onnx.ModelProto = exported.model_proto
    _add_functions(model)
    _name_axes(model, signature)
    onnx.helper.set_model_props(model, dict(metadata))
    return model


def _add_functions(model: onnx.ModelProto) -> None:
    """Give the model those of our functions that it calls."""
    called = {node.op_type for node in _nodes(model) if node.domain == "mno"}
    model.functions.extend(FUNCTIONS[name] for name in FUNCTIONS if name in called)
    if called and not any(opset.domain == "mno" for opset in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid("mno", 1))


def _nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [*model.graph.node, *(node for function in model.functions for node in function.node)]


def _name_axes(model: onnx.ModelProto, signature: Signature) -> None:
    """Call the open axes batch, y and x; sizes within have no names that a user could know."""
    named = {**signature.inputs, **signature.outputs}
    for value in (*model.graph.input, *model.graph.output):
        for dim, axis in zip(value.type.tensor_type.shape.dim, named[value.name], strict=True):
            if axis in ("batch", "y", "x"):
                dim.dim_param = axis
    del model.graph.value_info[:]


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model, all in one file."""
    onnx.checker.check_model(model)
    onnx.save(model, path)


def load(path: Path, threads: int = 0) -> "OnnxSurrogate":
    """A file's model in ONNX Runtime; 0 threads are all of them."""
    return OnnxSurrogate(path, threads)


@final
class OnnxSurrogate:
    """A session of ONNX Runtime, called as a surrogate is."""

    def __init__(self, path: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # errors only: what the runtime folds and drops is its own affair
        options.log_severity_level = 3
        self._session: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._names = [given.name for given in self._session.get_inputs()]

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The output, of inputs in the order of the file."""
        given = {name: tensor.numpy() for name, tensor in zip(self._names, inputs, strict=True)}
        return torch.from_numpy(self._session.run(None, given)[0])


def _last_line(error: Exception) -> str:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0] if lines else ''}"

"""A surrogate's state as safetensors bytes, and back: nothing is ever unpickled."""

from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from model_store.errors import CorruptVersion, RefusedVersion
from operators import AnySurrogate, OperatorConfig, surrogate_from_config

WEIGHTS = "weights.safetensors"


def to_bytes(state: Mapping[str, Tensor], config: OperatorConfig) -> bytes:
    """Serialize a state that fits ``config``.

    Raises:
        RefusedVersion: names or shapes do not fit, or a number is not finite.
    """
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise RefusedVersion(
            f"expected finite weights, got NaN or infinity in {broken[0]}; publish an earlier checkpoint"
        )
    try:
        _surrogate_with(state, config)
    except RuntimeError as error:
        raise RefusedVersion(
            f"the weights do not fit the operator configuration: {_one_line(error)}"
        ) from None
    # clones, because tensors that share memory have no safetensors form
    return safetensors.save(
        {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}
    )


def to_surrogate(data: bytes, config: OperatorConfig) -> AnySurrogate:
    """The surrogate with these weights, in evaluation mode and without gradients for its weights.

    Raises:
        CorruptVersion: the bytes are no safetensors file, or do not fit ``config``.
    """
    try:
        surrogate = _surrogate_with(safetensors.load(data), config)
    except (SafetensorError, RuntimeError) as error:
        raise CorruptVersion(f"{WEIGHTS} does not load: {_one_line(error)}") from None
    return surrogate.eval().requires_grad_(False)


def _surrogate_with(state: Mapping[str, Tensor], config: OperatorConfig) -> AnySurrogate:
    surrogate = surrogate_from_config(config)
    surrogate.load_state_dict(state, strict=True)
    return surrogate


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())

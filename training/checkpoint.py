"""A checkpoint: what a training needs to continue as if it had not been stopped, in one safetensors file.

The file is replaced at once, so there is always a whole one; reading it unpickles nothing.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from training.files import replace_atomically

Tensors = Mapping[str, Tensor]


class InvalidCheckpoint(ValueError):
    """A file that is not a usable checkpoint."""


@dataclass(frozen=True)
class Checkpoint:
    """State after ``step`` steps; the groups map parameter names to tensors."""

    step: int
    seconds: float
    run: str  # the whole run file
    weights: Tensors
    average: Tensors  # exponential moving average of the weights
    moment1: Tensors
    moment2: Tensors
    loss_sum: Tensor  # since the last line of the log


_GROUPS = ("weights", "average", "moment1", "moment2")


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint at ``path``; the previous one stays until the new one is whole."""
    tensors = {
        f"{group}/{name}": tensor.detach().contiguous()
        for group in _GROUPS
        for name, tensor in getattr(checkpoint, group).items()
    }
    header = {"step": checkpoint.step, "seconds": checkpoint.seconds, "run": checkpoint.run}
    with replace_atomically(path) as temporary:
        save_file(tensors | {"loss_sum": checkpoint.loss_sum}, temporary, {"checkpoint": json.dumps(header)})


def load_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at ``path``, on the CPU.

    Raises:
        InvalidCheckpoint: no file, or not one of ours.
    """
    if not path.is_file():
        raise InvalidCheckpoint(f"no checkpoint at {path}")
    try:
        with safe_open(path, "pt") as file:
            header = json.loads(file.metadata()["checkpoint"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        return _parse(header, tensors)
    # JSON's error is a ValueError
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InvalidCheckpoint(f"{path}: expected a checkpoint of mno train: {error!r}") from error


def _parse(header: Mapping[str, Any], tensors: Tensors) -> Checkpoint:
    return Checkpoint(
        step=int(header["step"]),
        seconds=float(header["seconds"]),
        run=str(header["run"]),
        weights=_group(tensors, "weights"),
        average=_group(tensors, "average"),
        moment1=_group(tensors, "moment1"),
        moment2=_group(tensors, "moment2"),
        loss_sum=tensors["loss_sum"],
    )


def _group(tensors: Tensors, group: str) -> dict[str, Tensor]:
    prefix = f"{group}/"
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

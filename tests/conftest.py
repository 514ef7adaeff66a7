"""What tests of several packages share: every preset at a size that a test can afford."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
from pydantic import BaseModel

from operators import OperatorConfig
from operators.presets import Task, preset

# Triton reads this once, when somebody first imports it: the exporter's tests do so before the scan's
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

Config = TypeVar("Config", bound=BaseModel)

# no more than so many, wherever a configuration speaks of them; of ``mixers``, which it lists, the first ones
AT_MOST = {
    "channels": 32,
    "hidden": 64,
    "mixers": 2,
    "blocks": 2,
    "layers": 2,
    "lift_layers": 1,
    "levels": 2,
    "modes": 6,
    "heads": 4,
    "head_size": 8,
    "states": 4,
    "frequencies": 16,
    "march": 32,
}


def shrunk(config: Config) -> Config:
    """The same kind of operator, with fewer and narrower layers."""

    def less(name: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: less(key, each) for key, each in value.items()}
        if isinstance(value, tuple | list):
            return [less("", each) for each in value[: AT_MOST.get(name)]]
        return min(value, AT_MOST[name]) if name in AT_MOST and value is not None else value

    return type(config).model_validate(less("", config.model_dump()))


@pytest.fixture(scope="session")
def small_preset() -> Callable[[str, Task], OperatorConfig]:
    """A preset for a task, by ordinary changes of its configuration a small one."""
    return lambda name, task: shrunk(preset(name, task))

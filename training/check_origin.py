"""Checks of where samples come from: the recipe of a file, and samples that occur more than once."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from training.dataset import Attributes
from training.findings import Finding
from training.recipe import Recipe

# samples whose input is drawn again, or solved again
PROBES = 3
# a relative L2 difference that another machine's rounding may make, in one cell at a jump
_SAME = 1e-2


def probes(count: int) -> list[int]:
    """Some indices, the first and the last among them."""
    return sorted({round(index) for index in np.linspace(0, count - 1, PROBES)})


def digest(field: NDArray[np.float32]) -> bytes:
    """Equal for equal fields; empty for a uniform field of any value, which says nothing about its origin."""
    if field.min() == field.max():
        return b""
    # -0.0 is 0.0
    return hashlib.sha256(np.ascontiguousarray(field + np.float32(0)).tobytes()).digest()


def occurrences(inputs: Mapping[str, Sequence[bytes]], names: Sequence[str]) -> list[tuple[bytes, ...]]:
    """A key for every sample that is not uniform, by the named channels."""
    return [key for key in zip(*(inputs[name] for name in names), strict=True) if any(key)]


def check_duplicates(inputs: Mapping[str, Sequence[bytes]]) -> Finding:
    """Samples that start from the same input."""
    keys = occurrences(inputs, list(inputs))
    distinct, uniform = len(set(keys)), len(next(iter(inputs.values()))) - len(keys)
    text = f"{distinct} distinct" + (f", {uniform} uniform" if uniform else "")
    if distinct == len(keys):
        return Finding("inputs", "ok", text)
    return Finding("inputs", "note", f"{text}, of {len(keys) + uniform}: a split must not part equal ones")


def check_recipe(
    kind: type[Recipe],
    attributes: Attributes,
    held: Mapping[str, object],
    inputs: Mapping[int, NDArray[np.float32]],
) -> Finding:
    """The recipe against its hash, against what the file holds, and against inputs drawn from it anew.

    Args:
        kind: of the recipe.
        attributes: of the file.
        held: field of the recipe -> what the file holds.
        inputs: index -> stored input of some samples.
    """
    text = attributes.get("recipe")
    if text is None:
        return Finding("recipe", "note", "none: made elsewhere, not by `mno generate`")
    try:
        recipe = kind.model_validate_json(str(text))
    except ValidationError as error:
        return _fault(f"not of this version: {'; '.join(issue['msg'] for issue in error.errors())}")
    if recipe.sha256 != attributes.get("recipe_sha256"):
        return _fault(f"its hash is {recipe.sha256[:16]}, the file says {attributes.get('recipe_sha256')}")
    for name, found in held.items():
        if getattr(recipe, name) != found:
            return _fault(f"it says {name} = {getattr(recipe, name)}, the file holds {found}")
    if different := list(_different(recipe, inputs)):
        return _fault(f"samples {different} are not those of seed {recipe.seed}")
    return Finding("recipe", "ok", f"{recipe.family}, seed {recipe.seed}, sha256 {recipe.sha256[:16]}")


def _different(recipe: Recipe, inputs: Mapping[int, NDArray[np.float32]]) -> Iterable[int]:
    for index, stored in inputs.items():
        drawn = recipe.make_input(index)[: len(stored)]
        if not np.linalg.norm(drawn - stored) <= _SAME * np.linalg.norm(drawn):
            yield index


def _fault(text: str) -> Finding:
    return Finding("recipe", "fault", text)

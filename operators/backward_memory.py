"""How much memory a forward pass keeps for the pass back."""

import weakref
from collections.abc import Callable, Iterable
from typing import final

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


def held_for_backward(
    function: Callable[..., object], *inputs: object, weights: Iterable[Tensor] = ()
) -> int:
    """The memory that the result of ``function(*inputs)`` keeps alive until its gradient is asked for [B].

    Every piece of memory counts whole and once, however many views of it are kept, and the inputs count where
    they are needed again. What autograd kept for a result that was thrown away meanwhile does not.

    Args:
        function: with a result that gradients flow back from.
        inputs: of the function.
        weights: parameters and buffers, which are there anyway.
    """
    kept: weakref.WeakSet[_Kept] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Kept:
        one = _Kept(tensor)
        kept.add(one)
        return one

    with saved_tensors_hooks(pack, lambda one: one.tensor):
        # named: it holds the graph, and the graph what was kept
        result = function(*inputs)
    pieces = {each.address: each.size for each in kept}
    del result
    there = {weight.untyped_storage().data_ptr() for weight in weights}
    return sum(size for address, size in pieces.items() if address not in there)


@final
class _Kept:
    """A tensor in a graph; it goes when the graph does."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    @property
    def address(self) -> int:
        """Of its memory."""
        return self.tensor.untyped_storage().data_ptr()

    @property
    def size(self) -> int:
        """Of its memory [B]."""
        return self.tensor.untyped_storage().nbytes()

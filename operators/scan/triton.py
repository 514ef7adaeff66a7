"""Our Triton kernels, for CUDA: directions that share their tokens in one pass, with gate and merge."""

import functools
import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from operators.scan.path import CHUNK, Path
from operators.scan.scan import AdjointBackend, Gradients, Result, Scan

CAPABILITY = (8, 0)
"""The oldest devices that the kernels are meant for."""

LANES = 32
"""Channels of a program on a device: one a thread of a warp."""

TOGETHER = 4
"""Directions that one launch scans at most: the kernels are unrolled over them."""


class Triton(AdjointBackend):
    """Float32 state; x and its like in float32, bfloat16 or float16. Every run gives the same bits.

    Args:
        interpreted: accept the CPU, where Triton's interpreter runs the kernels (slowly, for tests). Triton
            must have been imported with TRITON_INTERPRET=1.
    """

    name = "triton"

    def __init__(self, interpreted: bool = False) -> None:
        self._interpreted = interpreted

    def refusal(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Refuses float64, other devices than newer ones of NVIDIA, and a machine without Triton."""
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"it computes in float32, not in {dtype}"
        if device.type != "cuda" and not (self._interpreted and device.type == "cpu"):
            return f"it runs on CUDA, not on {device.type}"
        if not _is_installed():
            return "Triton is not installed: pip install 'mno[cuda]'"
        return None if device.type == "cpu" else _device_refusal(device)

    def forward(self, scan: Scan, save: bool) -> Result:
        """Chunk ends, their sums from chunk to chunk, then the outputs: three launches for a `_Launch`."""
        batch, tokens, width = scan.x.shape
        states = scan.A.shape[2]
        call = _Call(scan)
        rows = call.empty(batch, scan.checkpoints, states, width)
        last = call.empty(batch, scan.lasts, width, states)
        y = torch.empty(scan.x.shape, dtype=scan.x.dtype, device=scan.x.device)
        partial = call.empty(*(scan.x.shape if len(call.launches) > 1 else (1,)))
        with cast(Any, torch.cuda).device_of(scan.x):
            for launch in call.launches:
                call.hand_on(launch, rows, last)
                call.run(
                    "outputs", launch, "x dt A B C D z bias", (launch.part(rows), partial, y),
                    "x dt B C z", rows.stride(0), (tokens,),
                    FIRST=launch.first, LAST=launch.last,
                )  # fmt: skip
        return Result(y, rows if save else call.empty(batch, 0, states, width), last)

    def backward(self, scan: Scan, checkpoint: Tensor, dy: Tensor) -> Gradients:
        """The same from the end; what several programs add to is summed in float64."""
        batch, tokens, width = scan.x.shape
        K, _, states = scan.A.shape
        call = _Call(scan, dy)
        adjoints = torch.empty_like(checkpoint)
        dx, ddt = call.empty(*scan.x.shape), call.empty(*scan.dt.shape)
        dB, dC = (call.empty(call.blocks, *t.shape) for t in (scan.B, scan.C))
        dz = call.empty(*(0,) if scan.z is None else scan.z.shape)
        partial = call.empty(*(scan.x.shape if len(call.launches) > 1 else (1,)))
        dA = call.empty(K, width, states)
        dD, dbias = (call.empty(*(0,) if t is None else t.shape) for t in (scan.D, scan.dt_bias))
        with cast(Any, torch.cuda).device_of(scan.x):
            for launch in call.launches:
                call.hand_back(launch, adjoints)
                tiles = (batch, launch.tiles)
                parts = call.empty(*tiles, len(launch.ks), states, width)
                skips = call.empty(*tiles, width)
                # nobody writes them without a bias
                biases = call.empty(*tiles, len(launch.ks), width)
                call.run(
                    "gradients", launch, "x dt A B C D z bias dy",
                    (launch.part(checkpoint), launch.part(adjoints), partial,
                     dx, ddt, parts, dB, dC, skips, dz, biases),
                    "x dt B C z dy", checkpoint.stride(0), (batch, tokens, K),
                    FIRST=launch.first, LAST=launch.last,
                )  # fmt: skip
                if scan.D is not None and launch.first:
                    dD[:] = _total(skips)
                for k, by_A, by_bias in zip(launch.ks, _total(parts), _total(biases), strict=True):
                    dA[k] = by_A.mT
                    if scan.dt_bias is not None:
                        dbias[k] = by_bias
        return Gradients(dx, ddt, dA, dB.sum(0), dC.sum(0), dD, dz, dbias)


def _total(parts: Tensor) -> Tensor:
    """Sums over batch and tiles."""
    return parts.sum((0, 1), dtype=torch.float64).float()


@functools.cache
def _is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _device_refusal(device: torch.device) -> str | None:
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if torch.version.hip is not None:
        return "it was written for NVIDIA's devices"
    found = torch.cuda.get_device_capability(device)
    if found < CAPABILITY:
        return f"it needs compute capability {CAPABILITY[0]}.{CAPABILITY[1]}, not {found[0]}.{found[1]}"
    return None


@functools.cache
def _kernels() -> Any:
    return importlib.import_module("operators.scan.triton_kernels")


@dataclass(frozen=True)
class _Launch:
    """Directions that visit the same segments, there or back, and where their rows of the checkpoint are."""

    ks: tuple[int, ...]
    segments: int
    length: int
    chunks: int
    strides: tuple[int, int]
    reversed: int
    """A bit for each direction, as are ``resets``."""
    resets: int
    lasts: tuple[int, ...]
    rows: slice
    first: bool
    last: bool

    @property
    def steps(self) -> int:
        """Tokens of a tile."""
        return min(CHUNK, max(2, 1 << (self.length - 1).bit_length()))

    @property
    def tiles(self) -> int:
        """Chunks of all segments."""
        return self.segments * self.chunks

    def part(self, rows: Tensor) -> Tensor:
        """The states between the chunks of these directions."""
        return rows[:, self.rows]


@functools.lru_cache(maxsize=256)
def _launches(paths: tuple[Path, ...]) -> tuple[_Launch, ...]:
    groups = list(_groups(paths))
    rows = 0
    made = []
    for i, ks in enumerate(groups):
        own = [paths[k] for k in ks]
        until = rows + sum(p.checkpoints for p in own)
        made.append(
            _Launch(
                ks=tuple(ks),
                segments=own[0].segments,
                length=own[0].length,
                chunks=own[0].chunks,
                strides=(abs(own[0].segment_stride), abs(own[0].token_stride)),
                reversed=_bits([p.token_stride < 0 for p in own]),
                resets=_bits([p.resets for p in own]),
                lasts=tuple(sum(not p.resets for p in paths[:k]) for k in ks),
                rows=slice(rows, until),
                first=i == 0,
                last=i == len(groups) - 1,
            )
        )
        rows = until
    return tuple(made)


def _groups(paths: tuple[Path, ...]) -> Iterator[list[int]]:
    """Directions with the same segments, a few at a time."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for k, p in enumerate(paths):
        segments = (p.segments, p.length, abs(p.segment_stride), abs(p.token_stride))
        alike.setdefault(segments, []).append(k)
    for ks in alike.values():
        for i in range(0, len(ks), TOGETHER):
            yield ks[i : i + TOGETHER]


def _bits(flags: Sequence[bool]) -> int:
    return sum(flag << i for i, flag in enumerate(flags))


def _packed(numbers: Sequence[int]) -> int:
    """A byte for each number, for a kernel that is compiled for them."""
    return sum(number << 8 * i for i, number in enumerate(numbers))


class _Call:
    """The tensors of a scan as the kernels take them: weights contiguous and in float32, others as is."""

    def __init__(self, scan: Scan, dy: Tensor | None = None) -> None:
        self.launches = _launches(scan.paths)
        self._scan = scan
        self._device = scan.x.device
        batch, _, width = scan.x.shape
        lanes = LANES
        if self._device.type == "cpu":
            # the interpreter takes its time by the program, whatever its size
            lanes = min(128, 1 << (width - 1).bit_length())
        self._lanes = lanes
        self.blocks = -(-width // lanes)
        # an absent tensor is never read
        nothing = self.empty(1)

        def weight(tensor: Tensor | None) -> Tensor:
            return nothing if tensor is None else tensor.float().contiguous()

        self._tensors = {
            "x": scan.x,
            "dt": scan.dt,
            "A": weight(scan.A),
            "B": scan.B,
            "C": scan.C,
            "D": weight(scan.D),
            "z": nothing.expand(1, 1, 1) if scan.z is None else scan.z,
            "bias": weight(scan.dt_bias),
        }
        if dy is not None:
            self._tensors["dy"] = dy
        self._batch = batch

    def empty(self, *shape: int) -> Tensor:
        """Memory in float32."""
        return torch.empty(shape, dtype=torch.float32, device=self._device)

    def run(
        self,
        kernel: str,
        launch: _Launch,
        reads: str,
        others: tuple[Tensor, ...],
        strided: str,
        row_stride: int,
        sizes: tuple[int, ...],
        **constants: Any,
    ) -> None:
        """Launches a kernel over tiles with tensors, strides, sizes and constants, in this order."""
        scan = self._scan
        constants |= {
            "KS": _packed(launch.ks),
            "REVERSED": launch.reversed,
            "RESETS": launch.resets,
            "DIRECTIONS": len(launch.ks),
            "HAS_BIAS": scan.dt_bias is not None,
            "SOFTPLUS": scan.dt_softplus,
            "T": launch.steps,
            "BD": self._lanes,
        }
        if " D" in reads:
            constants["HAS_D"] = scan.D is not None
        if " z" in reads:
            constants["HAS_Z"] = scan.z is not None
        grid = (self._batch * launch.tiles, self.blocks)
        getattr(_kernels(), kernel)[grid](
            *(self._tensors[name] for name in reads.split()),
            *others,
            *(stride for name in strided.split() for stride in self._tensors[name].stride()),
            row_stride,
            scan.x.shape[2],
            scan.A.shape[2],
            launch.segments,
            launch.length,
            launch.chunks,
            *launch.strides,
            *sizes,
            **constants,
            num_warps=max(1, self._lanes // 32),
        )

    def hand_on(self, launch: _Launch, rows: Tensor, last: Tensor) -> None:
        """Fills ``rows`` with the states before the chunks of these directions, and ``last``."""
        # lone chunks that begin with a zero state hand on nothing
        if launch.chunks == 1 and launch.resets == _bits([True] * len(launch.ks)):
            return
        totals = self.empty(self._batch, len(launch.ks), launch.tiles, self._scan.x.shape[2])
        lasts = _packed(launch.lasts)
        self.run(
            "chunk_ends", launch, "x dt A B bias", (launch.part(rows), last, totals),
            "x dt B", rows.stride(0), (last.shape[1],), LASTS=lasts,
        )  # fmt: skip
        self._carry(launch, rows, last, totals, lasts, adjoint=0)

    def hand_back(self, launch: _Launch, adjoints: Tensor) -> None:
        """Fills ``adjoints`` with the cotangents of the states before the chunks of these directions."""
        if launch.rows.start == launch.rows.stop:
            return
        totals = self.empty(self._batch, len(launch.ks), launch.tiles, self._scan.x.shape[2])
        self.run(
            "chunk_adjoints", launch, "dt A C z bias dy", (launch.part(adjoints), totals),
            "dt C z dy", adjoints.stride(0), (),
        )  # fmt: skip
        self._carry(launch, adjoints, totals, totals, 0, adjoint=1)

    def _carry(
        self, launch: _Launch, rows: Tensor, last: Tensor, totals: Tensor, lasts: int, adjoint: int
    ) -> None:
        width, states = self._scan.x.shape[2], self._scan.A.shape[2]
        directions = len(launch.ks)
        grid = (self._batch * directions * launch.segments, states, self.blocks)
        _kernels().carry[grid](
            self._tensors["A"], launch.part(rows), last, totals, rows.stride(0),
            width, states, launch.segments, launch.chunks, self._scan.lasts,
            KS=_packed(launch.ks), LASTS=lasts, RESETS=launch.resets, DIRECTIONS=directions,
            ADJOINT=adjoint, T=CHUNK, BD=self._lanes, num_warps=max(1, self._lanes // 32),
        )  # fmt: skip

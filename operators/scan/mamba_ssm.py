"""The CUDA kernel of Gu and Dao (2023), where its extension ``selective_scan_cuda`` is installed.

Their package ``mamba_ssm`` is never imported: it needs far more than its kernel does. The kernel takes
sequences as they come, [batch channel token], so the directions are laid out one after another; those of
equal length go through one call, each with its own group of B and C. Its backward pass adds atomically:
bits vary from run to run.
"""

import functools
import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from operators.scan.path import Path
from operators.scan.scan import AdjointBackend, Gradients, Result, Scan


class MambaSsm(AdjointBackend):
    """Float32, bfloat16 and float16 on CUDA. Keeps no states: the backward pass scans again."""

    name = "mamba_ssm"

    def refusal(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Refuses other devices, float64, determinism, and a machine without the extension."""
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"it computes in float32, not in {dtype}"
        if device.type != "cuda":
            return f"it runs on CUDA, not on {device.type}"
        if not _is_installed():
            return "selective_scan_cuda is not installed (README.md says how)"
        if not torch.cuda.is_available():
            return "torch sees no CUDA device"
        if torch.are_deterministic_algorithms_enabled():
            return "deterministic algorithms were asked for, and its backward pass adds atomically"
        return None

    def forward(self, scan: Scan, save: bool) -> Result:
        """Lays the directions out, scans them, adds them up and gates the sum."""
        batch, _, width = scan.x.shape
        states = scan.A.shape[2]
        y = torch.zeros(scan.x.shape, dtype=torch.float32, device=scan.x.device)
        last = y.new_empty(batch, scan.lasts, width, states)
        for ks in _alike(scan.paths):
            sequences = _Sequences(scan, ks)
            out, carried = sequences.forward()
            for i, k in enumerate(ks):
                sequences.merge(out, i, y)
                if not scan.paths[k].resets:
                    row = sum(not p.resets for p in scan.paths[:k])
                    last[:, row] = carried.reshape(batch, len(ks), width, states)[:, i]
        if scan.z is not None:
            y *= torch.nn.functional.silu(scan.z.float())
        # of the expected shape, in the memory of one number: nobody reads it
        nothing = y.new_zeros(1).expand(batch, scan.checkpoints if save else 0, states, width)
        return Result(y.to(scan.x.dtype), nothing, last)

    def backward(self, scan: Scan, checkpoint: Tensor, dy: Tensor) -> Gradients:  # noqa: ARG002
        """Scans again for the kernel's own states, then runs it backward."""
        y = torch.zeros(scan.x.shape, dtype=torch.float32, device=scan.x.device)
        inner, dz = dy.float(), y.new_empty(0)
        if scan.z is not None:
            inner = inner * torch.nn.functional.silu(scan.z.float())
        dx, ddt = torch.zeros_like(y), torch.empty_like(scan.dt, dtype=torch.float32)
        dA = torch.empty_like(scan.A, dtype=torch.float32)
        dB, dC = (torch.empty_like(t, dtype=torch.float32) for t in (scan.B, scan.C))
        dD, dbias = (
            y.new_empty(0) if t is None else torch.empty_like(t, dtype=torch.float32)
            for t in (scan.D, scan.dt_bias)
        )
        for ks in _alike(scan.paths):
            sequences = _Sequences(scan, ks)
            out, by = sequences.backward(inner)
            du, ddelta, by_A, by_B, by_C, by_D, by_bias = by
            for i, k in enumerate(ks):
                sequences.merge(out, i, y)
                sequences.merge(du, i, dx)
                ddt[:, k] = sequences.back(sequences.own(ddelta, i), i)
                dB[:, k], dC[:, k] = (sequences.back(t[:, i], i) for t in (by_B, by_C))
                own = slice(i * scan.x.shape[2], (i + 1) * scan.x.shape[2])
                dA[k] = by_A[own]
                if scan.D is not None:
                    dD[k] = by_D[own]
                if scan.dt_bias is not None:
                    dbias[k] = by_bias[own]
        if scan.z is not None:
            z = scan.z.float()
            gate = torch.sigmoid(z)
            dz = dy.float() * y * gate * (1 + z * (1 - gate))
        return Gradients(dx, ddt, dA, dB, dC, dD, dz, dbias)


@functools.cache
def _is_installed() -> bool:
    return importlib.util.find_spec("selective_scan_cuda") is not None


def _kernel() -> Any:
    return importlib.import_module("selective_scan_cuda")


def _alike(paths: tuple[Path, ...]) -> Iterator[Sequence[int]]:
    """Directions whose sequences are as many and as long."""
    alike: dict[tuple[int, int], list[int]] = {}
    for k, p in enumerate(paths):
        shape = (p.segments, p.length) if p.resets else (1, p.segments * p.length)
        alike.setdefault(shape, []).append(k)
    yield from alike.values()


class _Sequences:
    """The inputs of some directions as the kernel takes them; its channels are those of all of them."""

    def __init__(self, scan: Scan, ks: Sequence[int]) -> None:
        self._softplus = scan.dt_softplus
        self._batch, _, self._width = scan.x.shape
        self._lines = scan.paths[ks[0]].segments if scan.paths[ks[0]].resets else 1
        self._orders = [scan.paths[k].tokens(scan.x.device).reshape(-1) for k in ks]
        each = list(enumerate(ks))
        self._u = torch.cat([self._lay(scan.x, i) for i, _ in each], 1)
        self._delta = torch.cat([self._lay(scan.dt[:, k].to(scan.x.dtype), i) for i, k in each], 1)
        self._A = torch.cat([scan.A[k].float() for k in ks])
        # [line group state token]
        self._B, self._C = (
            torch.stack([self._lay(t[:, k].to(scan.x.dtype), i) for i, k in each], 1)
            for t in (scan.B, scan.C)
        )
        self._D, self._bias = (
            None if t is None else torch.cat([t[k].float() for k in ks]) for t in (scan.D, scan.dt_bias)
        )

    def _lay(self, tokens: Tensor, i: int) -> Tensor:
        """Takes [batch token feature] to [line feature token] in the order of direction i."""
        lines = tokens[:, self._orders[i]].reshape(self._batch * self._lines, -1, tokens.shape[-1])
        return lines.mT.contiguous()

    def back(self, lines: Tensor, i: int) -> Tensor:
        """The inverse of `_lay`, in float32."""
        ordered = lines.mT.reshape(self._batch, -1, lines.shape[1]).float()
        tokens = torch.empty_like(ordered)
        tokens[:, self._orders[i]] = ordered
        return tokens

    def own(self, lines: Tensor, i: int) -> Tensor:
        """The channels of direction i."""
        return lines[:, i * self._width : (i + 1) * self._width]

    def merge(self, lines: Tensor, i: int, into: Tensor) -> None:
        """Adds direction i of [line channel token] to [batch token channel]."""
        into += self.back(self.own(lines, i), i)

    def _forward(self) -> tuple[Tensor, Tensor]:
        arguments = (self._u, self._delta, self._A, self._B, self._C, self._D, None, self._bias)
        with cast(Any, torch.cuda).device_of(self._u):
            out, kept, *_ = _kernel().fwd(*arguments, self._softplus)
        return out, kept

    def forward(self) -> tuple[Tensor, Tensor]:
        """Gives y [line channel token] and the last states [line channel state]."""
        out, kept = self._forward()
        # pairs of a decay and a state, for each block of tokens
        return out, kept[:, :, -1, 1::2]

    def backward(self, dy: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """Gives y and the cotangents of u, delta, A, B, C, D and the bias."""
        out, kept = self._forward()
        given = torch.cat([self._lay(dy.to(out.dtype), i) for i in range(len(self._orders))], 1)
        with cast(Any, torch.cuda).device_of(self._u):
            by = _kernel().bwd(
                self._u, self._delta, self._A, self._B, self._C, self._D, None, self._bias,
                given, kept, None, None, self._softplus, False,
            )  # fmt: skip
        return out, by[:7]

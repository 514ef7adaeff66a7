"""The C++ kernel of ``kernel/``, called through its plain C interface."""

import ctypes
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path as FilePath

import torch
from torch import Tensor

from operators.scan.path import CHUNK, Path
from operators.scan.scan import AdjointBackend, Gradients, Result, Scan

LIBRARY = FilePath(__file__).with_name("_native.so")


class Library:
    """The loaded kernel and the instruction sets that this processor has, best first."""

    def __init__(self, file: FilePath) -> None:
        self._c = ctypes.CDLL(str(file))
        self._c.mno_scan_isa.restype = ctypes.c_char_p
        for function in (
            self._c.mno_scan_forward,
            self._c.mno_scan_backward,
            self._c.mno_scan_backward_parts,
        ):
            function.restype = ctypes.c_int64
        self._isas = self._supported()
        self.isa = next(iter(self._isas))

    def _supported(self) -> dict[str, ctypes.c_int64]:
        isas: dict[str, ctypes.c_int64] = {}
        for i in itertools.count():
            name = self._c.mno_scan_isa(ctypes.c_int64(i))
            if name is None:
                return isas
            if name:
                isas[name.decode()] = ctypes.c_int64(i)
        raise AssertionError

    @property
    def isas(self) -> tuple[str, ...]:
        """Names of the instruction sets that can be forced."""
        return tuple(self._isas)

    def force_isa(self, name: str | None) -> None:
        """Uses this instruction set from now on, or with None the best one."""
        if name is not None and name not in self._isas:
            raise ValueError(f"this processor has the instruction sets {', '.join(self._isas)}, not {name}")
        self.isa = name or self.isas[0]

    def backward_parts(self, batch: int, width: int) -> int:
        """How many parts of dB and dC the backward pass writes, to be summed."""
        parts = self._c.mno_scan_backward_parts(
            self._isas[self.isa], ctypes.c_int64(batch), ctypes.c_int64(width)
        )
        return int(parts)

    def forward(self, arguments: Sequence[int]) -> None:
        """Calls the forward kernel with the fields of its struct ``Forward``."""
        self._call(self._c.mno_scan_forward, arguments)

    def backward(self, arguments: Sequence[int]) -> None:
        """Calls the backward kernel with the fields of its struct ``Backward``."""
        self._call(self._c.mno_scan_backward, arguments)

    def _call(self, function: "ctypes._NamedFuncPointer", arguments: Sequence[int]) -> None:
        fields = (ctypes.c_int64 * len(arguments))(*arguments)
        if not function(self._isas[self.isa], fields, ctypes.c_int64(torch.get_num_threads())):
            raise MemoryError("the scan kernel could not allocate its working memory")


@functools.cache
def library() -> Library | None:
    """Loads the kernel; None if it was not built or does not run here."""
    try:
        return Library(LIBRARY)
    except OSError:
        return None


class Native(AdjointBackend):
    """Float32 on the CPU; half precision is converted on the way in and out."""

    name = "cpu"

    def refusal(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Refuses other devices, float64, and a machine where the kernel was not built."""
        if device.type != "cpu":
            return f"it runs on the CPU, not on {device.type}"
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"it computes in float32, not in {dtype}"
        if library() is None:
            return "its library was not built: install again with a C++ compiler on the path"
        return None

    def forward(self, scan: Scan, save: bool) -> Result:
        """Scans in one pass over the tokens a direction."""
        call = _Call(scan)
        batch, tokens, width = scan.x.shape
        states = scan.A.shape[2]
        y = torch.empty(batch, tokens, width)
        checkpoint = torch.empty(batch, scan.checkpoints if save else 0, states, width)
        last = torch.empty(batch, scan.lasts, width, states)
        _loaded().forward([*call.fields(checkpoint if save else None), y.data_ptr(), last.data_ptr()])
        return Result(y.to(scan.x.dtype), checkpoint, last)

    def backward(self, scan: Scan, checkpoint: Tensor, dy: Tensor) -> Gradients:
        """Runs back chunk by chunk from the checkpoints, which are float32."""
        call = _Call(scan)
        dy = dy.float()
        parts = _loaded().backward_parts(scan.x.shape[0], scan.x.shape[2])
        dx, ddt = torch.empty(scan.x.shape), torch.empty(scan.dt.shape)
        dz = torch.empty(0 if scan.z is None else scan.z.shape)
        dB, dC = torch.empty(parts, *scan.B.shape), torch.empty(parts, *scan.C.shape)
        batch, K, _, width = scan.dt.shape
        dA = torch.empty(batch, *scan.A.shape, dtype=torch.float64)
        dD, dbias = torch.empty(2, batch, K, width, dtype=torch.float64)
        outputs = [t.data_ptr() for t in (dx, ddt, dz, dB, dC, dA, dD, dbias)]
        _loaded().backward(
            [*call.fields(checkpoint), dy.data_ptr(), dy.stride(0), 0, *dy.stride()[1:], *outputs]
        )
        return Gradients(
            dx,
            ddt,
            _ordered_sum(dA).float(),
            _ordered_sum(dB),
            _ordered_sum(dC),
            torch.empty(0) if scan.D is None else _ordered_sum(dD).float(),
            dz,
            torch.empty(0) if scan.dt_bias is None else _ordered_sum(dbias).float(),
        )


def _loaded() -> Library:
    loaded = library()
    assert loaded is not None
    return loaded


def _ordered_sum(parts: Tensor) -> Tensor:
    """Adds along the first axis in its order, which `sum` does not promise for every number of threads."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


class _Call:
    """The float32 tensors of a scan; they live as long as their addresses are in use."""

    def __init__(self, scan: Scan) -> None:
        self._scan = scan
        self._x, self._dt, self._B, self._C = (t.float() for t in (scan.x, scan.dt, scan.B, scan.C))
        self._z = None if scan.z is None else scan.z.float()
        self._A = scan.A.float().contiguous()
        self._D = None if scan.D is None else scan.D.float().contiguous()
        self._bias = None if scan.dt_bias is None else scan.dt_bias.float().contiguous()
        self._paths = _path_fields(scan.paths)

    def fields(self, checkpoint: Tensor | None) -> list[int]:
        """The fields of the struct ``Scan`` of kernel/scan.h."""
        scan, x, z = self._scan, self._x, self._z
        K, width, states = scan.A.shape
        sizes = [
            x.shape[0],
            x.shape[1],
            width,
            states,
            K,
            CHUNK,
            scan.checkpoints,
            scan.lasts,
            int(scan.dt_softplus),
        ]
        shared = [x.data_ptr(), x.stride(0), 0, *x.stride()[1:]]
        apart = [field for t in (self._dt, self._B, self._C) for field in (t.data_ptr(), *t.stride())]
        gate = [0] * 5 if z is None else [z.data_ptr(), z.stride(0), 0, *z.stride()[1:]]
        weights = [_address(t) for t in (self._A, self._D, self._bias, checkpoint)]
        return [*sizes, ctypes.addressof(self._paths), *shared, *apart, *gate, *weights]


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


@functools.lru_cache(maxsize=256)
def _path_fields(paths: tuple[Path, ...]) -> "ctypes.Array[ctypes.c_int64]":
    """An array of the struct ``Path`` of kernel/scan.h; nobody writes to it."""
    fields: list[int] = []
    checkpoint = last = 0
    for p in paths:
        row = -1 if p.resets else last
        fields += [p.segments, p.length, p.start, p.segment_stride, p.token_stride, p.resets, checkpoint, row]
        checkpoint += p.checkpoints
        last += not p.resets
    return (ctypes.c_int64 * len(fields))(*fields)

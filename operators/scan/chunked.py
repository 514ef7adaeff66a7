"""The scan in torch operations, in two levels: all chunks of a sequence at once, then from chunk to chunk.

Within a chunk the recurrence runs over its steps for all chunks of a group together, from a zero state; the
states between chunks follow one by one, and each chunk is corrected by what it was handed. Only products of
decays exp(dt A) <= 1 occur: nothing is divided by a decay, so large steps underflow to the right answer. The
backward pass is written out (autograd would keep every intermediate state).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from operators.scan.path import CHUNK, Path
from operators.scan.reference import step_sizes
from operators.scan.scan import AdjointBackend, Gradients, Result, Scan

GROUP = 1 << 18
"""Numbers [step sequence chunk state channel] that are held at a time."""


class Chunked(AdjointBackend):
    """Any device, float32 and float64; half precision is converted on the way in and out."""

    name = "torch"

    def refusal(self, device: torch.device, dtype: torch.dtype) -> str | None:  # noqa: ARG002
        """Refuses what is no real floating type."""
        return None if dtype.is_floating_point else f"it needs a floating type, not {dtype}"

    def forward(self, scan: Scan, save: bool) -> Result:
        """Scans direction by direction."""
        dtype, scan = scan.x.dtype, _at_least_float32(scan)
        y, checkpoint, last_state = _forward(scan, save)
        if scan.z is not None:
            y = y * functional.silu(scan.z)
        return Result(y.to(dtype), checkpoint, last_state)

    def backward(self, scan: Scan, checkpoint: Tensor, dy: Tensor) -> Gradients:
        """Runs back group by group from the checkpoints."""
        scan = _at_least_float32(scan)
        dy, dz = dy.to(scan.x.dtype), scan.x.new_empty(0)
        if scan.z is not None:
            y = _forward(scan, save=False).y
            gate = torch.sigmoid(scan.z)
            dz = dy * y * gate * (1 + scan.z * (1 - gate))
            dy = dy * scan.z * gate
        return _backward(scan, checkpoint, dy, dz)


def _at_least_float32(scan: Scan) -> Scan:
    dtype = torch.promote_types(scan.x.dtype, torch.float32)

    def convert(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(dtype)

    x, dt, A, B, C = (t.to(dtype) for t in (scan.x, scan.dt, scan.A, scan.B, scan.C))
    return Scan(
        x, dt, A, B, C, convert(scan.D), convert(scan.z), convert(scan.dt_bias), scan.dt_softplus, scan.paths
    )


@dataclass(frozen=True)
class _Tiling:
    """How a path is cut: ``sequences`` sequences of ``chunks`` chunks of ``steps`` steps, for each sample."""

    path: Path
    order: Tensor
    steps: int
    sequences: int
    chunks: int

    @staticmethod
    def of(path: Path, device: torch.device) -> "_Tiling":
        steps = min(CHUNK, path.length)
        sequences, chunks = (path.segments, path.chunks) if path.resets else (1, path.segments * path.chunks)
        return _Tiling(path, path.tokens(device), steps, sequences, chunks)

    def cut(self, tokens: Tensor) -> Tensor:
        """Takes [batch token feature] to [step sequence chunk feature], with zeros beyond a segment's end."""
        segments = tokens[:, self.order]
        segments = functional.pad(segments, (0, 0, 0, self.path.chunks * self.steps - self.path.length))
        return (
            segments.reshape(-1, self.chunks, self.steps, tokens.shape[-1]).permute(2, 0, 1, 3).contiguous()
        )

    def join(self, tiles: Tensor, tokens: Tensor) -> None:
        """Adds [step sequence chunk feature] to [batch token feature]: the adjoint of `cut`."""
        segments = tiles.permute(1, 2, 0, 3).reshape(
            tokens.shape[0], self.path.segments, -1, tokens.shape[-1]
        )
        segments = segments[:, :, : self.path.length]
        tokens.index_add_(1, self.order.reshape(-1), segments.reshape(tokens.shape))

    def groups(self, sequences: int, channels_times_states: int) -> Iterator[tuple[slice, list[slice]]]:
        """Yields blocks of sequences, each with the runs of chunks that are treated one after another."""
        chunks = max(1, min(self.chunks, GROUP // (self.steps * channels_times_states)))
        rows = max(1, GROUP // (self.steps * channels_times_states * chunks))
        runs = [slice(i, min(i + chunks, self.chunks)) for i in range(0, self.chunks, chunks)]
        for i in range(0, sequences, rows):
            yield slice(i, min(i + rows, sequences)), runs


class _Tiles:
    """The inputs of one direction, cut."""

    def __init__(self, scan: Scan, k: int, tiling: _Tiling) -> None:
        self.x, self.dt = tiling.cut(scan.x), tiling.cut(step_sizes(scan, k))
        self.B, self.C = tiling.cut(scan.B[:, k]), tiling.cut(scan.C[:, k])
        self.dtx = self.dt * self.x
        self.A = scan.A[k].T.contiguous()  # [state channel]

    def decays(self, at: tuple[slice, ...]) -> Tensor:
        """exp(dt A), [step sequence chunk state channel]."""
        return (self.dt[at][..., None, :] * self.A).exp_()

    def inputs(self, at: tuple[slice, ...]) -> Tensor:
        """Dt x B, [step sequence chunk state channel]."""
        return self.dtx[at][..., None, :] * self.B[at][..., None]


def _forward(scan: Scan, save: bool) -> Result:
    batch, _, width = scan.x.shape
    states = scan.A.shape[2]
    y = torch.zeros_like(scan.x)
    starts: list[Tensor] = []
    lasts: list[Tensor] = []
    for k, path in enumerate(scan.paths):
        tiling = _Tiling.of(path, scan.x.device)
        y_k, start, last = _scan_direction(_Tiles(scan, k, tiling), tiling)
        tiling.join(y_k, y)
        starts.append(_without_zeros(start, path, batch))
        if not path.resets:
            lasts.append(last)
    if scan.D is not None:
        y += scan.D.sum(0) * scan.x
    checkpoint = torch.cat(starts, 1) if save else scan.x.new_empty(batch, 0, states, width)
    last_state = torch.stack(lasts, 1).mT.contiguous() if lasts else scan.x.new_empty(batch, 0, width, states)
    return Result(y, checkpoint, last_state)


def _scan_direction(tiles: _Tiles, tiling: _Tiling) -> tuple[Tensor, Tensor, Tensor]:
    """Gives y as tiles, the states before the chunks and those after the last ones."""
    states, width = tiles.A.shape
    _, sequences, chunks, _ = tiles.x.shape
    y = torch.empty_like(tiles.x)
    start = tiles.x.new_zeros(sequences, chunks, states, width)
    last = tiles.x.new_zeros(sequences, states, width)
    for rows, runs in tiling.groups(sequences, states * width):
        for run in runs:
            at = (slice(None), rows, run)
            a, h = tiles.decays(at), tiles.inputs(at)
            _accumulate(h, a)
            if chunks > 1:
                _cumulate(a)
                last[rows] = _hand_on(last[rows], a[-1], h[-1], start[rows, run])
                h.addcmul_(a, start[rows, run])
            else:
                last[rows] = h[-1, :, 0]
            y[at] = _contract(tiles.C[at], h)
    return y, start, last


def _accumulate(h: Tensor, a: Tensor) -> None:
    """Turns the inputs h into states: h[t] += a[t] h[t-1]."""
    for t in range(1, h.shape[0]):
        h[t].addcmul_(a[t], h[t - 1])


def _cumulate(a: Tensor) -> None:
    """Turns decays into their products from the first step on."""
    for t in range(1, a.shape[0]):
        a[t].mul_(a[t - 1])


def _hand_on(state: Tensor, decay: Tensor, gain: Tensor, start: Tensor) -> Tensor:
    """Writes the state before each chunk into ``start``, and gives the one after the last."""
    for j in range(decay.shape[1]):
        start[:, j] = state
        state = torch.addcmul(gain[:, j], decay[:, j], state)
    return state


def _contract(weights: Tensor, states: Tensor) -> Tensor:
    """Sums over the states: [... state] and [... state channel] to [... channel]."""
    return torch.matmul(weights[..., None, :], states)[..., 0, :]


def _without_zeros(start: Tensor, path: Path, batch: int) -> Tensor:
    """The states before the chunks that are not known to be zero, [batch checkpoint state channel]."""
    start = start.reshape(
        batch, -1, path.chunks if path.resets else path.segments * path.chunks, *start.shape[2:]
    )
    return start[:, :, 1:].flatten(1, 2)


def _with_zeros(checkpoint: Tensor, path: Path) -> Tensor:
    """The inverse of `_without_zeros`, [sequence chunk state channel]."""
    sequences, chunks = (path.segments, path.chunks) if path.resets else (1, path.segments * path.chunks)
    start = checkpoint.reshape(checkpoint.shape[0] * sequences, chunks - 1, *checkpoint.shape[2:])
    return functional.pad(start, (0, 0, 0, 0, 1, 0))


def _backward(scan: Scan, checkpoint: Tensor, dy: Tensor, dz: Tensor) -> Gradients:
    dx = torch.zeros_like(scan.x)
    ddt, dA = torch.zeros_like(scan.dt), torch.zeros_like(scan.A)
    dB, dC = torch.zeros_like(scan.B), torch.zeros_like(scan.C)
    rows = iter(torch.split(checkpoint, [p.checkpoints for p in scan.paths], 1))
    for k, path in enumerate(scan.paths):
        tiling = _Tiling.of(path, scan.x.device)
        adjoint = _Adjoint(_Tiles(scan, k, tiling), _with_zeros(next(rows), path), tiling.cut(dy))
        adjoint.run(tiling)
        dA[k] = adjoint.dA.T
        for tiles, to in (
            (adjoint.dx, dx),
            (adjoint.ddt, ddt[:, k]),
            (adjoint.dB, dB[:, k]),
            (adjoint.dC, dC[:, k]),
        ):
            tiling.join(tiles, to)
    if scan.dt_softplus:
        raw = scan.dt if scan.dt_bias is None else scan.dt + scan.dt_bias[:, None]
        ddt *= torch.sigmoid(raw)
    nothing: Callable[[], Tensor] = lambda: scan.x.new_empty(0)  # noqa: E731
    dD = nothing()
    if scan.D is not None:
        dx += dy * scan.D.sum(0)
        dD = (dy * scan.x).sum((0, 1)).expand_as(scan.D).clone()
    dbias = nothing() if scan.dt_bias is None else ddt.sum((0, 2))
    return Gradients(dx, ddt, dA, dB, dC, dD, dz, dbias)


class _Adjoint:
    """The backward pass of one direction: g[t] = C[t] dy[t] + a[t+1] g[t+1]."""

    def __init__(self, tiles: _Tiles, start: Tensor, dy: Tensor) -> None:
        self._tiles, self._start, self._dy = tiles, start, dy
        self.dx, self.ddt = torch.empty_like(tiles.x), torch.empty_like(tiles.x)
        self.dB, self.dC = torch.empty_like(tiles.B), torch.empty_like(tiles.C)
        # over a whole sequence float32 would lose digits
        self.dA = torch.zeros_like(tiles.A, dtype=torch.float64)

    def run(self, tiling: _Tiling) -> None:
        """Walks the groups from the end of each sequence to its beginning."""
        states, width = self._tiles.A.shape
        sequences = self._tiles.x.shape[1]
        for rows, runs in tiling.groups(sequences, states * width):
            # a[t+1] g[t+1] of the token after the group
            carried = self._tiles.x.new_zeros(rows.stop - rows.start, states, width)
            for run in reversed(runs):
                carried = self._group((slice(None), rows, run), carried, lone=tiling.chunks == 1)

    def _group(self, at: tuple[slice, ...], carried: Tensor, lone: bool) -> Tensor:
        tiles, start = self._tiles, self._start[at[1:]]
        a, h = tiles.decays(at), tiles.inputs(at)
        h[0].addcmul_(a[0], start)
        _accumulate(h, a)
        g = self._dy[at][..., None, :] * tiles.C[at][..., None]
        for t in range(g.shape[0] - 2, -1, -1):
            g[t].addcmul_(a[t + 1], g[t + 1])
        if not lone:
            carried = _hand_back(carried, a, g)
        self._contribute(at, a, h, g, start)
        return carried

    def _contribute(self, at: tuple[slice, ...], a: Tensor, h: Tensor, g: Tensor, start: Tensor) -> None:
        tiles = self._tiles
        by_input = _contract(tiles.B[at], g)
        self.dx[at] = by_input * tiles.dt[at]
        self.dB[at] = torch.matmul(g, tiles.dtx[at][..., None])[..., 0]
        self.dC[at] = torch.matmul(h, self._dy[at][..., None])[..., 0]
        # (a g) h[t-1] as it stands: h[t] - dt x B would cancel where steps are large
        q = a.mul_(g)
        q[1:].mul_(h[:-1])
        q[0].mul_(start)
        self.ddt[at] = torch.addcmul((q * tiles.A).sum(-2), by_input, tiles.x[at])
        self.dA += (q.mul_(tiles.dt[at][..., None, :])).sum((0, 1, 2))


def _hand_back(carried: Tensor, a: Tensor, g: Tensor) -> Tensor:
    """Adds to g what each chunk is handed by the one after it; gives what the first one hands on."""
    after = torch.ones_like(a)  # products of the decays after a step
    for t in range(a.shape[0] - 2, -1, -1):
        torch.mul(a[t + 1], after[t + 1], out=after[t])
    handed = torch.empty_like(g[0])
    for j in range(g.shape[2] - 1, -1, -1):
        handed[:, j] = carried
        carried = a[0, :, j] * torch.addcmul(g[0, :, j], after[0, :, j], carried)
    g.addcmul_(after, handed)
    return carried

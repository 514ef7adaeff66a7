"""The Triton kernels of the selective scan, one chunk of a segment at a time. Imported when first needed.

A tile is a chunk of tokens by a block of channels. The tokens lie along the first axis, which a thread holds
in its registers, and the channels along the second, one a thread: what runs from token to token stays within
a thread, and the states are an ordinary loop. Directions that visit the same segments, there or back, share
their tiles, so that x and the gate are read and y is written once for all of them.

Between chunks only states travel. Forward: `chunk_ends` gives what each chunk adds to the state, `carry` adds
this up from chunk to chunk, and `outputs` scans each chunk from where it starts. Backward: `chunk_adjoints`,
`carry` and `gradients` likewise, from the end. Nothing is added atomically: what several programs contribute
to is written apart and summed afterwards.

Tokens beyond the end of a segment have step size 0, which neither decays nor adds anything.
"""

# ruff: noqa: ARG001

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)

# the strides and sizes of every call: a kernel for each value of theirs would gain nothing, and if the
# channels were known to be adjacent, threads would take several of them and split the tokens instead
_SIZES = [
    *["width", "states", "segments", "length", "chunks", "segment_stride", "token_stride", "rows_b"],
    *[f"{name}_{axis}" for name in ("x", "z", "dy") for axis in "btd"],
    *[
        f"{name}_{axis}"
        for name, last in (("dt", "d"), ("B", "n"), ("C", "n"))
        for axis in ("b", "k", "t", last)
    ],
    *["lasts", "batch", "tokens", "directions"],
]


@triton.jit
def _compose(a1, b1, a2, b2):
    """First h -> a1 h + b1, then h -> a2 h + b2."""
    return a1 * a2, a2 * b1 + b2


@triton.jit
def _compose_both(a1, b1, d1, p1, a2, b2, d2, p2):
    """`_compose`, and with d and p the same without the last step."""
    return a1 * a2, a2 * b1 + b2, a1 * d2, d2 * b1 + p2


@triton.jit
def _add_both(s1, p1, s2, p2):
    """A sum, and the same without the last number."""
    return s1 + s2, s1 + p2


@triton.jit
def _scan(a, b, first, carry, REVERSE: tl.constexpr):
    """Each h[t] = a[t] h[t-1] + b[t] along the first axis, from the state ``carry``."""
    _, h = tl.associative_scan((a, tl.where(first, a * carry + b, b)), 0, _compose, reverse=REVERSE == 1)
    return h


@triton.jit
def _scan_before(a, b, first, carry, REVERSE: tl.constexpr):
    """As `_scan`, but each h[t-1]."""
    b = tl.where(first, a * carry + b, b)
    one, zero = tl.full(a.shape, 1.0, tl.float32), tl.zeros(a.shape, tl.float32)
    _, _, _, before = tl.associative_scan((a, b, one, zero), 0, _compose_both, reverse=REVERSE == 1)
    return tl.where(first, carry, before)


@triton.jit
def _first(T: tl.constexpr, REVERSE: tl.constexpr):
    """Whether a token of the tile is the first that a scan comes to, [token 1]."""
    return (tl.arange(0, T) == ((T - 1) if REVERSE == 1 else 0))[:, None]


@triton.jit
def _softplus(v):
    """max(v, 0) + log(1 + exp(-|v|)), the latter as 2 artanh(e / (2 + e)), whose series keeps all digits."""
    e = tl.exp(-tl.abs(v))
    s = e / (2 + e)
    w = s * s
    series = 1 / 17 * w + 1 / 15
    series = series * w + 1 / 13
    series = series * w + 1 / 11
    series = series * w + 1 / 9
    series = series * w + 1 / 7
    series = series * w + 1 / 5
    series = series * w + 1 / 3
    return tl.maximum(v, 0.0) + 2 * s * (series * w + 1)


@triton.jit
def _sigmoid(v):
    return 1 / (1 + tl.exp(-v))


@triton.jit
def _tile(q, chunks, length, segment_stride, token_stride, T: tl.constexpr):
    """The tokens of tile q, and whether they are within the segment."""
    at = (q % chunks) * T + tl.arange(0, T)
    token = (q // chunks).to(tl.int64) * segment_stride + at.to(tl.int64) * token_stride
    return token, at < length


@triton.jit
def _raw_steps(dt, k, token, channel, mask, dt_k, dt_t, dt_d, bias, width, HAS_BIAS: tl.constexpr):
    """The step sizes before the softplus, [token channel]."""
    pointers = dt + k.to(tl.int64) * dt_k + token[:, None] * dt_t + channel[None, :] * dt_d
    raw = tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        raw += tl.load(bias + k * width + channel, mask=channel < width, other=0.0)[None, :]
    return raw


@triton.jit
def _steps(raw, mask, SOFTPLUS: tl.constexpr):
    return tl.where(mask, _softplus(raw) if SOFTPLUS else raw, 0.0)


@triton.jit
def _direction(i, KS: tl.constexpr):
    """The index among all directions of the i-th one of this launch."""
    return tl.full((), KS, tl.int64) >> (8 * i) & 255


@triton.jit
def _chunk_of(q, i, segments, chunks, REVERSED: tl.constexpr, RESETS: tl.constexpr):
    """Where direction i comes to tile q: its sequence, the chunk in it, and how many chunks that has."""
    resets = (RESETS >> i) & 1
    count = tl.where(resets == 1, chunks, segments * chunks)
    chunk = q % count
    return q // count, tl.where(((REVERSED >> i) & 1) == 1, count - 1 - chunk, chunk), count


@triton.jit
def _first_row(i, segments, chunks, RESETS: tl.constexpr, DIRECTIONS: tl.constexpr):
    """Where the states between the chunks of direction i begin: one fewer than chunks, for each sequence."""
    row = i * 0
    for j in tl.static_range(DIRECTIONS):
        apart = segments * (chunks - 1) if (RESETS >> j) & 1 else segments * chunks - 1
        row += tl.where(j < i, apart, 0)
    return row


@triton.jit
def _gated(dy, z, token, channel, mask, dy_t, dy_d, z_t, z_d, HAS_Z: tl.constexpr):
    """The cotangent of y before the gate, and the cotangent and z as they came."""
    given = tl.load(dy + token[:, None] * dy_t + channel[None, :] * dy_d, mask=mask, other=0.0).to(tl.float32)
    gate = given
    inner = given
    if HAS_Z:
        gate = tl.load(z + token[:, None] * z_t + channel[None, :] * z_d, mask=mask, other=0.0).to(tl.float32)
        inner = given * gate * _sigmoid(gate)
    return inner, given, gate


@triton.jit(do_not_specialize=_SIZES)
def chunk_ends(
    x, dt, A, B, bias, rows, last, totals,
    x_b, x_t, x_d, dt_b, dt_k, dt_t, dt_d, B_b, B_k, B_t, B_n, rows_b,
    width, states, segments, length, chunks, segment_stride, token_stride, lasts,
    KS: tl.constexpr, LASTS: tl.constexpr, REVERSED: tl.constexpr, RESETS: tl.constexpr,
    DIRECTIONS: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
    T: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """What each chunk leaves of a zero state (in ``rows`` and ``last``), and the sum of its step sizes."""
    tiles = segments * chunks
    q, b = tl.program_id(0) % tiles, (tl.program_id(0) // tiles).to(tl.int64)
    channel = tl.program_id(1) * BD + tl.arange(0, BD)
    wide = channel < width
    token, inside = _tile(q, chunks, length, segment_stride, token_stride, T)
    mask = inside[:, None] & wide[None, :]
    xs = tl.load(x + b * x_b + token[:, None] * x_t + channel[None, :] * x_d, mask=mask, other=0.0)
    xs = xs.to(tl.float32)
    for i in tl.static_range(DIRECTIONS):
        k = _direction(i, KS)
        raw = _raw_steps(dt + b * dt_b, k, token, channel, mask, dt_k, dt_t, dt_d, bias, width, HAS_BIAS)
        steps = _steps(raw, mask, SOFTPLUS)
        sequence, chunk, count = _chunk_of(q, i, segments, chunks, REVERSED, RESETS)
        at = (b * DIRECTIONS + i) * tiles + sequence * count + chunk
        tl.store(totals + at * width + channel, tl.sum(steps, 0), mask=wide)
        # a step's share of the chunk's end has decayed over the steps that come after it
        _, after = tl.associative_scan(
            (steps, tl.zeros_like(steps)), 0, _add_both, reverse=((REVERSED >> i) & 1) == 0
        )
        values = steps * xs
        row = _first_row(i, segments, chunks, RESETS, DIRECTIONS) + sequence * (count - 1) + chunk
        to = rows + b * rows_b + row.to(tl.int64) * states * width
        through = ((RESETS >> i) & 1) == 0
        final = last + (b * lasts + (LASTS >> (8 * i) & 255)) * width * states
        for n in range(states):
            rate = tl.load(A + (k * width + channel) * states + n, mask=wide, other=0.0) * LOG2E
            weight = tl.load(B + b * B_b + k * B_k + token * B_t + n * B_n, mask=inside, other=0.0)
            end = tl.sum(tl.exp2(after * rate[None, :]) * (values * weight.to(tl.float32)[:, None]), 0)
            tl.store(to + n * width + channel, end, mask=wide & (chunk < count - 1))
            if through:
                tl.store(final + channel * states + n, end, mask=wide & (chunk == count - 1))


@triton.jit(do_not_specialize=_SIZES)
def carry(
    A, rows, last, totals, rows_b, width, states, segments, chunks, lasts,
    KS: tl.constexpr, LASTS: tl.constexpr, RESETS: tl.constexpr, DIRECTIONS: tl.constexpr,
    ADJOINT: tl.constexpr, T: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Adds up along the chunks of a sequence what each one hands on, in place; backwards if ``ADJOINT``."""
    # as many sequences as a direction can have; one that runs through the whole grid has one
    sequence, rest = tl.program_id(0) % segments, tl.program_id(0) // segments
    i, b = rest % DIRECTIONS, (rest // DIRECTIONS).to(tl.int64)
    n = tl.program_id(1)
    channel = tl.program_id(2) * BD + tl.arange(0, BD)
    wide = channel < width
    _, _, count = _chunk_of(0, i, segments, chunks, 0, RESETS)
    through = ((RESETS >> i) & 1) == 0
    if sequence == 0 or not through:
        k = _direction(i, KS)
        rate = tl.load(A + (k * width + channel) * states + n, mask=wide, other=0.0) * LOG2E
        row = _first_row(i, segments, chunks, RESETS, DIRECTIONS) + sequence * (count - 1)
        handed = rows + b * rows_b + row.to(tl.int64) * states * width + n * width + channel[None, :]
        # the adjoint of row j has passed through the chunk after it
        total = totals + ((b * DIRECTIONS + i) * segments * chunks + sequence * count + ADJOINT) * width
        state = tl.zeros((BD,), tl.float32)
        blocks = tl.cdiv(count - 1, T)
        first = _first(T, ADJOINT)
        final = _first(T, 1 - ADJOINT)
        for block in range(blocks):
            j = ((blocks - 1 - block) if ADJOINT else block) * T + tl.arange(0, T)
            mask = (j < count - 1)[:, None] & wide[None, :]
            pointers = handed + j[:, None].to(tl.int64) * states * width
            gains = tl.load(pointers, mask=mask, other=0.0)
            step_sums = tl.load(total + j[:, None] * width + channel[None, :], mask=mask, other=0.0)
            h = _scan(tl.exp2(step_sums * rate[None, :]), gains, first, state[None, :], ADJOINT)
            tl.store(pointers, h, mask=mask)
            state = tl.sum(tl.where(final, h, 0.0), 0)
        # one is known when the kernel is compiled, the other is not
        if not ADJOINT:  # noqa: SIM102
            if through:
                index = tl.full((), LASTS, tl.int64) >> (8 * i) & 255
                to = last + ((b * lasts + index) * width + channel) * states + n
                decay = tl.exp2(tl.load(total + (count - 1) * width + channel, mask=wide, other=0.0) * rate)
                tl.store(to, decay * state + tl.load(to, mask=wide, other=0.0), mask=wide)


@triton.jit(do_not_specialize=_SIZES)
def outputs(
    x, dt, A, B, C, D, z, bias, rows, partial, y,
    x_b, x_t, x_d, dt_b, dt_k, dt_t, dt_d, B_b, B_k, B_t, B_n, C_b, C_k, C_t, C_n, z_b, z_t, z_d, rows_b,
    width, states, segments, length, chunks, segment_stride, token_stride, tokens,
    KS: tl.constexpr, REVERSED: tl.constexpr, RESETS: tl.constexpr, DIRECTIONS: tl.constexpr,
    FIRST: tl.constexpr, LAST: tl.constexpr,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
    T: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Scans each chunk from where it starts; sums over directions, also those of the launches before."""
    tiles = segments * chunks
    q, b = tl.program_id(0) % tiles, (tl.program_id(0) // tiles).to(tl.int64)
    channel = tl.program_id(1) * BD + tl.arange(0, BD)
    wide = channel < width
    token, inside = _tile(q, chunks, length, segment_stride, token_stride, T)
    mask = inside[:, None] & wide[None, :]
    xs = tl.load(x + b * x_b + token[:, None] * x_t + channel[None, :] * x_d, mask=mask, other=0.0)
    xs = xs.to(tl.float32)
    total = tl.zeros((T, BD), tl.float32)
    at = (b * tokens + token[:, None]) * width + channel[None, :]
    if not FIRST:
        total += tl.load(partial + at, mask=mask, other=0.0)
    for i in tl.static_range(DIRECTIONS):
        k = _direction(i, KS)
        raw = _raw_steps(dt + b * dt_b, k, token, channel, mask, dt_k, dt_t, dt_d, bias, width, HAS_BIAS)
        steps = _steps(raw, mask, SOFTPLUS)
        values = steps * xs
        sequence, chunk, count = _chunk_of(q, i, segments, chunks, REVERSED, RESETS)
        row = _first_row(i, segments, chunks, RESETS, DIRECTIONS) + sequence * (count - 1) + chunk - 1
        starts = rows + b * rows_b + row.to(tl.int64) * states * width + channel
        begun = wide & (chunk > 0)
        first = _first(T, (REVERSED >> i) & 1)
        for n in range(states):
            rate = tl.load(A + (k * width + channel) * states + n, mask=wide, other=0.0) * LOG2E
            weight = tl.load(B + b * B_b + k * B_k + token * B_t + n * B_n, mask=inside, other=0.0)
            read = tl.load(C + b * C_b + k * C_k + token * C_t + n * C_n, mask=inside, other=0.0)
            start = tl.load(starts + n * width, mask=begun, other=0.0)
            a = tl.exp2(steps * rate[None, :])
            h = _scan(a, values * weight.to(tl.float32)[:, None], first, start[None, :], (REVERSED >> i) & 1)
            total += read.to(tl.float32)[:, None] * h
        if HAS_D:
            total += tl.load(D + k * width + channel, mask=wide, other=0.0)[None, :] * xs
    if LAST:
        if HAS_Z:
            gate = tl.load(z + b * z_b + token[:, None] * z_t + channel[None, :] * z_d, mask=mask, other=0.0)
            gate = gate.to(tl.float32)
            total *= gate * _sigmoid(gate)
        tl.store(y + at, total.to(y.dtype.element_ty), mask=mask)
    else:
        tl.store(partial + at, total, mask=mask)


@triton.jit(do_not_specialize=_SIZES)
def chunk_adjoints(
    dt, A, C, z, bias, dy, rows, totals,
    dt_b, dt_k, dt_t, dt_d, C_b, C_k, C_t, C_n, z_b, z_t, z_d, dy_b, dy_t, dy_d, rows_b,
    width, states, segments, length, chunks, segment_stride, token_stride,
    KS: tl.constexpr, REVERSED: tl.constexpr, RESETS: tl.constexpr, DIRECTIONS: tl.constexpr,
    HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, T: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """What each chunk by itself asks of the state before it, and the sum of its step sizes."""
    tiles = segments * chunks
    q, b = tl.program_id(0) % tiles, (tl.program_id(0) // tiles).to(tl.int64)
    channel = tl.program_id(1) * BD + tl.arange(0, BD)
    wide = channel < width
    token, inside = _tile(q, chunks, length, segment_stride, token_stride, T)
    mask = inside[:, None] & wide[None, :]
    inner, _, _ = _gated(dy + b * dy_b, z + b * z_b, token, channel, mask, dy_t, dy_d, z_t, z_d, HAS_Z)
    for i in tl.static_range(DIRECTIONS):
        k = _direction(i, KS)
        raw = _raw_steps(dt + b * dt_b, k, token, channel, mask, dt_k, dt_t, dt_d, bias, width, HAS_BIAS)
        steps = _steps(raw, mask, SOFTPLUS)
        sequence, chunk, count = _chunk_of(q, i, segments, chunks, REVERSED, RESETS)
        at = (b * DIRECTIONS + i) * tiles + sequence * count + chunk
        tl.store(totals + at * width + channel, tl.sum(steps, 0), mask=wide)
        until = tl.cumsum(steps, 0, reverse=((REVERSED >> i) & 1) == 1)
        row = _first_row(i, segments, chunks, RESETS, DIRECTIONS) + sequence * (count - 1) + chunk - 1
        to = rows + b * rows_b + row.to(tl.int64) * states * width + channel
        for n in range(states):
            rate = tl.load(A + (k * width + channel) * states + n, mask=wide, other=0.0) * LOG2E
            read = tl.load(C + b * C_b + k * C_k + token * C_t + n * C_n, mask=inside, other=0.0)
            asked = tl.sum(tl.exp2(until * rate[None, :]) * (inner * read.to(tl.float32)[:, None]), 0)
            tl.store(to + n * width, asked, mask=wide & (chunk > 0))


@triton.jit(do_not_specialize=_SIZES)
def gradients(
    x, dt, A, B, C, D, z, bias, dy, rows, adjoints, partial, dx, ddt, dA, dB, dC, dD, dz, dbias,
    x_b, x_t, x_d, dt_b, dt_k, dt_t, dt_d, B_b, B_k, B_t, B_n, C_b, C_k, C_t, C_n, z_b, z_t, z_d,
    dy_b, dy_t, dy_d, rows_b,
    width, states, segments, length, chunks, segment_stride, token_stride, batch, tokens, directions,
    KS: tl.constexpr, REVERSED: tl.constexpr, RESETS: tl.constexpr, DIRECTIONS: tl.constexpr,
    FIRST: tl.constexpr, LAST: tl.constexpr,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
    T: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """All gradients of a chunk, with g[t] = C[t] dy[t] + a[t+1] g[t+1] and m[t] = a[t] g[t]."""
    tiles = segments * chunks
    q, b = tl.program_id(0) % tiles, (tl.program_id(0) // tiles).to(tl.int64)
    channel = tl.program_id(1) * BD + tl.arange(0, BD)
    wide = channel < width
    token, inside = _tile(q, chunks, length, segment_stride, token_stride, T)
    mask = inside[:, None] & wide[None, :]
    xs = tl.load(x + b * x_b + token[:, None] * x_t + channel[None, :] * x_d, mask=mask, other=0.0)
    xs = xs.to(tl.float32)
    inner, _, _ = _gated(dy + b * dy_b, z + b * z_b, token, channel, mask, dy_t, dy_d, z_t, z_d, HAS_Z)
    by_x = tl.zeros((T, BD), tl.float32)
    total = tl.zeros((T, BD), tl.float32)
    skip = tl.zeros((BD,), tl.float32)
    for i in tl.static_range(DIRECTIONS):
        k = _direction(i, KS)
        raw = _raw_steps(dt + b * dt_b, k, token, channel, mask, dt_k, dt_t, dt_d, bias, width, HAS_BIAS)
        steps = _steps(raw, mask, SOFTPLUS)
        values = steps * xs
        sequence, chunk, count = _chunk_of(q, i, segments, chunks, REVERSED, RESETS)
        row = _first_row(i, segments, chunks, RESETS, DIRECTIONS) + sequence * (count - 1) + chunk
        after = b * rows_b + row.to(tl.int64) * states * width + channel
        before = after - states * width
        first = _first(T, (REVERSED >> i) & 1)
        final = _first(T, 1 - ((REVERSED >> i) & 1))
        by_input = tl.zeros((T, BD), tl.float32)
        by_step = tl.zeros((T, BD), tl.float32)
        # [block batch direction token state]
        part = (((tl.program_id(1) * batch + b) * directions + k) * tokens + token) * states
        for n in range(states):
            rate = tl.load(A + (k * width + channel) * states + n, mask=wide, other=0.0)
            weight = tl.load(B + b * B_b + k * B_k + token * B_t + n * B_n, mask=inside, other=0.0)
            read = tl.load(C + b * C_b + k * C_k + token * C_t + n * C_n, mask=inside, other=0.0)
            weight, read = weight.to(tl.float32)[:, None], read.to(tl.float32)[:, None]
            start = tl.load(rows + before + n * width, mask=wide & (chunk > 0), other=0.0)
            asked = tl.load(adjoints + after + n * width, mask=wide & (chunk < count - 1), other=0.0)
            a = tl.exp2(steps * (rate * LOG2E)[None, :])
            previous = _scan_before(a, values * weight, first, start[None, :], (REVERSED >> i) & 1)
            own = read * inner
            g = own + _scan_before(a, a * own, final, asked[None, :], 1 - ((REVERSED >> i) & 1))
            by_input += g * weight
            # a h[t-1] as it stands: h[t] - dt x B would cancel where steps are large
            by_decay = a * g * previous
            by_step += by_decay * rate[None, :]
            h = a * previous + values * weight
            if HAS_Z:
                total += read * h
            tl.store(dB + part + n, tl.sum(g * values, 1), mask=inside)
            tl.store(dC + part + n, tl.sum(h * inner, 1), mask=inside)
            to = (((b * tiles + q) * DIRECTIONS + i) * states + n) * width + channel
            tl.store(dA + to, tl.sum(by_decay * steps, 0), mask=wide)
        by_raw = by_step + by_input * xs
        if SOFTPLUS:
            by_raw *= _sigmoid(raw)
        by_raw = tl.where(mask, by_raw, 0.0)
        tl.store(
            ddt + ((b * directions + k) * tokens + token[:, None]) * width + channel[None, :],
            by_raw,
            mask=mask,
        )
        if HAS_BIAS:
            to = ((b * tiles + q) * DIRECTIONS + i) * width + channel
            tl.store(dbias + to, tl.sum(by_raw, 0), mask=wide)
        by_x += by_input * steps
        if HAS_D:
            skip += tl.load(D + k * width + channel, mask=wide, other=0.0)
    at = (b * tokens + token[:, None]) * width + channel[None, :]
    if HAS_D:
        by_x += skip[None, :] * inner
        total += skip[None, :] * xs
        if FIRST:
            tl.store(dD + (b * tiles + q) * width + channel, tl.sum(inner * xs, 0), mask=wide)
    if not FIRST:
        by_x += tl.load(dx + at, mask=mask, other=0.0)
    tl.store(dx + at, by_x, mask=mask)
    if HAS_Z:
        if not FIRST:
            total += tl.load(partial + at, mask=mask, other=0.0)
        if LAST:
            _, given, gate = _gated(
                dy + b * dy_b, z + b * z_b, token, channel, mask, dy_t, dy_d, z_t, z_d, HAS_Z
            )
            open_ = _sigmoid(gate)
            tl.store(dz + at, given * total * open_ * (1 + gate * (1 - open_)), mask=mask)
        else:
            tl.store(partial + at, total, mask=mask)

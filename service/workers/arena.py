"""Shared memory for the arrays of requests and answers: written once, read by every process that maps it."""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import threading
from bisect import bisect_left, insort
from collections import deque
from ctypes import addressof, c_char
from typing import Any, Final, final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from service.errors import Overloaded

__all__ = ["ALIGNMENT", "Arena"]

# a cache line, and the widest vector of a processor
ALIGNMENT: Final = 64
# so much may stay when no array is in use at all: giving back pages costs, and faulting them in too
KEPT_BYTES: Final = 64 * 2**20


@final
class Arena:
    """Memory without a name, which other processes map by its descriptor; arrays are taken from it.

    An array gives its block back when nothing refers to it or to a view of it any more, in whatever thread
    that happens. Blocks are taken from the lowest address that has room, so that after a burst the high
    addresses fall free; whoever owns the arena trims it from time to time.
    """

    def __init__(self, size: int) -> None:
        """``size`` is what it may hold [B]; pages that were never written take no memory."""
        self.size = size
        self.fd = os.memfd_create("mno-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, size)
        # nobody can cut the file short under a process that reads it
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
        self._memory = mmap.mmap(self.fd, size)
        self._address: int = addressof(c_char.from_buffer(self._memory))
        self._free = _FreeList(size - size % ALIGNMENT)
        # pages beyond this address, and beyond the peak, are not backed by memory
        self._touched = 0
        # where the highest array since the last trim ended
        self._peak = 0
        self._lock = threading.Lock()
        # blocks that could not go back to the free list at once
        self._released: deque[tuple[int, int]] = deque()

    @property
    def used(self) -> int:
        """What the arrays take now [B]."""
        self._collect()
        return self._free.size - self._free.free

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array with undefined numbers, at a multiple of ``ALIGNMENT``.

        Raises:
            Overloaded: no room for it.
        """
        kind = np.dtype(dtype)
        size = max(ALIGNMENT, -(-math.prod(shape) * kind.itemsize // ALIGNMENT) * ALIGNMENT)
        with self._lock:
            offset = self._free.take(size)
            if offset is not None and offset + size > self._peak:
                self._peak = offset + size
        if self._released:
            self._collect()
        if offset is None:
            raise Overloaded(
                f"expected {size} bytes of free memory for arrays, found {self.size - self.used} of "
                f"{self.size}, not all in one piece; try again later, or send fewer fields at once",
                retry_after=1,
            )
        block = _Block((size,), np.uint8, self._memory, offset)
        block.home, block.offset = self, offset
        return np.ndarray(shape, kind, block)

    def offset_of(self, array: NDArray[Any]) -> int | None:
        """Where in the arena the numbers of ``array`` begin; None: outside, or not one after another."""
        home: Any = array
        while isinstance(home, np.ndarray):
            if type(home) is _Block:
                return self._offset(array) if home.home is self else None
            home = home.base
            if isinstance(home, memoryview):
                home = home.obj
        return None

    def trim(self) -> None:
        """Give back the pages that no array has used since the last time; what is used often stays."""
        self._collect()
        with self._lock:
            self._trim(self._peak)

    def close(self) -> None:
        """Let go of the memory; it is freed when the last array is."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _offset(self, array: NDArray[Any]) -> int | None:
        try:
            # numpy's own ways to an address take eight times as long
            return addressof(c_char.from_buffer(array.data)) - self._address
        except (TypeError, ValueError):
            # empty, read only, or not one after another
            flags, address = array.flags, array.__array_interface__["data"][0]
            return address - self._address if flags.c_contiguous else None

    def release(self, offset: int, size: int) -> None:
        """Called where the last reference to a block went, even within this class while it holds its lock."""
        if self._lock.acquire(blocking=False):
            try:
                self._put(offset, size)
            finally:
                self._lock.release()
        else:
            self._released.append((offset, size))
        # or whoever has the lock now looks again when it has not
        if self._released:
            self._collect()

    def _collect(self) -> None:
        """Put back what was released while somebody had the lock, unless somebody has it again."""
        while self._released and self._lock.acquire(blocking=False):
            try:
                while self._released:
                    self._put(*self._released.popleft())
            finally:
                self._lock.release()

    def _put(self, offset: int, size: int) -> None:
        self._free.put(offset, size)
        if self._free.free == self._free.size and max(self._peak, self._touched) > KEPT_BYTES:
            self._trim(0)

    def _trim(self, peak: int) -> None:
        """Give back the pages beyond ``peak``, the end of what is in use or was lately."""
        page = mmap.PAGESIZE
        begin = -(-peak // page) * page
        end = min(-(-max(self._touched, self._peak) // page) * page, self.size)
        if begin < end:
            self._memory.madvise(mmap.MADV_REMOVE, begin, end - begin)
        self._touched = begin
        self._peak = self._free.top


@final
class _Block(np.ndarray[Any, Any]):
    """The bytes that an array and its views refer to last; numpy keeps it as their base."""

    home: Arena | None = None
    offset = 0

    def __del__(self) -> None:
        if self.home is not None:
            self.home.release(self.offset, self.size)


@final
class _FreeList:
    """The free pieces, in the order of their addresses; neighbors are one piece."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.free = size
        self._offsets = [0] if size else []
        self._sizes = {0: size} if size else {}

    @property
    def top(self) -> int:
        """Where the last piece in use ends."""
        last = self._offsets[-1] if self._offsets else self.size
        return last if last + self._sizes.get(last, 0) == self.size else self.size

    def take(self, size: int) -> int | None:
        """The lowest address with room, None where there is none."""
        for position, offset in enumerate(self._offsets):
            room = self._sizes[offset]
            if room < size:
                continue
            del self._sizes[offset]
            if room == size:
                del self._offsets[position]
            else:
                self._offsets[position] = offset + size
                self._sizes[offset + size] = room - size
            self.free -= size
            return offset
        return None

    def put(self, offset: int, size: int) -> None:
        """Give a piece back."""
        self.free += size
        position = bisect_left(self._offsets, offset)
        if position < len(self._offsets) and self._offsets[position] == offset + size:
            size += self._sizes.pop(self._offsets.pop(position))
        if position and self._offsets[position - 1] + self._sizes[self._offsets[position - 1]] == offset:
            self._sizes[self._offsets[position - 1]] += size
        else:
            insort(self._offsets, offset)
            self._sizes[offset] = size

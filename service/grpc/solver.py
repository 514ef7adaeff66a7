"""The service `mno.v1.Solver`: the problems in their own words."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Final, TypeVar, final

from google.protobuf.message import Message

from service.grpc.call import Buffer, Call, Method
from service.grpc.faults import describe
from service.grpc.parts import Parts
from service.grpc.wire import (
    read_rollout,
    read_solve,
    read_vjp,
    rollout_metadata,
    write_frame,
    write_solution,
    write_vjp,
)
from service.pb import solver_pb2 as pb
from service.pb.decode import decode
from service.solver import Solver

__all__ = ["SERVICE", "solver_methods"]

Kind = TypeVar("Kind", bound=Message)

SERVICE: Final = "mno.v1.Solver"
# requests of one stream under way at once
MOST_AT_ONCE: Final = 64
# larger messages are read and written off the event loop
LARGE: Final = 2**21


def solver_methods(solver: Solver) -> list[Method]:
    """The calls of the service."""
    calls = _Calls(solver)
    return [
        Method(f"/{SERVICE}/Solve", calls.solve),
        Method(f"/{SERVICE}/SolveStream", calls.solve_stream, kind="stream"),
        Method(f"/{SERVICE}/Rollout", calls.roll_out, kind="answers"),
        Method(f"/{SERVICE}/VectorJacobianProduct", calls.differentiate),
    ]


@final
class _Calls:
    def __init__(self, solver: Solver) -> None:
        self._solver = solver

    async def solve(self, call: Call) -> None:
        message = await call.message()
        await call.send(await self._solved(call, message or b""))

    async def _solved(self, call: Call, message: Buffer) -> Parts:
        wanted = await _read(pb.SolveRequest, message)
        request = read_solve(wanted, call)
        response = await self._solver.solve(request)
        call.timing = response.timing
        return write_solution(response, wanted.id)

    async def solve_stream(self, call: Call) -> None:
        room, turn = asyncio.Semaphore(MOST_AT_ONCE), asyncio.Lock()

        async def answer(message: Buffer) -> None:
            try:
                parts = await self._solved_or_fault(call, message)
                # the frames of two answers must not mix
                async with turn:
                    await call.send(parts)
            finally:
                call.let_go(len(message))
                room.release()

        async with asyncio.TaskGroup() as tasks:
            while (message := await call.message()) is not None:
                await room.acquire()
                tasks.create_task(answer(message))

    async def _solved_or_fault(self, call: Call, message: Buffer) -> Parts:
        name = ""
        try:
            wanted = await _read(pb.SolveRequest, message)
            name = wanted.id
            request = read_solve(wanted, call)
            return write_solution(await self._solver.solve(request), name)
        except Exception as fault:  # whatever broke is this item's answer
            known = describe(fault, call.request_id)
            return [pb.SolveResponse(id=name, fault=known).SerializeToString()]

    async def roll_out(self, call: Call) -> None:
        wanted = await _read(pb.RolloutRequest, await call.message() or b"")
        rollout = await self._solver.roll_out(read_rollout(wanted, call))
        async with aclosing(rollout.frames) as frames:
            call.hold(rollout.nbytes)
            await call.begin(rollout_metadata(rollout))
            async for frame in frames:
                await call.send(write_frame(frame, rollout))
                # whatever ends the stream, the client knows from where to go on
                call.trailing = (("mno-step", str(frame.step)),)

    async def differentiate(self, call: Call) -> None:
        wanted = await _read(pb.VjpRequest, await call.message() or b"")
        request = read_vjp(wanted, call)
        await call.send(write_vjp(await self._solver.differentiate(request)))


async def _read(kind: type[Kind], message: Buffer) -> Kind:
    if len(message) > LARGE:
        return await asyncio.to_thread(decode, kind, message)
    return decode(kind, message)

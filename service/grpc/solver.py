"""The service `mno.v1.Solver`: the problems in their own words."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final, final

from service.grpc.call import Call, Method
from service.grpc.derivative_wire import (
    read_jvp,
    read_quantities,
    read_vjp,
    write_jvp,
    write_quantities,
    write_vjp,
)
from service.grpc.frame_message import FrameWriter
from service.grpc.parts import Parts
from service.grpc.pipelined import Item, Pipeline
from service.grpc.wire import (
    SOLVE_FORM,
    SolveOrder,
    read_rollout,
    read_solve,
    rollout_metadata,
    write_solution,
)
from service.pb import solver_pb2 as pb
from service.pb.decode import decoded
from service.pb.usual import Reader, Wanted
from service.solver import Solver

__all__ = ["SERVICE", "solver_methods"]

SERVICE: Final = "mno.v1.Solver"


def solver_methods(solver: Solver) -> list[Method]:
    """The calls of the service."""
    calls = _Calls(solver)
    return [
        Method(f"/{SERVICE}/Solve", calls.solve),
        Method(f"/{SERVICE}/SolveStream", calls.solve_stream, kind="stream"),
        Method(f"/{SERVICE}/Rollout", calls.roll_out, kind="answers"),
        Method(f"/{SERVICE}/VectorJacobianProduct", calls.pull_back),
        Method(f"/{SERVICE}/JacobianVectorProduct", calls.push_forward),
        Method(f"/{SERVICE}/Quantities", calls.read_quantities),
    ]


@final
class _Calls:
    def __init__(self, solver: Solver) -> None:
        self._solver = solver
        self._reader = Reader(SOLVE_FORM)
        self._solutions = Pipeline(self._reader.read, self._answers, _unsolved)

    async def solve(self, call: Call) -> None:
        wanted = await self._reader.read(await call.message() or b"")
        response = await self._solver.solve(read_solve(wanted, call, call.received))
        call.timing = response.timing
        await call.send(write_solution(response, wanted.id))

    async def solve_stream(self, call: Call) -> None:
        await self._solutions.run(call)

    async def _answers(self, wanted: Wanted[SolveOrder], item: Item) -> AsyncGenerator[Parts, None]:
        request = read_solve(wanted, item.call, item.arrived)
        yield write_solution(await self._solver.solve(request), wanted.id)

    async def roll_out(self, call: Call) -> None:
        wanted = await decoded(pb.RolloutRequest, await call.message() or b"")
        rollout = await self._solver.roll_out(read_rollout(wanted, call))
        async with aclosing(rollout.written(FrameWriter(rollout))) as sheets:
            call.hold(rollout.nbytes)
            await call.begin(rollout_metadata(rollout))
            async for step, parts in sheets:
                await call.send(parts)
                # whatever ends the stream, the client knows from where to go on
                call.trailing = (("mno-step", str(step)),)

    async def pull_back(self, call: Call) -> None:
        wanted = await decoded(pb.VjpRequest, await call.message() or b"")
        response = await self._solver.differentiate(read_vjp(wanted, call))
        call.timing = response.timing
        await call.send(write_vjp(response, wanted.request.id))

    async def push_forward(self, call: Call) -> None:
        wanted = await decoded(pb.JvpRequest, await call.message() or b"")
        response = await self._solver.differentiate(read_jvp(wanted, call))
        call.timing = response.timing
        await call.send(write_jvp(response, wanted.request.id))

    async def read_quantities(self, call: Call) -> None:
        wanted = await decoded(pb.QuantitiesRequest, await call.message() or b"")
        response = await self._solver.read(read_quantities(wanted, call))
        call.timing = response.timing
        await call.send(write_quantities(response, wanted.request.id))


def _unsolved(name: str, fault: pb.Fault) -> Parts:
    return [pb.SolveResponse(id=name, fault=fault).SerializeToString()]

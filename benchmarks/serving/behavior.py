"""What servers do when something goes wrong, with a model that takes half a second (table 4.8 of the design).

None of it depends on how fast the machine is: it counts answers, and what was computed for whom.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final

from benchmarks.serving.client import Abandonable, Refused, ask, check, fetch
from benchmarks.serving.models import SLOW_SECONDS, read_journal
from benchmarks.serving.request import Array, Request, Route, strict_json
from benchmarks.serving.rounds import Plan, Report, field, started
from benchmarks.serving.server import Running, Server, ServerFailed

__all__ = ["behavior_table"]

TOGETHER: Final = 8
DROPPED: Final = 20
SMALL: Final = 64
# the process has time to end its work in
GRACE: Final = 20.0


def behavior_table(plan: Plan, report: Report) -> list[dict[str, Any]]:
    """A row for each server, ours first."""
    table = []
    for server in plan.servers:
        report(f"behavior: {server.name}")
        table.append({"server": server.title} | _row(server, plan))
    return table


def _row(server: Server, plan: Plan) -> dict[str, Any]:
    row: dict[str, Any] = {title: "not measured" for title, _, _ in TESTS}
    for model in dict.fromkeys(model for _, model, _ in TESTS):
        try:
            with started(server, plan, (model,)) as process:
                routes = server.routes(process.place, model)
                for title in (title for title, wanted, _ in TESTS if wanted == model):
                    row[title] = _outcome(title, process, routes)
        except (ServerFailed, OSError) as error:
            row["trouble"] = " ".join(str(error).split())[:200]
    return row


def _outcome(title: str, process: Running, routes: Sequence[Route]) -> str:
    test = next(test for name, _, test in TESTS if name == title)
    try:
        return test(process, routes)
    except (Refused, OSError) as error:
        return f"not measured: {' '.join(str(error).split())[:80]}"


def _health(process: Running, routes: Sequence[Route]) -> str:
    """The probe's latency while a forward runs."""
    with ThreadPoolExecutor(1) as pool:
        forward = pool.submit(ask, routes[0], routes[0].encode(field()))
        time.sleep(SLOW_SECONDS / 5)
        start = time.perf_counter()
        status = fetch(process.place.http_port, process.server.health)
        taken = 1e3 * (time.perf_counter() - start)
        forward.result()
    return f"{taken:.0f} ms" if status == 200 else f"{status}"


def _poison(process: Running, routes: Sequence[Route]) -> str:  # noqa: ARG001
    """Good requests answered rightly beside a malformed one: half of its bytes are missing."""
    route = routes[0]
    good = [field(seed) for seed in range(TOGETHER - 1)]
    with ThreadPoolExecutor(TOGETHER + 1) as pool:
        # they meet in a batch: the worker is busy when they come
        busy = pool.submit(check, route, field(50), field(50))
        time.sleep(SLOW_SECONDS / 5)
        answers = [pool.submit(check, route, values, values) for values in good]
        bad = pool.submit(_refused, route, malformed(route.encode(field(99))))
        right = sum(answer.result() is None for answer in answers)
        busy.result()
    return f"{right}/{len(good)} right; the malformed one: {bad.result()}"


def malformed(request: Request) -> Request:
    """A request whose array lacks half of its elements, in headers and lengths that say so or do not."""
    body = request.body
    if request.headers.get("content-type", "").startswith("multipart"):
        return replace(request, body=body[:200] + body[len(body) // 2 :])
    if not request.headers.get("content-type", "").startswith("application/json"):
        return replace(request, body=body[: len(body) // 2])
    # the longest text is the array
    return replace(request, body=json.dumps(_halved(json.loads(body))).encode())


def _halved(data: Any) -> Any:
    if isinstance(data, dict):
        return {name: _halved(value) for name, value in data.items()}
    if isinstance(data, list):
        return data[: len(data) // 2] if len(data) > 2 else [_halved(value) for value in data]
    if isinstance(data, str) and len(data) > 1000:
        return data[: len(data) // 8 * 4]
    return data


def _refused(route: Route, request: Request) -> str:
    try:
        ask(route, request)
    except Refused as error:
        return f"refused with {error.reason.split()[0][:40]}"
    return "answered"


def _mixed(process: Running, routes: Sequence[Route]) -> str:  # noqa: ARG001
    """Two grids at the same time."""
    route = routes[0]
    sides = (128, SMALL) * (TOGETHER // 2)
    fields = [field(seed, side) for seed, side in enumerate(sides)]
    with ThreadPoolExecutor(TOGETHER) as pool:
        answers = [pool.submit(check, route, values, values) for values in fields]
        right = [answer.result() is None for answer in answers]
    large = sum(right[0::2])
    return f"{sum(right)}/{len(right)} ({large} of 128x128, {sum(right) - large} of {SMALL}x{SMALL})"


def _not_a_number(process: Running, routes: Sequence[Route]) -> str:  # noqa: ARG001
    """What JSON says of NaN in an output."""
    json_routes = [route for route in routes if route.json]
    if not json_routes:
        return "no JSON"
    route = json_routes[-1]
    try:
        reply = ask(route, route.encode(field()))
    except Refused as error:
        return f"refused with {error.reason.split()[0]}"
    try:
        strict_json(reply.body)
    except ValueError as error:
        return f"invalid JSON: {error}"
    return "null" if b"null" in reply.body else "valid JSON, bytes in base64"


def _dropped(process: Running, routes: Sequence[Route]) -> str:
    """Requests that wait when their clients leave, and are computed all the same."""
    route = routes[0]
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(ask, route, route.encode(field(50)))
        time.sleep(SLOW_SECONDS / 5)
        left = [Abandonable(route, route.encode(_marked(1000.0 + number))) for number in range(DROPPED)]
        time.sleep(SLOW_SECONDS / 5)
        for client in left:
            client.leave()
        busy.result()
    # whatever was still queued has been computed when these are answered
    for _ in range(2):
        ask(route, route.encode(_marked(5.0)))
    time.sleep(2 * SLOW_SECONDS)
    computed = read_journal(process.place.folder / "journal.bin")
    wanted = {1000.0 + number for number in range(DROPPED)}
    return f"{len(wanted & computed)} of {DROPPED}"


def _marked(value: float) -> Array:
    values = field()
    values[0, 0] = value
    return values


def _terminated(process: Running, routes: Sequence[Route]) -> str:
    """Requests answered that were in flight at SIGTERM, and how the process ended."""
    route = routes[0]
    fields = [field(seed) for seed in range(TOGETHER)]
    with ThreadPoolExecutor(TOGETHER) as pool:
        answers: list[Future[str | None]] = [pool.submit(check, route, values, values) for values in fields]
        time.sleep(SLOW_SECONDS / 2)
        start = time.perf_counter()
        status = process.terminate(GRACE)
        taken = time.perf_counter() - start
        right = sum(answer.result() is None for answer in answers)
    left = len([pid for pid in process.tree.alive() if pid != process.pid])
    ending = "still runs" if status is None else f"exit {status} after {taken:.1f} s"
    return f"{right}/{TOGETHER}, {ending}" + (f", {left} processes left" if left else "")


Test = Callable[[Running, Sequence[Route]], str]

# the one that ends its process goes last
TESTS: Final[Sequence[tuple[str, str, Test]]] = (
    ("health while a forward runs", "slow", _health),
    ("7 good beside 1 malformed", "slow", _poison),
    ("4x128^2 with 4x64^2", "slow", _mixed),
    ("NaN in JSON", "nan", _not_a_number),
    ("dropped in the queue, computed anyway", "slow", _dropped),
    ("SIGTERM with 8 in flight", "slow", _terminated),
)

"""What ``mno bench serve`` is made of, without other servers: parsers, statistics, tables, generators."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from array import array
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray

from benchmarks.serving import forms
from benchmarks.serving.behavior import malformed
from benchmarks.serving.command import bench_serve
from benchmarks.serving.generator import Row, closed_loop, open_loop
from benchmarks.serving.load import (
    Burst,
    LoadFailed,
    http_request,
    parse_latencies,
    parse_summary,
    prepared_body,
)
from benchmarks.serving.loader import load, load_waves
from benchmarks.serving.models import MODELS, build, read_journal
from benchmarks.serving.process_tree import ProcessTree, parse_stat, pss_bytes
from benchmarks.serving.request import Array, Reply, Request, Route, strict_json
from benchmarks.serving.results import Cell, Results, paired_ratio
from benchmarks.serving.rounds import field
from benchmarks.serving.server import Place, Server, stage
from benchmarks.serving.servers import OURS, PEERS
from benchmarks.serving.table import inserted, markdown, number
from benchmarks.serving.targets import verdicts
from problems import Grid
from service.pb import inference_pb2, solver_pb2
from service.workers.worker import Batch, Bucket

SUMMARY = """\
starting benchmark...
finished in 1.30s, 7234.62 req/s, 452.90MB/s
requests: 9411 total, 9443 started, 9411 done, 9405 succeeded, 6 failed, 0 errored, 0 timeout
status codes: 9405 2xx, 0 3xx, 4 4xx, 2 5xx
traffic: 588.76MB (617357824) total, 1.90MB (1994948) headers (space savings 0.00%), 588.19MB (616759296) data
"""
LOG = "1700000000000000\t200\t1500\n1700000000001000\t503\t9000\n1700000000002000\t200\t2500\n"


def test_what_h2load_says() -> None:
    traffic = parse_summary(SUMMARY, LOG)
    assert (traffic.answered, traffic.failed, traffic.seconds) == (9405, 12, 1.3)
    assert traffic.received == 616759296
    np.testing.assert_allclose(traffic.latencies, [1.5e-3, 2.5e-3])
    assert parse_latencies("").size == 0


def test_what_h2load_says_when_it_fails() -> None:
    with pytest.raises(LoadFailed, match="expected the summary of h2load, got: could not resolve"):
        parse_summary("could not resolve the host", "")


def test_a_process_whose_name_looks_like_the_rest() -> None:
    before = "42 (a) b) (c) S 7 42 5 0 -1 4194560 1 2 3 4 "
    stat = parse_stat(before + "100 50 30 20 20 0 8 0 987654 1000 100 18446744073709551615 1")
    ticks = os.sysconf("SC_CLK_TCK")
    assert (stat.parent, stat.session, stat.start, stat.cpu) == (7, 5, 987654, 200 / ticks)


def test_a_tree_holds_what_a_process_started() -> None:
    child = "import subprocess, sys; p = subprocess.Popen(['cat']); print(p.pid, flush=True); p.wait()"
    command = [sys.executable, "-c", child]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        grandchild = int(process.stdout.readline())
        tree = ProcessTree(process.pid)
        assert {process.pid, grandchild} <= set(tree.alive())
        assert tree.cpu_seconds() > 0
        assert tree.pss_bytes() >= pss_bytes(grandchild) > 0
        process.communicate()
    assert pss_bytes(process.pid) == 0


def test_ratios_are_those_of_neighbors() -> None:
    # the machine was four times slower in the second round, and the third failed
    assert paired_ratio([200.0, 50.0, None, 90.0], [100.0, 25.0, 10.0, 30.0]) == 2.0
    assert paired_ratio([None], [1.0]) is None


def burst(rate: float, cpu_ms: float = 0.1, p50_ms: float = 1.0) -> Burst:
    return Burst(rate, p50_ms, 2 * p50_ms, cpu_ms, 0, 100)


def canned() -> Results:
    """Two rounds, of which the second has the machine to share."""
    cells = [
        Cell("null", "mno-npy", "mno: .npy", 32, [burst(8000, 0.10), burst(4000, 0.20)]),
        Cell("null", "triton-http", "Triton: OIP binary HTTP", 32, [burst(5000, 0.25), burst(2500, 0.50)]),
        Cell("null", "ray-raw", "Ray Serve: raw", 32, [burst(1000, 1.0), None]),
        Cell("patch", "mno-npy", "mno: .npy", 1, [burst(200, 4.0, 4.4), burst(100, 8.0, 8.9)]),
    ]
    results = Results(about={"command": "mno bench serve"}, cells=cells)
    results.raw_ms = {"patch": {1: [4.0, 4.0, 8.0, 8.0]}}
    results.memory_mb = {"mno": {"null": 345.6}}
    results.fronts_mb = [59.0]
    results.extras = {"Health at saturation": [{"server": "mno", "p99 ms": 12.0}]}
    results.troubles = ["BentoML\nended"]
    return results


def test_targets() -> None:
    found = {(each.number, each.text.partition(":")[0]): each for each in verdicts(canned())}
    cost = found["1", "null model, 32 clients, CPU a request, .npy / Triton HTTP"]
    assert (cost.measured, cost.word) == ("0.4x", "met")
    rate = found["2", "null model, 32 clients, requests/s, .npy / Ray Serve"]
    assert (rate.measured, rate.word) == ("8x", "MISSED")
    # the difference to the forward, each with that of its own round: 0.4 and 0.9 ms
    alone = found["5", "real model, one client, p50, .npy - raw forward"]
    assert (alone.measured, alone.word) == ("0.9 ms", "MISSED")
    assert found["3", "real model, 32 clients, requests/s, .npy / LitServe"].word == "not measured"
    assert found["8", "health probe, p99 with 32 clients"].word == "MISSED"
    assert found["9", "memory of a front"].word == "met"
    assert {each.number for each in found.values()} == {str(number) for number in range(1, 11)}


def test_results_come_back_from_json() -> None:
    results = canned()
    assert Results.from_json(json.loads(json.dumps(results.to_json()))) == results


def test_the_table() -> None:
    text = markdown(canned(), verdicts(canned()))
    assert "| mno: .npy | - | 8000 (6000) | - | 1 / 2 | 0.1 (0.15) | 346 | 0 | 2 |" in text
    assert "- BentoML ended" in text
    assert number(float("nan")) == "-"
    assert [number(value) for value in (0.12345, 9.8765, 98.765, 9876.5)] == ["0.123", "9.88", "98.8", "9876"]


def test_the_report_goes_into_a_document() -> None:
    document = "before\n<!-- load -->\nold\n<!-- end load -->\nafter\n"
    assert inserted(document, "new\n", "load") == (
        "before\n<!-- load -->\n\nnew\n\n<!-- end load -->\nafter\n"
    )
    assert inserted(document, "new\n", "behavior") == "new\n"


def test_the_tables_of_a_run_can_be_printed_again(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(canned().to_json()))
    result = CliRunner().invoke(bench_serve, ["--from-json", str(path)], catch_exceptions=False)
    assert result.exit_code == 0
    assert "### Targets" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "triton,nope"], "expected some of triton, .*, got nope"),
        (["--clients", "1,many"], "expected numbers separated by commas, got '1,many'"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(bench_serve, arguments)
    assert result.exit_code == 2
    assert re.search(message, result.output)


def test_every_server_has_routes_of_its_own() -> None:
    place = Place(Path("environment"), Path("folder"), ("null",), 1, 2)
    keys = [route.key for server in (OURS, *PEERS.values()) for route in server.routes(place, "null")]
    assert len(keys) == len(set(keys))
    assert all(
        route.key.startswith(f"{server.name}-")
        for server in (OURS, *PEERS.values())
        for route in server.routes(place, "null")
    )


@pytest.mark.parametrize("server", [OURS, *PEERS.values()], ids=lambda server: server.name)
def test_a_malformed_request_lacks_a_part_of_its_array(server: Server) -> None:
    place = Place(Path("environment"), Path("folder"), ("null",), 1, 2)
    for route in server.routes(place, "null"):
        whole = route.encode(field())
        broken = malformed(whole)
        assert broken.path == whole.path
        assert len(broken.body) < 0.7 * len(whole.body)


def test_peers_import_the_models_and_nothing_else_of_this_project(tmp_path: Path) -> None:
    stage(tmp_path)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    code += "import benchmarks.serving.models as m; print(m.__file__)"
    command = [sys.executable, "-I", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.startswith(str(tmp_path))


def test_the_weights_are_the_same_every_time() -> None:
    inputs = torch.from_numpy(np.stack([field(0), field(1)]))
    first, again = build("patch"), build("patch")
    assert torch.equal(first(inputs), again(inputs))
    assert torch.equal(build("null")(inputs), inputs)
    assert bool(build("nan")(inputs).isnan().all())
    assert bool(build("nan")(torch.ones(2, 8, 8)).isfinite().all())
    torch.testing.assert_close(build("patch", frozen=True)(inputs), first(inputs), rtol=1e-4, atol=1e-5)
    assert {"null", "patch", "slow", "nan"} == MODELS.keys()


def test_this_service_loads_them() -> None:
    served, compute = load("null")
    fields: dict[str, NDArray[Any]] = {"permeability": np.stack([field(0), field(1)]), "source": np.ones(2)}
    bucket = Bucket("darcy", served.reference, served.scheme, Grid((128, 128), (1.0, 1.0)), "float32")
    solutions = compute(Batch(bucket, fields))
    np.testing.assert_array_equal(solutions.fields["pressure"], fields["permeability"])
    assert solutions.iterations == (0, 0)
    served, compute = load_waves("waves")
    state = {name: np.full((1, 4, 4), value, np.float32) for name, value in (("h", 1), ("hu", 0), ("hv", 0))}
    frames = compute(Batch(bucket, state)).fields
    assert frames["h"].shape == (1, served.frames, 4, 4)


def test_the_journal(tmp_path: Path) -> None:
    assert read_journal(tmp_path / "journal") == set()
    (tmp_path / "journal").write_bytes(array("f", [1.0, 5.0, 1.0]).tobytes())
    assert read_journal(tmp_path / "journal") == {1.0, 5.0}


def test_json_has_no_nan() -> None:
    assert strict_json(b'{"pressure": [null, 1.5]}') == {"pressure": [None, 1.5]}
    with pytest.raises(ValueError, match="NaN is no JSON"):
        strict_json(b'{"pressure": [NaN]}')


def oip_http_answer(values: Array) -> Reply:
    head = json.dumps({"outputs": [{"name": "pressure", "shape": [1, *values.shape]}]}).encode()
    return Reply(200, head + values.tobytes(), {forms.HEADER_LENGTH: str(len(head))})


def oip_json_answer(values: Array) -> Reply:
    outputs = [{"name": "pressure", "shape": [1, *values.shape], "data": values.ravel().tolist()}]
    return Reply(200, json.dumps({"outputs": outputs}).encode())


def oip_grpc_answer(values: Array) -> Reply:
    tensor = inference_pb2.ModelInferResponse.InferOutputTensor(name="pressure", shape=(1, *values.shape))
    message = inference_pb2.ModelInferResponse(outputs=[tensor], raw_output_contents=[values.tobytes()])
    return Reply(200, message.SerializeToString())


def solve_grpc_answer(values: Array) -> Reply:
    tensor = solver_pb2.Tensor(dtype="float32", shape=values.shape, data=values.tobytes())
    return Reply(200, solver_pb2.SolveResponse(fields={"pressure": tensor}).SerializeToString())


@pytest.mark.parametrize(
    ("answer", "decode"),
    [
        (oip_http_answer, forms.from_oip_http),
        (oip_json_answer, forms.from_oip_json),
        (oip_grpc_answer, forms.from_oip_grpc),
        (solve_grpc_answer, forms.from_solve_grpc),
        (lambda values: Reply(200, forms.solve_npy("null", values).body), forms.from_npy),
        (lambda values: Reply(200, values.tobytes()), forms.from_raw),
        (
            lambda values: Reply(200, json.dumps({"pressure": values.tolist()}).encode()),
            forms.from_solve_json,
        ),
    ],
)
def test_answers_are_read(answer: Callable[[Array], Reply], decode: Callable[[Reply], Array]) -> None:
    values = field(3, 8)
    np.testing.assert_array_equal(decode(answer(values)), values)


def test_a_message_of_grpc_has_a_prefix() -> None:
    request = Request("/method", b"abc")
    route = Route("x", "x", "grpc", 1, lambda _: request, forms.from_raw)
    assert prepared_body(route, request) == b"\0\0\0\0\x03abc"


async def _answering(work: Callable[[int], Coroutine[Any, Any, list[Row]]]) -> list[Row]:
    """Run ``work`` on the port of a server that answers every fifth request with 503."""
    counted = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal counted
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
                counted += 1
                status = b"503 Busy" if counted % 5 == 0 else b"200 OK"
                # in two pieces, as it may come
                writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 5\r\n\r\nhe")
                await writer.drain()
                writer.write(b"llo")
        except (asyncio.IncompleteReadError, ConnectionError):
            # the client has left
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        return await work(server.sockets[0].getsockname()[1])


REQUEST = http_request(Request("/solve", b"abc", {"content-type": "text/plain"}))


def test_closed_loop() -> None:
    rows = asyncio.run(_answering(lambda port: closed_loop(port, REQUEST, 3, 0.2)))
    statuses = [status for _, status, _ in rows]
    assert statuses.count(503) == len(statuses) // 5
    assert set(statuses) == {200, 503}


def test_open_loop() -> None:
    rows = asyncio.run(_answering(lambda port: open_loop(port, REQUEST, 400.0, 0.3)))
    # the times are drawn from a fixed seed
    assert len(rows) > 50
    assert {status for _, status, _ in rows} == {200, 503}


def test_the_generator_says_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "request").write_bytes(REQUEST)
    command = [sys.executable, "-m", "benchmarks.serving.generator", "1", str(tmp_path / "request"), "log"]
    done = subprocess.run([*command, "--seconds", "1"], capture_output=True, text=True, cwd=tmp_path)
    assert "expected --clients or --rate" in done.stderr


@pytest.mark.slow
def test_quick() -> None:
    """This service starts, answers every route rightly, and stands a load."""
    result = CliRunner().invoke(bench_serve, ["--quick", "--models", "null"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "Not measured, or wrong" not in result.output
    assert "| mno: .npy |" in result.output

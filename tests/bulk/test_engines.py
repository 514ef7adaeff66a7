"""Every engine does every task once, whoever dies or fails meanwhile, and gives up where that makes sense."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import crews
import pytest

from bulk.engine import TRIES, Crew, Engine, EngineUnavailable, Task, TaskFailed
from bulk.interrupt import sigterm_interrupts
from bulk.local_engine import InProcess, Processes, local_engine
from bulk.options import Where
from bulk.ray_engine import RayActors, Share


def tasks(marks: Path, count: int = 7) -> Iterator[Task]:
    for number in range(count):
        yield Task(number, f"task {number}", crews.Sum(marks, (number, 1)))


def results(engine: Engine, crew: Crew, given: Iterator[Task]) -> dict[int, int]:
    found: dict[int, int] = {}
    with closing(engine.carry_out(crew, given)) as done:
        for task, result in done:
            assert task.key not in found
            found[task.key] = result
    return found


def test_each_task_is_done_once(engine: Engine, tmp_path: Path) -> None:
    assert results(engine, Crew(crews.adding), tasks(tmp_path)) == {n: n + 1 for n in range(7)}


def test_no_tasks_are_done_at_once(tmp_path: Path) -> None:
    assert results(InProcess(), Crew(crews.hopeless), tasks(tmp_path, 0)) == {}


def test_what_raises_is_tried_again(engine: Engine, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    bad = Task(7, "task 7", crews.Sum(marks, (1, 2), failures=TRIES - 1))
    found = results(engine, Crew(crews.adding), iter([bad, *tasks(tmp_path)]))
    assert found == {n: n + 1 for n in range(7)} | {7: 3}
    assert len(list(marks.iterdir())) == TRIES


def test_what_raises_again_and_again_is_named(engine: Engine, tmp_path: Path) -> None:
    bad = Task(0, "chunk 5 (samples 40 to 47)", crews.Sum(tmp_path, (), failures=TRIES))
    with pytest.raises(TaskFailed, match=r"^chunk 5 \(samples 40 to 47\) .* OSError: the disk is away"):
        results(engine, Crew(crews.adding), iter([bad]))


def test_what_another_try_would_raise_again_comes_as_it_was(engine: Engine) -> None:
    crew = Crew(crews.hopeless, final=(crews.Hopeless,))
    with pytest.raises(crews.Hopeless, match=r"^expected a number$") as fault:
        results(engine, crew, iter([Task(0, "task 0", None)]))
    assert fault.value.field == "permeability"


def test_what_failed_is_tried_again_by_another_worker(mortal: Engine, tmp_path: Path) -> None:
    assert results(mortal, Crew(crews.sulking), iter([Task(0, "task 0", tmp_path)])) == {0: 1}


def test_a_task_whose_worker_died_is_done_again(mortal: Engine, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    deadly = Task(7, "task 7", crews.Sum(marks, (1, 2), deaths=TRIES - 1))
    found = results(mortal, Crew(crews.adding), iter([deadly, *tasks(tmp_path)]))
    assert found == {n: n + 1 for n in range(7)} | {7: 3}


def test_a_task_that_kills_worker_after_worker_is_named(mortal: Engine, tmp_path: Path) -> None:
    deadly = Task(0, "chunk 5", crews.Sum(tmp_path, (), deaths=TRIES))
    with pytest.raises(TaskFailed, match=rf"^chunk 5 was begun {TRIES} times; .* worker was"):
        results(mortal, Crew(crews.adding), iter([deadly]))
    assert len(list(tmp_path.iterdir())) == TRIES


def test_workers_that_do_not_start_are_no_task_s_fault(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match=r"3 workers in a row .* ended with exit code 1"):
        results(Processes([{}]), Crew(crews.Unimportable()), tasks(tmp_path))


def test_workers_have_environments_of_their_own() -> None:
    engine = Processes([{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}])
    given = (Task(n, str(n), crews.Reports("CUDA_VISIBLE_DEVICES")) for n in range(8))
    with closing(engine.carry_out(Crew(crews.reporting), given)) as done:
        seen = {result for _, result in done}
    assert {device for _, device in seen} <= {"0", "1"}
    assert len({process for process, _ in seen}) == len(seen)
    assert os.getpid() not in {process for process, _ in seen}


def test_tasks_are_taken_when_somebody_is_free(tmp_path: Path) -> None:
    taken: list[int] = []

    def slowly() -> Iterator[Task]:
        for task in tasks(tmp_path, 100):
            taken.append(task.key)
            yield task

    with closing(Processes([{}]).carry_out(Crew(crews.adding), slowly())) as done:
        next(done)
    assert len(taken) <= 2


def test_one_worker_needs_no_second_process() -> None:
    assert isinstance(local_engine([{}]), InProcess)
    assert isinstance(local_engine([{}, {}]), Processes)
    assert isinstance(Where(workers=2).engine([{}], Share()), Processes)
    assert isinstance(Where("ray").engine([{}], Share()), RayActors)


def test_sigterm_ends_work_as_sigint_does(tmp_path: Path) -> None:
    # Ray has a handler of its own, once it was here
    before = signal.getsignal(signal.SIGTERM)
    with closing(InProcess().carry_out(Crew(crews.adding), tasks(tmp_path))) as done:
        next(done)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_is_heard_where_sigint_is_ignored() -> None:
    code = (
        "import signal\n"
        "from bulk.interrupt import sigterm_interrupts\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "try:\n"
        "    with sigterm_interrupts():\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "interrupted\n"


def test_the_context_gives_sigterm_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with sigterm_interrupts():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_said_in_a_line(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    engine = RayActors("127.0.0.1:1", None, Share())
    with pytest.raises(EngineUnavailable, match=r"127\.0\.0\.1:1"):
        results(engine, Crew(crews.adding), tasks(tmp_path))

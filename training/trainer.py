"""The training loop."""

import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import torch

from training.checkpoint import Checkpoint, load_checkpoint
from training.config import Run, parse_run
from training.learner import Learner
from training.progress import Bar, Progress
from training.ranks import ALONE, Ranks
from training.record import Record, Unrecorded
from training.task import Task


class CannotStart(RuntimeError):
    """The run directory does not fit the request."""


class Interrupted(RuntimeError):
    """Training was asked to stop and has saved its state."""


def train(
    run: Run,
    text: str,
    make_task: Callable[[torch.device], Task],
    progress: Progress,
    *,
    resume: bool,
    ranks: Ranks = ALONE,
) -> Checkpoint:
    """Train to the last step.

    Args:
        run: the run.
        text: its file, for the checkpoint.
        make_task: reads the data onto the device.
        progress: makes the progress bar.
        resume: continue from the last checkpoint, if there is one.
        ranks: who trains together; all of them see the checkpoint's file.

    Raises:
        CannotStart: there is a checkpoint and ``resume`` is false, or the checkpoint is another run's.
        Interrupted: SIGTERM or SIGINT came; the state is saved.
        Diverged: the loss is not finite.
    """
    device = prepare_torch(run)
    # what is started again goes on where it was
    start = _starting_point(run, resume=resume or ranks.again)
    task, learner = make_task(device), Learner(run, device, ranks)
    task.prepare(learner.surrogate)
    if start is not None:
        learner.restore(start)
    first, last = (0 if start is None else start.step), run.optimizer.steps
    with progress(None, last, "train") as bar, _stop_requests() as stop:
        bar.update(first)
        with closing(_record(ranks, run, text, learner, task, start, bar)) as record:
            for step in range(first + 1, last + 1):
                learner.step(step - 1, task)
                bar.update(1)
                if step % run.log.every == 0 or step == last:
                    record.loss(step)
                if step % run.log.validate_every == 0 or step == last:
                    record.validate(step)
                    # only the leader does: it takes longer than anybody waits for a gradient
                    ranks.wait()
                # read once: a signal that comes from here on stops the next step
                stopping = ranks.any(bool(stop))
                if stopping or record.checkpoint_due(step):
                    record.save(step)
                if stopping:
                    raise Interrupted(f"stopped after {step} of {last} steps; continue with --resume")
    # the leader's last checkpoint is there
    ranks.wait()
    return load_checkpoint(run.checkpoint_path)


def _record(
    ranks: Ranks, run: Run, text: str, learner: Learner, task: Task, start: Checkpoint | None, bar: Bar
) -> Record | Unrecorded:
    return Record(run, text, learner, task, start, bar) if ranks.leads else Unrecorded()


def prepare_torch(run: Run) -> torch.device:
    """Choose the device, and arithmetic that repeats itself bit for bit on one machine."""
    if run.run.threads is not None:
        torch.set_num_threads(run.run.threads)
    device = choose_device(run.run.device)
    # CUDA lacks deterministic forms of a few operations: there it warns
    torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")
    # it would fill every new tensor with NaN
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return device


def choose_device(name: str) -> torch.device:
    """The device called "auto", "cpu" or "cuda"."""
    if name == "cuda" and not torch.cuda.is_available():
        raise CannotStart('device = "cuda", but PyTorch finds no CUDA device: choose "auto" or "cpu"')
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _starting_point(run: Run, *, resume: bool) -> Checkpoint | None:
    path = run.checkpoint_path
    if not path.exists():
        return None
    if not resume:
        raise CannotStart(f"{path} exists: continue it with --resume, or move it away")
    checkpoint = load_checkpoint(path)
    if parse_run(checkpoint.run).training_recipe() != run.training_recipe():
        raise CannotStart(f"{path} was trained from another run file: move it away, or restore the run file")
    return checkpoint


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT instead of dying of them: the step in hand ends and the state is saved."""
    received: list[int] = []
    handlers = {
        number: signal.signal(number, lambda n, _: received.append(n))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)

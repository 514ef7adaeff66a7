"""The command ``mno``: a table of sub-commands that are imported only when they are asked for."""

import importlib
import importlib.metadata
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self, TextIO, cast, final

import click

# name -> ("module:command", help); a command of which only the name is settled has no module yet
Rows = Mapping[str, tuple[str | None, str]]

COMMANDS: Rows = {
    "serve": ("service.cli:serve", "Answer requests over HTTP."),
    "solve": ("service.cli:solve", "Solve every field of a file."),
    "rollout": ("service.cli:rollout", "Step every initial state of a file."),
    "generate": ("training.data_cli:generate", "Generate the reference data of a run."),
    "data": ("training.data_cli:data", "Look at and check data files."),
    "train": ("training.cli:train", "Train the operator of a run."),
    "evaluate": ("training.evaluate_cli:evaluate", "Measure a version on a data set."),
    "compare": ("training.comparison.cli:compare", "Train and measure several operators alike."),
    "publish": ("training.cli:publish", "Make a checkpoint a version of a model."),
    "calibrate": ("training.cli:calibrate", "Give a version estimates, from samples set aside."),
    "store": ("model_store.cli:store", "Look at and look after published versions."),
    "token": ("service.access.token_cli:token", "Make, list and revoke the tokens of a service."),
    "export": ("model_store.export.cli:export", "Write a version as ONNX or a PyTorch program."),
    "bench": ("benchmarks.cli:bench", "Measure what the documentation claims."),
}

DONE, FAILED, WRONG_USAGE = 0, 1, 2

# errors a user mends by other arguments, files or settings; every other one means that the work failed
BAD_INPUT = {
    "builtins:FileNotFoundError",
    "builtins:IsADirectoryError",
    "builtins:NotADirectoryError",
    "bulk:EngineUnavailable",
    "model_store:AccessRefused",
    "model_store:AliasMoved",
    "model_store:CannotExport",
    "model_store:InvalidStoreUrl",
    "model_store:ReadOnlyStore",
    "model_store:UnknownModel",
    "model_store:UnknownVersion",
    "model_store:UnsafeStore",
    "operators:UnsupportedGrid",
    "problems:InvalidField",
    "pydantic_core:ValidationError",
    "service:InvalidField",
    "service:InvalidSettings",
    "service:NotAvailableYet",
    "service:TooLarge",
    "service:UnknownModel",
    "service:UnknownProblem",
    "service:UnsupportedMedia",
    "tomllib:TOMLDecodeError",
    "training:CannotStart",
    "training:DiskTooSmall",
    "training:InvalidCheckpoint",
    "training:InvalidDataset",
    "training:InvalidRun",
}
OUR_PACKAGES = {"benchmarks", "bulk", "model_store", "operators", "problems", "service", "training"}


@final
class NotAvailableYet(click.ClickException):
    """The command's name is settled; a later version brings the command."""

    exit_code = WRONG_USAGE


@final
class LazyGroup(click.Group):
    """A group that knows its commands' names and helps from a table and imports a command only to run it."""

    def __init__(self, rows: Rows, **options: Any) -> None:
        super().__init__(**options)
        self._rows = rows

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self._rows)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in self._rows:
            return None
        target, text = self._rows[cmd_name]
        return _unavailable(cmd_name, text) if target is None else _imported(cmd_name, target, text)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if not args[0].startswith("-") and args[0] not in self._rows:
            raise click.UsageError(f"expected one of {', '.join(self._rows)}, got {args[0]!r}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (name, text if target else f"{text} (not available yet)")
                    for name, (target, text) in self._rows.items()
                ]
            )


def _imported(name: str, target: str, text: str) -> click.Command:
    module, _, attribute = target.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    return LazyGroup(cast(Rows, found), name=name, help=text) if isinstance(found, Mapping) else found


def _unavailable(name: str, text: str) -> click.Command:
    """A stand-in that takes any arguments and says that the command comes with a later version."""

    def refuse() -> None:
        raise NotAvailableYet(f"`{name}` is not available yet in this version")

    settings = {"ignore_unknown_options": True, "allow_extra_args": True}
    return click.Command(name, callback=refuse, help=f"{text} (not available yet)", context_settings=settings)


@final
class LoggedProgress:
    """A progress bar's stand-in where no terminal is: one line a minute, and one at the end."""

    INTERVAL = 60.0

    def __init__(
        self,
        iterable: Iterable[Any] | None,
        total: int | None,
        label: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        out: TextIO | None = None,
    ) -> None:
        self._iterable = iterable
        self._total = total
        self._label = label
        self._clock = clock
        self._out = out or sys.stderr
        self._count = 0
        self._postfix = ""
        self._started = self._logged = clock()
        # where the rate is counted from: resumed work announces what it has done in its first update
        self._rate_base: tuple[float, int] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._log(f"{self._done()} in {_duration(self._clock() - self._started)}")

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self._iterable or ():
                yield item
                self.update()

    def update(self, n: int = 1) -> None:
        """Advance by ``n``."""
        self._count += n
        now = self._clock()
        if self._rate_base is None:
            self._rate_base = (now, self._count)
        elif now - self._logged >= self.INTERVAL:
            self._log(f"{self._done()}{self._pace(now, *self._rate_base)}")
            self._logged, self._rate_base = now, (now, self._count)

    def set_postfix(self, *args: Mapping[str, object], **values: object) -> None:
        """Show named values behind the next line."""
        shown = {name: value for arg in args for name, value in arg.items()} | values
        self._postfix = "".join(f", {name}={value}" for name, value in shown.items())

    def _done(self) -> str:
        if self._total is None:
            return str(self._count)
        return f"{self._count}/{self._total} ({100 * self._count // max(self._total, 1)} %)"

    def _pace(self, now: float, since: float, count: int) -> str:
        rate = (self._count - count) / max(now - since, 1e-9)
        pace = f", {rate:.3g}/s"
        if self._total is not None and rate > 0:
            pace += f", {_duration((self._total - self._count) / rate)} left"
        return pace

    def _log(self, text: str) -> None:
        stamp = time.strftime("%H:%M:%S")
        print(f"{stamp} {self._label or 'progress'}: {text}{self._postfix}", file=self._out, flush=True)


def make_progress(iterable: Iterable[Any] | None = None, total: int | None = None, label: str = "") -> Any:
    """A progress bar in tqdm's manner: on a terminal tqdm's own, elsewhere a line a minute."""
    if total is None and hasattr(iterable, "__len__"):
        total = len(cast(Any, iterable))
    if not sys.stderr.isatty():
        return LoggedProgress(iterable, total, label)
    # imported here: `mno --help` has no use for it
    from tqdm import tqdm

    return tqdm(iterable, desc=label or None, total=total, dynamic_ncols=True)


def _duration(seconds: float) -> str:
    """As a person says it: ``45 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _show_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"mno {_version()}")
        context.exit()


def _version() -> str:
    try:
        return importlib.metadata.version("mno")
    except importlib.metadata.PackageNotFoundError:
        return "of a source tree that is not installed"


command = LazyGroup(
    COMMANDS,
    name="mno",
    help="A served surrogate solver for partial differential equations.",
    params=[
        click.Option(["--debug"], is_flag=True, help="Show the traceback of an error."),
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_show_version,
            help="Show it and exit.",
        ),
    ],
    context_settings={"help_option_names": ["-h", "--help"]},
)


def run(arguments: Sequence[str], group: click.Group = command) -> int:
    """Carry out a command line; returns the exit code, having said in one line what went wrong."""
    debug = False
    try:
        with group.make_context("mno", list(arguments), obj=make_progress) as context:
            debug = context.params["debug"]
            group.invoke(context)
    except click.exceptions.Exit as exit_request:
        return exit_request.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return WRONG_USAGE
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        _discard_output_nobody_reads(error)
        print(f"mno: {_message(error)}", file=sys.stderr)
        return _exit_code(error)
    return DONE


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


def _exit_code(error: BaseException) -> int:
    if isinstance(error, click.ClickException):
        return error.exit_code
    return WRONG_USAGE if _class_names(error) & BAD_INPUT else FAILED


def _message(error: BaseException) -> str:
    """One line: what was expected, what was found, the way out."""
    if isinstance(error, click.UsageError) and error.ctx is not None:
        return f"{_line(error.format_message()).removesuffix('.')} (see `{error.ctx.command_path} --help`)"
    if isinstance(error, click.ClickException):
        return _line(error.format_message())
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return "interrupted"
    if isinstance(error, ModuleNotFoundError):
        return f'{error.name} is not installed; training and benchmarks need `pip install "mno[training]"`'
    if "pydantic_core:ValidationError" in _class_names(error):
        return "; ".join(map(_issue, cast(Any, error).errors()))
    if isinstance(error, OSError) or any(
        name.partition(":")[0] in OUR_PACKAGES for name in _class_names(error)
    ):
        return _line(str(error)) or type(error).__name__
    return f"internal error: {type(error).__name__}: {_line(str(error))} (`mno --debug ...` shows where)"


def _class_names(error: BaseException) -> set[str]:
    """Top-level package and name of every class that ``error`` is an instance of; asking imports nothing."""
    return {f"{cls.__module__.partition('.')[0]}:{cls.__name__}" for cls in type(error).__mro__}


def _issue(issue: Mapping[str, Any]) -> str:
    return f"{'.'.join(map(str, issue['loc']))}: {issue['msg']}, got {_line(repr(issue['input']))[:80]}"


def _line(text: str) -> str:
    return " ".join(text.split())


def _discard_output_nobody_reads(error: BaseException) -> None:
    """After ``mno ... | head``: keep the interpreter from complaining once more when it flushes."""
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()

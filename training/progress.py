"""What training needs of a progress bar; the entry point passes one in."""

from collections.abc import Iterable
from types import TracebackType
from typing import Any, Protocol, Self, final


class Bar(Protocol):
    """A progress bar in tqdm's manner."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> bool | None: ...

    def update(self, n: int = 1) -> object:
        """Advance by ``n``."""

    def set_postfix(self, *args: Any, **values: Any) -> None:
        """Show named values behind the bar."""


class Progress(Protocol):
    """Makes progress bars."""

    def __call__(self, iterable: Iterable[Any] | None, total: int | None, label: str) -> Bar:
        """A bar of ``total`` steps; ``iterable`` is None where the caller advances it."""


@final
class Silence:
    """A bar for where nobody looks, such as a process of its own."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is to be put away."""

    def update(self, n: int = 1) -> None:
        """Nobody looks."""

    def set_postfix(self, *args: Any, **values: Any) -> None:
        """Nobody looks."""


def silent(iterable: Iterable[Any] | None, total: int | None, label: str) -> Silence:  # noqa: ARG001
    """A ``Progress`` that shows nothing."""
    return Silence()

"""What both clients make of their arguments, and of what comes back."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, final
from urllib.parse import urlsplit

from numpy.typing import ArrayLike

from service.client.answers import Answer, Frame, Gradient
from service.client.connection import Question
from service.client.frames import Follower
from service.client.labels import is_labelled, labelled_like, plain

__all__ = ["Address", "Rollouts", "address_of", "named_alike", "question_of"]

SCHEMES: Final = ("http", "https", "grpc", "grpcs")


@final
@dataclass(frozen=True)
class Address:
    """Where a service is, and how it is asked.

    Attributes:
        ca: file with whom to trust, in place of those that the system trusts.
        cert: files with the client's own certificate and key, for mutual TLS.
    """

    scheme: str
    host: str
    url: str
    token: str | None
    timeout: float
    ca: Path | None
    cert: tuple[Path, Path] | None

    @property
    def grpc(self) -> bool:
        """Whether to speak gRPC."""
        return self.scheme.startswith("grpc")

    @property
    def secure(self) -> bool:
        """Whether to speak TLS."""
        return self.scheme.endswith("s")

    def context(self) -> ssl.SSLContext:
        """Whom to trust, and what to show."""
        context = ssl.create_default_context(cafile=self.ca)
        if self.cert is not None:
            context.load_cert_chain(*self.cert)
        return context


def address_of(
    url: str,
    token: str | None,
    timeout: float,
    ca: str | Path | None,
    cert: tuple[str | Path, str | Path] | None,
) -> Address:
    """The address that a URL says.

    Raises:
        ValueError: it says none.
    """
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES or not parts.netloc:
        expected = "http://host:port, https://..., grpc://host:port or grpcs://..."
        raise ValueError(f"expected {expected}, got {url!r}")
    pair = None if cert is None else (Path(cert[0]), Path(cert[1]))
    if (ca is not None or pair is not None) and not parts.scheme.endswith("s"):
        raise ValueError(f"ca and cert are for https:// and grpcs://, got {url!r}")
    return Address(parts.scheme, parts.netloc, url, token, timeout, None if ca is None else Path(ca), pair)


def question_of(
    problem: str,
    field: ArrayLike | Any,
    options: Mapping[str, Any],
    parameters: Mapping[str, float],
    cotangent: ArrayLike | Any = None,
) -> Question:
    """What is asked; options that say nothing are left out."""
    return Question(
        problem,
        plain(field),
        {name: value for name, value in options.items() if value is not None and value is not False},
        parameters,
        None if cotangent is None else plain(cotangent),
    )


def named_alike(field: Any, found: Answer | Gradient) -> Any:
    """The answer with the coordinates of the question's field, if it has any."""
    if not is_labelled(field):
        return found
    if isinstance(found, Answer):
        return replace(found, fields=labelled_like(field, found.fields))
    return replace(found, gradient=labelled_like(field, {found.wrt: found.gradient})[found.wrt])


@final
class Rollouts:
    """A rollout that a client follows, with coordinates where its state has them."""

    def __init__(
        self,
        problem: str,
        state: Mapping[str, ArrayLike | Any] | ArrayLike,
        options: Mapping[str, Any],
        retries: int,
    ) -> None:
        given = {name: value for name, value in options.items() if value is not None and value is not False}
        if isinstance(state, Mapping):
            self._like = next(iter(state.values()), None)
            self.follower = Follower(
                problem, {name: plain(field) for name, field in state.items()}, given, retries
            )
        else:
            self._like = None
            self.follower = Follower(problem, plain(state), given, retries)

    def take(self, frame: Frame, block: int) -> Frame | None:
        """See ``Follower``."""
        taken = self.follower.take(frame, block)
        if taken is None or not is_labelled(self._like):
            return taken
        return replace(taken, fields=labelled_like(self._like, taken.fields))

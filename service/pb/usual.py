"""Messages that say what others have said before, of other numbers: what they say is read once.

A client sends the same names, shapes and options with each request. So of a message all is remembered but its
id and the elements of its arrays. The next one that has the same bytes around these says the same: its
elements are taken from where they lie, and nothing is parsed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, Generic, NamedTuple, TypeAlias, TypeVar, final

from google.protobuf.message import Message

from service.pb.decode import decoded

__all__ = ["ELEMENTS", "ID", "Cuts", "Form", "Reader", "Wanted"]

Buffer: TypeAlias = bytes | memoryview
# by the tags of fields, what they have: an id, elements, or a message in which such fields lie
Cuts: TypeAlias = Mapping[int, "str | Cuts"]
Place: TypeAlias = tuple[str, slice]
Kind = TypeVar("Kind", bound=Message)
Said = TypeVar("Said")

ID: Final = "id"
ELEMENTS: Final = "elements"

# of a message without its id and elements [B]
MOST_BYTES: Final = 1024
# in it, of which each is looked at
MOST_FIELDS: Final = 128
# messages that are remembered
MOST_KNOWN: Final = 256

# in the last bits of a tag, how long its field is; a tag with the first one has another byte
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
KIND: Final = 0b1000_0111
# of a byte of a number: there is another one
MORE: Final = 0x80


@final
class Wanted(NamedTuple, Generic[Said]):
    """A message that came.

    Attributes:
        elements: those of its arrays.
        said: tells all else; it raises InvalidField where that can mean nothing.
    """

    id: str
    elements: Sequence[Buffer]
    said: Callable[[], Said]


@final
class Form(NamedTuple, Generic[Kind, Said]):
    """A kind of message.

    Attributes:
        cuts: where its id and its elements are.
        arrays: how many of them one has that is remembered; not several, where they come in no order.
        said: what a message says beside its id and the elements.
        elements: those of a message, in the order in which ``said`` has the arrays.
    """

    kind: type[Kind]
    cuts: Cuts
    arrays: range
    said: Callable[[Kind], Said]
    elements: Callable[[Kind], Sequence[Buffer]]


@final
class _Known(NamedTuple, Generic[Said]):
    """What is remembered of a message.

    Attributes:
        rest: where something else lies than its id and elements, and what.
    """

    rest: Sequence[tuple[int, bytes]]
    id: slice
    elements: Sequence[slice]
    what: Said

    def alike(self, message: bytes) -> bool:
        """Whether a message of this length has the same bytes around its id and elements."""
        return all(message.startswith(piece, start) for start, piece in self.rest)

    def wanted(self, message: bytes) -> Wanted[Said]:
        """A message that is like this one."""
        view = memoryview(message)
        return Wanted(message[self.id].decode(), [view[place] for place in self.elements], self.said)

    def said(self) -> Said:
        """What all of them say."""
        return self.what


@final
class Reader(Generic[Kind, Said]):
    """Reads messages of one kind."""

    def __init__(self, form: Form[Kind, Said]) -> None:
        self._form = form
        # by their length, the newest of each
        self._known: dict[int, _Known[Said]] = {}

    async def read(self, message: bytes) -> Wanted[Said]:
        """What a message is about.

        Raises:
            InvalidField: the bytes are none.
        """
        known = self._known.get(len(message))
        if known is not None and known.alike(message):
            try:
                return known.wanted(message)
            except UnicodeDecodeError:  # refused below
                pass
        whole: Any = await decoded(self._form.kind, message)
        return Wanted(whole.id, self._form.elements(whole), partial(self._said, whole, message))

    def _said(self, whole: Kind, message: bytes) -> Said:
        said = self._form.said(whole)
        places = _places(message, self._form)
        if places is not None:
            if len(self._known) >= MOST_KNOWN:
                # the one that has been there for the longest time
                del self._known[next(iter(self._known))]
            self._known[len(message)] = _remembered(message, places, said)
        return said


def _places(message: bytes, form: Form[Any, Any]) -> list[Place] | None:
    """Where id and elements of a message are; None: it is not to be remembered."""
    places: list[Place] = []
    if not _find(message, 0, len(message), form.cuts, iter(range(MOST_FIELDS)), places):
        return None
    kinds = [what for what, _ in places]
    size = len(message) - sum([place.stop - place.start for _, place in places])
    usual = size <= MOST_BYTES and kinds.count(ID) <= 1 and kinds.count(ELEMENTS) in form.arrays
    return places if usual else None


def _remembered(message: bytes, places: Sequence[Place], said: Said) -> _Known[Said]:
    starts = [0, *(place.stop for _, place in places)]
    stops = [*(place.start for _, place in places), len(message)]
    rest = [(start, message[start:stop]) for start, stop in zip(starts, stops, strict=True)]
    name = next((place for what, place in places if what == ID), slice(0))
    return _Known(rest, name, [place for what, place in places if what == ELEMENTS], said)


def _find(message: bytes, at: int, stop: int, cuts: Cuts, steps: Iterator[int], places: list[Place]) -> bool:
    """Add where fields lie that are to be cut out; False: it is no message that a usual library writes.

    That the bytes are a message is known by now.
    """
    for _ in steps:
        if at >= stop:
            return at == stop
        tag = message[at]
        kind = tag & KIND
        if kind == LENGTH:
            length, at = _number(message, at + 1)
            inner, end = cuts.get(tag), at + length
            if isinstance(inner, str):
                places.append((inner, slice(at, end)))
            elif inner is not None and not _find(message, at, end, inner, steps, places):
                return False
            at = end
        elif kind == VARINT:
            _, at = _number(message, at + 1)
        elif kind == FIXED64:
            at += 9
        elif kind == FIXED32:
            at += 5
        else:
            return False
    return False


def _number(message: bytes, at: int) -> tuple[int, int]:
    """A number, and where it ends."""
    number = shift = 0
    while message[at] >= MORE:
        number |= (message[at] - MORE) << shift
        shift += 7
        at += 1
    return number | message[at] << shift, at + 1

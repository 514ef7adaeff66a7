"""The log of a training: one JSON object a line, in the order of the steps, each step once."""

import json
import os
from pathlib import Path

from training.files import replace_atomically

Line = dict[str, float | int]


class Journal:
    """Appends lines; a resumed training first drops those after its checkpoint."""

    def __init__(self, path: Path, first_step: int) -> None:
        kept = [line for line in read_journal(path) if line["step"] <= first_step]
        with replace_atomically(path) as temporary:
            temporary.write_text("".join(map(_encode, kept)))
        self._file = path.open("a")

    def write(self, line: Line) -> None:
        """Add a line."""
        self._file.write(_encode(line))
        self._file.flush()

    def sync(self) -> None:
        """Bring the lines to the disk: called before a checkpoint promises that they are there."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_journal(path: Path) -> list[Line]:
    """The lines of a log, without a last one that was cut short."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _encode(line: Line) -> str:
    return json.dumps(line) + "\n"

"""How many files and connections a process may have open."""

from __future__ import annotations

import resource

__all__ = ["allow_many_files"]


def allow_many_files() -> None:
    """Let this process, and those it starts, have as many files open as the system lets it.

    The usual soft limit is for programs that use ``select``; a service has a file for every connection.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

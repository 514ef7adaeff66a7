"""JSON answers as bytes: in a thread where that takes long, compressed for those who like that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from service.codec import gzipped
from service.http.wire import JSON, answer_headers, json_answer
from service.solver import SolveResponse

__all__ = ["SMALL_ANSWER", "SMALL_BODY", "computed", "packed", "written_json"]

# what takes longer to read or to write than the way to a thread and back does so in one [B], [numbers]
SMALL_BODY: Final = 2**15
SMALL_ANSWER: Final = 2**14
# shorter answers are not worth compressing [B]
SHORT: Final = 2**10


# one: parsing holds the interpreter's lock, and several threads would take it and the caches from each other
_CODER: Final = ThreadPoolExecutor(1, "coder")


async def computed(long: bool, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns, called in a thread where it takes ``long``."""
    if not long:
        return function(*arguments)
    return await asyncio.get_running_loop().run_in_executor(_CODER, function, *arguments)


async def packed(body: bytes, headers: dict[str, str], *, gzip: bool) -> tuple[dict[str, str], bytes]:
    """A JSON answer, compressed where the client likes that and it is long enough."""
    headers["Vary"] = "Accept-Encoding"
    if gzip and len(body) > SHORT:
        headers["Content-Encoding"] = "gzip"
        body = await asyncio.to_thread(gzipped, body)
    return headers, body


async def written_json(response: SolveResponse, *, gzip: bool) -> tuple[dict[str, str], bytes]:
    """Headers and body of a solution."""
    long = sum([values.size for values in response.fields.values()]) > SMALL_ANSWER
    return await packed(
        await computed(long, json_answer, response), answer_headers(response, JSON), gzip=gzip
    )

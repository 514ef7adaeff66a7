"""What the supervisor asks of several processes at the same time."""

import asyncio

from service.processes.control import LinkLost
from service.processes.supervisor import in_time


def test_who_is_slow_or_gone_holds_nobody_s_page_up() -> None:
    async def story() -> None:
        never, left = asyncio.Event(), asyncio.Event()

        async def page(text: str) -> str:
            return text

        async def slow() -> str:
            try:
                await never.wait()
            finally:
                left.set()
            return "late"

        async def gone() -> str:
            raise LinkLost("front 2")

        assert await in_time([page("a"), slow(), gone(), page("b")], 0.01) == ["a", "b"]
        assert left.is_set()
        assert await in_time([], 0.01) == []

    asyncio.run(story())

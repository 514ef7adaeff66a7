"""What is loaded, switched and ended, and when; the processes are played."""

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import pytest
from played import Actor, nothing

from model_store import Reference
from service.errors import LoadFailed, UnknownModel
from service.processes import switchboard
from service.processes.control import Link, LinkLost
from service.processes.switchboard import Switchboard
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.versions.following import Versions
from service.versions.routing import Route
from service.versions.served import ServedVersion
from service.workers.lane import lane_pair


def served(number: int, name: str = "darcy") -> dict[str, Any]:
    version = ServedVersion(name=name, version=number, problem="darcy", scheme="x", grids=((8, 8),))
    return version.model_dump(mode="json")


class Stage:
    """A store, a front, and a worker for each version, all played."""

    def __init__(self, **settings: Any) -> None:
        self.table: dict[str, Route] = {"darcy": Route(name="darcy", main=1)}
        self.broken: dict[str, str] = {}
        self.stale: list[str] = []
        self.store = "file:/mine"
        self.asked: Mapping[str, Any] = {}
        self.actors: dict[Reference, Actor] = {}
        self.board = Switchboard()
        self.metrics = Metrics("supervisor")
        self.routes: list[dict[str, int]] = []
        self.lanes: list[str] = []
        self.retiring: list[str] = []
        self.abandoned: list[str] = []
        self.retired = asyncio.Event()
        self.retired.set()
        given = {"models": ("darcy",), **settings}
        self.versions = Versions(Settings(**given), self.steward, self.launch, self.board, self.metrics)
        ours, theirs = lane_pair()
        self.front = Link(ours, lambda *_: None, nothing, lambda: None)
        self.theirs = Link(theirs, self.told, self.front_asked, lambda: None)
        self.board.add_front(0, self.front, [os.memfd_create("arena")])

    async def steward(self, what: str, arguments: Mapping[str, Any]) -> Any:
        assert what == "table"
        self.asked = arguments
        return {
            "table": {
                name: route.model_dump()
                for name, route in self.table.items()
                if route.name not in arguments["without"] and name not in arguments["without"]
            },
            "broken": self.broken,
            "stale": self.stale,
            "stores_of": {
                r.name: self.store for r in self.table.values() if r.name not in arguments["without"]
            },
        }

    async def launch(self, reference: Reference) -> Any:
        return await self.actors.setdefault(reference, Actor()).launch()

    def told(self, message: Mapping[str, Any], fds: Sequence[int]) -> None:
        for fd in fds:
            os.close(fd)
        if "lane" in message:
            self.lanes.append(message["lane"])
        if "abandon" in message:
            self.abandoned.append(message["abandon"])

    async def front_asked(self, what: str, arguments: Mapping[str, Any]) -> Any:
        if what == "route":
            self.routes.append({name: route["main"] for name, route in arguments.items()})
        else:
            self.retiring.append(arguments["lane"])
            await self.retired.wait()

    def mean(self, number: int, **more: Any) -> None:
        self.table = {"darcy": Route(name="darcy", main=number, **more)}

    async def actor(self, number: int, name: str = "darcy") -> Actor:
        reference = Reference(name, number)
        while reference not in self.actors:
            await asyncio.sleep(0)
        await self.actors[reference].next()
        return self.actors[reference]

    async def load(self, number: int) -> Actor:
        actor = await self.actor(number)
        actor.say({"ready": served(number)})
        return actor

    async def until(self, true: Callable[[], bool]) -> None:
        while not true():
            await asyncio.sleep(0)

    async def switched(self, number: int) -> None:
        await self.until(lambda: bool(self.routes) and self.routes[-1] == {"darcy": number})

    async def start(self) -> Actor:
        starting = asyncio.ensure_future(self.versions.start())
        actor = await self.load(1)
        await starting
        return actor


def play(story: Callable[[Stage], Coroutine[Any, Any, None]], **settings: Any) -> None:
    async def told() -> None:
        stage = Stage(**settings)
        async with asyncio.timeout(60):
            await story(stage)
        stage.versions.kill()
        await stage.versions.close(10)
        stage.board.remove_front(0)
        for actor in stage.actors.values():
            actor.close()
        stage.front.close()
        stage.theirs.close()
        await asyncio.sleep(0)

    asyncio.run(told())


def test_an_alias_that_moves_is_followed_and_the_old_version_ends() -> None:
    async def story(stage: Stage) -> None:
        first = await stage.start()
        assert stage.routes == [{"darcy": 1}]
        stage.mean(2)
        await stage.versions.follow()
        # while it loads, the old one answers
        assert stage.routes == [{"darcy": 1}]
        await stage.load(2)
        await stage.switched(2)
        await stage.until(lambda: {"drain": True} in first.told)
        assert [str(version) for version in stage.versions.served] == ["darcy@2"]
        page = stage.metrics.render()[0].decode()
        assert 'mno_swap_seconds_count{model="darcy",process="supervisor"} 1.0' in page
        assert 'mno_version_served{model="darcy",process="supervisor",version="2"} 1.0' in page

    play(story)


def test_an_old_version_ends_only_when_every_front_has_answered_its_requests() -> None:
    async def story(stage: Stage) -> None:
        first = await stage.start()
        stage.retired.clear()
        stage.mean(2)
        await stage.versions.follow()
        await stage.load(2)
        await stage.until(lambda: stage.retiring == stage.lanes[:1])
        for _ in range(20):
            await asyncio.sleep(0)
        assert {"drain": True} not in first.told
        stage.retired.set()
        await stage.until(lambda: {"drain": True} in first.told)
        assert stage.abandoned == []

    play(story)


def test_rollouts_that_never_end_hold_an_old_version_for_a_bounded_time() -> None:
    async def story(stage: Stage) -> None:
        await stage.start()
        stage.retired.clear()
        stage.mean(2)
        await stage.versions.follow()
        await stage.load(2)
        await stage.until(lambda: bool(stage.abandoned))
        assert stage.abandoned == [stage.lanes[0]]

    play(story, retire_seconds=0.01)


def test_a_retired_version_that_dies_is_not_started_again() -> None:
    async def story(stage: Stage) -> None:
        first = await stage.start()
        stage.retired.clear()
        stage.mean(2)
        await stage.versions.follow()
        await stage.load(2)
        await stage.until(lambda: stage.retiring == stage.lanes[:1])
        first.end(-9)
        await stage.until(lambda: bool(stage.abandoned))
        stage.retired.set()
        assert len(first.children) == 1

    play(story)


def test_a_version_that_does_not_load_changes_nothing_until_somebody_asks_again() -> None:
    async def story(stage: Stage) -> None:
        await stage.start()
        stage.mean(2)
        await stage.versions.follow()
        actor = await stage.actor(2)
        actor.say({"failed": "file:/secret/darcy is damaged"})
        await stage.until(lambda: bool(stage.versions.troubles))
        assert stage.versions.troubles == ("darcy@2 does not load: ... is damaged",)
        assert stage.versions.reasons == {Reference("darcy", 2): "... is damaged"}
        # the next look at the aliases does not try again at once
        await stage.versions.follow()
        assert len(actor.children) == 1
        assert stage.routes == [{"darcy": 1}]
        asked = asyncio.ensure_future(stage.versions.follow(retry=True))
        await stage.load(2)
        await asked
        await stage.switched(2)
        assert not stage.versions.troubles

    play(story)


def test_a_version_that_is_wanted_no_more_when_it_is_loaded_ends_again() -> None:
    async def story(stage: Stage) -> None:
        await stage.start()
        stage.mean(2)
        await stage.versions.follow()
        stage.mean(1)
        await stage.versions.follow()
        second = await stage.load(2)
        await stage.until(lambda: {"drain": True} in second.told)
        assert stage.routes == [{"darcy": 1}]

    play(story)


def test_a_canary_that_does_not_load_gets_no_share() -> None:
    async def story(stage: Stage) -> None:
        await stage.start()
        stage.mean(1, canary=2, weight=0.5)
        await stage.versions.follow()
        (await stage.actor(2)).say({"failed": "no"})
        await stage.until(lambda: bool(stage.versions.troubles))
        assert stage.versions.table == {"darcy": Route(name="darcy", main=1)}
        stage.mean(1, canary=3, weight=0.5)
        await stage.versions.follow()
        await stage.load(3)
        await stage.until(lambda: stage.versions.table == stage.table)
        share = 'mno_alias_weight{alias="",model="darcy",process="supervisor",version="3"} 0.5'
        await stage.until(lambda: share in stage.metrics.render()[0].decode())

    play(story)


def test_aliases_that_cannot_be_read_mean_what_they_meant() -> None:
    async def story(stage: Stage) -> None:
        await stage.start()
        stage.table, stage.broken = {}, {"darcy": "s3://bucket/aliases.json is damaged"}
        await stage.versions.follow()
        assert stage.versions.table == {"darcy": Route(name="darcy", main=1)}
        assert stage.versions.troubles == ("darcy cannot be read: ... is damaged",)
        stage.mean(1)
        stage.broken = {}
        await stage.versions.follow()
        assert not stage.versions.troubles

    play(story)


def test_at_the_start_everything_has_to_load() -> None:
    async def story(stage: Stage) -> None:
        starting = asyncio.ensure_future(stage.versions.start())
        (await stage.actor(1)).say({"failed": "file:/store is damaged"})
        with pytest.raises(LoadFailed, match="darcy@1 does not load: file:/store is damaged"):
            await starting

    play(story)


def test_a_steward_that_is_gone_changes_nothing() -> None:
    async def story(stage: Stage) -> None:
        await stage.start()

        async def gone(*_: object) -> Any:
            raise LinkLost("steward")

        stage.versions._ask_steward = gone
        with pytest.raises(LinkLost):
            await stage.versions.follow()
        assert stage.versions.table == {"darcy": Route(name="darcy", main=1)}

    play(story)


def test_loading_returns_when_it_is_served_and_unloading_ends_it() -> None:
    async def story(stage: Stage) -> None:
        first = await stage.start()
        stage.mean(2)
        loading = asyncio.ensure_future(stage.versions.load("darcy"))
        await stage.load(2)
        await loading
        assert stage.routes[-1] == {"darcy": 2}
        await stage.until(lambda: {"drain": True} in first.told)
        await stage.versions.unload("darcy")
        await stage.until(lambda: stage.routes[-1] == {})
        with pytest.raises(UnknownModel, match="nothing to unload"):
            await stage.versions.unload("darcy")
        stage.broken = {"navier": "no such model"}
        with pytest.raises(UnknownModel, match="no such model"):
            await stage.versions.load("navier")
        # a name that nobody knows is not asked for again and again
        await stage.versions.follow()
        assert "navier" not in stage.asked["wanted"]

    play(story)


def test_loading_what_is_damaged_says_so() -> None:
    async def story(stage: Stage) -> None:
        await stage.start()
        stage.mean(2)
        loading = asyncio.ensure_future(stage.versions.load("darcy"))
        (await stage.actor(2)).say({"failed": "file:/store is damaged"})
        with pytest.raises(LoadFailed, match=r"darcy@2: \.\.\. is damaged"):
            await loading

    play(story)


def test_a_function_that_returns_another_version_is_not_served() -> None:
    async def story(stage: Stage) -> None:
        starting = asyncio.ensure_future(stage.versions.start())
        await stage.load(1)
        actor = await stage.actor(1, "null")
        actor.say({"ready": served(3, "other")})
        with pytest.raises(LoadFailed, match="expected null@1"):
            await starting
        assert all("null" not in lane and "other" not in lane for lane in stage.lanes)

    play(story, imported={"null": {"function": "models:null"}})


def test_a_process_that_does_not_answer_is_replaced() -> None:
    async def story(stage: Stage) -> None:
        actor = await stage.start()
        (holder,) = stage.versions._holders.values()
        # a lane of an earlier time means nobody
        stage.versions.end_hung("darcy@1#99")
        assert len(actor.children) == 1
        stage.versions.end_hung(holder.name)
        await stage.load(1)
        await stage.until(lambda: stage.lanes == [holder.name] * 2)

    play(story)


def test_who_leaves_while_a_version_loads_leaves_the_others_alone() -> None:
    async def story(stage: Stage) -> None:
        await stage.start()
        stage.mean(2)
        one, other = (asyncio.ensure_future(stage.versions.load("darcy")) for _ in range(2))
        actor = await stage.actor(2)
        one.cancel()
        await asyncio.gather(one, return_exceptions=True)
        assert one.cancelled()
        actor.say({"ready": served(2)})
        await other
        assert stage.routes[-1] == {"darcy": 2}

    play(story)


def test_a_version_may_be_loaded_of_a_model_that_was_unloaded() -> None:
    async def story(stage: Stage) -> None:
        first = await stage.start()
        await stage.versions.unload("darcy")
        await stage.until(lambda: {"drain": True} in first.told)
        stage.table = {"darcy@1": Route(name="darcy", main=1)}
        loading = asyncio.ensure_future(stage.versions.load("darcy@1"))
        await stage.load(1)
        await loading
        assert stage.routes[-1] == {"darcy@1": 1}

    play(story)


def test_loading_what_gives_nothing_says_so() -> None:
    async def story(stage: Stage) -> None:
        await stage.start()
        with pytest.raises(LoadFailed, match="other means no version"):
            await stage.versions.load("other")

    play(story)


@pytest.mark.parametrize("name", ["darcy@production", "darcy@1"])
def test_a_name_of_a_model_is_not_unloaded_by_itself(name: str) -> None:
    async def story(stage: Stage) -> None:
        stage.table["darcy@production"] = Route(name="darcy", main=1)
        await stage.start()
        with pytest.raises(UnknownModel, match="darcy goes with all its names"):
            await stage.versions.unload(name)
        assert stage.routes[-1] == {"darcy": 1, "darcy@production": 1}

    play(story)


def test_a_worker_that_comes_back_with_other_files_is_not_asked() -> None:
    async def story(stage: Stage) -> None:
        first = await stage.start()
        lanes = len(stage.lanes)
        first.end(-9)
        await first.next()
        first.say({"ready": served(1) | {"digests": {"weights": "other"}}})
        await first.next()
        assert any("other files" in trouble for trouble in stage.versions.troubles)
        assert len(stage.lanes) == lanes

    play(story)


def test_where_a_model_came_from_is_remembered_until_it_is_unloaded() -> None:
    async def story(stage: Stage) -> None:
        await stage.start()
        await stage.versions.follow()
        assert stage.asked["stores_of"] == {"darcy": "file:/mine"}
        await stage.versions.unload("darcy")
        stage.table = {}
        await stage.versions.follow()
        assert "darcy" not in stage.asked["stores_of"]

    play(story)


def test_a_front_that_hangs_stops_no_swap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switchboard, "ROUTE_SECONDS", 0.01)

    async def story(stage: Stage) -> None:
        ended: list[str] = []
        ours, theirs = lane_pair()
        hung = Link(ours, lambda *_: None, nothing, lambda: None)
        stage.board.add_front(1, hung, [os.memfd_create("arena")], ended.append)
        await stage.start()
        assert stage.routes == [{"darcy": 1}]
        assert ended == ["did not take the names within 0.01 s"]
        stage.board.remove_front(1)
        hung.close()
        theirs.close()

    play(story)


def test_a_store_that_is_away_is_spoken_of_and_stops_nothing() -> None:
    away = "versions and aliases are the last known ones: s3://bucket/models cannot be reached: no connection"

    async def story(stage: Stage) -> None:
        stage.stale = [away]
        await stage.start()
        assert stage.versions.troubles == (
            "versions and aliases are the last known ones: ... cannot be reached: no connection",
        )
        assert "mno_store_reachable 0.0" in stage.metrics.render("")[0].decode().replace(
            '{process="supervisor"}', ""
        )
        stage.stale = []
        await stage.versions.follow()
        assert stage.versions.troubles == ()
        assert "mno_store_reachable 1.0" in stage.metrics.render("")[0].decode().replace(
            '{process="supervisor"}', ""
        )

    play(story, store="s3://bucket/models")

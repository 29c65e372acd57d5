"""One pytest session's worlds: what `plugin.py`'s hooks call."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest

from pytest_esper_ddp.controller import merge
from pytest_esper_ddp.controller.coverage import take_in
from pytest_esper_ddp.controller.crew import RUNNING, Crew, OtherSize
from pytest_esper_ddp.controller.deadlines import deadline_of, stop_other_clocks
from pytest_esper_ddp.controller.key import WorldKey
from pytest_esper_ddp.controller.run import Run
from pytest_esper_ddp.controller.rundir import RunDirectory
from pytest_esper_ddp.controller.slots import Slots, processors
from pytest_esper_ddp.controller.sources import Sources
from pytest_esper_ddp.controller.store import Store
from pytest_esper_ddp.controller.telling import forward_warnings, tell_leaks, warn
from pytest_esper_ddp.controller.terminal import TerminalDesk, debugger_of
from pytest_esper_ddp.controller.world import World
from pytest_esper_ddp.controller.zygote import ZygoteEnded
from pytest_esper_ddp.declared import is_ddp
from pytest_esper_ddp.errors import HarnessError, MarkerError
from pytest_esper_ddp.markers import scenario_of
from pytest_esper_ddp.options import Settings
from pytest_esper_ddp.report.account import Row, give_account, row_in
from pytest_esper_ddp.scenario import Scenario
from pytest_esper_ddp.verdict import Observed, judge
from pytest_esper_ddp.wire.messages import Finalised


class Session:
    """Has ranks ready when a file mentions ddp, makes worlds as items need them, ends all of it."""

    def __init__(self, config: pytest.Config, settings: Settings, crew: Crew | None = None) -> None:
        """`crew`: ranks that have been launched."""
        self.config, self.settings, self._crew = config, settings, crew
        self.rows: list[Row] = []
        self._sources = Sources(config, settings.start, self._tell)
        self._items: Sequence[pytest.Item] = ()  # on ranks
        self._worlds: dict[WorldKey, World] = {}
        self._next: dict[str, str | None] = {}
        self._keys: dict[str, WorldKey] = {}
        self._plans: dict[str, Scenario | Exception] = {}  # of items that are prepared
        self._store = Store()
        self._slots: Slots | None = None
        self._base: RunDirectory | None = None
        self.last_item: pytest.Item | None = None

    # Collection.

    def saw_source(self, source: bytes) -> None:
        """A file that may hold tests on ranks is about to be collected."""
        self._sources.saw_source(source)

    def collected(self, items: Sequence[pytest.Item]) -> None:
        """Collection is over: have the processes that ranks come from collect the same files."""
        if self.config.option.collectonly:
            return
        self._items = [item for item in items if is_ddp(item)]
        if self._items:
            self._sources.collect(self._items)
            for item in self._items:
                item.location  # noqa: B018  which the item keeps: 16 us, and there is time until they have collected
        else:
            self.close()

    def _plan(self) -> None:
        """Which world each item needs, and the next item there."""
        following: dict[WorldKey, str] = {}
        for item in reversed(self._items):
            try:
                key = WorldKey.of(scenario_of(item, self.settings), self._sources.start_of(item))
            except (MarkerError, HarnessError):
                continue  # said when the item runs, and the other items run
            self._keys[item.nodeid] = key
            self._next[item.nodeid] = following.get(key)
            following[key] = item.nodeid

    # Running.

    @contextmanager
    def prepared(self, item: pytest.Item) -> Iterator[None]:
        """Before any time-out of the item runs: wait until ranks can be had, for slots, and for its world."""
        self.last_item = item
        with ExitStack() as until_over:
            try:
                self._plans[item.nodeid] = scenario = scenario_of(item, self.settings)
                with self._renewing(item):
                    self._sources.check(item)
                if self._crew is not None:
                    self._crew.check(item, scenario.world_size)
                if not self._keys:
                    self._plan()
                key = WorldKey.of(scenario, self._sources.start_of(item))
                until_over.enter_context(self._rank_slots().take(key.world_size, item.nodeid))
                with self._renewing(item):
                    self._world(key)
                if key not in self._worlds:
                    self._world(key)  # of the new zygote
            except (MarkerError, HarnessError) as error:
                self._plans[item.nodeid] = error
            except OSError as error:  # no room, or nothing may be written
                self._plans[item.nodeid] = HarnessError(f"no ranks can be started: {error}")
            yield

    def run(self, item: pytest.Item) -> list[Any]:
        """Run an item on its ranks; the reports of it."""
        started, clock = time.time(), time.monotonic()
        frame = merge.Frame(item, self._load, started, 0.0)
        scenario = self._plans.pop(item.nodeid)
        if isinstance(scenario, OtherSize):
            return merge.skipped(frame, str(scenario))
        if isinstance(scenario, Exception):
            return merge.errored(frame, str(scenario))
        try:
            world = self._world(WorldKey.of(scenario, self._sources.start_of(item)))
            self.config.stash[RUNNING] = item.session
            run = self._run_in(world, item, scenario)
        except (MarkerError, HarnessError) as error:
            return merge.errored(frame, str(error))
        except Exception:  # noqa: BLE001  our own bug fails one test, and the others still run
            return merge.errored(frame, f"inconclusive: the harness itself failed\n{traceback.format_exc()}")
        finally:
            self.config.stash[RUNNING] = None
        for outcome in run.outcomes.values():
            if outcome.refused is not None:
                return merge.errored(frame, outcome.refused)
        frame = merge.Frame(item, self._load, started, time.monotonic() - clock, _xfail(item))
        verdict = judge(scenario, _observed(run)) if scenario.faults or scenario.expectation else None
        reports = merge.with_ends(frame, merge.merge(frame, run, verdict), run.ends)
        give_account(reports, scenario, run, verdict)
        _show_setups(item, run)
        forward_warnings(item, run)
        if not world.key.once:
            tell_leaks(item, run)
        _stop_if_asked(item, run)
        return reports

    def reported(self, report: pytest.TestReport) -> None:
        """A report of this process, or of a worker of xdist, is on its way to the user."""
        if (row := row_in(report)) is not None:
            self.rows.append(row)

    @staticmethod
    def tear_down(item: pytest.Item, nextitem: pytest.Item | None) -> list[pytest.TestReport]:
        """Finalise what tests of this process have set up and `nextitem` does not need; a report if that
        fails.
        """
        call = pytest.CallInfo.from_call(
            lambda: item.session._setupstate.teardown_exact(nextitem), when="teardown"
        )
        return [] if call.excinfo is None else [pytest.TestReport.from_item_and_call(item, call)]

    def _run_in(self, world: World, item: pytest.Item, scenario: Scenario) -> Run:
        self._worlds.pop(world.key, None)  # until it is seen that it can be used again
        world.last = item
        try:
            following = None if world.key.once else self._next.get(item.nodeid)
            deadline = deadline_of(item, scenario.timeout)
            stop_other_clocks(item)
            run = world.run(item.nodeid, following, scenario, deadline, TerminalDesk(self.config))
        except BaseException as error:
            if self._crew is not None and not isinstance(error, Exception):
                self._crew.abandon()
            world.end(soft=False)
            raise
        # A launched rank takes seconds to begin anew, and a test that only fails leaves nothing in it.
        if world.key.once or (run.spoiled if self._crew is None else run.unusable):
            if world.key.once and not run.spoiled:
                world.dismiss()
                self._fork_ahead(item, world.key)
            run.ends = world.end(soft=not (run.exits or run.unfinished))
        else:
            self._worlds[world.key] = world
        return run

    @contextmanager
    def _renewing(self, item: pytest.Item) -> Iterator[None]:
        """Where the zygote has ended, start a new one, but none after one that ended at once."""
        try:
            yield
        except ZygoteEnded as error:
            for key in [key for key in self._worlds if key.start == "fork"]:
                self._worlds.pop(key).end(soft=False)
            self._sources.renew(error)
            self._sources.check(item)
            warn(item, f"{error}; a new one was started")

    def _fork_ahead(self, item: pytest.Item, key: WorldKey) -> None:
        """Have the next test's new ranks start while those of this one leave."""
        if key.start == "fork" and self._crew is None and self._next.get(item.nodeid) is not None:
            with suppress(HarnessError, OSError):  # said when that test needs them
                self._worlds[key] = self._new_world(key)

    def _world(self, key: WorldKey) -> World:
        world = self._worlds.get(key)
        if world is not None and (lost := world.lost()):
            self._worlds.pop(key).end(soft=False)
            self._report_ends(world, lost)
            world = None
        if world is None:
            if self._crew is not None:
                self._end_softly()  # launched ranks are in one world at a time
            world = self._worlds[key] = self._new_world(key)
        try:
            world.wait_up()
        except HarnessError:
            del self._worlds[key]
            world.end(soft=False)
            raise
        return world

    def _new_world(self, key: WorldKey) -> World:
        source = self._sources.get(key.start)
        return World(
            source if self._crew is None else self._crew.around(source),
            key,
            self._base_dir(),
            self._base_temp(),
            self.settings.seed,
            self._store if key.init else Store(),
            debugger_of(self.config, self.settings.debug_rank),
        )

    def _rank_slots(self) -> Slots:
        if self._slots is None:
            largest = max((key.world_size for key in self._keys.values()), default=1)
            budget = self.settings.slots or max(largest, 2 * processors())
            self._slots = Slots(budget, self._tell)
        return self._slots

    def _tell(self, text: str) -> None:
        """Say it now: a worker of xdist has no terminal, but all of a session have one standard error."""
        worker = getattr(self.config, "workerinput", {}).get("workerid")
        capture = self.config.pluginmanager.getplugin("capturemanager")
        with nullcontext() if capture is None else capture.global_and_fixture_disabled():
            sys.stderr.write(f"\nddp{f' {worker}' if worker else ''}: {text}\n")
            sys.stderr.flush()

    def _load(self, data: Any) -> Any:
        return self.config.hook.pytest_report_from_serializable(config=self.config, data=data)

    # Ends.

    def end_worlds(self) -> None:
        """End every world softly, so that session and module fixtures are finalised."""
        self._end_softly()
        if self._base is not None:
            take_in(self._base.path)

    def _end_softly(self) -> None:
        while self._worlds:
            _, world = self._worlds.popitem()
            try:
                with suppress(HarnessError):
                    self._report_ends(world, world.end(soft=True))
            except KeyboardInterrupt:  # once more: whoever waits has waited long enough
                for one in (world, *self._worlds.values()):
                    one.end(soft=False)
                self._worlds.clear()
                raise

    def _report_ends(self, world: World, ends: Mapping[int, Finalised]) -> None:
        """What wide fixtures raised in the end is an error of the last test on these ranks."""
        if world.last is None:
            return
        report = merge.end_of(merge.Frame(world.last, self._load, time.time(), 0.0), ends)
        if report is None:
            return
        if self.last_item is not None and hasattr(self.config, "workerinput"):
            # xdist takes reports of a worker's last test alone.
            report.nodeid, report.location = self.last_item.nodeid, self.last_item.location
            report.sections.insert(0, ("ranks", f"which have run {world.last.nodeid} before"))
        self.config.hook.pytest_runtest_logreport(report=report)

    def close(self) -> None:
        """End everything that this session has started."""
        self.end_worlds()
        self._sources.close()
        self._store.close()
        if self._slots is not None:
            self._slots.close()
            self._slots = None
        if self._base is not None:
            self._base.close()
            self._base = None

    def _base_dir(self) -> RunDirectory:
        if self._base is None:
            self._base = RunDirectory()
        return self._base

    def _base_temp(self) -> Path:
        factory: pytest.TempPathFactory = self.config._tmp_path_factory  # type: ignore[attr-defined]
        return factory.getbasetemp() / "ddp"


def _observed(run: Run) -> Observed:
    failures = {
        rank: outcome.failure for rank, outcome in run.outcomes.items() if outcome.failure is not None
    }
    return Observed(run.diagnosis, run.decided_at, failures, run.fired, run.why_ended, run.started, run.exits)


def _xfail(item: pytest.Item) -> str | None:
    """The reason of an xfail marker that holds for any failure; ranks evaluate all others themselves."""
    if item.get_closest_marker("xfail") is None or item.config.option.runxfail:
        return None
    from _pytest.skipping import evaluate_xfail_marks

    with suppress(pytest.fail.Exception):  # a wrong condition, which ranks have reported
        holds = evaluate_xfail_marks(item)
        if holds is not None and holds.raises is None:
            return holds.reason
    return None


def _show_setups(item: pytest.Item, run: Run) -> None:
    """The lines of --setup-show, of the lowest rank."""
    if run.outcomes and (shown := run.outcomes[min(run.outcomes)].shown):
        item.config.get_terminal_writer().write(shown)


def _stop_if_asked(item: pytest.Item, run: Run) -> None:
    """pytest.exit in a rank ends the session, as it does in any test."""
    for rank, outcome in sorted(run.outcomes.items()):
        if outcome.stops:
            item.session.shouldstop = f"rank {rank}: {outcome.error}"

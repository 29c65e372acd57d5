"""What ranks may do instead of what the others do: the watchdogs name it, and raise."""

from __future__ import annotations

import re
import signal
import textwrap
from dataclasses import dataclass
from pathlib import Path

from tests.esper.lockstep.watchdog.jobs import Job, job, private

GUILTY = 2
RANKS = 4
SUSPECTED_AFTER = 3.0
DEAD = (-signal.SIGKILL, -signal.SIGTERM)


@dataclass(frozen=True)
class Fault:
    """What rank 2 does instead of the `all_reduce` of the others; what all do at first, and the others
    meanwhile.
    """

    kind: str
    body: str
    raises: bool | None = True  # that rank, too; None: as it comes
    guilty: tuple[int, ...] = (GUILTY,)
    op: str = "all_reduce"
    suspected: bool = False
    seen_at: str | None = None  # the mark of the line that the sentence has for it
    before: str = ""
    others: str = "pass"


def suspected(kind: str, body: str, *, raises: bool | None = True, seen_at: str | None = None) -> Fault:
    return Fault(kind, body, raises=raises, suspected=True, seen_at=seen_at)


FAULTS = {
    "skips": Fault("mismatch", "dist.barrier()  # guilty"),
    "other op": Fault("mismatch", "dist.broadcast(x, 0)  # guilty"),
    "other reduce op": Fault("mismatch", "dist.all_reduce(x, dist.ReduceOp.MAX)  # guilty"),
    "other dtype": Fault("mismatch", "dist.all_reduce(x.int())  # guilty"),
    "destroys": Fault("missing", "dist.destroy_process_group(); time.sleep(100)  # guilty"),
    "killed": Fault("crashed", "os.kill(os.getpid(), signal.SIGKILL)", raises=False),
    "killed inside": Fault(
        "crashed",
        "dist.all_reduce(x, async_op=True); os.kill(os.getpid(), signal.SIGKILL)",
        raises=False,
        before=f"""
            store = dist.distributed_c10d._get_default_store()
            if rank == {GUILTY}:
                store.set("pid", str(os.getpid()))
            death = os.pidfd_open(int(store.get("pid")))
        """,
        others="select.select([death], [], [])",
    ),
    "exits 0": Fault("exited", "sys.exit(0)", raises=False),
    "exits 5": Fault("exited", "sys.exit(5)", raises=False),
    "_exit 5": Fault("exited", "os._exit(5)", raises=False),
    "raises": Fault("raised", "raise ValueError('boom')", raises=False),
    "stops": suspected("frozen", "os.kill(os.getpid(), signal.SIGSTOP)", seen_at="before"),
    "sleeps": suspected("frozen", "time.sleep(1000)  # guilty"),
    "spins": suspected("stalled", "while True: pass  # guilty"),
    "holds the GIL": suspected(
        "frozen", "__import__('ctypes').PyDLL(None).sleep(1000)  # guilty", raises=None
    ),
    "keeps the GIL": suspected("stalled", "sum(__import__('itertools').repeat(0))  # guilty", raises=False),
    "waits in the store": suspected(
        "frozen", "dist.distributed_c10d._get_default_store().get('never')  # guilty"
    ),
}


@dataclass(frozen=True)
class Disagreement:
    """What ranks do that meet in no collective, or with other state."""

    kind: str
    guilty: tuple[int, ...]
    body: str
    says: str  # a pattern, with LINE(mark) for a line's place
    ranks: int = 3


DISAGREEMENTS = {
    "tags swapped": Disagreement(
        "order",
        (2,),
        """
        for name in ("b", "a") if rank == 2 else ("a", "b"):
            with lockstep.tag(name):
                dist.all_reduce(x)  # here
        while True:
            dist.barrier()
            time.sleep(0.02)
        """,
        r"rank 2 .*tag b.*LINE\(here\)",
    ),
    "other members": Disagreement(
        "group",
        (2,),
        """
        dist.new_group([0, 2] if rank == 2 else [0, 1])  # here
        while True:
            dist.barrier()
            time.sleep(0.02)
        """,
        r"rank 2 .*LINE\(here\)",
    ),
    "drift": Disagreement(
        "drift",
        (2,),
        """
        model = torch.nn.Linear(2, 2)
        for one in model.parameters():
            torch.nn.init.constant_(one, 1.0)
        lockstep.watch("model", model)
        dist.barrier()
        if rank == 2:
            model.weight.data += 1
        dist.barrier()
        dist.recv(x, (rank + 1) % world) if rank else time.sleep(1000)
        """,
        r"weight",
    ),
    "crossed groups": Disagreement(
        "wait_cycle",
        (0, 1),
        """
        one, other = dist.new_group([0, 1]), dist.new_group([0, 1])
        dist.all_reduce(x, group=one)
        dist.all_reduce(x, group=other)
        dist.all_reduce(x, group=one if rank else other)  # here
        """,
        r"LINE\(here\)",
        ranks=2,
    ),
    "all receive": Disagreement(
        "peer", (0, 1, 2), "dist.recv(x, (rank + 1) % world)  # here", r"LINE\(here\)"
    ),
}


def elsewhere(name: str, folder: Path, *, per_host: int = 0) -> Job:
    """A job of four ranks of which one is elsewhere; it is named on all."""
    fault = FAULTS[name]
    done = job(
        folder,
        f"""
        {textwrap.indent(textwrap.dedent(fault.before), " " * 8).strip()}
        for _ in range(20):
            dist.all_reduce(x)  # before
        if rank == {GUILTY}:
            note.fault()
            {fault.body}
        else:
            {fault.others}
        dist.all_reduce(x)  # innocent
        note("past")
        time.sleep(1000)
        """,
        ranks=RANKS,
        per_host=per_host,
        start=f"patience={SUSPECTED_AFTER if fault.suspected else 60.0}",
    )
    # Gloo completes sums that differ only in what they sum, and a signal ends a sleep in C.
    assert fault.kind == "mismatch" or fault.raises is None or done.notes("past") == {}
    places = done.run_folders
    guiltys = Path(done.notes("folder")[GUILTY])
    if per_host == 1 and not fault.raises and f"explain {guiltys}" not in done.said:
        places.remove(guiltys)  # nobody was left there to hear of it
    assert "Error in sys.excepthook" not in "".join(done.err)
    for place in places:
        assert private(place)
        assert f"explain {place}" in done.said
    assert done.said.count("lockstep: ") == len(places)
    assert f"rank {GUILTY} " in done.said.splitlines()[0]
    assert re.search(rf"ranks 0, 1, 3 wait in {fault.op} #21 +{done.line('innocent')}  main\n", done.said)
    if seen_at := "guilty" if "# guilty" in fault.body else fault.seen_at:
        assert re.search(rf"rank {GUILTY} .*{done.line(seen_at)}  main", done.said)
    errors = done.notes("error")
    raised = {rank for rank, error in errors.items() if error["type"] == "LockstepError"}
    who_raise = set(range(RANKS)) - (set() if fault.raises else {GUILTY})
    assert raised - (set() if fault.raises is not None else {GUILTY}) == who_raise
    for rank in who_raise:
        diagnosis = errors[rank]["diagnosis"]
        assert errors[rank]["pickles"]
        assert (diagnosis["kind"], tuple(diagnosis["guilty"])) == (fault.kind, fault.guilty)
        assert diagnosis["message"] in done.said
        assert diagnosis["waiting"]["site"].endswith(done.line("innocent"))
    assert all(done.statuses[rank] != 0 for rank in who_raise)
    begun = done.notes("fault")[GUILTY]
    slowest = max(errors[rank]["at"] for rank in who_raise) - begun
    assert slowest < 10.0 + (SUSPECTED_AFTER if fault.suspected else 0.0)
    return done


def disagree(name: str, folder: Path, *, per_host: int = 0) -> Job:
    """A job whose ranks disagree; all raise."""
    case = DISAGREEMENTS[name]
    done = job(folder, "dist.barrier()\n" + textwrap.dedent(case.body), ranks=case.ranks, per_host=per_host)
    errors = done.notes("error")
    assert errors.keys() == set(range(case.ranks))
    for error in errors.values():
        assert error["type"] == "LockstepError"
        assert error["pickles"]
        assert (error["diagnosis"]["kind"], tuple(error["diagnosis"]["guilty"])) == (case.kind, case.guilty)
    pattern = re.sub(r"LINE\\\((.*?)\\\)", lambda mark: re.escape(done.line(mark[1])), case.says)
    assert re.search(pattern, done.said), done.said
    assert done.said.count("lockstep: ") == len(done.run_folders)
    assert all(done.statuses)
    return done

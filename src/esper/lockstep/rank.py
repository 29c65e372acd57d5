"""In a rank of `run`: records, then runs an unmodified script as `__main__`.

Started as `python -m esper.lockstep.rank RUN_DIR SCRIPT ARGS...` with the variables of `env://` set.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import inspect
import os
import runpy
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import parse_qs, urlsplit

from esper.lockstep.entry import Flag, Kind, Time
from esper.lockstep.errors import InterceptionUnavailable, LedgerError
from esper.lockstep.evidence import answer_stack_requests
from esper.lockstep.lineage import die_with_parent

if TYPE_CHECKING:
    from esper.lockstep.intercept import Interception

_STORE_IS_SERVED = "TORCHELASTIC_USE_AGENT_STORE"


def main() -> None:
    """Record this process, run the script, and leave with the status that it would have had."""
    run_dir, script = Path(sys.argv[1]), sys.argv[2]
    die_with_parent(int(os.environ.pop("ESPER_LOCKSTEP_PARENT")))
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    # Registered before anybody else's, so run after them all, and after the threads that keep the process
    # alive: they may still issue collectives when the script has ended.
    program_over: list[Callable[[], None]] = []
    atexit.register(lambda: [over() for over in program_over])
    try:
        stacks = answer_stack_requests(run_dir, rank)
        interception = _interception(run_dir, rank, world_size)
    except (ImportError, OSError, LedgerError, InterceptionUnavailable) as error:
        _refuse(run_dir, error)
    recorder = interception.recorder
    program_over.append(recorder.over)
    # A forked child (a loader's worker) shares the mapping: what it does must not be taken for its parent's.
    os.register_at_fork(after_in_child=interception.detach)
    sys.argv = sys.argv[2:]
    sys.path[0] = str(Path(script).resolve().parent)
    interception.begin(script)
    status = 0
    try:
        runpy.run_path(script, run_name="__main__")
        interception.replicas.audit("end", interception.groups.default(), None)
    except SystemExit as end:
        recorder.leaving_by(end)
        raise
    except BaseException as error:  # noqa: BLE001  recorded and printed, as the interpreter would
        recorder.raised(error)
        _print_without_our_frames(error)
        status = 1
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    stacks.flush()
    sys.exit(status)


def _interception(run_dir: Path, rank: int, world_size: int) -> Interception:
    from esper.lockstep.intercept import Interception
    from esper.lockstep.ledger import Ledger
    from esper.lockstep.recorder import Recorder

    interception = Interception(Recorder(Ledger(run_dir, rank, world_size)))
    interception.install()
    _see_who_joins(interception)
    return interception


def _refuse(run_dir: Path, error: Exception) -> NoReturn:
    """End before the script begins, with one sentence for the run: what one rank lacks, most lack."""
    with contextlib.suppress(FileExistsError):
        with contextlib.suppress(FileNotFoundError, PermissionError):
            os.close(os.open(run_dir / "refused", os.O_CREAT | os.O_EXCL))
        text = (
            str(error)
            if isinstance(error, LedgerError | InterceptionUnavailable)
            else f"no recording: {error}"
        )
        sys.stderr.write(f"rank {os.environ['RANK']}: {text}\n")
    sys.exit(1)


def _see_who_joins(interception: Interception) -> None:
    """Record init_process_group as a call that all ranks make in step: who waits in it for a rank that has
    ended would do so for half an hour, and nothing else in the ledgers would tell.
    """
    import torch.distributed
    from torch.distributed import device_mesh, distributed_c10d, init_process_group, is_initialized

    from esper.lockstep.groups import patch
    from esper.lockstep.recorder import VICTIM, GroupRecord

    recorder, ledger = interception.recorder, interception.recorder.ledger
    job = GroupRecord("the job", ledger.string("the job"), tuple(range(ledger.world_size)))
    recorder.event(Kind.GROUP, group=job.key, ranks=job.members)
    signature = inspect.signature(init_process_group)

    @functools.wraps(init_process_group)
    def joining(*args: Any, **kwargs: Any) -> None:
        call = _Joining.of(signature, args, kwargs)
        with call.own_store():
            if is_initialized() or (call.rank, call.world_size) != (ledger.rank, ledger.world_size):
                init_process_group(*args, **kwargs)
                return
            with job.lock:
                site = recorder.site(sys._getframe(1))
                number = recorder.collective(
                    job, "init_process_group", None, None, None, 0, -1, -1, site, Flag.WAITED
                )
            try:
                init_process_group(*args, **kwargs)
            except BaseException as error:
                job.next -= 1  # it may try again
                ledger.stamp(number, Time.WAIT_ENDED, Flag.FAILED | Flag.REFUSED)
                # A backend that none of them has fails them one after the other: that is no divergence, so
                # the first is not blamed for the next one's short wait.
                if isinstance(error, Exception):
                    setattr(error, VICTIM, True)
                raise
            ledger.stamp(number, Time.WAIT_ENDED)

    for holder in (torch.distributed, distributed_c10d, device_mesh):
        patch(holder, "init_process_group", joining)


@dataclass(frozen=True)
class _Joining:
    """What a call of init_process_group asks for; -1 where that can't be told."""

    rank: int
    world_size: int
    method: str

    @classmethod
    def of(cls, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Joining:
        known: dict[str, Any] = {"rank": -1, "world_size": -1}
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:  # torch's to refuse
            return cls(-1, -1, "")
        method = "" if given.get("store") is not None else given.get("init_method") or "env://"
        if method.startswith("env://"):
            known |= {name: os.environ.get(name.upper()) for name in known}
        known |= {name: values[0] for name, values in parse_qs(urlsplit(method).query).items()}
        known |= {name: given[name] for name in ("rank", "world_size") if given.get(name, -1) != -1}
        try:
            return cls(int(known["rank"]), int(known["world_size"]), method)
        except (TypeError, ValueError):
            return cls(-1, -1, method)

    @contextlib.contextmanager
    def own_store(self) -> Iterator[None]:
        """With `tcp://` rank 0 serves the store. Told that there is one already, as `env://` must be, all
        ranks would look for it at an address where nobody listens, until the group's time-out.
        """
        told, port = os.environ.get(_STORE_IS_SERVED), os.environ.get("MASTER_PORT")
        elsewhere = urlsplit(self.method).netloc.rpartition(":")[2] != port
        if told is None or not (self.method.startswith("tcp://") and elsewhere):
            yield
            return
        del os.environ[_STORE_IS_SERVED]
        try:
            yield
        finally:
            os.environ[_STORE_IS_SERVED] = told


def _print_without_our_frames(error: BaseException) -> None:
    trace = error.__traceback__
    while trace is not None and (
        "runpy" in trace.tb_frame.f_code.co_filename or trace.tb_frame.f_code.co_filename == __file__
    ):
        trace = trace.tb_next
    traceback.print_exception(type(error), error, trace)


if __name__ == "__main__":
    main()

"""What ci/test does once .venv is there: each step in turn, in seconds, and what it left behind."""

import argparse
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Inherited by every process that a step starts, forked ones and daemons too: so what is left can be found.
MARK = "ESPER_CI_RUN"


@dataclass(frozen=True, kw_only=True)
class Step:
    name: str
    module: str
    args: tuple[str, ...] = ()

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", self.module, *self.args]

    def __str__(self) -> str:
        return " ".join([self.module, *self.args])


def steps(*, stress: bool) -> list[Step]:
    chosen = ("-m", "not nightly") if stress else ()
    return [
        Step(name="lint", module="ruff", args=("check", "--output-format=concise")),
        Step(name="format", module="ruff", args=("format", "--check")),
        Step(name="types", module="mypy"),
        Step(name="tests", module="pytest", args=("tests", *chosen)),
        Step(name="examples", module="pytest", args=("--ddp-world-size=4", "examples/", *chosen)),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ci/test", description="Lint, types and the whole test suite.")
    parser.add_argument(
        "--stress", action="store_true", help="the long runs, too, without the limit of 12 minutes"
    )
    stress: bool = parser.parse_args(argv).stress
    # The steps run in sessions of their own, so whatever ends this process has to end them from here.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    return run_all(steps(stress=stress), limit=float("inf") if stress else 12 * 60)


def run_all(plan: Sequence[Step], *, limit: float) -> int:
    """0 when all pass; otherwise the status of the first step that did not, and no further step is run."""
    begun = time.monotonic()
    mark = secrets.token_hex(8)
    for step in plan:
        print(f"== {step.name}: {step}", flush=True)
        at = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="esper-", ignore_cleanup_errors=True) as scratch:
            environment = {**os.environ, MARK: mark, "TMPDIR": scratch}
            status = run_one(step, environment, seconds=limit - (at - begun))
            left = end_leftovers(mark)
        for process in left:
            print(f"ci/test: {step.name} left this process behind, now ended: {process}", flush=True)
        spent = time.monotonic() - at
        if status or left:
            how = f"status {status}" if status else "processes left behind"
            print(f"ci/test: FAILED at {step.name} ({step}) after {spent:.1f} s: {how}", flush=True)
            return status or 1
        print(f"== {step.name}: ok, {spent:.1f} s", flush=True)
    print(f"ci/test: all {len(plan)} steps passed in {time.monotonic() - begun:.1f} s", flush=True)
    return 0


def run_one(step: Step, environment: Mapping[str, str], *, seconds: float) -> int:
    """The step's status; 124 when its time was over, 130 when interrupted."""
    # A session of its own, or a signal to the group would end this process with the step.
    process = subprocess.Popen(step.command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        return process.wait(None if seconds == float("inf") else max(seconds, 0))
    except subprocess.TimeoutExpired:
        print(f"ci/test: the 12 minutes for all steps are over during {step.name}", flush=True)
        status = 124
    except KeyboardInterrupt:
        status = 130
    end(process)
    return status


def end(process: subprocess.Popen[bytes]) -> None:
    for number, patience in ((signal.SIGINT, 10), (signal.SIGKILL, 10)):
        os.killpg(process.pid, number)
        try:
            process.wait(patience)
            return
        except subprocess.TimeoutExpired:
            continue


def end_leftovers(mark: str, *, patience: float = 2.0) -> list[str]:
    """Command lines of this run's processes still there after `patience` seconds; they are killed."""
    deadline = time.monotonic() + patience
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    deadline = time.monotonic() + patience
    while left and marked(mark) and time.monotonic() < deadline:  # a kill takes its time
        time.sleep(0.01)
    return [f"{pid} {command}" for pid, command in left.items()]


def marked(mark: str) -> dict[int, str]:
    """Command lines by pid of the processes whose environment carries this run's mark."""
    found = {}
    wanted = f"{MARK}={mark}".encode()
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (place / "environ").read_bytes().split(b"\0"):
                command = (place / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(place.name)] = command.decode(errors="replace").strip()
        except OSError:
            # Ended meanwhile, or another user's.
            continue
    return found


if __name__ == "__main__":
    sys.exit(main())

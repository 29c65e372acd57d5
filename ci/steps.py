"""What ci/test does once .venv is there: stage after stage, in seconds, and what each left behind."""

import argparse
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
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


# Steps that run side by side.
Stage = tuple[Step, ...]


def stages(*, stress: bool) -> list[Stage]:
    chosen = ("-m", "not nightly") if stress else ()
    lint = Step(name="lint", module="ruff", args=("check", "--output-format=concise"))
    layout = Step(name="format", module="ruff", args=("format", "--check"))
    types = Step(name="types", module="mypy")
    core = Step(name="tests of esper", module="pytest", args=("tests/esper", *chosen))
    others = Step(
        name="other tests",
        module="pytest",
        args=("tests", "--ignore=tests/esper", "--ignore=tests/clients", *chosen),
    )
    examples = Step(name="examples", module="pytest", args=("--ddp-world-size=4", "examples/", *chosen))
    # Either leaves a third of two cores idle, while ranks wait or one interpreter loads torch. The long runs
    # load the machine as they need it.
    tests: list[Stage] = [(core,), (others,)] if stress else [(core, others)]
    return [(lint,), (layout,), (types,), *tests, (examples,)]


CLIENTS: list[Stage] = [(Step(name="clients", module="pytest", args=("tests/clients",)),)]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ci/test", description="Lint, types and the whole test suite.")
    parser.add_argument(
        "--stress", action="store_true", help="the long runs, too, without the limit of 12 minutes"
    )
    parser.add_argument("--clients", action="store_true", help="programs of other projects, and nothing else")
    chosen = parser.parse_args(argv)
    if chosen.clients and chosen.stress:
        parser.error("--clients runs nothing else, so not with --stress")
    plan = CLIENTS if chosen.clients else stages(stress=chosen.stress)
    # The steps run in sessions of their own, so whatever ends this process has to end them from here.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    return run_all(plan, limit=float("inf") if chosen.stress else 12 * 60)


def run_all(plan: Sequence[Stage], *, limit: float) -> int:
    """0 when all pass; otherwise the status of the first step that did not, and no further stage is run."""
    begun = time.monotonic()
    mark = secrets.token_hex(8)
    for stage in plan:
        name = " and ".join(step.name for step in stage)
        for step in stage:
            print(f"== {step.name}: {step}", flush=True)
        at = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="esper-", ignore_cleanup_errors=True) as scratch:
            environment = {**os.environ, MARK: mark, "TMPDIR": scratch}
            statuses = run_stage(stage, environment, seconds=limit - (at - begun))
            left = end_leftovers(mark)
        spent = time.monotonic() - at
        for process in left:
            print(f"ci/test: {name} left this process behind, now ended: {process}", flush=True)
        failed = [(step, status) for step, status in zip(stage, statuses, strict=True) if status]
        for step, status in failed:
            print(f"ci/test: FAILED at {step.name} ({step}) after {spent:.1f} s: status {status}", flush=True)
        if failed:
            return failed[0][1]
        if left:
            print(f"ci/test: FAILED at {name} after {spent:.1f} s: processes left behind", flush=True)
            return 1
        print(f"== {name}: ok, {spent:.1f} s", flush=True)
    print(f"ci/test: all {len(plan)} stages passed in {time.monotonic() - begun:.1f} s", flush=True)
    return 0


def run_stage(stage: Stage, environment: Mapping[str, str], *, seconds: float) -> list[int]:
    """Each step's status; 124 when its time was over, 130 when interrupted. Only the first one's output is
    shown as it comes, that of the others when all have ended.
    """
    end_at = time.monotonic() + seconds
    with ExitStack() as files:
        kept = [files.enter_context(tempfile.TemporaryFile()) for _ in stage[1:]]
        # Sessions of their own, or a signal to the group would end this process with the steps.
        processes = [
            subprocess.Popen(
                step.command, cwd=ROOT, env=environment, stdout=out, stderr=out, start_new_session=True
            )
            for step, out in zip(stage, (None, *kept), strict=True)
        ]
        early = 124
        try:
            for process in processes:
                process.wait(max(end_at - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            over = [
                step.name for step, process in zip(stage, processes, strict=True) if process.poll() is None
            ]
            print(f"ci/test: the 12 minutes for all steps are over during {', '.join(over)}", flush=True)
            # Said while they still run: what a step prints when it is ended does not tell why it was late.
            for line in doing(environment[MARK]):
                print(f"ci/test:   {line}", flush=True)
        except KeyboardInterrupt:
            early = 130
        statuses = [early if process.poll() is None else process.returncode for process in processes]
        for process in processes:
            if process.poll() is None:
                end(process)
        for out in kept:
            out.seek(0)
            sys.stdout.write(out.read().decode(errors="replace"))
        sys.stdout.flush()
    return statuses


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


def doing(mark: str) -> list[str]:
    """A line for each of this run's processes: state, seconds of processor and of life, command line."""
    ticks, up = os.sysconf("SC_CLK_TCK"), time.clock_gettime(time.CLOCK_BOOTTIME)
    lines = []
    for pid, command in sorted(marked(mark).items()):
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except OSError:  # ended meanwhile
            continue
        fields = text.rpartition(")")[2].split()
        spent = (int(fields[11]) + int(fields[12])) / ticks
        lived = up - int(fields[19]) / ticks
        lines.append(f"{pid} (of {fields[1]}) {fields[0]} {spent:.1f} of {lived:.1f} s: {command[:160]}")
    return lines


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

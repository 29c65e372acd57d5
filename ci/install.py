"""What ci/setup does once it has found a Python: make or reuse .venv, install into it, stamp it.

Standard library only: it runs before anything is installed.
"""

import argparse
import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
COMPILED = sorted((ROOT / "src").rglob("*.cpp"))
CONSTRAINTS = ROOT / "ci" / "constraints.txt"
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "esper-setup.json"
UNFINISHED = VENV / "esper-setup.unfinished"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
GPU_PACKAGE = re.compile(r"^(nvidia|cuda|triton|pytorch-triton)(-|$)")
GPU_BUILD = re.compile(r"\+(cu|rocm|xpu)")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What an install is to hold; one that holds more serves as well."""

    cuda: bool = False
    clients: bool = False

    @property
    def extras(self) -> str:
        """Those of pyproject.toml."""
        return "train,test,zoo" if self.clients else "train,test"

    def served_by(self, stamp: Mapping[str, Any]) -> bool:
        """Whether an install with this stamp holds all of it."""
        return bool(stamp["cuda"] >= self.cuda and stamp["clients"] >= self.clients)


class SetupError(Exception):
    """One sentence for the user: what failed and what is accepted."""


def say(text: str) -> None:
    print(f"ci/setup: {text}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ci/setup", description="Make or reuse .venv and install into it.")
    parser.add_argument(
        "--cuda", action="store_true", help="take a torch that was built with CUDA (several GB)"
    )
    parser.add_argument(
        "--clients", action="store_true", help="install the programs of other projects, too, that tests run"
    )
    wanted = Wanted(**vars(parser.parse_args(argv)))
    begun = time.monotonic()
    try:
        if not is_stamped(wanted):
            with one_at_a_time() as lock:
                # Whoever held the lock before may have done all of it.
                if not is_stamped(wanted):
                    install(wanted, lock)
                    say(f"done in {time.monotonic() - begun:.0f} s")
                    return 0
    except SetupError as error:
        print(f"ci/setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ci/setup: interrupted; the next run starts .venv afresh", file=sys.stderr)
        return 130
    say(f".venv is up to date (Python {version()})")
    return 0


def install(wanted: Wanted, lock: int) -> None:
    """Installs everything; the stamp is the last thing written and the first thing removed."""
    interrupted = UNFINISHED.exists()
    STAMP.unlink(missing_ok=True)
    if interrupted or not usable():
        reason = (
            "was left half installed" if interrupted else "cannot be used" if VENV.exists() else "is missing"
        )
        say(f".venv {reason}: making it with Python {version()}")
        base: str = getattr(sys, "_base_executable", sys.executable)
        run([base, "-m", "venv", "--clear", str(VENV)], lock)
    UNFINISHED.touch()
    try:
        pip = [str(PYTHON), "-I", "-m", "pip", "--disable-pip-version-check"]
        add = [*pip, "install", "--quiet", "--no-input", "--constraint", str(CONSTRAINTS)]
        say("pip and setuptools")
        run([*add, "--upgrade", "pip", "setuptools"], lock)
        install_torch(pip, add, wanted.cuda, lock)
        say(f"the project with the extras {wanted.extras}")
        run([*add, "--no-build-isolation", "--editable", f"{ROOT}[{wanted.extras}]"], lock)
        run([*pip, "check"], lock)
        build()
    except SetupError:
        # pip rolls back what it could not finish, so only a kill leaves the mark that starts afresh.
        UNFINISHED.unlink()
        raise
    partial = STAMP.with_suffix(".partial")
    partial.write_text(json.dumps({"inputs": inputs(), **asdict(wanted)}))
    UNFINISHED.unlink()
    partial.replace(STAMP)


def install_torch(pip: Sequence[str], add: Sequence[str], cuda: bool, lock: int) -> None:
    wanted = f"torch=={pinned('torch')}"
    found = installed_torch()
    if found and found["version"].split("+")[0] == pinned("torch") and (found["cuda"] or not cuda):
        say(f"torch {found['version']} is there already")
        return
    index = os.environ.get("ESPER_TORCH_INDEX")
    source = ["--extra-index-url", index] if index else []
    if not cuda:
        say(f"looking at which {wanted} the index offers")
        refuse_cuda(resolved([*pip, "install", *source, wanted]))
    elif found:
        # pip takes an installed CPU build for the version that was asked for.
        run([*pip, "uninstall", "--quiet", "--yes", "torch"], lock)
    say(wanted)
    run([*add, *source, wanted], lock)
    if cuda:
        got = installed_torch()
        if not got or not got["cuda"]:
            what = f"torch {got['version']}, built without it" if got else f"a {wanted} that does not import"
            raise SetupError(
                f"--cuda: the index gave {what}; set ESPER_TORCH_INDEX to an index of CUDA builds."
            )


def build() -> None:
    """Compiles what makes tests on ranks cheaper, where there is a compiler: all works without it."""
    say("what is compiled")
    command = [str(PYTHON), "-I", "-m", "pytest_esper_ddp", "build"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        say((done.stderr.splitlines() or [f"its build ended with {done.returncode}"])[-1])


def refuse_cuda(packages: Mapping[str, str]) -> None:
    """Raises SetupError when this set of names and versions would bring CUDA."""
    heavy = sorted(name for name in packages if GPU_PACKAGE.match(name))
    torch = packages.get("torch", "")
    if heavy or GPU_BUILD.search(torch):
        now = os.environ.get("ESPER_TORCH_INDEX")
        what = f"torch {torch}" + (
            f" with {', '.join(heavy[:3])}{' ...' if heavy[3:] else ''}" if heavy else ""
        )
        raise SetupError(
            f"refused {what}: a build with CUDA, several GB; set ESPER_TORCH_INDEX={CPU_INDEX}"
            f"{f' (it is {now})' if now else ''} for a CPU build, or give --cuda to take this one."
        )


def resolved(command: Sequence[str]) -> dict[str, str]:
    """Names and versions that this pip install would bring; downloads metadata only."""
    args = ["--dry-run", "--ignore-installed", "--quiet", "--no-input", "--report", "-"]
    done = subprocess.run([*command, *args], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = next(
            (line for line in done.stderr.splitlines() if line.startswith("ERROR")), "no reason given"
        )
        raise SetupError(
            f"pip found no {command[-1]} for Python {version()}: {reason.removeprefix('ERROR: ')}"
        )
    report: dict[str, Any] = json.loads(done.stdout)
    found = [entry["metadata"] for entry in report["install"]]
    return {re.sub(r"[-_.]+", "-", each["name"]).lower(): each["version"] for each in found}


def installed_torch() -> dict[str, str] | None:
    """Version and CUDA version ('' for none) of a torch that imports, or None."""
    ask = (
        "import json, torch as t; print(json.dumps({'version': t.__version__, 'cuda': t.version.cuda or ''}))"
    )
    done = subprocess.run([str(PYTHON), "-Ic", ask], capture_output=True, text=True, check=False)
    if done.returncode:
        return None
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def usable() -> bool:
    """Whether .venv has this very Python (major.minor) and a pip that runs."""
    if not PYTHON.exists():
        return False
    ask = "import sys, pip; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([str(PYTHON), "-Ic", ask], capture_output=True, text=True, check=False)
    return done.returncode == 0 and done.stdout.strip() == "{}.{}".format(*sys.version_info[:2])


def is_stamped(wanted: Wanted) -> bool:
    """Whether a finished install of these inputs is there that holds what is wanted."""
    try:
        stamp = json.loads(STAMP.read_text())
        return bool(PYTHON.exists() and stamp["inputs"] == inputs() and wanted.served_by(stamp))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def inputs() -> str:
    """A digest of all that decides what is installed; the place too, as an editable install points to it."""
    files = [ROOT / "pyproject.toml", CONSTRAINTS, *COMPILED, Path(__file__)]
    parts = [path.read_bytes() for path in files] + [version().encode(), os.fsencode(ROOT)]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def pinned(name: str) -> str:
    match = re.search(rf"^{name}==(\S+)$", CONSTRAINTS.read_text(), re.MULTILINE)
    if match is None:
        raise SetupError(f"{CONSTRAINTS.name} has no line {name}==VERSION")
    return match[1]


def version() -> str:
    return "{}.{}.{}".format(*sys.version_info[:3])


def run(command: Sequence[str], lock: int) -> None:
    # The child holds the lock too: when this process is killed, nobody starts beside a pip that still writes.
    status = subprocess.run(command, pass_fds=[lock], check=False).returncode
    if status:
        raise SetupError(f"status {status} from: {' '.join(command)}")


@contextmanager
def one_at_a_time() -> Iterator[int]:
    """An exclusive lock on this very file, so that nothing has to be left behind for it."""
    with Path(__file__).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another ci/setup to finish")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


if __name__ == "__main__":
    sys.exit(main())

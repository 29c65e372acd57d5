"""Libraries of our own in C++: compiled when somebody asks, kept in the user's cache, needed by nothing."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from esper.lockstep.errors import KernelNotBuilt, StartError

# python: nothing compiled, always. auto: what is compiled where it has been built.
CHOICE = "ESPER_LOCKSTEP_KERNEL"
_CHOICES = ("auto", "python")
_SECONDS = 600


def wanted() -> bool:
    """Whether compiled code may be used. Raises StartError where the environment asks for something else."""
    choice = os.environ.get(CHOICE, "auto")
    if choice not in _CHOICES:
        raise StartError(f"{CHOICE}={choice!r}", f"it is one of {', '.join(_CHOICES)}")
    return choice == "auto"


def cached(source: Path, *built_for: str) -> Path:
    """Where the library of `source` is, or would be; `built_for`: versions that it is good for alone."""
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    tag = "-".join((platform.machine(), *built_for, digest))
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(cache) / "esper-lockstep" / f"{source.stem}-{tag}.so"


def compile_library(source: Path, path: Path, options: Sequence[str]) -> Path:
    """Compile `source` into `path` unless it is there, and return that.

    Raises KernelNotBuilt with what is missing or what the compiler said.
    """
    if path.is_file():
        return path
    compiler = os.environ.get("CXX", "c++")
    partial = path.with_suffix(f".{os.getpid()}.partial")
    always = ("-O2", "-shared", "-fPIC", "-fvisibility=hidden")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        subprocess.run(
            [compiler, *always, str(source), *options, "-o", str(partial)],
            check=True,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
        partial.replace(path)
    except FileNotFoundError as error:
        raise KernelNotBuilt(f"no C++ compiler {compiler!r} (CXX names another): {error.strerror}") from error
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if "error" in line.lower()]
        said = (lines or error.stderr.splitlines() or ["nothing"])[0]
        raise KernelNotBuilt(f"{compiler} ended with {error.returncode}: {said}") from error
    except subprocess.TimeoutExpired as error:
        raise KernelNotBuilt(f"{compiler} was not done after {_SECONDS} s") from error
    except OSError as error:
        raise KernelNotBuilt(f"{path}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            partial.unlink()
    return path

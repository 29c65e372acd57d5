"""The kernel of kernel.cpp: built once for each build of torch and Python, and kept in the user's cache.

Nothing needs it, and nothing is compiled unless somebody asks: without it every collective goes through the
kernel in Python, which sees the same and costs more.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import platform
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.distributed import distributed_c10d as c10d

from esper.lockstep.errors import KernelNotBuilt, StartError
from esper.lockstep.rank.schemas import OpSchema
from esper.lockstep.record.ledger import COUNT_AT, HEADER_SIZE, RECORD_SIZE, THREADS_AT

_SOURCE = Path(__file__).with_name("kernel.cpp")
_MODULE = "_lockstep_kernel"
# python: the one in Python, always. auto: the compiled one where it has been built.
CHOICE = "ESPER_LOCKSTEP_KERNEL"
_CHOICES = ("auto", "python")
_SECONDS = 600


def library_path() -> Path:
    """Where the compiled kernel of this torch and this Python is, or would be."""
    source = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:16]
    tag = f"{sys.implementation.cache_tag}-{platform.machine()}-torch-{torch.__version__}-{source}"
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(cache) / "esper-lockstep" / f"kernel-{tag}.so"


def load() -> ModuleType | None:
    """The compiled kernel; None where it has not been built, or is not wanted.

    Raises StartError where the environment asks for something unknown.
    """
    choice = os.environ.get(CHOICE, "auto")
    if choice not in _CHOICES:
        raise StartError(f"{CHOICE}={choice!r}", f"it is one of {', '.join(_CHOICES)}")
    path = library_path()
    if choice == "python" or not path.is_file():
        return None
    loader = importlib.machinery.ExtensionFileLoader(_MODULE, str(path))
    spec = importlib.util.spec_from_loader(_MODULE, loader)
    assert spec is not None
    try:
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    except ImportError as error:
        with warnings.catch_warnings():
            warnings.simplefilter("always")  # it is no error of the program's, for which they may be errors
            warnings.warn(
                f"lockstep goes on with its kernel in Python: {path} can't be loaded: {error}", stacklevel=2
            )
        return None
    return module


def kernels_of(kernels: Any) -> Any:
    """The compiled ones beside those in Python, none added yet; None where they are not built."""
    module, ledger = load(), kernels.recorder.ledger
    if module is None:
        return None
    return module.Kernels(
        kernels,
        str(ledger.path),
        HEADER_SIZE,
        RECORD_SIZE,
        ledger.capacity,
        COUNT_AT,
        THREADS_AT,
        c10d.__file__,
    )


def add(kernels: Any, schema: OpSchema, kernel: Callable[..., Any]) -> None:
    """See one operator; `kernel`, in Python, takes what is unusual."""
    at = (-1 if one is None else one for one in (schema.reduce_op, schema.async_op, schema.root))
    kernels.add(schema.operator, schema.op, schema.group, schema.data, *at, kernel)


def build() -> Path:
    """Compile the kernel (half a minute) and return where it is; done at once where it is there already.

    Raises KernelNotBuilt with what is missing or what the compiler said.
    """
    path = library_path()
    if path.is_file():
        return path
    compiler = os.environ.get("CXX", "c++")
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        subprocess.run(
            _command(compiler, partial), check=True, capture_output=True, text=True, timeout=_SECONDS
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


def _command(compiler: str, output: Path) -> list[str]:
    root = Path(torch.__file__).parent
    include, libraries = root / "include", root / "lib"
    places = (include, include / "torch" / "csrc" / "api" / "include", sysconfig.get_path("include"))
    return [
        compiler,
        *("-std=c++20", "-O2", "-shared", "-fPIC", "-fvisibility=hidden"),
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}",
        f"-DTORCH_EXTENSION_NAME={_MODULE}",
        *(f"-I{place}" for place in places),
        str(_SOURCE),
        *("-o", str(output), f"-L{libraries}", f"-Wl,-rpath,{libraries}"),
        *("-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python"),
    ]

"""The kernel of kernel.cpp: built once for each build of torch and Python, and kept in the user's cache.

Nothing needs it, and nothing is compiled unless somebody asks: without it every collective goes through the
kernel in Python, which sees the same and costs more.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import sysconfig
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.distributed import distributed_c10d as c10d

from esper.lockstep.building import cached, compile_library, wanted
from esper.lockstep.rank.schemas import OpSchema
from esper.lockstep.record.ledger import COUNT_AT, HEADER_SIZE, RECORD_SIZE, THREADS_AT

_SOURCE = Path(__file__).with_name("kernel.cpp")
_MODULE = "_lockstep_kernel"


def library_path() -> Path:
    """Where the compiled kernel of this torch and this Python is, or would be."""
    return cached(_SOURCE, str(sys.implementation.cache_tag), f"torch-{torch.__version__}")


def load() -> ModuleType | None:
    """The compiled kernel; None where it has not been built, or is not wanted.

    Raises StartError where the environment asks for something unknown.
    """
    path = library_path()
    if not wanted() or not path.is_file():
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
    """The compiled ones beside those in Python, none added yet; None where they are not built. They take no
    call before the ledger is open.
    """
    module = load()
    if module is None:
        return None
    return module.Kernels(kernels, HEADER_SIZE, RECORD_SIZE, COUNT_AT, THREADS_AT, c10d.__file__)


def add(kernels: Any, schema: OpSchema, kernel: Callable[..., Any]) -> None:
    """See one operator; `kernel`, in Python, takes what is unusual."""
    positions = (schema.reduce_op, schema.async_op, schema.root, *(schema.rows or (None, None, None)))
    at = (-1 if one is None else one for one in positions)
    named = schema.operator, schema.op, schema.group, schema.data
    kernels.add(*named, *at, schema.sized, kernel, schema.detail_of())


def build() -> Path:
    """Compile the kernel (half a minute) and return where it is; done at once where it is there already.

    Raises KernelNotBuilt with what is missing or what the compiler said.
    """
    return compile_library(_SOURCE, library_path(), _options())


def _options() -> list[str]:
    root = Path(torch.__file__).parent
    include, libraries = root / "include", root / "lib"
    places = (include, include / "torch" / "csrc" / "api" / "include", sysconfig.get_path("include"))
    return [
        "-std=c++20",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}",
        f"-DTORCH_EXTENSION_NAME={_MODULE}",
        *(f"-I{place}" for place in places),
        *(f"-L{libraries}", f"-Wl,-rpath,{libraries}"),
        *("-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python"),
    ]

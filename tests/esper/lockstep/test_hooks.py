"""A build of torch that lacks what lockstep needs is refused by name, before anything is recorded."""

from __future__ import annotations

import inspect
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from esper.lockstep.errors import InterceptionUnavailable
from esper.lockstep.rank.hooks import _NAMES, _OF_DDP, check_hooks
from tests.esper.lockstep.launching import warm_command

SRC = Path(__file__).resolve().parents[3] / "src"


def refused() -> str:
    with pytest.raises(InterceptionUnavailable) as error:
        check_hooks()
    again = pickle.loads(pickle.dumps(error.value))
    assert (again.hook, again.version, str(again)) == (error.value.hook, torch.__version__, str(error.value))
    return error.value.hook


def test_this_build_has_all() -> None:
    check_hooks()


@pytest.mark.parametrize("name", _NAMES)
def test_each_name_that_a_build_lacks_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    *path, last = name.split(".")
    holder: Any = torch
    for part in path[1:]:
        holder = getattr(holder, part)
    if isinstance(holder, type(torch.ops.c10d)):  # made when they are asked for
        monkeypatch.setattr(type(holder), "__getattr__", _nothing)
        monkeypatch.delattr(holder, last, raising=False)
    else:
        monkeypatch.delattr(_owner(holder, last), last)
    assert refused() == name


def _owner(holder: Any, name: str) -> Any:
    """The object that has the attribute: a class, say, of which it is inherited."""
    places = (holder, *getattr(holder, "__mro__", ()), *type(holder).__mro__)
    return next(place for place in places if name in getattr(place, "__dict__", {}))


def _nothing(holder: object, name: str) -> Any:
    raise AttributeError(name)


@pytest.mark.parametrize("name", _OF_DDP)
def test_what_a_model_no_longer_has_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in list(vars(DistributedDataParallel).items()):
        method = inspect.unwrap(value) if callable(value) else None
        if name in getattr(getattr(method, "__code__", None), "co_names", ()):
            monkeypatch.delattr(DistributedDataParallel, key)
    assert refused() == f"torch.nn.parallel.DistributedDataParallel.{name}"


def test_arguments_that_are_gone_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(torch.library.Library, "impl", lambda library, name, function: None)
        assert refused() == "torch.library.Library.impl(with_keyset=)"
    # What somebody else has put around it does not hide them.
    construct = DistributedDataParallel.__init__

    def around(ddp: Any, *args: Any, **kwargs: Any) -> None:
        construct(ddp, *args, **kwargs)

    monkeypatch.setattr(DistributedDataParallel, "__init__", around)
    assert refused() == "torch.nn.parallel.DistributedDataParallel(broadcast_buffers=)"
    around.__wrapped__ = construct  # type: ignore[attr-defined]
    check_hooks()


def test_a_build_without_distributed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    assert refused() == "torch.distributed"


def without_a_function() -> None:
    del torch.distributed.distributed_c10d._new_group_with_tag


def without_a_members_type() -> None:
    del torch.distributed.ReduceOp.RedOpType


@pytest.mark.parametrize(
    ("hook", "holder", "torn_out"),
    [
        ("_new_group_with_tag", "torch.distributed.distributed_c10d", without_a_function),
        ("RedOpType", "torch.distributed.ReduceOp", without_a_members_type),
    ],
)
def test_a_run_says_it_in_one_sentence(
    tmp_path: Path, hook: str, holder: str, torn_out: Callable[[], None]
) -> None:
    script = tmp_path / "program.py"
    script.write_text("")
    done = warm_command("--nproc", "2", "--", str(script), prepare=torn_out)
    said, verdict = done.stderr.splitlines()
    missing = f"torch {torch.__version__} has no {holder}.{hook}"
    assert said[len("rank 0") :] == f": {missing}: lockstep can't see its collectives (2.13 has it)"
    assert (done.returncode, done.stdout) == (4, "")
    assert verdict.startswith("inconclusive: rank ")


_ALIASES = {
    "c10d": "torch.distributed.distributed_c10d",
    "device_mesh": "torch.distributed.device_mesh",
    "dist": "torch.distributed",
    "torch": "torch",
}
_PRIVATE = re.compile(r"(?<![\w.])(torch|dist|c10d|device_mesh)((?:\.\w+)*\._[a-zA-Z]\w*(?:\.\w+)*)")
# Asked for with a default, modules of torch's own that are only named, or for those who compile the kernel.
_DISPENSABLE = {
    "torch.autograd.graph._engine_run_backward",
    "torch._ops.__file__",
    "torch._C._GLIBCXX_USE_CXX11_ABI",
    "torch._dynamo",
    "torch._functorch.aot_autograd",
    "torch._inductor.compile_fx",
}


def test_no_private_name_of_torchs_is_used_unchecked() -> None:
    used: dict[str, str] = {}
    for path in sorted((SRC / "esper" / "lockstep").rglob("*.py")):
        if path.name == "hooks.py":
            continue
        for alias, rest in _PRIVATE.findall(path.read_text()):
            used[_ALIASES[alias] + rest] = path.name
    assert len(used) > 8
    unchecked = {
        name: file
        for name, file in used.items()
        if name not in _DISPENSABLE
        and not any(known == name or known.startswith(f"{name}.") for known in _NAMES)
    }
    assert unchecked == {}

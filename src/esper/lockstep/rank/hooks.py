"""What lockstep needs of a build of torch that torch does not promise to keep."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

from esper.lockstep.errors import InterceptionUnavailable

# Dotted names, from the package on. What is public and documented is not among them.
_NAMES = (
    "torch._C.DispatchKey.BackendSelect",
    "torch._C._dispatch_keyset_full_after",
    "torch._C._jit_get_all_schemas",
    "torch._C._collect_all",
    "torch._C._nn.flatten_dense_tensors",
    "torch._C.Future.then",
    "torch._C.Future.wait",
    "torch._C._distributed_c10d.Work.boxed",
    "torch._C._distributed_c10d.Work.unbox",
    "torch._C._distributed_c10d._create_work_from_future",
    "torch._ops.OpOverload.redispatch",
    "torch.library.Library._destroy",
    "torch.library.Library.impl",
    "torch.utils._python_dispatch.is_traceable_wrapper_subclass",
    "torch.distributed.ProcessGroup.group_name",
    "torch.distributed.ProcessGroup.unbox",
    "torch.distributed.ReduceOp.RedOpType",
    "torch.distributed.Work.get_future",
    "torch.distributed.Work.is_completed",
    "torch.distributed.Work.wait",
    "torch.distributed.device_mesh.init_process_group",
    "torch.distributed.distributed_c10d._get_default_store",
    "torch.distributed.distributed_c10d._new_group_with_tag",
    "torch.distributed.distributed_c10d._world",
    "torch.distributed.distributed_c10d._world.pg_map",
    "torch.distributed.distributed_c10d.destroy_process_group",
    "torch.distributed.distributed_c10d.init_process_group",
    "torch.distributed.get_process_group_ranks",
    "torch.ops.c10d.allreduce_",
)
# What a DDP model has: without them a model would be taken for one without a hook, say, and accused.
_OF_DDP = ("_comm_hooks", "parameters_to_ignore", "process_group", "require_backward_grad_sync")


def check_hooks() -> None:
    """Raises InterceptionUnavailable naming the first hook that this build of torch lacks."""
    import torch

    for missing in _missing():
        raise InterceptionUnavailable(missing, torch.__version__)


def _missing() -> Iterator[str]:
    import torch
    import torch.distributed as dist

    if not dist.is_available():
        yield "torch.distributed"
        return
    import torch.distributed.device_mesh
    import torch.nn.parallel
    import torch.utils._python_dispatch

    for name in _NAMES:
        holder: Any = torch
        for part in name.split(".")[1:]:
            if not hasattr(holder, part):
                yield name
                break
            holder = getattr(holder, part)
    wrapper = torch.nn.parallel.DistributedDataParallel
    known = {name for code in _codes(wrapper) for name in code.co_names}
    for part in _OF_DDP:
        if part not in known:
            yield f"torch.nn.parallel.DistributedDataParallel.{part}"
    arguments = inspect.signature(wrapper.__init__).parameters
    if not {"forward_sync_buffers", "broadcast_buffers"} & arguments.keys():
        yield "torch.nn.parallel.DistributedDataParallel(broadcast_buffers=)"
    if "with_keyset" not in inspect.signature(torch.library.Library.impl).parameters:
        yield "torch.library.Library.impl(with_keyset=)"


def _codes(cls: type) -> Iterator[CodeType]:
    """Of all methods; somebody else may have put something around one of them."""
    for value in vars(cls).values():
        if isinstance(method := inspect.unwrap(value) if callable(value) else value, FunctionType):
            yield method.__code__

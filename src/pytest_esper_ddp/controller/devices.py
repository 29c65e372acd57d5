"""Which backend a world gets on this machine; counted without torch, which would initialise CUDA in this
process.
"""

from __future__ import annotations

import os
from pathlib import Path

from pytest_esper_ddp.errors import HarnessError


def gpu_count(devices: Path = Path("/dev"), visible: str | None = None) -> int:
    """How many NVIDIA GPUs the ranks will see; `visible` as CUDA_VISIBLE_DEVICES has it, None: from the
    environment.
    """
    present = len([path for path in devices.glob("nvidia*") if path.name.removeprefix("nvidia").isdigit()])
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES") if visible is None else visible
    if chosen is None:
        return present
    return min(present, len([part for part in chosen.split(",") if part.strip() not in ("", "-1")]))


def backend_for(name: str, world_size: int, gpus: int) -> str:
    """The backend's own name: `auto` is nccl where each rank gets a GPU of its own, gloo otherwise.

    Raises HarnessError for nccl with fewer GPUs than ranks, which it refuses only when the first collective
    runs.
    """
    if name == "auto":
        return "nccl" if gpus >= world_size else "gloo"
    if name == "nccl" and gpus < world_size:
        raise HarnessError(
            f"backend nccl at world size {world_size} needs {world_size} GPUs, one a rank; found {gpus}: "
            "give --ddp-backend=gloo, or a smaller world size"
        )
    return name

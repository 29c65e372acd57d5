"""Alone on NCCL: what is recorded of calls for which a stream waits, while the program goes on."""

import sys
import tempfile

import torch
import torch.distributed as dist

from tests.esper.lockstep.recording import recorded

CYCLES = 2_000_000_000  # about a second of the GPU's


def main() -> None:
    torch.cuda.set_device(0)
    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(f"{folder}/store", 1)  # type: ignore[attr-defined]
        dist.init_process_group("nccl", store=store, rank=0, world_size=1, device_id=torch.device("cuda:0"))
        x = torch.ones(8, device="cuda")
        dist.all_reduce(x)
        torch.cuda.synchronize()
        with recorded() as recording:
            torch.cuda._sleep(CYCLES)  # type: ignore[no-untyped-call]
            dist.all_reduce(x)
            dist.all_reduce(x, async_op=True).wait()
            on_stream = recording.calls()
            dist.all_reduce(x, async_op=True)
            dist.barrier()
            asynchronous, barrier = recording.calls()
        torch.cuda.synchronize()
        dist.destroy_process_group()
    for call in on_stream:
        assert call.waited(), call  # nothing behind it runs before it is done
        assert not call.blocks(), call
    assert not asynchronous.waited()
    assert not barrier.blocks()
    sys.stdout.write("done\n")


if __name__ == "__main__":
    main()

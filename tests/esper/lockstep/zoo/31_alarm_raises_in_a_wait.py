"""An alarm's handler raises out of a polled wait; the rank gives that group up for now and asks on another
one: an exception inside a collective, on one rank only, and no fault.
"""
# ranks: 2, patience: 20

import signal
import time
from contextlib import suppress
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
first, second = dist.new_group([0, 1]), dist.new_group([0, 1])


class TooLong(Exception):
    """Raised by the alarm."""


def give_up(number: int, frame: FrameType | None) -> None:
    raise TooLong


value, answer = torch.ones(1), torch.zeros(1)
if rank == 0:
    signal.signal(signal.SIGALRM, give_up)
    work = dist.all_reduce(value, group=first, async_op=True)
    assert work is not None
    signal.setitimer(signal.ITIMER_REAL, 0.4)
    try:
        while not work.is_completed():
            with suppress(RuntimeError):
                work.wait(timedelta(milliseconds=20))
        raise AssertionError("the other rank comes later")
    except TooLong:
        answer[0] = 5.0
    dist.broadcast(answer, src=0, group=second)
    dist.barrier()
    while not work.is_completed():
        time.sleep(0.01)
else:
    dist.broadcast(answer, src=0, group=second)
    dist.barrier()
    dist.all_reduce(value, group=first)
assert (value.item(), answer.item()) == (2.0, 5.0)
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)

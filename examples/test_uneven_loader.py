"""One rank's loader yields a batch less than it announced.

That rank goes on to the epoch's end while the others wait in the backward pass for its gradients: each waits
for the other, in different groups, for ever.
"""

from __future__ import annotations

import pytest

from examples.growing import EAGER, trainer
from pytest_esper_ddp.handle import DDP


@pytest.mark.ddp
@pytest.mark.ddp_fault(
    "uneven_loader", rank=1, epoch=2, target="esper.training.tasks.task:ShardedTask.train_batches"
)
@pytest.mark.ddp_expect("wait_cycle", guilty=[1], within=1.0)
def test_uneven_loader(ddp: DDP) -> None:
    with trainer(ddp, EAGER) as run:
        run.run()

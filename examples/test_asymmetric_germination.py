"""One rank germinates a seed that the others do not."""

from __future__ import annotations

import pytest

from esper.errors import LifecycleDivergence
from esper.lifecycle import Stage
from examples.growing import HOST_ALONE, trainer
from pytest_esper_ddp.handle import DDP


@pytest.mark.ddp
@pytest.mark.ddp_fault("germinate_alone", rank=2, epoch=2, slot="r0c1")
@pytest.mark.ddp_expect("lifecycle", guilty=[2], field="stage of r0c1", raises=LifecycleDivergence)
def test_asymmetric_germination(ddp: DDP) -> None:
    with trainer(ddp, HOST_ALONE) as run:
        try:
            run.run()
        except LifecycleDivergence:
            # In the same epoch, and nothing was applied anywhere else.
            assert len(run.history.epochs) == 1
            stages = [record.stage for record in run.model.records()]
            assert stages == [Stage.DORMANT, Stage.GERMINATED if ddp.rank == 2 else Stage.DORMANT]
            raise


@pytest.mark.ddp
@pytest.mark.ddp_fault("germinate_alone", rank=2, epoch=2, slot="r0c1", decided=True)
@pytest.mark.ddp_expect("lifecycle", guilty=[2], field="exchange", raises=LifecycleDivergence)
def test_asymmetric_decision(ddp: DDP) -> None:
    # It wants the others to confirm the germination; they are in the exchange before the next epoch's first
    # step, where all read what each is doing.
    with trainer(ddp, HOST_ALONE) as run:
        try:
            run.run()
        except LifecycleDivergence:
            assert {record.stage for record in run.model.records()} == {Stage.DORMANT}
            raise

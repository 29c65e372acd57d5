"""One rank leaves the epoch's exchange out and goes on alone.

Named from outside at once; and with lockstep only watching by the program itself, which finds that rank in
the next exchange. A rank that comes to none is named at the program's own deadline, with monitored_barrier's
diagnostic on every rank instead of a hang of half an hour.
"""

from __future__ import annotations

import pytest

from esper.errors import AgreementDeadline, LifecycleDivergence
from examples.growing import DEADLINE, EAGER, HOST_ALONE, trainer
from pytest_esper_ddp.handle import DDP


@pytest.mark.ddp
@pytest.mark.ddp_fault("skip_agreement", rank=2, epoch=3)
@pytest.mark.ddp_expect("mismatch", guilty=[2], op="all_to_all", tag="agreement", within=1.0)
def test_skipped_agreement(ddp: DDP) -> None:
    # It decides alone, and so is in the exchange that precedes a change of the model: the same operation, of
    # the same size, in the same group. Only the tag tells them apart.
    with trainer(ddp, EAGER) as run:
        run.run()


@pytest.mark.ddp
@pytest.mark.ddp_fault("skip_agreement", rank=2, epoch=2)
@pytest.mark.ddp_expect("mismatch", guilty=[2], op="all_to_all", tag="agreement", within=1.0)
def test_skipped_agreement_at_the_end(ddp: DDP) -> None:
    # It decides nothing, and is in the exchange that follows the last epoch.
    with trainer(ddp, {**HOST_ALONE, "epochs": 2}) as run:
        run.run()


@pytest.mark.ddp
@pytest.mark.ddp_fault("skip_agreement", rank=2, epoch=2)
@pytest.mark.ddp_expect("lifecycle", guilty=[2], field="exchange", raises=LifecycleDivergence)
def test_skipped_agreement_unobserved(ddp: DDP) -> None:
    with trainer(ddp, HOST_ALONE) as run:
        run.run()


@pytest.mark.ddp(lockstep="observe")
@pytest.mark.ddp_fault("sleep", rank=2, op="all_to_all", tag="agreement", nth=3, seconds=20)
@pytest.mark.ddp_expect("monitored_barrier", guilty=[2], raises=AgreementDeadline, within=DEADLINE + 0.5)
def test_missing_at_the_agreement(ddp: DDP) -> None:
    with trainer(ddp, HOST_ALONE) as run:
        run.run()

"""One rank does not ask a gate.

The earlier system asked each gate with an all_reduce of its own: a rank that skipped it left the others
hanging, or paired their vote with its next gradient. Here gates are asked locally, on agreed numbers, and
what each rank found is compared before anything is applied.
"""

from __future__ import annotations

import pytest

from esper.errors import LifecycleDivergence
from esper.lifecycle import Stage
from examples.growing import EAGER, trainer
from pytest_esper_ddp.handle import DDP


@pytest.mark.ddp
@pytest.mark.ddp_fault("skip_gate", rank=1)
@pytest.mark.ddp_expect("lifecycle", guilty=[1], field="gate", raises=LifecycleDivergence)
def test_skipped_gate(ddp: DDP) -> None:
    with trainer(ddp, EAGER) as run:
        try:
            run.run()
        except LifecycleDivergence:
            # It was found before it was applied, on the rank that skipped the gate too.
            assert [record.stage for record in run.model.records()] == [Stage.GERMINATED, Stage.DORMANT]
            raise

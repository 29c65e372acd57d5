"""How a fault is written in the summary."""

from __future__ import annotations

import pytest

from pytest_esper_ddp.scenario import Fault


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (Fault(kind="kill", rank=3), "kill on rank 3"),
        (Fault(kind="skip", rank=2, op="all_reduce", nth=3), "skip on rank 2 (op all_reduce, nth 3)"),
        (Fault(kind="skip", rank=0, tag="gate:r0c1"), "skip on rank 0 (tag gate:r0c1)"),
        (
            Fault(kind="skip_gate", rank=1, epoch=0, step=4, slot="r0c0"),
            "skip_gate on rank 1 (epoch 0, step 4, slot r0c0)",
        ),
        (
            Fault(kind="uneven_loader", rank=1, target="package.module:Loader.__iter__"),
            "uneven_loader on rank 1 (Loader.__iter__)",
        ),
        (Fault(kind="sleep", rank=1, arguments={"seconds": 2}), "sleep on rank 1 (seconds 2)"),
        (
            Fault(kind="germinate_alone", rank=1, epoch=2, arguments={"decided": True}),
            "germinate_alone on rank 1 (epoch 2, decided)",
        ),
    ],
)
def test_a_fault_names_its_place(fault: Fault, text: str) -> None:
    assert str(fault) == text

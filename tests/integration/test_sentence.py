"""A rank does not come, and lockstep's sentence is in the error that the program raises for itself."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch.distributed as dist

from esper.distributed import Agreement, AgreementConfig, deadline
from esper.errors import AgreementDeadline
from pytest_esper_ddp.handle import DDP
from tests.esper.distributed.records import agreement_record
from tests.esper.lockstep.launching import launch

ROOT = Path(__file__).parents[2]
DEADLINE = 1.0
# What is waited for with a bound of its own comes after that on a machine with too few processors.
LONG = 30.0
BODY = f"""
    sys.path.insert(0, {str(ROOT)!r})
    from pathlib import Path
    from esper.distributed import deadline
    from esper.distributed import Agreement, AgreementConfig
    from tests.esper.distributed.records import agreement_record

    deadline.ANSWER = deadline.REPORT = {LONG}
    agreement = Agreement(dist.group.WORLD, AgreementConfig(deadline={DEADLINE}))
    agreement.exchange(agreement_record())
    raised = Path(sys.argv[1])
    while rank == 1 and len(list(raised.glob("*"))) < 2:
        time.sleep(0.01)
    try:
        agreement.exchange(agreement_record())
    except Exception as error:
        (raised / str(rank)).write_text(str(error))
    dist.barrier()
"""


@pytest.mark.ddp(4, lockstep="observe")
def test_under_the_plugin(ddp: DDP, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline, "ANSWER", LONG)
    monkeypatch.setattr(deadline, "REPORT", LONG)

    def stays_away() -> None:
        while len(list(ddp.shared_path.glob("raised-*"))) < 3:
            time.sleep(0.01)

    with Agreement(dist.group.WORLD, AgreementConfig(deadline=DEADLINE)) as agreement:
        agreement.exchange(agreement_record())
        if ddp.rank == 2:
            stays_away()
        with pytest.raises(AgreementDeadline) as raised:
            agreement.exchange(agreement_record())
        (ddp.shared_path / f"raised-{ddp.rank}").touch()
    ddp.assert_same(str(raised.value))
    said, barrier, late, waiting, where, *_ = str(raised.value).splitlines()
    assert said == "the agreement of epoch 7 was called off after 1 s: rank 2 of 4 did not come"
    assert barrier.startswith("monitored_barrier: ")
    assert late.startswith("lockstep: rank 2 is late for all_to_all #2 of group ")
    assert waiting.startswith("  ranks 0, 1, 3 wait in all_to_all #2 of group ")
    assert "test_sentence.py:" in waiting
    assert where.startswith("  rank 2 is ")
    assert "test_sentence.py:" in where
    assert where.endswith("  stays_away")


def test_under_run(tmp_path: Path) -> None:
    raised = tmp_path / "raised"
    raised.mkdir()
    outcome = launch(tmp_path, BODY, str(raised), nproc=3)
    texts = {path.name: path.read_text() for path in raised.iterdir()}
    assert sorted(texts) == ["0", "1", "2"], outcome.text
    assert len(set(texts.values())) == 1
    assert "\nlockstep: rank 1 is late for all_to_all #2 of group " in texts["0"]
    assert "\n  rank 1 is " in texts["0"]
    assert outcome.verdict == "clean"

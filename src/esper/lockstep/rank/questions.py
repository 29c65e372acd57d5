"""A rank asks its supervisor by a record in its ledger, which is read there as any other."""

from __future__ import annotations

import time

from esper.lockstep.asking import Answer, Asker
from esper.lockstep.rank.recorder import Recorder
from esper.lockstep.record.answers import read_answer
from esper.lockstep.record.entry import Kind

_POLL = 0.005


def asker_of(recorder: Recorder) -> Asker:
    """Asks who reads this recorder's ledger."""
    ledger = recorder.ledger

    def ask(patience: float) -> Answer:
        number = recorder.event(Kind.QUESTION, patience=patience)

        def answer(within: float) -> str | None:
            until = time.monotonic() + within
            while number is not None:
                text = read_answer(ledger.path.parent, ledger.rank, number)
                if text is not None:
                    return text or None
                if time.monotonic() >= until:
                    break
                time.sleep(_POLL)
            return None

        return answer

    return ask

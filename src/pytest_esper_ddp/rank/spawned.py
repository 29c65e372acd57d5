"""A rank that is no fork: a new process that loads torch, collects the tests, and then is the rank itself.

Started as `python -m pytest_esper_ddp.rank.spawned SOCKET PARENT`, for tests whose modules start threads or
CUDA when they are imported, which a fork would lack, and wherever `--ddp-start=spawn` asks for it.
"""

from __future__ import annotations

from typing import NoReturn

import pytest

from pytest_esper_ddp.rank.collecting import Collecting, run
from pytest_esper_ddp.wire.channel import receive
from pytest_esper_ddp.wire.messages import BecomeRank


class Spawned(Collecting):
    """The plugin that takes the run loop over."""

    def go_on(self, session: pytest.Session, items: dict[str, pytest.Item]) -> NoReturn:
        """Be the rank that the controller has in mind."""
        order: BecomeRank = receive(self.channel)
        from pytest_esper_ddp.rank.worker import be_rank

        be_rank(session, items, self.channel, order.rank, order.world)


if __name__ == "__main__":
    run(Spawned)

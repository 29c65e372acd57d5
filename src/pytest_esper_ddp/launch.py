"""Whether torchrun has launched this process, and as which of its ranks: pure, the same in every process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest

# Gone once it has been read: a pytest that a test starts has not been launched.
SIGN = "TORCHELASTIC_RUN_ID"


@dataclass(frozen=True)
class Place:
    """This process among those that were launched together."""

    rank: int
    world_size: int
    host: str  # of the launcher's store
    port: int
    serves: bool  # whether rank 0 has to be that store
    attempt: str  # no other launch and no other attempt of this one has it

    @property
    def store_is_here(self) -> bool:
        """Whether this process is the one to open the store."""
        return self.serves and self.rank == 0


# Of the process that reports.
PLACE = pytest.StashKey[Place]()


def place_of(environment: Mapping[str, str]) -> Place | None:
    """None where there is no launcher, or no other rank. Raises pytest.UsageError for ranks on several
    machines, whose records nothing could read together.
    """
    if SIGN not in environment or int(environment.get("WORLD_SIZE", "1")) < 2:
        return None
    size = int(environment["WORLD_SIZE"])
    if (local := int(environment.get("LOCAL_WORLD_SIZE", size))) != size:
        raise pytest.UsageError(
            f"torchrun has launched {local} of {size} ranks on this machine: tests on ranks need all of them "
            "on one, like --nproc-per-node=4 without --nnodes"
        )
    attempt = f"{environment[SIGN]}/{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    return Place(
        rank=int(environment["RANK"]),
        world_size=size,
        host=environment["MASTER_ADDR"],
        port=int(environment["MASTER_PORT"]),
        serves=environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
        attempt=attempt,
    )

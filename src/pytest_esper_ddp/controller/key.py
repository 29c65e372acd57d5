"""Which tests may share ranks."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_esper_ddp.controller.devices import backend_for, gpu_count
from pytest_esper_ddp.scenario import Scenario


@dataclass(frozen=True)
class WorldKey:
    """What two tests must have in common to share a world."""

    world_size: int
    backend: str
    init: bool
    lockstep: bool
    once: bool  # never shared: each of its tests gets new ranks
    start: str  # fork or spawn

    @classmethod
    def of(cls, scenario: Scenario, start: str) -> WorldKey:
        """Raises HarnessError when this machine has no such backend for that many ranks."""
        gpus = 0 if scenario.backend == "gloo" else gpu_count()  # which looks through /dev: 0.1 ms a test
        backend = backend_for(scenario.backend, scenario.world_size, gpus)
        once = scenario.isolation == "fresh" or not scenario.init
        return cls(scenario.world_size, backend, scenario.init, scenario.lockstep != "off", once, start)

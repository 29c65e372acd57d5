"""A controller that never does anything: what the host alone comes to."""

from esper.control.actions import Decision
from esper.control.signals import EpochSignals


class IdleController:
    """Waits in every epoch."""

    def decide(self, signals: EpochSignals) -> Decision:
        """Nothing."""
        return Decision()

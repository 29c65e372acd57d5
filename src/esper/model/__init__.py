"""The growing network: hosts, slots, seeds. Modules do maths; nothing here communicates or decides."""

from esper.model.blueprints import blueprint, blueprint_names, build
from esper.model.fingerprint import fingerprint
from esper.model.gradients import gradient_stats
from esper.model.grown import GrownModel
from esper.model.host import CnnHost, Host, SlotPoint, Visit
from esper.model.slot import SeedSlot

__all__ = [
    "CnnHost",
    "GrownModel",
    "Host",
    "SeedSlot",
    "SlotPoint",
    "Visit",
    "blueprint",
    "blueprint_names",
    "build",
    "fingerprint",
    "gradient_stats",
]

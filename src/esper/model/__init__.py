"""The growing network: hosts, slots, seeds. Modules do maths; nothing here communicates or decides."""

from esper.model.adapter import ModuleHost
from esper.model.blueprints import blueprint, blueprint_names, build, parameter_count
from esper.model.counterfactual import all_off, leave_one_out, pairs_off
from esper.model.fingerprint import fingerprint
from esper.model.gpt import GptHost
from esper.model.gradients import gradient_stats
from esper.model.grown import GrownModel
from esper.model.host import CnnHost, Host, SlotPoint, Visit
from esper.model.slot import SeedSlot

__all__ = [
    "CnnHost",
    "GptHost",
    "GrownModel",
    "Host",
    "ModuleHost",
    "SeedSlot",
    "SlotPoint",
    "Visit",
    "all_off",
    "blueprint",
    "blueprint_names",
    "build",
    "fingerprint",
    "gradient_stats",
    "leave_one_out",
    "pairs_off",
    "parameter_count",
]

"""Controllers: what to do with the slots, decided alike on every rank. Does not import torch."""

from esper.control.actions import Action, Advance, Decision, Germinate, Prune, SetAlpha
from esper.control.governor import Alarm, Governor, GovernorConfig
from esper.control.heuristic import HeuristicConfig, HeuristicController
from esper.control.idle import IdleController
from esper.control.names import ControllerName
from esper.control.random import RandomConfig, RandomController
from esper.control.signals import EpochSignals, SlotView, gate_for

__all__ = [
    "Action",
    "Advance",
    "Alarm",
    "ControllerName",
    "Decision",
    "EpochSignals",
    "Germinate",
    "Governor",
    "GovernorConfig",
    "HeuristicConfig",
    "HeuristicController",
    "IdleController",
    "Prune",
    "RandomConfig",
    "RandomController",
    "SetAlpha",
    "SlotView",
    "gate_for",
]

"""The life of a seed, in pure Python: stages, gates, alpha, and what ranks compare. Does not import torch."""

from esper.lifecycle.alpha import AlphaController, AlphaCurve, AlphaMode, curve_value
from esper.lifecycle.config import Blend, SlotConfig
from esper.lifecycle.gates import GATES, GateCheck, GateConfig, GateVerdict, evaluate_gate
from esper.lifecycle.metrics import (
    GradientStats,
    GradientTrend,
    MetricSums,
    SlotMeasurement,
    SlotMetrics,
    mean_measurement,
)
from esper.lifecycle.record import SlotRecord
from esper.lifecycle.stage import TRANSITIONS, Stage, can_move, has_seed, in_cooldown, in_forward, next_stage
from esper.lifecycle.state import SlotState

__all__ = [
    "GATES",
    "TRANSITIONS",
    "AlphaController",
    "AlphaCurve",
    "AlphaMode",
    "Blend",
    "GateCheck",
    "GateConfig",
    "GateVerdict",
    "GradientStats",
    "GradientTrend",
    "MetricSums",
    "SlotConfig",
    "SlotMeasurement",
    "SlotMetrics",
    "SlotRecord",
    "SlotState",
    "Stage",
    "can_move",
    "curve_value",
    "evaluate_gate",
    "has_seed",
    "in_cooldown",
    "in_forward",
    "mean_measurement",
    "next_stage",
]

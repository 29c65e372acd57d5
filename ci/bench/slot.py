"""What slots cost: a training step with and without them, a germination, a tick, a leave-one-out.

    .venv/bin/python ci/bench/slot.py [--sittings N] [--rounds N] [--only eager|compiled|rest] [--json FILE]

What is compared runs in turn, a step each, so that the machine's drift meets both, and in several sittings,
for each of which everything is made and compiled anew: two of one network, the very same kernels, differed
by 2 % for as long as they lived, by where their tensors happened to lie. A ratio is the median
over the sittings of the median over a sitting's rounds, with the range that holds it with 95 % (order
statistics over the sittings), by the wall clock and by the calling thread's CPU time. The limits are held
against the steadier of both, the CPU time: on a machine with other work the wall clock measures that, too. A
network against its twin says how far to trust the rest.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from esper.lifecycle import AlphaCurve, SlotConfig, Stage
from esper.model import CnnHost, GrownModel, SlotPoint, Visit, blueprint_names, build, leave_one_out
from esper.model.counterfactual import Variant
from esper.training import CompileConfig, StepCompiler

BLUEPRINT = "conv_light"
CLOCKS = {"wall clock": time.perf_counter, "CPU of the calling thread": time.thread_time}
JUDGE = "CPU of the calling thread"
SETTLING = 4  # rounds of a sitting before the first that counts
SLOTS = 1000
Pair = tuple[str, str]
Sides = tuple[list[float], list[float]]
Times = dict[str, dict[Pair, list[Sides]]]  # by clock and pair, one a sitting
PAIRS = (
    ("twin", "host"),  # the host twice: what this machine cannot tell apart
    ("dormant", "host"),
    ("hand twin", "by hand"),
    ("fossilized", "by hand"),
)
SHOWN = (("training", "host"), ("blending", "host"), ("fossilized", "host"))  # without a limit
LIMITS = {("dormant", "host"): 1.01, ("fossilized", "by hand"): 1.02}
TOGETHER = ("together", "one by one")
Step = Callable[[], object]


class ByHand(nn.Module):
    """The host with a seed mixed in after each block, as one would write it without slots."""

    def __init__(self, host: CnnHost, seeds: list[nn.Module]) -> None:
        super().__init__()
        self.host, self.seeds = host, nn.ModuleList(seeds)
        self.register_buffer("alpha", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, H, W) to logits (N, classes)."""
        h = x
        for index, seed in enumerate(self.seeds):
            h = self.host.segment(index, h)
            h = torch.lerp(h, seed(h), self.get_buffer("alpha"))
        return self.host.segment(len(self.seeds), h)


class Wide(nn.Module):
    """As many slot points as one likes, and nothing between them."""

    topology = "cnn"

    def slot_points(self) -> tuple[SlotPoint, ...]:
        """`SLOTS` of them."""
        return tuple(SlotPoint(f"r0c{index}", 1) for index in range(SLOTS))

    def forward(self, x: Tensor, visit: Visit | None = None) -> Tensor:
        """Features (N, 1, H, W) to themselves."""
        return x


def new_host() -> CnnHost:
    torch.manual_seed(0)
    return CnnHost(width=16, blocks=3)


def seed_for(channels: int) -> nn.Module:
    return build("cnn", BLUEPRINT, channels, torch.Generator().manual_seed(1))


def grown(stage: Stage) -> GrownModel:
    """The host with each of its slots in this stage."""
    model = GrownModel(new_host(), SlotConfig(tempo=8))
    for slot_id in model.slot_ids:
        slot = model.slots[slot_id]
        if stage is Stage.DORMANT:
            continue
        slot.commit(BLUEPRINT, seed_for(slot.channels))
        while slot.stage is not stage:
            slot.advance()
            for _ in range(4 if stage is Stage.BLENDING else 8):
                slot.tick()
    return model


def networks(compiled: bool, names: Iterable[str]) -> dict[str, nn.Module]:
    """What is compared, by name."""
    stages = (Stage.DORMANT, Stage.TRAINING, Stage.BLENDING, Stage.FOSSILIZED)
    models = {stage.name.lower(): grown(stage) for stage in stages}
    # Of the very same weights: where others lie in memory is worth a percent or two.
    host, fossils = models["dormant"].host, models["fossilized"]
    assert isinstance(host, CnnHost)
    assert isinstance(fossils.host, CnnHost)
    seeds = [slot.seed for slot in (fossils.slots[slot_id] for slot_id in fossils.slot_ids) if slot.seed]
    by_hand = ByHand(fossils.host, seeds)
    plain = {"host": host, "twin": host, "by hand": by_hand, "hand twin": by_hand}
    if not compiled:
        return {name: plain[name] if name in plain else models[name] for name in names}
    # Each of them by a callable of its own, as a trainer has it.
    return {
        name: hand_compiled(plain[name]) if name in plain else step_compiled(models[name]) for name in names
    }


def step_compiled(model: GrownModel) -> nn.Module:
    """As a trainer compiles it."""
    return StepCompiler(CompileConfig(enabled=True, dynamic=False)).wrap(model)


def hand_compiled(module: nn.Module) -> nn.Module:
    """As one compiles a network of one's own."""

    def step(x: Tensor) -> Tensor:
        logits: Tensor = module(x)
        return logits

    step.__code__ = step.__code__.replace(co_name=f"step_{uuid.uuid4().hex}")
    holder = nn.Module()
    holder.module = module
    holder.forward = torch.compile(step, fullgraph=True)
    return holder


def training_step(module: nn.Module) -> Step:
    """Forward and backward pass over one batch of pictures as large as digits."""
    drawn = torch.Generator().manual_seed(2)
    x = torch.randn(64, 1, 8, 8, generator=drawn)
    y = torch.randint(0, 10, (64,), generator=drawn)
    module.train()
    parameters = list(module.parameters())

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        torch.autograd.backward(functional.cross_entropy(module(x), y))

    return step


def in_pairs(steps: Mapping[str, Step], pairs: Mapping[Pair, int], times: Times) -> None:
    """Add one sitting to `times`: seconds of a step of each side of each pair, as many rounds as it says.

    A round runs ABBA or BAAB: what follows what is the same for both, and so is an even drift.
    """
    gc.collect()
    gc.disable()
    for pair, rounds in pairs.items():
        found: dict[str, Sides] = {clock: ([], []) for clock in CLOCKS}
        for count in range(SETTLING + rounds):
            spent = {clock: [0.0, 0.0] for clock in CLOCKS}
            for side in (0, 1, 1, 0) if count % 2 else (1, 0, 0, 1):
                step = steps[pair[side]]
                begun = [read() for read in CLOCKS.values()]
                step()
                for (clock, read), before in zip(CLOCKS.items(), begun, strict=True):
                    spent[clock][side] += (read() - before) / 2
            if count >= SETTLING:
                for clock, sides in spent.items():
                    for side in (0, 1):
                        found[clock][side].append(sides[side])
        for clock, both in found.items():
            times.setdefault(clock, {}).setdefault(pair, []).append(both)
    gc.enable()


def sittings(compiled: bool, count: int, rounds: int) -> Times:
    """Training steps of all pairs, by `count` generations of networks."""
    times: Times = {}
    for index in range(count):
        pairs = dict.fromkeys(PAIRS, rounds)
        if index == 0:
            pairs |= dict.fromkeys(SHOWN, rounds)
        names = sorted({name for pair in pairs for name in pair})
        made = networks(compiled, names)
        steps = {name: training_step(module) for name, module in made.items()}
        in_pairs(steps, pairs, times)
        torch._dynamo.reset()
    return times


def ratio(times: Times, clock: str, pair: Pair) -> dict[str, float]:
    """Median of the sittings' ratios of the first side to the second, and the range that holds it."""
    ratios = sorted(
        statistics.median(one / other for one, other in zip(*sitting, strict=True))
        for sitting in times[clock][pair]
    )
    cut = trimmed(len(ratios))
    return {"ratio": statistics.median(ratios), "least": ratios[cut], "most": ratios[-1 - cut]}


def trimmed(count: int) -> int:
    """How many of `count` sorted values each end of a range that holds the median with 95 % may leave out."""
    tail, cut = 0.5**count, 0
    while tail + math.comb(count, cut + 1) * 0.5**count <= 0.025:
        cut += 1
        tail += math.comb(count, cut) * 0.5**count
    return cut


def report(what: str, times: Times) -> dict[str, dict[str, float]]:
    """Print one comparison, and return it."""
    result = {}
    for clock, pairs in times.items():
        print(f"{what}, {clock}")
        for pair, found in pairs.items():
            medians = [1e6 * statistics.median(v for both in found for v in both[side]) for side in (0, 1)]
            figures = ratio(times, clock, pair)
            result[f"{clock}, {pair[0]} / {pair[1]}"] = {"us": medians[0], "other_us": medians[1], **figures}
            print(
                f"  {pair[0]:>11} / {pair[1]:11}{medians[0]:9.0f} us /{medians[1]:7.0f} us   ratio"
                f" {figures['ratio']:.4f} ({figures['least']:.4f} to {figures['most']:.4f})"
            )
    return result


def germinations(rounds: int) -> dict[str, float]:
    """Median seconds, by blueprint, of putting a seed into a slot of 64 channels."""
    found: dict[str, list[float]] = {name: [] for name in blueprint_names("cnn")}
    slots = GrownModel(CnnHost(width=64, blocks=1)).slots
    generator = torch.Generator().manual_seed(0)
    for _ in range(rounds):
        for name, seconds in found.items():
            slot = slots["r0c0"]
            begun = CLOCKS[JUDGE]()
            slot.commit(name, slot.prepare(name, generator))
            seconds.append(CLOCKS[JUDGE]() - begun)
            slot.prune(0)
            while slot.stage is not Stage.DORMANT:
                slot.tick()
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def ticks(rounds: int) -> dict[str, float]:
    """Median seconds of a tick of a thousand slots: all empty, and all on a ramp."""
    empty = GrownModel(Wide())
    ramping = GrownModel(Wide(), SlotConfig(curve=AlphaCurve.SIGMOID, tempo=2 * rounds))
    generator = torch.Generator().manual_seed(0)
    for slot_id in ramping.slot_ids:
        slot = ramping.slots[slot_id]
        slot.commit("norm", slot.prepare("norm", generator))
        slot.advance()
        slot.advance()
    found: dict[str, list[float]] = {"empty": [], "ramping": []}
    for _ in range(rounds):
        for name, model in (("empty", empty), ("ramping", ramping)):
            begun = CLOCKS[JUDGE]()
            model.tick()
            found[name].append(CLOCKS[JUDGE]() - begun)
    assert all(record.ticks_left == rounds for record in ramping.records())
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def leaving_out(count: int, rounds: int) -> Times:
    """Seconds of evaluating a model with each of its three slots off: together, and one after another."""
    x = torch.randn(256, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    times: Times = {}
    for _ in range(count):
        model = grown(Stage.HOLDING).eval()
        variants = list(leave_one_out(model.slot_ids).values())
        steps = {
            "together": partial(together, model, x, variants),
            "one by one": partial(one_by_one, model, x, variants),
        }
        in_pairs(steps, {TOGETHER: rounds}, times)
    return times


@torch.no_grad()
def together(model: GrownModel, x: Tensor, variants: Sequence[Variant]) -> None:
    model.counterfactuals(x, variants)


@torch.no_grad()
def one_by_one(model: GrownModel, x: Tensor, variants: Sequence[Variant]) -> None:
    for variant in variants:
        model(x, alpha_overrides=variant)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sittings", type=int, default=10, help="generations of networks")
    parser.add_argument("--rounds", type=int, default=40, help="rounds of each comparison in a sitting")
    parser.add_argument("--only", choices=("eager", "compiled", "rest"), help="one part: each takes a minute")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, object] = {}
    limits: list[tuple[str, float, float]] = []
    for mode in ("eager", "compiled"):
        if options.only not in (None, mode):
            continue
        times = sittings(mode == "compiled", options.sittings, options.rounds)
        result[mode] = report(f"forward and backward pass, {mode}", times)
        for pair, most in LIMITS.items():
            limits.append((f"{pair[0]} / {pair[1]}, {mode}", ratio(times, JUDGE, pair)["ratio"], most))
    if options.only in (None, "rest"):
        limits += rest(options.sittings, options.rounds, result)
    for name, value, most in limits:
        print(f"{name}: {value:.4f} (at most {most}){'' if value <= most else '  MISSED'}")
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(value <= most for _, value, most in limits) else 1


def rest(count: int, rounds: int, result: dict[str, object]) -> list[tuple[str, float, float]]:
    """Germination, tick and leave-one-out: what was found goes to `result`, and comes with its limits."""
    result["germination"] = born = germinations(max(20, rounds))
    result["tick"] = ticked = ticks(max(50, rounds))
    left = leaving_out(count, max(5, rounds // 4))
    result["leave one out"] = report("leave-one-out of three slots", left)
    slowest = max(born, key=born.__getitem__)
    return [
        (f"germination, ms (slowest: {slowest})", 1e3 * born[slowest], 5),
        (f"tick of {SLOTS} slots, ms (empty: {1e3 * ticked['empty']:.2f})", 1e3 * ticked["ramping"], 1),
        ("leave-one-out, together / one by one", ratio(left, JUDGE, TOGETHER)["ratio"], 1),
    ]


if __name__ == "__main__":
    sys.exit(main())

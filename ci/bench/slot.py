"""What slots cost: a training step with and without them, a germination, a tick, a leave-one-out.

    .venv/bin/python ci/bench/slot.py [--rounds N] [--no-compile] [--json FILE]

What is compared runs in turn, a few steps each, so that the machine's drift meets both. A ratio is the median
of the ratios of blocks beside each other, with the range that holds it with 95 % (order statistics), by the
wall clock and by the calling thread's CPU time. The limits are held against the steadier of both, the CPU
time: on a machine with other work the wall clock measures that, too. The host against its twin says how far
to trust the rest.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from esper.lifecycle import AlphaCurve, SlotConfig, Stage
from esper.model import CnnHost, GrownModel, SlotPoint, Visit, blueprint_names, build, leave_one_out
from esper.training import CompileConfig, StepCompiler

BLUEPRINT = "conv_light"
CLOCKS = {"wall clock": time.perf_counter, "CPU of the calling thread": time.thread_time}
JUDGE = "CPU of the calling thread"
BLOCK = 4  # steps between two changes
SETTLING = 3  # rounds before the first that counts
SLOTS = 1000
Pair = tuple[str, str]
Times = dict[str, dict[Pair, tuple[list[float], list[float]]]]  # by clock and pair, both sides
PAIRS = (
    ("twin", "host"),  # the host twice: what this machine cannot tell apart
    ("dormant", "host"),
    ("training", "host"),
    ("blending", "host"),
    ("fossilized", "host"),
    ("fossilized", "by hand"),
)
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


def networks(compiled: bool) -> dict[str, nn.Module]:
    """What is compared, by name."""
    stages = (Stage.DORMANT, Stage.TRAINING, Stage.BLENDING, Stage.FOSSILIZED)
    models = {stage.name.lower(): grown(stage) for stage in stages}
    # Of the very same weights: where others lie in memory is worth a percent or two.
    host, fossils = models["dormant"].host, models["fossilized"]
    assert isinstance(host, CnnHost)
    assert isinstance(fossils.host, CnnHost)
    seeds = [slot.seed for slot in (fossils.slots[slot_id] for slot_id in fossils.slot_ids) if slot.seed]
    plain = {"host": host, "twin": host, "by hand": ByHand(fossils.host, seeds)}
    if not compiled:
        return {**plain, **models}
    # Each of them by a callable of its own, as a trainer has it.
    result: dict[str, nn.Module] = {}
    for name, module in plain.items():
        holder = nn.Module()
        holder.module = module
        holder.forward = torch.compile(fresh(module), fullgraph=True)
        result[name] = holder
    for name, model in models.items():
        result[name] = StepCompiler(CompileConfig(enabled=True, dynamic=False)).wrap(model)
    return result


def fresh(module: nn.Module) -> Callable[[Tensor], Tensor]:
    def step(x: Tensor) -> Tensor:
        logits: Tensor = module(x)
        return logits

    step.__code__ = step.__code__.replace(co_name=f"step_{id(module)}")
    return step


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


def in_pairs(steps: Mapping[str, Step], pairs: Sequence[Pair], rounds: int) -> Times:
    """Mean seconds of a step of each side of each pair, in blocks run as ABBA and then as BAAB: what follows
    what is the same for both, and so is an even drift. Left out is the first step of a block, which finds
    the caches cold.
    """
    found: Times = {clock: {pair: ([], []) for pair in pairs} for clock in CLOCKS}
    for count in range(SETTLING + rounds):
        for pair in pairs:
            spent = {clock: [0.0, 0.0] for clock in CLOCKS}
            for side in (0, 1, 1, 0) if count % 2 else (1, 0, 0, 1):
                step = steps[pair[side]]
                step()
                begun = {clock: read() for clock, read in CLOCKS.items()}
                for _ in range(BLOCK):
                    step()
                for clock, read in CLOCKS.items():
                    spent[clock][side] += (read() - begun[clock]) / (2 * BLOCK)
            if count >= SETTLING:
                for clock, sides in spent.items():
                    for side in (0, 1):
                        found[clock][pair][side].append(sides[side])
    return found


def ratio(times: Times, clock: str, pair: Pair) -> dict[str, float]:
    """Median of the ratios of the first side to the second, and the range that holds it with 95 %."""
    ratios = sorted(one / other for one, other in zip(*times[clock][pair], strict=True))
    margin, middle = round(0.98 * math.sqrt(len(ratios))), len(ratios) // 2
    return {
        "ratio": statistics.median(ratios),
        "least": ratios[max(0, middle - margin)],
        "most": ratios[min(len(ratios) - 1, middle + margin)],
    }


def report(what: str, times: Times) -> dict[str, dict[str, float]]:
    """Print one comparison, and return it."""
    result = {}
    for clock, pairs in times.items():
        print(f"{what}, {clock}")
        for pair, (one, other) in pairs.items():
            medians = [statistics.median(side) * 1e6 for side in (one, other)]
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


def leaving_out(rounds: int) -> Times:
    """Seconds of evaluating a model with each of its three slots off: together, and one after another."""
    model = grown(Stage.HOLDING).eval()
    x = torch.randn(256, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    variants = list(leave_one_out(model.slot_ids).values())

    @torch.no_grad()
    def together() -> None:
        model.counterfactuals(x, variants)

    @torch.no_grad()
    def one_by_one() -> None:
        for variant in variants:
            model(x, alpha_overrides=variant)

    return in_pairs({"one by one": one_by_one, "together": together}, [TOGETHER], rounds)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=100, help="rounds of each comparison")
    parser.add_argument("--no-compile", action="store_true", help="eager steps only: compiling takes minutes")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, object] = {}
    limits: list[tuple[str, float, float]] = []
    for mode in ("eager",) if options.no_compile else ("eager", "compiled"):
        steps = {name: training_step(module) for name, module in networks(mode == "compiled").items()}
        times = in_pairs(steps, PAIRS, options.rounds)
        result[mode] = report(f"forward and backward pass, {mode}", times)
        for pair, most in ((PAIRS[1], 1.01), (PAIRS[-1], 1.02)):
            limits.append((f"{pair[0]} / {pair[1]}, {mode}", ratio(times, JUDGE, pair)["ratio"], most))
    result["germination"] = born = germinations(max(20, options.rounds // 4))
    result["tick"] = ticked = ticks(max(50, options.rounds))
    left = leaving_out(options.rounds)
    result["leave one out"] = report("leave-one-out of three slots", left)
    slowest = max(born, key=born.__getitem__)
    limits.append((f"germination, ms (slowest: {slowest})", 1e3 * born[slowest], 5))
    limits.append(
        (f"tick of {SLOTS} slots, ms (empty: {1e3 * ticked['empty']:.2f})", 1e3 * ticked["ramping"], 1)
    )
    limits.append(("leave-one-out, together / one by one", ratio(left, JUDGE, TOGETHER)["ratio"], 1))
    for name, value, most in limits:
        print(f"{name}: {value:.4f} (at most {most}){'' if value <= most else '  MISSED'}")
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(value <= most for _, value, most in limits) else 1


if __name__ == "__main__":
    sys.exit(main())

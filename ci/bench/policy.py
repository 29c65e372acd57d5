"""How long a policy's update takes, and what a second rank brings to learning one.

    .venv/bin/python ci/bench/policy.py [--rounds N] [--json FILE]

update   one update, with the default settings, from four episodes of 150 steps with the digits' observations:
         at most 1 s
rollout  steps of episodes a second in lessons on the digits, in mode parallel: on one rank, and on two that
         have as many networks each; a round is a lesson of both, one after the other

Each process has one thread. Figures are medians, with the range from least to most.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from esper.control.ppo import Choice, Op, PpoConfig  # noqa: E402
from esper.control.ppo.controller import Learned  # noqa: E402
from esper.control.ppo.episode import Episode, batch_of  # noqa: E402
from esper.control.ppo.update import update  # noqa: E402
from esper.training import Learner, TrainConfig, build_model, preset  # noqa: E402
from esper.training.environments import space_of  # noqa: E402
from esper.training.tasks import TaskName  # noqa: E402
from tests.esper.ranks import run_ranks  # noqa: E402

MOST = 1.0  # seconds an update
STEPS, ENVIRONMENTS = 150, 4
EPOCHS, PER_RANK = 20, 2  # of the rollouts


def config(**changes: object) -> TrainConfig:
    """The digits' preset."""
    return TrainConfig.from_dict({**preset(TaskName.DIGITS), "watchdog": {"on": False}, **changes})


def episodes(learned: Learned) -> list[Episode]:
    """Made up: only their sizes matter here."""
    draw = random.Random(0)
    size, space = learned.policy.sizes.observation, learned.space
    masks = space.only_wait()._replace(
        op=(True,) * len(Op), slot=tuple((True,) * len(space.slots) for _ in Op)
    )
    found = []
    for _ in range(ENVIRONMENTS):
        one = Episode()
        for _ in range(STEPS):
            one.observations.append(tuple(draw.gauss(0.0, 1.0) for _ in range(size)))
            one.masks.append(masks)
            one.choices.append(Choice(draw.randrange(len(Op))))
            one.log_probs.append((-1.8, -0.7, -0.7, 0.0, -0.7, -1.1))
            one.values.append(draw.gauss(0.0, 1.0))
            one.rewards.append(draw.gauss(0.0, 1.0))
        found.append(one)
    return found


def updates(rounds: int) -> list[float]:
    """Seconds of each."""
    settings = PpoConfig(target_kl=1e9)  # or it would end early
    learned = Learned.fresh(space_of(build_model(config()), config()), settings, 0)
    optimizer = torch.optim.Adam(learned.policy.parameters(), lr=settings.lr)
    made, taken = episodes(learned), []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        batch = batch_of(made, gamma=settings.gamma, lam=settings.lam)
        update(learned.policy, optimizer, batch, settings)
        taken.append(time.perf_counter() - begun)
    return taken[1:]


def lesson(ranks: int) -> float:
    """Steps of all ranks' episodes a second, in one rollout."""

    def body(rank: int) -> float:
        settings = config(epochs=EPOCHS, ppo={**preset(TaskName.DIGITS)["ppo"], "environments": PER_RANK})
        with Learner(settings, group=dist.group.WORLD) as learner:
            told = learner.lesson()
        return told.update.samples / told.rollout_seconds

    outcomes = run_ranks(body, ranks, 300.0)
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
    return min(float(outcome.value) for outcome in outcomes)


def told(name: str, values: list[float], unit: str) -> str:
    """A line of the report."""
    return f"{name}: {statistics.median(values):.3f} {unit} ({min(values):.3f} to {max(values):.3f})"


def main() -> int:
    """Measure; 1 where an update takes too long."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    taken = updates(4 * options.rounds)
    print(told(f"update of {ENVIRONMENTS} episodes of {STEPS} steps (at most {MOST:g} s)", taken, "s"))
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(options.rounds):
        for ranks, found in rates.items():
            found.append(lesson(ranks))
    ratios = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
    for ranks, found in rates.items():
        print(told(f"rollout on {ranks}", found, "steps/s"))
    print(told("two ranks over one", ratios, "times as many steps a second"))
    if options.json is not None:
        options.json.write_text(json.dumps({"update": taken, "rollout": rates}, indent=1) + "\n")
    return int(statistics.median(taken) > MOST)


if __name__ == "__main__":
    sys.exit(main())

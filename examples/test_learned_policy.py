"""A policy for when to grow, learned by all ranks from networks that grow in different ways on each of them.

Each rank trains networks of its own: they are at different stages, one may be undone or end early, and
nothing of that holds another rank up. What the ranks share is the policy, which is the same on all of them,
bit for bit, after every update. In the other mode they train each network together, and take one action.
"""

from __future__ import annotations

import pytest
import torch.distributed as dist

from esper.control.ppo import PpoMode
from esper.training import Learner, TrainConfig, preset
from esper.training.tasks import TaskName
from examples.growing import DEADLINE
from pytest_esper_ddp.handle import DDP

UPDATES = 2


@pytest.mark.ddp
@pytest.mark.parametrize("mode", list(PpoMode))
def test_all_ranks_learn_one_policy(ddp: DDP, mode: PpoMode) -> None:
    settings = preset(TaskName.DIGITS)
    config = TrainConfig.from_dict(
        {
            **settings,
            "epochs": 5,
            "batch_size": 128,
            "gates": {**settings["gates"], "min_training_epochs": 1, "permissive": True},
            "agreement": {"deadline": 10 * DEADLINE},
            "ppo": {**settings["ppo"], "mode": mode, "updates": UPDATES, "environments": 2, "hidden": 16},
        }
    )
    with Learner(config, group=dist.group.WORLD, device=str(ddp.device)) as learner:
        learned = learner.run()
        ddp.assert_same(dict(learned.policy.state_dict()), "policy")
        ddp.assert_same(dict(learned.statistics.state_dict()), "statistics")
    lessons = learner.lessons
    assert len(lessons) == UPDATES
    if ddp.rank == 0:
        ddp.note(f"{mode}: {lessons[-1].episodes} networks a lesson, accuracy {lessons[-1].accuracy:.1f}")

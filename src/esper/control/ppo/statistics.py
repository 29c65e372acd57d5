"""Running mean and deviation of what the policy reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from esper.control.ppo.update import total

# So many deviations at most: what was never seen before says no more than that.
_MOST = 5.0


class RunningStatistics(nn.Module):
    """Of observations of `size` numbers; the same on all ranks that take them in together."""

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(size, dtype=torch.float64))  # of the distances from it

    def take(self, observed: Sequence[Sequence[float]], group: dist.ProcessGroup | None = None) -> None:
        """Collective where there is a group: fold in the observations of all its ranks (Chan, Golub and
        LeVeque 1979).
        """
        rows = torch.tensor(observed, dtype=torch.float64).reshape(-1, self.mean.numel())
        sums = torch.cat([torch.tensor([float(len(rows))], dtype=torch.float64), rows.sum(0)])
        total(sums, group)
        if not sums[0]:
            return
        count, mean = sums[0], sums[1:] / sums[0]
        squares = total((rows - mean).square().sum(0), group)
        together = self.count + count
        away = mean - self.mean
        self.squares += squares + away.square() * self.count * count / together
        self.mean += away * count / together
        self.count.copy_(together)

    def normalise(self, observation: Sequence[float]) -> tuple[float, ...]:
        """In deviations from the mean; what never varied is only shifted, and nothing is before anything was
        taken in.
        """
        values = torch.tensor(observation, dtype=torch.float64)
        if self.count < 2.0:
            return tuple(values.tolist())
        deviation = (self.squares / self.count).sqrt()
        deviation[deviation < 1e-6] = 1.0
        return tuple(((values - self.mean) / deviation).clamp(-_MOST, _MOST).tolist())

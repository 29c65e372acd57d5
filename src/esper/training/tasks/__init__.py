"""What a model is trained on."""

from esper.training.tasks.digits import load_digits_task
from esper.training.tasks.task import Batch, ShardedTask, Task

__all__ = ["Batch", "ShardedTask", "Task", "load_digits_task"]

"""What a model is trained on."""

from esper.training.tasks.cifar10 import load_cifar10_task
from esper.training.tasks.digits import load_digits_task
from esper.training.tasks.names import TaskName
from esper.training.tasks.pydoc import load_pydoc_task
from esper.training.tasks.task import Batch, ShardedTask, Task

__all__ = [
    "Batch",
    "ShardedTask",
    "Task",
    "TaskName",
    "load_cifar10_task",
    "load_digits_task",
    "load_pydoc_task",
]

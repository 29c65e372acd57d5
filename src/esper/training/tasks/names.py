"""The tasks that a run can be given by name."""

from enum import StrEnum


class TaskName(StrEnum):
    """What a model is trained on."""

    OWN = "own"  # data of the caller's
    DIGITS = "digits"
    PYDOC = "pydoc"
    CIFAR10 = "cifar10"

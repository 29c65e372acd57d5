"""Every setting of a run in one frozen value that ranks can compare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from enum import Enum, StrEnum
from typing import Any, Self, get_args, get_origin

from esper.checks import check_int, check_number
from esper.control.governor import GovernorConfig
from esper.control.heuristic import HeuristicConfig
from esper.control.names import ControllerName
from esper.control.ppo.config import PpoConfig
from esper.control.random import RandomConfig
from esper.distributed.agreement import AgreementConfig
from esper.distributed.digest import stable_digest
from esper.distributed.loaders import LoaderPolicy
from esper.errors import ConfigError
from esper.lifecycle.config import SlotConfig
from esper.lifecycle.gates import GateConfig
from esper.training.compile import CompileConfig
from esper.training.plain import type_hints
from esper.training.tasks.names import TaskName
from esper.training.watchdog import WatchdogConfig


class HostName(StrEnum):
    """Which network to grow in."""

    CNN = "cnn"
    GPT = "gpt"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostConfig:
    """The host and its size; each block has a slot. `heads` and `context`, in tokens, are the GPT's."""

    name: HostName = HostName.CNN
    width: int = 4
    blocks: int = 2
    heads: int = 4
    context: int = 64

    def __post_init__(self) -> None:
        for name in ("width", "blocks", "heads", "context"):
            check_int(f"host.{name}", getattr(self, name), 1)
        if self.name is HostName.GPT and self.width % self.heads:
            raise ConfigError("host.width", self.width, f"a multiple of host.heads={self.heads}")


class OptimizerName(StrEnum):
    """Which optimiser trains host and seeds."""

    SGD = "sgd"
    ADAM = "adam"


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """The optimiser; `momentum` is SGD's. `clip` is the largest gradient norm of a step."""

    name: OptimizerName = OptimizerName.SGD
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0
    clip: float = 5.0

    def __post_init__(self) -> None:
        check_number("optimizer.lr", self.lr, 0.0)
        check_number("optimizer.momentum", self.momentum, 0.0, 1.0)
        check_number("optimizer.weight_decay", self.weight_decay, 0.0)
        if check_number("optimizer.clip", self.clip, 0.0) == 0.0:
            raise ConfigError("optimizer.clip", self.clip, "a finite number above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Settings of a run; the same on every rank. `batch_size` is per rank, `run` a name of the user's,
    `loaders` what is done when ranks have different numbers of batches. `task` and `controller` say what
    `esper train` made; a trainer takes whatever it is given.
    """

    run: str = "esper"
    task: TaskName = TaskName.OWN
    controller: ControllerName = ControllerName.OWN
    seed: int = 0
    epochs: int = 50
    batch_size: int = 32
    loaders: LoaderPolicy = LoaderPolicy.ERROR
    host: HostConfig = field(default_factory=HostConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    slot: SlotConfig = field(default_factory=SlotConfig)
    gates: GateConfig = field(default_factory=GateConfig)
    heuristic: HeuristicConfig = field(default_factory=HeuristicConfig)
    random: RandomConfig = field(default_factory=RandomConfig)
    ppo: PpoConfig = field(default_factory=PpoConfig)
    governor: GovernorConfig = field(default_factory=GovernorConfig)
    compile: CompileConfig = field(default_factory=CompileConfig)
    agreement: AgreementConfig = field(default_factory=AgreementConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)

    def __post_init__(self) -> None:
        check_int("seed", self.seed, 0)
        check_int("epochs", self.epochs, 1)
        check_int("batch_size", self.batch_size, 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested values that `from_dict` takes back."""
        return asdict(self)

    def settings(self) -> dict[str, str]:
        """Every setting in words, by `config` and its dotted path."""
        return {f"config {path}": text for path, text in _flat(self.to_dict(), "")}

    def digest(self) -> int:
        """63-bit digest of all settings, the same in every process."""
        return stable_digest(self.to_dict())

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Self:
        """The config with these values, the defaults for what is left out.

        Raises ConfigError naming the dotted path of a key that is unknown or whose value is not accepted.
        """
        config = _section(cls, values, "")
        assert isinstance(config, cls)
        return config


def _section(kind: type, values: object, path: str) -> Any:
    known = {each.name: each for each in fields(kind) if each.init}
    if not isinstance(values, Mapping):
        raise ConfigError(path, values, f"a mapping with keys of: {', '.join(known)}")
    hints = type_hints(kind)
    given = {}
    for key, value in values.items():
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            meant = f" (did you mean {near[0]}?)" if near else ""
            accepted = f"left out{meant}: known here are {', '.join(known)}"
            raise ConfigError(_join(path, str(key)), value, accepted)
        given[key] = _value(hints[key], value, _join(path, key))
    return kind(**given)


def _value(kind: Any, value: object, path: str) -> Any:
    if is_dataclass(kind):
        assert isinstance(kind, type)
        return value if isinstance(value, kind) else _section(kind, value, path)
    if get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(path, value, "a list")
        item = get_args(kind)[0]
        return tuple(_value(item, each, f"{path}[{index}]") for index, each in enumerate(value))
    if isinstance(kind, type) and issubclass(kind, Enum):
        try:
            return kind(value)
        except ValueError:
            raise ConfigError(path, value, f"one of {', '.join(str(each.value) for each in kind)}") from None
    return _plain(kind, value, path)


def _plain(kind: type, value: object, path: str) -> object:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # A bool is an int to Python, and `epochs: true` would run one epoch.
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise ConfigError(path, value, f"of type {getattr(kind, '__name__', kind)}")


def _flat(values: Mapping[str, Any], path: str) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, _join(path, key))
        else:
            yield _join(path, key), repr(value.value if isinstance(value, Enum) else value)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key

"""Going on is as never having stopped, and what cannot be gone on from is refused as a whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from esper.control import HeuristicController
from esper.errors import CheckpointRefused, NoCheckpoint
from esper.lifecycle import Stage
from esper.model.blueprints import registry
from esper.training import Trainer, checkpoint
from esper.training.checkpoint import MAGIC, Checkpoints, load, pack, unseal, write_whole
from esper.training.snapshot import random_state, set_random_state
from esper.training.tasks import ShardedTask
from tests.esper.training.lives import Script, eventful, tiny_trainer, whole_life

EPOCHS = 15
HEURISTIC = {"blueprints": ["conv_small"], "plateau_points": 200.0, "stable_fall": 1.0, "stable_rise": 1.0}


def heuristic(epochs: int = EPOCHS) -> Trainer:
    trainer = tiny_trainer(epochs=epochs, heuristic=HEURISTIC, optimizer={"name": "sgd", "lr": 0.05})
    trainer.controller = HeuristicController(trainer.config.heuristic, trainer.config.gates)
    return trainer


def scripted(epochs: int = EPOCHS) -> Trainer:
    return tiny_trainer(epochs=epochs)


def gated(epochs: int = EPOCHS) -> Trainer:
    return tiny_trainer(epochs=epochs, slot={"tempo": 2, "embargoed_epochs": 1, "blend": "gate"})


def everything(trainer: Trainer) -> str:
    """All that a run goes on from, bit for bit."""
    state = trainer.state_dict()
    for result in state["history"]["epochs"]:
        result["seconds"] = 0.0
    return _written(state)


def _written(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {tuple(value.shape)} {value.reshape(-1).view(torch.uint8).numpy().tobytes()!r}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_written(each)}" for key, each in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_written, value)) + "]"
    return repr(value)


class Dropping(nn.Module):
    """A seed that draws from torch's global generator in each step."""

    def __init__(self, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels, 1, 1), 0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dropped: torch.Tensor = nn.functional.dropout(x * self.weight, 0.5, self.training)
        return x + dropped


def dropping(epochs: int = EPOCHS) -> Trainer:
    return tiny_trainer(Script({**eventful(), **whole_life(blueprint="dropping")}), epochs=epochs)


@pytest.mark.parametrize("make", [dropping, gated, heuristic])
def test_stopped_after_any_epoch_it_ends_with_the_same_bits(
    tmp_path: Path, make: Callable[[int], Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", {**registry._REGISTRY, ("cnn", "dropping"): Dropping})
    whole = make(EPOCHS)
    store = Checkpoints(tmp_path, keep=EPOCHS)
    torch.manual_seed(1)
    for epoch in range(1, EPOCHS + 1):
        if epoch == 1:
            store.save(whole)
            whole._announced = whole.agree(0, *_nothing()).next_batches
        whole.run_epoch(epoch)
        store.save(whole)
    lived = {record.stage for result in whole.history.epochs for record in result.records}
    assert {Stage.TRAINING, Stage.BLENDING, Stage.HOLDING, Stage.FOSSILIZED} <= lived
    if make is gated:
        assert {Stage.PRUNED, Stage.EMBARGOED, Stage.RESETTING} <= lived
    end = everything(whole)
    for path in store.paths():
        torch.manual_seed(99)
        again = make(EPOCHS)
        load(path, again)
        history = again.run()
        assert history.same_as(whole.history), path.name
        assert again.model.fingerprint() == whole.model.fingerprint(), path.name
        assert everything(again) == end, path.name


def _nothing() -> Any:
    from esper.lifecycle.metrics import MetricSums

    return MetricSums(), MetricSums(), ()


@pytest.fixture(scope="module")
def data() -> bytes:
    """A checkpoint in the middle of a life, of a run of three epochs."""
    return pack(_after(5))


def _after(epochs: int) -> Trainer:
    trainer = scripted(epochs)
    trainer.run()
    return trainer


def test_cut_off_after_any_byte_it_is_refused(data: bytes) -> None:
    for length in range(len(data)):
        with pytest.raises(CheckpointRefused):
            unseal(data[:length], "it")
    assert unseal(data, "it")["state"]["steps"] == 15


def test_with_any_bit_flipped_it_is_refused(data: bytes) -> None:
    head = len(MAGIC) + 44
    places = [*range(8 * head), *range(8 * head, 8 * len(data), 997)]
    for place in places:
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        with pytest.raises(CheckpointRefused):
            unseal(bytes(flipped), "it")


@pytest.mark.parametrize("damage", [b"x", b"", b"\x00" * 100])
def test_with_something_behind_it_or_something_else_it_is_refused(data: bytes, damage: bytes) -> None:
    with pytest.raises(CheckpointRefused):
        unseal(data + damage if damage == b"x" else damage, "it")


def test_another_version_is_named(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "VERSION", 7)
    with pytest.raises(CheckpointRefused, match="its format is version 3; accepted is version 7"):
        unseal(data, "it")


class Loud(nn.Module):
    """Something that no plain value is."""


def test_what_would_run_code_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = scripted(1)
    monkeypatch.setattr(Trainer, "state_dict", lambda trainer: Loud())
    with pytest.raises(CheckpointRefused, match="more than plain values"):
        unseal(pack(trainer), "it")


REFUSED: list[tuple[Callable[[], Trainer], str]] = [
    (lambda: tiny_trainer(host={"width": 3, "blocks": 3}), "it is of another host, CnnHost"),
    (lambda: tiny_trainer(host={"width": 2, "blocks": 4}), "it is of another host, CnnHost"),
    (lambda: tiny_trainer(seed=1), "its config has seed=0; accepted is 1"),
    (lambda: tiny_trainer(slot={"tempo": 3}), "its config has slot="),
    (lambda: tiny_trainer(optimizer={"name": "sgd"}), "its config has optimizer="),
]


@pytest.mark.parametrize(("make", "said"), REFUSED)
def test_another_run_is_refused_by_name_and_nothing_is_loaded(
    tmp_path: Path, data: bytes, make: Callable[[], Trainer], said: str
) -> None:
    path = tmp_path / "epoch-000003.checkpoint"
    path.write_bytes(data)
    trainer = make()
    before = everything(trainer)
    with pytest.raises(CheckpointRefused, match=said):
        load(path, trainer)
    assert everything(trainer) == before


def _without_a_tensor(state: Any) -> None:
    state["tensors"].popitem()


def _of_another_shape(state: Any) -> None:
    name = list(state["tensors"])[-1]
    state["tensors"][name] = torch.zeros(7, 7)


def _with_another_blueprint(state: Any) -> None:
    state["slots"]["r0c0"]["blueprint"] = "nosuch"


def _with_another_bit(state: Any) -> None:
    tensor = state["tensors"]["host.head.weight"].clone()
    tensor[0, 0] += 1.0
    state["tensors"]["host.head.weight"] = tensor


def _without_optimizer_groups(state: Any) -> None:
    state["optimizer"]["param_groups"] = []


def _with_a_foreign_history(state: Any) -> None:
    state["history"]["epochs"][-1]["decision"] = {"type": "Decision", "mood": "good"}


def _with_a_foreign_governor(state: Any) -> None:
    state["governor"]["spikes"] = -1


@pytest.mark.parametrize(
    "change",
    [
        _without_a_tensor,
        _of_another_shape,
        _with_another_blueprint,
        _with_another_bit,
        _without_optimizer_groups,
        _with_a_foreign_history,
        _with_a_foreign_governor,
    ],
)
def test_a_state_that_does_not_fit_is_never_loaded_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None]
) -> None:
    source = _after(5)
    state = source.state_dict()
    change(state)
    monkeypatch.setattr(Trainer, "state_dict", lambda trainer: state)
    path = tmp_path / "epoch-000005.checkpoint"
    path.write_bytes(pack(source))
    monkeypatch.undo()
    trainer = _after(3)
    before, objects = everything(trainer), [id(each) for each in trainer.model.parameters()]
    with pytest.raises(CheckpointRefused, match="does not fit"):
        load(path, trainer)
    assert everything(trainer) == before
    assert [id(each) for each in trainer.model.parameters()] == objects


def test_the_previous_one_is_used_and_the_refused_one_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, trainer = Checkpoints(tmp_path), scripted(4)
    for epochs in (2, 3, 4):
        store.save(_after(epochs))
    newest, previous = store.paths()  # the oldest is gone
    newest.write_bytes(newest.read_bytes()[:-1])
    assert store.resume(trainer) == previous
    assert len(trainer.history.epochs) == 3
    assert f"checkpoint {newest} is refused: it has" in caplog.text


def test_without_any_that_can_be_used_all_are_named_and_nothing_is_loaded(tmp_path: Path) -> None:
    store, trainer = Checkpoints(tmp_path), scripted(2)
    with pytest.raises(NoCheckpoint, match="no usable checkpoint in"):
        store.resume(trainer)
    (tmp_path / "epoch-000001.checkpoint").write_bytes(b"")
    (tmp_path / "epoch-000002.checkpoint").mkdir()
    before = everything(trainer)
    with pytest.raises(NoCheckpoint) as caught:
        store.resume(trainer)
    assert len(caught.value.refused) == 2
    assert "epoch-000002.checkpoint is refused: it cannot be read" in caught.value.refused[0]
    assert everything(trainer) == before


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    path = tmp_path / "epoch-000001.checkpoint"
    write_whole(path, b"old")

    def fails(*_: object) -> None:
        raise OSError(28, "no space left on device")

    owner: Any = os if broken == "fsync" else Path
    monkeypatch.setattr(owner, broken, fails)
    with pytest.raises(OSError, match="no space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_writer_that_was_killed_had_begun_goes_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unfinished = tmp_path / ".epoch-000001.checkpoint.77"
    unfinished.write_bytes(b"half")
    written = write_whole

    def write(path: Path, data: bytes) -> None:
        assert not unfinished.exists()
        written(path, data)

    monkeypatch.setattr(checkpoint, "write_whole", write)
    path = Checkpoints(tmp_path).save(_after(1))
    assert list(tmp_path.iterdir()) == [path]


def test_saving_does_not_change_the_run(tmp_path: Path) -> None:
    saving, other = scripted(6), _after(6)
    saving._announced = saving.agree(0, *_nothing()).next_batches
    for epoch in range(1, 7):
        saving.run_epoch(epoch)
        Checkpoints(tmp_path).save(saving)
    assert saving.history.same_as(other.history)
    assert saving.model.fingerprint() == other.model.fingerprint()


def test_batches_are_announced_for_the_epoch_to_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Checkpoints(tmp_path).save(_after(3))
    trainer = scripted(5)
    Checkpoints(tmp_path).resume(trainer)
    asked: list[int] = []
    announce = ShardedTask.announce

    def counted(task: ShardedTask, epoch: int) -> int:
        asked.append(epoch)
        return announce(task, epoch)

    monkeypatch.setattr(ShardedTask, "announce", counted)
    trainer.run()
    assert asked == [4, 5]


def test_the_generators_of_gpus_in_use_go_on_too(monkeypatch: pytest.MonkeyPatch) -> None:
    states = [torch.arange(4, dtype=torch.uint8)]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: states)
    given: list[object] = []
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", given.append)
    set_random_state(random_state())
    assert given == [states]

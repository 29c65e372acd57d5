"""The grown model: the host it is, the host it was, and what an override leaves alone."""

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore
from torch.nn.parallel import DistributedDataParallel

from esper.errors import BadOverride, ConfigError, OverrideInTraining, UnknownSlot
from esper.lifecycle import Blend, SlotConfig, Stage, in_forward
from esper.model import CnnHost, GrownModel, SlotPoint, Visit
from tests.esper.model.growing import backward, batch, bring, germinate, loss_of, model

X, Y = batch()


def gradients(network: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]


def statistics(network: nn.Module) -> list[Tensor]:
    return [buffer.clone() for buffer in network.buffers()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class AlwaysEvaluating(nn.BatchNorm2d):
    """A part with a mode of its own, as of a backbone whose statistics are kept."""

    def train(self, mode: bool = True) -> "AlwaysEvaluating":
        super().train(False)
        return self


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("part", [None, "own", "scripted"])
def test_every_part_has_the_mode_that_is_asked_for_or_its_own(part: str | None) -> None:
    grown = model()
    germinate(grown.slots["r0c0"])
    scripted = torch.jit.script(nn.Sequential(nn.Dropout(1.0)))
    if part is not None:
        grown.host.add_module(part, scripted if part == "scripted" else nn.Sequential(AlwaysEvaluating(2)))
    for mode in (False, True, True, False):
        assert grown.train(mode) is grown
        assert {type(each).__name__ for each in grown.modules() if each.training is not mode} == (
            {"AlwaysEvaluating"} if part == "own" and mode else set()
        )
        assert part != "scripted" or bool(scripted(torch.ones(1)).item()) is not mode
    with pytest.raises(ValueError, match="boolean"):
        grown.train(1)  # type: ignore[arg-type]


def test_without_seeds_it_is_the_host() -> None:
    grown = model().eval()
    assert torch.equal(grown(X), grown.host(X))
    assert grown.slot_ids == ("r0c0", "r0c1")
    assert [record.slot_id for record in grown.records()] == ["r0c0", "r0c1"]
    assert {name.split(".")[0] for name in grown.state_dict()} == {"host"}


class Watching(CnnHost):
    """A host that notes whether it is visited."""

    def forward(self, x: Tensor, visit: Visit | None = None) -> Tensor:
        self.visited = visit is not None
        return super().forward(x, visit)


@pytest.mark.parametrize("how", ["itself", "copied", "pickled"])
def test_the_host_goes_its_own_way_while_no_seed_is_in_the_forward_pass(how: str) -> None:
    grown = GrownModel(Watching(width=4, blocks=2), SlotConfig(tempo=1))
    if how != "itself":
        grown = copy.deepcopy(grown) if how == "copied" else pickle.loads(pickle.dumps(grown))
    slot, host = grown.slots["r0c0"], grown.host
    assert isinstance(host, Watching)
    germinate(slot)
    found: list[tuple[str, bool]] = []
    for step in (slot.record, slot.advance, slot.advance, slot.prune, slot.tick, slot.tick):
        step()
        grown(X)
        found.append((slot.stage.name, host.visited))
    assert found == [
        *[("GERMINATED", False), ("TRAINING", True), ("BLENDING", True)],
        *[("PRUNED", False), ("PRUNED", False), ("EMBARGOED", False)],
    ]


@pytest.mark.parametrize("blueprint", ["norm", "conv_light"])
@pytest.mark.parametrize("slot_id", ["r0c0", "r0c1"])
def test_in_training_host_output_gradients_and_statistics_are_those_without_a_seed(
    slot_id: str, blueprint: str
) -> None:
    plain, grown = model(), model()
    bring(grown.slots[slot_id], Stage.TRAINING, blueprint)
    assert torch.equal(grown(X), plain(X))
    assert torch.equal(backward(grown), backward(plain))
    assert same(gradients(grown.host), gradients(plain.host))
    assert same(statistics(grown.host), statistics(plain.host))
    assert all(p.grad is not None and p.grad.norm() > 0 for p in grown.slots[slot_id].seed_parameters())


@pytest.mark.parametrize("stage", [stage for stage in Stage if in_forward(stage)])
def test_at_alpha_0_the_output_is_the_hosts(stage: Stage) -> None:
    plain, grown = model().eval(), model().eval()
    for slot_id in grown.slot_ids:
        bring(grown.slots[slot_id], stage)
    off: dict[str, float | Tensor] = dict.fromkeys(grown.slot_ids, 0.0)
    assert torch.equal(grown(X, alpha_overrides=off), plain(X))


def test_a_pruned_slot_is_as_if_there_had_never_been_a_seed() -> None:
    rng = torch.Generator().manual_seed(1)
    plain, grown = model(), model()
    fingerprint = plain.fingerprint()
    slot = grown.slots["r0c0"]
    for _ in range(2):
        torch.manual_seed(9)
        before = torch.get_rng_state()
        slot.commit("conv_light", slot.prepare("conv_light", rng))
        slot.advance()
        slot.prune()
        assert torch.equal(torch.get_rng_state(), before)
        assert grown.fingerprint() == fingerprint
        assert torch.equal(backward(grown), backward(plain))
        assert same(gradients(grown), gradients(plain))
        assert same(statistics(grown), statistics(plain))
        fingerprint = plain.fingerprint()
        while slot.stage is not Stage.DORMANT:
            slot.tick()


def test_training_a_pruned_model_on_goes_the_same_way() -> None:
    plain, grown = model(), model()
    bring(grown.slots["r0c1"], Stage.TRAINING)
    for network in (plain, grown):
        optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        for step in range(4):
            if step == 2 and network is grown:
                grown.slots["r0c1"].prune()
            optimiser.zero_grad()
            backward(network)
            optimiser.step()
    assert grown.fingerprint() == plain.fingerprint()


@pytest.mark.parametrize("stage", [stage for stage in Stage if in_forward(stage)])
def test_an_override_is_what_the_model_would_be_and_changes_nothing(stage: Stage) -> None:
    grown = model().eval()
    for slot_id in grown.slot_ids:
        bring(grown.slots[slot_id], stage)
    loss_of(grown)
    before = grown.fingerprint(), grown.records(), torch.get_rng_state().sum(), repr(grown)
    attributes = [dict(vars(module)) for module in grown.modules()]
    normal = grown(X)

    changed = grown(X, alpha_overrides={"r0c0": 0.3, "r0c1": torch.tensor(0.6)})

    assert (grown.fingerprint(), grown.records(), torch.get_rng_state().sum(), repr(grown)) == before
    assert [dict(vars(module)) for module in grown.modules()] == attributes
    assert torch.equal(grown(X), normal)
    assert not torch.equal(changed, normal)
    grown.slots["r0c0"].show_alpha_in(torch.zeros(()))
    h = grown.host.get_submodule("blocks.0")(X)
    seed = grown.slots["r0c0"].seed
    assert seed is not None
    assert torch.equal(grown.slots["r0c0"](h, torch.tensor(0.3)), torch.lerp(h, seed(h), torch.tensor(0.3)))


def test_an_override_with_the_slots_own_alpha_is_the_model_itself() -> None:
    grown = model().eval()
    bring(grown.slots["r0c0"], Stage.BLENDING)
    assert grown.slots["r0c0"].record().alpha == 0.25
    assert torch.equal(grown(X, alpha_overrides={"r0c0": 0.25}), grown(X))
    assert torch.equal(grown(X, alpha_overrides={}), grown(X))


def test_an_override_of_a_slot_without_a_seed_has_no_effect() -> None:
    grown = model().eval()
    germinate(grown.slots["r0c1"])
    assert torch.equal(grown(X, alpha_overrides={"r0c0": 1.0, "r0c1": 1.0}), grown(X))


@pytest.mark.parametrize(
    ("overrides", "error", "said"),
    [
        ({"r9c9": 0.0}, UnknownSlot, "no slot 'r9c9' in this model; its slots are: r0c0, r0c1"),
        ({"r0c0": 1.5}, BadOverride, r"\['r0c0'\] = 1.5"),
        ({"r0c0": float("nan")}, BadOverride, "= nan"),
        ({"r0c0": True}, BadOverride, "= True"),
        ({"r0c0": "0.5"}, BadOverride, "= '0.5'"),
        ({"r0c0": torch.zeros(1)}, BadOverride, r"torch.float32 \(1,\)"),
        ({"r0c0": torch.tensor(1)}, BadOverride, r"torch.int64 \(\)"),
    ],
)
def test_a_bad_override_is_refused(overrides: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        model().eval()(X, alpha_overrides=overrides)


def test_an_override_in_training_mode_is_refused_and_names_the_module() -> None:
    grown = model().eval()
    grown.host.get_submodule("blocks.1").train()
    before = grown.fingerprint()
    with pytest.raises(OverrideInTraining) as caught:
        grown(X, alpha_overrides={})
    assert caught.value.module == "host.blocks.1"
    assert grown.fingerprint() == before


def test_an_unknown_slot_is_refused_with_those_that_exist() -> None:
    with pytest.raises(UnknownSlot) as caught:
        model().slots["r9c9"]
    assert caught.value.known == ("r0c0", "r0c1")


def test_alpha_is_shown_in_one_tensor_that_follows_each_step() -> None:
    grown = model(SlotConfig(tempo=2))
    slot = grown.slots["r0c1"]
    bring(slot, Stage.BLENDING)
    seen = [grown.alphas.tolist()]
    for step in (slot.tick, slot.advance, slot.prune, slot.tick, slot.tick):
        step()
        seen.append(grown.alphas.tolist())
    assert [alphas[1] for alphas in seen] == [0.5, 1.0, 1.0, 1.0, 0.5, 0.0]
    assert all(alphas[0] == 0.0 for alphas in seen)
    assert "alphas" not in grown.state_dict()


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "to"])
def test_alpha_still_follows_in_a_copy_and_after_a_move(how: str) -> None:
    grown = model()
    bring(grown.slots["r0c0"], Stage.BLENDING)
    old = grown.alphas
    if how == "deepcopy":
        grown = copy.deepcopy(grown)
    elif how == "pickle":
        grown = pickle.loads(pickle.dumps(grown))
    else:
        grown.to(torch.float64)
    before = grown(X.to(grown.alphas.dtype))
    grown.slots["r0c0"].tick()
    assert grown.alphas.tolist() == [0.5, 0.0]
    assert old.tolist() == [0.25, 0.0]
    assert not torch.equal(grown(X.to(grown.alphas.dtype)), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_of_another_precision_grows_in_it(dtype: torch.dtype) -> None:
    grown = model(SlotConfig(blend=Blend.GATE, tempo=4)).to(dtype)
    bring(grown.slots["r0c0"], Stage.BLENDING)
    saved = grown.slots["r0c0"].lifecycle_state()
    assert {parameter.dtype for parameter in grown.parameters()} == {dtype}
    assert grown(X.to(dtype)).dtype is dtype
    grown.slots["r0c0"].load_lifecycle_state(saved)
    assert {parameter.dtype for parameter in grown.parameters()} == {dtype}


def test_a_compiled_model_is_not_compiled_again_as_alpha_moves() -> None:
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    grown = model().eval()
    bring(grown.slots["r0c0"], Stage.BLENDING)
    compiled = torch.compile(grown, backend=backend)
    for _ in range(3):
        assert torch.equal(compiled(X), grown(X))
        grown.slots["r0c0"].tick()
    assert len(graphs) == 1


class _Odd(CnnHost):
    def __init__(self, *points: str) -> None:
        super().__init__()
        self._points = tuple(SlotPoint(name, 4) for name in points)


@pytest.mark.parametrize("points", [("r0c0", "r0c0"), ("slot1",), ("r0c0 ",)])
def test_slot_ids_are_checked(points: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="slot_points"):
        GrownModel(_Odd(*points))


def test_a_host_has_to_be_a_module() -> None:
    class Plain:
        topology = "cnn"

        def slot_points(self) -> tuple[SlotPoint, ...]:
            return ()

        def __call__(self, x: Tensor, visit: Visit | None = None) -> Tensor:
            return x

    with pytest.raises(ConfigError, match="'Plain'"):
        GrownModel(Plain())


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.usefixtures("group")
def test_data_parallel_finds_no_unused_parameters(stage: Stage) -> None:
    grown = model()
    bring(grown.slots["r0c0"], stage)
    bring(grown.slots["r0c1"], Stage.GERMINATED)
    wrapped = DistributedDataParallel(grown, find_unused_parameters=False)
    for _ in range(2):  # what was unused in one step is found in the next
        backward(wrapped)
    assert all((p.grad is not None) == p.requires_grad for p in grown.parameters())
    assert grown.alphas.data_ptr() not in {buffer.data_ptr() for buffer in wrapped.modules_buffers}


@pytest.mark.usefixtures("group")
def test_data_parallel_takes_a_seed_on_its_way_out() -> None:
    grown = model()
    bring(grown.slots["r0c0"], Stage.HOLDING)
    grown.slots["r0c0"].prune()
    wrapped = DistributedDataParallel(grown, find_unused_parameters=False)
    for _ in range(2):
        backward(wrapped)

"""Counterfactuals: what is said is what one by one says, and nothing at all is changed."""

import copy
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esper.errors import BadOverride, OverrideInTraining, UnknownSlot
from esper.lifecycle import Blend, SlotConfig, Stage
from esper.model import CnnHost, GptHost, GrownModel, ModuleHost, all_off, leave_one_out, pairs_off
from tests.esper.model.growing import bring, loss_of

STAGES = (Stage.FOSSILIZED, Stage.BLENDING, Stage.TRAINING, Stage.HOLDING)
Overrides = dict[str, float | Tensor]


def pictures() -> Tensor:
    return torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(2))


def grown(blend: Blend = Blend.ADD) -> GrownModel:
    """Four slots, each in another stage, BatchNorm with statistics of its own."""
    torch.manual_seed(1)
    model = GrownModel(CnnHost(width=4, blocks=4), SlotConfig(blend=blend, tempo=4))
    for slot_id, stage in zip(model.slot_ids, STAGES, strict=True):
        bring(model.slots[slot_id], stage)
    loss_of(model)
    return model.eval()


def text_model() -> GrownModel:
    torch.manual_seed(1)
    model = GrownModel(GptHost(vocabulary=11, context=8, width=8, heads=2, blocks=3), SlotConfig(tempo=4))
    for slot_id, stage in zip(model.slot_ids, STAGES[:3], strict=True):
        bring(model.slots[slot_id], stage, "mlp")
    return model.eval()


def every_question(slot_ids: tuple[str, ...]) -> list[Overrides]:
    sets = {**leave_one_out(slot_ids), **all_off(slot_ids), **pairs_off(slot_ids)}
    return [{}, *sets.values(), dict.fromkeys(slot_ids, 0.3), {slot_ids[1]: torch.tensor(0.6)}]


@torch.no_grad()
def one_by_one(model: GrownModel, x: Tensor, questions: list[Overrides]) -> list[Tensor]:
    return [model(x, alpha_overrides=question) for question in questions]


def same(one: Any, other: Any) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def everything(model: GrownModel) -> list[object]:
    """All that a forward pass could change: attributes, tensors and their versions, modes, RNGs, hooks."""
    parts: list[object] = [model.fingerprint(), model.records(), repr(model), model.configuration()]
    for module in model.modules():
        parts.append({name: id(value) for name, value in vars(module).items()})
        for table in (module._parameters, module._buffers, module._modules, module._forward_hooks):
            parts.append([(name, id(value)) for name, value in table.items()])
    tensors = [*model.parameters(), *model.buffers()]
    parts += [(tensor._version, tensor.data_ptr(), tensor.requires_grad, tensor.grad) for tensor in tensors]
    parts += [model.alphas.tolist(), torch.get_rng_state().tolist(), random.getstate()]
    parts.append(torch.is_grad_enabled())
    return parts


def test_what_is_asked() -> None:
    ids = ("r0c0", "r0c1", "r0c2")
    assert leave_one_out(ids) == {(each,): {each: 0.0} for each in ids}
    assert all_off(ids) == {ids: {"r0c0": 0.0, "r0c1": 0.0, "r0c2": 0.0}}
    assert list(pairs_off(ids)) == [("r0c0", "r0c1"), ("r0c0", "r0c2"), ("r0c1", "r0c2")]


@pytest.mark.parametrize("blend", Blend)
def test_answers_together_are_those_one_by_one(blend: Blend) -> None:
    model, x = grown(blend), pictures()
    questions = every_question(model.slot_ids)
    with torch.no_grad():
        together = model.counterfactuals(x, questions)
        assert torch.equal(together[0], model(x))
    assert same(together, one_by_one(model, x, questions))
    # Only the seed in TRAINING is behind the host's value, so that leaving it out is no change.
    assert sum(torch.equal(together[0], answer) for answer in together[1:]) == 1


def test_a_text_model_answers_alike() -> None:
    model = text_model()
    tokens = torch.randint(0, 11, (3, 8), generator=torch.Generator().manual_seed(0))
    questions = every_question(model.slot_ids)
    with torch.no_grad():
        assert same(model.counterfactuals(tokens, questions), one_by_one(model, tokens, questions))


def test_a_host_without_pieces_answers_alike() -> None:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    model = GrownModel(ModuleHost(module, after=["1", "2"], example=pictures()), SlotConfig(tempo=4)).eval()
    for slot_id in model.slot_ids:
        bring(model.slots[slot_id], Stage.BLENDING)
    questions = every_question(model.slot_ids)
    with torch.no_grad():
        together = model.counterfactuals(pictures(), questions)
    assert same(together, one_by_one(model, pictures(), questions))


def test_what_variants_share_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, runs = grown(), [0, 0, 0, 0, 0]
    segment = CnnHost.segment

    def counted(host: CnnHost, index: int, h: Tensor) -> Tensor:
        runs[index] += 1
        return segment(host, index, h)

    seeds = [0]
    seed = model.slots["r0c3"].seed
    assert seed is not None
    seed.register_forward_hook(lambda *_: seeds.__setitem__(0, seeds[0] + 1))
    monkeypatch.setattr(CnnHost, "segment", counted)
    with torch.no_grad():
        model.counterfactuals(pictures(), [{}, *leave_one_out(model.slot_ids).values()])
    assert runs == [1, 2, 3, 4, 5]
    assert seeds == [4]


def test_no_questions_have_no_answers() -> None:
    assert grown().counterfactuals(pictures(), []) == ()


def test_asking_changes_nothing() -> None:
    model, x = grown(), pictures()
    questions = every_question(model.slot_ids)
    before = everything(model)
    with torch.no_grad():
        model.counterfactuals(x, questions)
        one_by_one(model, x, questions)
    assert everything(model) == before


def test_asking_between_two_steps_does_not_change_the_run() -> None:
    asked, left = grown(), grown()
    for model in (asked, left):
        optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(3):
            model.train()
            optimiser.zero_grad()
            torch.autograd.backward(loss_of(model))
            optimiser.step()
            model.tick()
            if model is asked:
                model.eval()
                with torch.no_grad():
                    model.counterfactuals(pictures(), every_question(model.slot_ids))
    assert asked.records() == left.records()
    assert asked.fingerprint() == left.fingerprint()


@pytest.mark.parametrize("make", [grown, text_model])
def test_eight_threads_ask_at_once(make: Callable[[], GrownModel]) -> None:
    model = make()
    text = make is text_model
    x = torch.randint(0, 11, (3, 8), generator=torch.Generator().manual_seed(0)) if text else pictures()
    questions = every_question(model.slot_ids)
    expected = one_by_one(model, x, questions)
    before, wrong = everything(model), []
    together = threading.Barrier(8)

    def ask(number: int) -> None:
        order = questions[number % len(questions) :] + questions[: number % len(questions)]
        due = expected[number % len(questions) :] + expected[: number % len(questions)]
        together.wait()
        for _ in range(3):
            if not same(one_by_one(model, x, order), due):
                wrong.append(number)
            with torch.no_grad():
                if not same(model.counterfactuals(x, order), due):
                    wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert everything(model) == before


def test_a_compiled_model_gets_no_graph_and_no_guard_from_asking() -> None:
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model, x = grown(), pictures()
    compiled = torch.compile(model, backend=backend)
    with torch.no_grad():
        compiled(x)
        for _ in range(2):
            model.counterfactuals(x, every_question(model.slot_ids))
            compiled(x)
    assert len(graphs) == 1


def test_a_copy_of_the_model_answers_for_itself() -> None:
    model, x = grown(), pictures()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
        assert not torch.equal(other.counterfactuals(x, [{}])[0], model.counterfactuals(x, [{}])[0])
        assert torch.equal(other.counterfactuals(x, [{}])[0], other(x))


@pytest.mark.parametrize(
    ("variants", "error"),
    [
        ([{}, {"r9c9": 0.0}], UnknownSlot),
        ([{"r0c0": 2.0}], BadOverride),
        ([{"r0c0": torch.zeros(2)}], BadOverride),
    ],
)
def test_a_bad_question_is_refused_and_changes_nothing(
    variants: list[Overrides], error: type[Exception]
) -> None:
    model = grown()
    before = everything(model)
    with pytest.raises(error):
        model.counterfactuals(pictures(), variants)
    assert everything(model) == before


def test_a_model_in_training_is_refused() -> None:
    with pytest.raises(OverrideInTraining):
        grown().train().counterfactuals(pictures(), [{}])

"""Each error says what was given, where, and what is accepted, and survives a process border."""

import pickle

import pytest

from esper import errors
from esper.errors import EsperError

SENTENCES = {
    errors.ConfigError("slot.tempo", -1, "an int of at least 0"): (
        "slot.tempo=-1 is not accepted: must be an int of at least 0"
    ),
    errors.UnknownSlot("r9c9", ("r0c0", "r0c1")): "no slot 'r9c9' in this model; its slots are: r0c0, r0c1",
    errors.UnknownBlueprint("cnn", "lora", ()): ("no blueprint 'lora' for topology 'cnn'; those are: none"),
    errors.UnknownBlueprintOption("cnn", "norm", "rank", ("eps",)): (
        "blueprint 'norm' for topology 'cnn' has no option 'rank'; its options are: eps"
    ),
    errors.SlotOccupied("r0c0", "TRAINING", "norm"): (
        "slot 'r0c0' already holds a 'norm' seed in stage TRAINING: germinate only in a DORMANT slot"
    ),
    errors.SlotEmpty("r0c0", "advance"): (
        "slot 'r0c0' is empty (DORMANT): germinate a seed before you advance it"
    ),
    errors.IllegalTransition("r0c0", "FOSSILIZED", "advance", "the stage is terminal"): (
        "slot 'r0c0' in stage FOSSILIZED cannot advance: the stage is terminal"
    ),
    errors.FossilPruned("r0c0", "norm"): (
        "slot 'r0c0' holds a FOSSILIZED 'norm' seed, which cannot be pruned"
    ),
    errors.UnguardedStage("PRUNED", ("GERMINATED", "TRAINING")): (
        "no gate guards stage PRUNED; guarded are: GERMINATED, TRAINING"
    ),
    errors.AlphaNotHolding(0.25, 1.0, 3): (
        "alpha is on its way (0.25 -> 1, 3 ticks left): retarget only when it holds"
    ),
    errors.ShapeMismatch("slot 'r0c0'", (2, 4, 8, 8), (2, 4, 4, 4)): (
        "slot 'r0c0': output shape (2, 4, 4, 4), but a seed must keep its input's, (2, 4, 8, 8)"
    ),
    errors.SeedRefused("slot 'r0c0'", (2, 4, 5, 3), "RuntimeError: no"): (
        "slot 'r0c0': the seed cannot be run on features of shape (2, 4, 5, 3): RuntimeError: no"
    ),
    errors.BadSlotPoint("fc", "is not run by the forward pass", ("conv",)): (
        "no slot can go after 'fc': it is not run by the forward pass; looked among: conv"
    ),
    errors.FeatureMismatch("slot 'r0c0'", "NCHW", 4, (2, 8, 8)): (
        "slot 'r0c0': features of shape (2, 8, 8), but this slot was made for (N, C=4, H, W)"
    ),
    errors.ForcedAlpha("SeedSlot.force_alpha", "model(x, alpha_overrides={'r0c0': alpha})"): (
        "there is no SeedSlot.force_alpha: it would change the model for everyone; "
        "use model(x, alpha_overrides={'r0c0': alpha})"
    ),
    errors.BadOverride("r0c0", "1.5", "a number in [0, 1] or a float tensor ()"): (
        "alpha_overrides['r0c0'] = 1.5 is not accepted: must be a number in [0, 1] or a float tensor ()"
    ),
    errors.OverrideInTraining("host.blocks"): (
        "alpha_overrides need eval mode, but 'host.blocks' is in training mode, where a forward pass "
        "may change statistics or draw random numbers: call model.eval() first"
    ),
    errors.BadState("slot 'r0c0'.stage", 5, "the code of a stage"): (
        "cannot restore slot 'r0c0'.stage from 5: must be the code of a stage"
    ),
    errors.UnknownBackend("mpi", ("gloo", "nccl")): (
        "a process group of backend 'mpi' is not accepted: must be of gloo or nccl"
    ),
    errors.CollectiveInLoader(3, 1, 2): (
        "fetching the batch of step 1 of epoch 3 issued 2 collectives, which a rank without a batch would "
        "not take part in: loaders=join is not accepted with such a loader, truncate and error are"
    ),
    errors.CheckpointNotWritten("a.checkpoint", 0, "OSError: no space"): (
        "checkpoint a.checkpoint was not written: on rank 0 OSError: no space"
    ),
    errors.NotReplicated(("parameter a", "parameter b")): (
        "parameter a, parameter b: learns, but the replicated model was made before it did; replicate the "
        "model anew whenever what learns changes"
    ),
    errors.CounterfactualOnReplica(("r0c0",)): (
        "alpha_overrides for r0c0 were given to the replicated model, where a rank that asks alone would "
        "wait for the others: ask the bare one, which is its .module"
    ),
    errors.GrowthFailed("r0c0", "germinate", "no memory"): (
        "no rank could germinate in slot 'r0c0': no memory"
    ),
    errors.TrainingDiverged(7, float("inf"), 3, 3): (
        "epoch 7 went wrong (loss inf) after 3 rollbacks in a row, of which governor.max_rollbacks allows 3: "
        "lower optimizer.lr, or look at the data"
    ),
    errors.CheckpointRefused("a", "its format is version 2", "version 1"): (
        "checkpoint a is refused: its format is version 2; accepted is version 1"
    ),
    errors.NoCheckpoint("runs", ("a is refused", "b is refused")): (
        "no usable checkpoint in runs; a is refused; b is refused"
    ),
    errors.DataError("digits", "scikit-learn is missing", "install the extra 'train'"): (
        "digits: scikit-learn is missing; install the extra 'train'"
    ),
}


@pytest.mark.parametrize(("error", "sentence"), SENTENCES.items(), ids=lambda value: type(value).__name__)
def test_it_says_so_on_both_sides_of_a_process_border(error: EsperError, sentence: str) -> None:
    assert str(error) == sentence
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == sentence
    assert vars(copy) == vars(error)


def test_every_error_has_its_sentence_here() -> None:
    assert set(EsperError.__subclasses__()) == {type(error) for error in SENTENCES}

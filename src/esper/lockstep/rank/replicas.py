"""In the rank: digests of what must be equal on all ranks, at points where it must be.

No collective is needed: digests go into the ledger under a key that ranks have in common, and are compared
from outside. A DDP model's point is its forward in training mode with gradient sync on: not an optimiser
step, since ZeRO's inner step comes before its broadcast, and neither a barrier nor the end, where rank 0 may
hold averaged weights or the best checkpoint to evaluate them. What the program watches is audited at the
forwards, at each barrier, and at the end of the default group or of the program.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import time
import weakref
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from esper.lockstep import watching
from esper.lockstep.rank.fingerprints import (
    Leaf,
    ends_of,
    leaves,
    running_digests,
    stable_digest,
    tensor_digest,
)
from esper.lockstep.rank.groups import Groups, patch
from esper.lockstep.rank.recorder import GroupRecord, Recorder
from esper.lockstep.record.audits import Audits

# One of so many forwards in a group is audited: 250 us each time were 15 % of a small model's step. With more
# elements one of as many as keep the audit (6 ms a million of them) a small part of a step that size. A
# prime, so
# that two models in turn are both met.
_FORWARDS = 31
_FIRST_FORWARDS = 8  # all of them are: most that goes wrong does so at the start
_ELEMENTS_A_FORWARD = 20_000
# A look for parameters that no reducer has may take this share of the time.
_SHARE = 0.001
_FUSED_ELEMENTS = 1 << 16
_MASK = (1 << 63) - 1
# torch 2.13 renamed an argument of DDP.
_BUFFERS_SYNC = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel.__init__).parameters
)
_WRAPPERS = re.compile(r"\b(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")


class _Trained:
    """Parameters to digest, with what needs to be worked out only once."""

    def __init__(self, label: str, named: list[tuple[str, nn.Parameter]]) -> None:
        self.tensors = [one for _, one in named]
        names = [name for name, _ in named]
        # Ranks may freeze parts as they like: only audits of the same parameters are compared.
        self._told = {"what": label, "names": names, "subset": stable_digest(json.dumps(names)) & _MASK}
        self._details: dict[int, str] = {}
        kinds = {(type(one), one.dtype, one.device.type) for one in self.tensors}
        one_kind = len(kinds) == 1 and next(iter(kinds))[::2] == (nn.Parameter, "cpu")
        fused = one_kind and sum(one.numel() for one in self.tensors) <= _FUSED_ELEMENTS
        self._ends = ends_of(self.tensors) if fused else None

    def detail(self, phase: int) -> str:
        """What is digested, as JSON."""
        known = self._details.get(phase)
        if known is None:
            self._details = {phase: (known := json.dumps({**self._told, "phase": phase}))}
        return known

    def digests(self) -> list[int]:
        """Digest of tensors 0 to n for each n."""
        if self._ends is not None:
            digests: list[int] = running_digests(self.tensors, self._ends).tolist()
            return digests
        values, total = [], 0
        for one in self.tensors:
            total = (total * 3 + tensor_digest(one)) & _MASK
            values.append(total)
        return values


_Named = list[tuple[str, nn.Parameter]]


class _Forwards:
    """How many that synchronise there were in one group: ranks count them alike."""

    count = 0


class _Model:
    """One DDP model: the parameters that its reducer has, as they were at construction."""

    def __init__(self, ddp: DistributedDataParallel, named: _Named, label: str, forwards: _Forwards) -> None:
        """`named`: the parameters that the constructor was to look at."""
        self.ddp = weakref.ref(ddp)
        self.label, self.forwards = label, forwards
        self.registered = {id(one) for _, one in named if one.requires_grad}
        self.named = [(plain_name(name), one) for name, one in named if one.requires_grad]
        self._flags = [True] * len(self.named)
        self._trained: _Trained | None = None
        self.every = max(_FORWARDS, sum(one.numel() for _, one in named) // _ELEMENTS_A_FORWARD)
        self.local_since: int | None = None  # the first parameter's version when the ranks went on alone
        self.phase = 0  # how often the ranks have gone on alone
        self.next_look = 0.0
        self.left_out: list[tuple[str, nn.Parameter]] = []  # trained parameters that no reducer has

    def trained(self) -> _Trained:
        """What is still trained: a frozen parameter may differ."""
        flags = [one.requires_grad for _, one in self.named]
        if self._trained is None or flags != self._flags:
            self._flags = flags
            self._trained = _Trained(self.label, [pair for pair in self.named if pair[1].requires_grad])
        return self._trained

    def follow_phase(self, synchronises: bool) -> None:
        """A forward comes. Where the optimiser has stepped since gradients were last averaged a new phase
        begins, in which replicas differ until the program makes them alike.

        Accumulation under `no_sync` leaves the replicas equal, steps under it don't (local SGD).
        """
        version = self.named[0][1]._version if self.named else 0
        if not synchronises and self.local_since is None:
            self.local_since = version
        if synchronises:
            self.phase += self.local_since is not None and version != self.local_since
            self.local_since = None

    def look_for_unregistered(self) -> None:
        """Note them, and when to look next."""
        begun = time.monotonic()
        self.left_out = self.unregistered()
        self.next_look = begun + (time.monotonic() - begun) / _SHARE

    def unregistered(self) -> list[tuple[str, nn.Parameter]]:
        """Trainable, not ignored parameters of the module that its reducer does not have."""
        ddp = self.ddp()
        if ddp is None:
            return []
        ignored = ddp.parameters_to_ignore
        return [
            (plain_name(name), one)
            for name, one in ddp.module.named_parameters()
            if one.requires_grad and id(one) not in self.registered and name not in ignored
        ]


class Replicas:
    """Follows DDP models and watched values of this process."""

    def __init__(self, recorder: Recorder, groups: Groups) -> None:
        self._recorder, self._groups = recorder, groups
        self._audits: Audits
        self._by_ddp: dict[int, _Model] = {}  # by id, until the model is gone
        self._built: dict[str, int] = {}
        self._forwards: dict[str, _Forwards] = {}
        self._models: dict[Any, tuple[str, dict[str, object]]] = {}
        self._seen: dict[tuple[str, str, str], tuple[int, int]] = {}
        self._undo: list[Callable[[], None]] = []
        self.chain = 0

    def install(self) -> None:
        """Follow DDP's constructor and forward, and take `watch` calls."""
        construct: Any = DistributedDataParallel.__init__
        forward: Any = DistributedDataParallel.forward
        replicas, names = self, list(inspect.signature(construct).parameters)[2:]

        def __init__(ddp: Any, module: nn.Module, *args: Any, **kwargs: Any) -> None:
            if replicas._groups.foreign:
                construct(ddp, module, *args, **kwargs)
                return
            frame = sys._getframe(1)
            given = {**dict(zip(names, args, strict=False)), **kwargs}  # what is too much, torch refuses
            pairs_buffers = given.get("init_sync", True) or given.get(_BUFFERS_SYNC, True)
            named = replicas._constructing(module, _group_of(given), frame, with_buffers=pairs_buffers)
            construct(ddp, module, *args, **kwargs)
            replicas._constructed(ddp, named)

        models, is_compiling, now = self._by_ddp, torch.compiler.is_compiling, time.monotonic
        averaging, any_watched = torch.is_grad_enabled, watching.any_watched

        # Every step pays for this, with data of its own in the processor's caches: hence in one piece.
        def audited_forward(ddp: Any, *args: Any, **kwargs: Any) -> Any:
            # Traced by dynamo this would be a graph break in every step.
            if not is_compiling() and (model := models.get(id(ddp))) is not None:
                if model.local_since is not None or not ddp.require_backward_grad_sync:
                    model.follow_phase(ddp.require_backward_grad_sync)
                if now() >= model.next_look:
                    model.look_for_unregistered()
                if ddp.require_backward_grad_sync and ddp.training and averaging():
                    count = model.forwards.count = model.forwards.count + 1
                    due = count <= _FIRST_FORWARDS or not count % model.every
                    if due or model.left_out or any_watched():
                        replicas._audit_forward(ddp, model, sys._getframe(1), due=due)
            return forward(ddp, *args, **kwargs)

        self._undo = [
            patch(DistributedDataParallel, "__init__", __init__),
            patch(DistributedDataParallel, "forward", audited_forward),
        ]
        watching.start()

    def attach(self) -> None:
        """The ledger is open: audits go beside it."""
        ledger = self._recorder.ledger
        self._audits = Audits(ledger.path.parent, ledger.rank)

    def uninstall(self) -> None:
        """Put DDP back."""
        watching.stop()
        while self._undo:
            self._undo.pop()()

    def begin(self) -> None:
        """A new program starts in this process: nothing of the one before is followed."""
        self._by_ddp.clear()
        self._built.clear()
        self._forwards.clear()
        self._seen.clear()
        self.chain = 0
        watching.start()

    def audit(self, source: str, record: GroupRecord | None, frame: FrameType | None) -> None:
        """Write a digest of each watched value, to be compared among the members of that group."""
        if record is not None:
            self._audit_watched(source, record, self._recorder.site(frame))

    def _constructing(self, module: nn.Module, group: Any, frame: FrameType, *, with_buffers: bool) -> _Named:
        """Which parameters, in which order and shape: the same on all ranks, or the reducers pair
        strangers. The parameters that are not to be ignored.
        """
        record = self._groups.of(group)
        ignored = getattr(module, "_ddp_params_and_buffers_to_ignore", ())  # a rank's own shard, say
        every = [(name, one) for name, one in module.named_parameters() if name not in ignored]
        named = tuple((name, one.shape) for name, one in every if one.requires_grad)
        # Buffers that are sent from rank 0, now or at each forward, are paired by position, too.
        buffers = tuple(
            (name, one.shape)
            for name, one in (module.named_buffers() if with_buffers else ())
            if name not in ignored
        )
        known = self._models.get((named, buffers))
        if known is None:  # a model that is built anew each epoch has the same parameters each time
            told = [[plain_name(name), list(shape)] for name, shape in named]
            held = [[plain_name(name), list(shape)] for name, shape in buffers]
            digest = f"{stable_digest(json.dumps([told, held])):016x}"
            known = self._models[named, buffers] = digest, {"parameters": told, "buffers": held}
        same, detail = known
        self._groups.together(
            f"DDP in {record.key}",
            record.members,
            "DistributedDataParallel",
            same=same,
            detail=detail,
            site=self._recorder.site(frame),
        )
        return every

    def _constructed(self, ddp: DistributedDataParallel, named: _Named) -> None:
        key = self._groups.of(ddp.process_group).key
        number = self._built[key] = self._built.get(key, -1) + 1
        forwards = self._forwards.setdefault(key, _Forwards())
        self._by_ddp[id(ddp)] = _Model(ddp, named, f"DistributedDataParallel #{number}", forwards)
        weakref.finalize(ddp, self._by_ddp.pop, id(ddp), None).atexit = False
        weakref.finalize(ddp.reducer, _let_go, ddp.process_group).atexit = False

    def _audit_forward(
        self, ddp: DistributedDataParallel, model: _Model, frame: FrameType, *, due: bool
    ) -> None:
        record, site = self._groups.of(ddp.process_group), self._recorder.site(frame)
        if not _has_hook(ddp):
            if due:
                self._audit_model(model, record, site)
            if model.left_out:  # averaged by hand, perhaps; only where they differ they are not
                self._audit_values(record, "left out", model.label, dict(model.left_out), site)
        if watching.any_watched():
            self._audit_watched("forward", record, site)

    def _audit_model(self, model: _Model, record: GroupRecord, site: int) -> None:
        trained = model.trained()
        if trained.tensors:
            detail = trained.detail(model.phase)
            self._write(record, "forward", model.label, trained.digests(), detail, site)

    def _audit_watched(self, source: str, record: GroupRecord, site: int) -> None:
        for name, value in watching.values():
            self._audit_values(record, source, name, {name: value}, site)

    def _audit_values(
        self, record: GroupRecord, source: str, what: str, named: Mapping[str, Any], site: int
    ) -> None:
        found = [leaf for name, value in named.items() for leaf in _leaves(value, name)]
        values, total = [], 0
        for leaf in found:
            total = (total * 3 + leaf.digest) & _MASK
            values.append(total)
        detail: dict[str, object] = {"what": what, "names": [leaf.path for leaf in found]}
        if len(found) == 1:
            detail["value"] = found[0].text
        self._write(record, source, what, values, json.dumps(detail), site)

    def _write(
        self, record: GroupRecord, source: str, what: str, values: list[int], detail: str, site: int
    ) -> None:
        # Of that group, whose order its members share: how many of another group's have come says nothing.
        position = record.next
        # Two audits between the same two collectives are told apart by their count.
        place = (record.key, source, what)
        before, count = self._seen.get(place, (-1, 0))
        count = count + 1 if before == position else 0
        self._seen[place] = (position, count)
        self.chain = (self.chain * 31 + values[-1] + position) & _MASK
        self._recorder.audited(
            record.key,
            position,
            source,
            what,
            detail,
            count,
            self._audits.append(values),
            values[-1],
            site,
        )


def _let_go(group: dist.ProcessGroup) -> None:
    """The end of a reducer, which would otherwise be what holds a destroyed group last, and end it.

    torch 2.13 hangs there now and then: the group waits for its threads while the reducer's thread has the
    GIL, and one of them waits for that, to let go of what the backward pass has noted in its last operation.
    From Python a group is ended without the GIL.
    """


def _leaves(value: Any, name: str) -> list[Leaf]:
    try:
        return list(leaves(value, name))
    except Exception as error:  # noqa: BLE001  the user's state_dict must not end the program it only watches
        text = f"{type(error).__name__}: {error}"
        return [Leaf(name, stable_digest(type(error).__name__), text)]


def _has_hook(ddp: DistributedDataParallel) -> bool:
    """Whether gradients go through a hook that may leave others on each rank."""
    return any(not watching.averages(hook) for hook, _ in getattr(ddp, "_comm_hooks", None) or ())


def _group_of(given: Mapping[str, Any]) -> Any:
    """The group that a DDP constructor's arguments ask for."""
    if given.get("process_group") is not None:
        return given["process_group"]
    mesh = given.get("device_mesh")
    return mesh.get_group() if mesh is not None and mesh.ndim == 1 else dist.group.WORLD


def plain_name(name: str) -> str:
    """A parameter's name without what wrappers put into it on the ranks that compile or save memory."""
    return _WRAPPERS.sub("", name)

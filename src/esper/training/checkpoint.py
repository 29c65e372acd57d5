"""Runs on disk: written as a whole, verified as a whole, loaded as a whole or not at all."""

from __future__ import annotations

import base64
import copy
import hashlib
import io
import json
import logging
import os
import pickle
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from esper.distributed.agreement import Agreement
from esper.distributed.digest import stable_digest
from esper.distributed.divergence import ABSENT, require_same
from esper.errors import CheckpointNotWritten, CheckpointRefused, EsperError, NoCheckpoint
from esper.model import GrownModel
from esper.training.callbacks import Callback
from esper.training.history import EpochResult
from esper.training.snapshot import random_state, set_random_state
from esper.training.trainer import Trainer

_LOGGER = logging.getLogger(__name__)

MAGIC = b"esper checkpoint\n"
VERSION = 3
_HEAD = struct.Struct(">IQ32s")  # version, bytes of the payload, digest of both and the payload
_PARTS = frozenset({"host", "config", "fingerprint", "state", "generators"})
# What a run may change when it goes on: neither is part of what has been computed so far.
_MAY_DIFFER = frozenset({"epochs", "agreement", "compile"})


class Checkpoints(Callback):
    """The checkpoints of one run in a folder, named by epoch; all but the newest `keep` are removed.

    A trainer's callback, too, of all ranks: it saves each `every`-th epoch, and the one that a run ends with.
    """

    def __init__(self, folder: Path | str, *, keep: int = 2, every: int = 1) -> None:
        self.folder = Path(folder)
        self.keep, self.every = max(1, keep), max(1, every)

    def paths(self) -> list[Path]:
        """Those that are there, newest first."""
        return sorted(self.folder.glob("epoch-*.checkpoint"), reverse=True)

    def after_epoch(self, trainer: Trainer, result: EpochResult) -> None:
        """Collective: every rank, same order. As `save`, where it is time."""
        if trainer.stopping or result.epoch == trainer.config.epochs or result.epoch % self.every == 0:
            self.save(trainer)

    def save(self, trainer: Trainer) -> Path:
        """Collective: every rank, same order. Write the trainer's state as it is between two epochs; the file
        appears whole or not at all.

        The first rank writes, with torch's generators of all; a rank returns when the file is there. Raises
        OSError on the rank that could not write, CheckpointNotWritten on the others.
        """
        agreement = trainer.agreement
        path = self.folder / f"epoch-{len(trainer.history.epochs):06d}.checkpoint"
        where = f"the checkpoint of epoch {len(trainer.history.epochs)}"
        everyones = agreement.texts(written_random_state(), where)
        write_on_first(
            agreement, path, where, lambda: self._write(path, pack(trainer, list(everyones.values())))
        )
        return path

    def _write(self, path: Path, data: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # What a writer that was killed had begun: nobody else looks at it, and the disk may be full of it.
        for unfinished in self.folder.glob(".epoch-*.checkpoint.*"):
            unfinished.unlink(missing_ok=True)
        write_whole(path, data)
        for old in self.paths()[self.keep :]:
            old.unlink(missing_ok=True)

    def resume(self, trainer: Trainer) -> Path:
        """Collective: every rank, same order. Go on from the newest checkpoint that every rank can use, and
        say which; others are logged by name.

        Raises NoCheckpoint, with what each was refused for, when no rank has one, LifecycleDivergence when
        some have and there is none that all have; the trainer is then as it was. In a world of another size
        data is sharded anew from the next epoch on, batches keep their size on each rank, and torch's global
        generators are seeded anew by run, epoch and rank; all else goes on as it was.
        """
        usable: dict[str, str] = {}
        refused = []
        for path in self.paths():
            try:
                usable[path.name] = rehearse(path, trainer)
            except CheckpointRefused as error:
                _LOGGER.warning("%s", error)
                refused.append(str(error))
        name = self._common(usable, trainer)
        if name is None:
            raise NoCheckpoint(str(self.folder), tuple(refused))
        load(self.folder / name, trainer)
        return self.folder / name

    def _common(self, usable: Mapping[str, str], trainer: Trainer) -> str | None:
        """The newest name that all ranks have with the same content; None when no rank has any."""
        where = f"the checkpoints in {self.folder}"
        everyones = trainer.agreement.texts(json.dumps(dict(usable)), where)
        found: dict[int, dict[str, str]] = {rank: json.loads(text) for rank, text in everyones.items()}
        names = sorted({name for have in found.values() for name in have}, reverse=True)
        for name in names:
            if len({have.get(name) for have in found.values()}) == 1:
                return name
            lacking = [rank for rank, have in found.items() if name not in have]
            _LOGGER.warning("%s is not the same on all ranks (missing on %s)", name, lacking or "none")
        require_same(
            {name: [(rank, have.get(name, ABSENT)) for rank, have in found.items()] for name in names}, where
        )
        return None


def write_on_first(agreement: Agreement, path: Path, where: str, write: Callable[[], None]) -> None:
    """Collective: every rank, same order. The first rank writes; a rank returns when the file is there.

    Raises OSError on the rank that could not write, CheckpointNotWritten on the others.
    """
    problem: OSError | None = None
    if agreement.rank == agreement.ranks[0]:
        try:
            write()
        except OSError as error:
            problem = error
    said = agreement.texts("" if problem is None else f"{type(problem).__name__}: {problem}", where)
    if problem is not None:
        raise problem
    if reason := said[agreement.ranks[0]]:
        raise CheckpointNotWritten(str(path), agreement.ranks[0], reason)


def write_whole(path: Path, data: bytes) -> None:
    """Put `data` at `path` so that a reader, or a power failure, meets the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def written_random_state() -> str:
    """torch's global generators of this rank as text."""
    buffer = io.BytesIO()
    torch.save(random_state(), buffer)
    return base64.b64encode(buffer.getvalue()).decode()


def pack(trainer: Trainer, generators: Sequence[str] = ()) -> bytes:
    """The trainer's state as the bytes of a file, with the `generators` of all ranks in group order."""
    content = {
        "generators": list(generators),
        "host": _host_of(trainer.model),
        "config": json.dumps(trainer.config.to_dict()),
        "fingerprint": trainer.model.fingerprint(),
        "state": trainer.state_dict(),
    }
    return seal(content)


def seal(content: Mapping[str, Any]) -> bytes:
    """Plain values and tensors as the bytes of a file that can be told from any other, and from a part."""
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    payload = buffer.getvalue()
    return MAGIC + _HEAD.pack(VERSION, len(payload), _digest(VERSION, payload)) + payload


def unseal(data: bytes, path: str, parts: frozenset[str] = _PARTS) -> dict[str, Any]:
    """What `seal` put in, of exactly these keys. Raises CheckpointRefused for anything else."""
    if not data.startswith(MAGIC):
        raise CheckpointRefused(path, "it does not begin as one", "a file that esper wrote")
    begin = len(MAGIC) + _HEAD.size
    if len(data) < begin:
        raise CheckpointRefused(path, f"it is cut off after {len(data)} bytes", f"at least {begin} bytes")
    version, size, digest = _HEAD.unpack(data[len(MAGIC) : begin])
    if version != VERSION:
        raise CheckpointRefused(path, f"its format is version {version}", f"version {VERSION}")
    if len(data) - begin != size:
        raise CheckpointRefused(
            path, f"it has {len(data) - begin} bytes of content", f"the {size} it announces"
        )
    if _digest(version, data[begin:]) != digest:
        raise CheckpointRefused(path, "its content is not what was written", "content of its digest")
    try:
        content = torch.load(io.BytesIO(data[begin:]), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = f"its content is more than plain values ({str(error).splitlines()[0]})"
        raise CheckpointRefused(path, reason, "plain values and tensors") from error
    if not isinstance(content, dict) or set(content) != parts:
        raise CheckpointRefused(path, "it holds something else", f"exactly {', '.join(sorted(parts))}")
    return content


def load(path: Path, trainer: Trainer) -> None:
    """Go on from this checkpoint. Raises CheckpointRefused, and then nothing of the trainer has changed."""
    content = _rehearsed(path, trainer)
    _restore(content, trainer)
    _go_on_drawing(content["generators"], trainer)


def rehearse(path: Path, trainer: Trainer) -> str:
    """Digest of a checkpoint that `load` would take, which is not loaded. Raises CheckpointRefused."""
    _rehearsed(path, trainer)
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()


def _go_on_drawing(generators: Sequence[str], trainer: Trainer) -> None:
    """This rank's own generators go on; in a world of another size they are seeded anew."""
    ranks = trainer.agreement.ranks
    if not generators:
        return
    if len(generators) == len(ranks):
        mine = base64.b64decode(generators[ranks.index(trainer.agreement.rank)])
        set_random_state(torch.load(io.BytesIO(mine), map_location="cpu", weights_only=True))
        return
    epoch = len(trainer.history.epochs)
    _LOGGER.warning(
        "the checkpoint of epoch %d is of %d ranks, and %d go on: data is sharded anew, a step now takes %d "
        "batches of the same size, and torch's global generators are seeded anew; all else goes on",
        epoch,
        len(generators),
        len(ranks),
        len(ranks),
    )
    torch.manual_seed(stable_digest("resume", trainer.config.seed, epoch, trainer.agreement.rank))


def _rehearsed(path: Path, trainer: Trainer) -> dict[str, Any]:
    try:
        content = unseal(path.read_bytes(), str(path))
    except OSError as error:
        raise CheckpointRefused(str(path), f"it cannot be read: {error.strerror}", "a file") from error
    _check_fits(content, trainer, str(path))
    random = random_state()
    try:
        # A rehearsal on a copy: what fails halfway there leaves the trainer itself as it is.
        _restore(content, _copy_of(trainer))
    except (EsperError, RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = f"its state does not fit ({type(error).__name__}: {error})"
        raise CheckpointRefused(str(path), reason, "the state of such a run") from error
    finally:
        set_random_state(random)
    return content


def _restore(content: Mapping[str, Any], trainer: Trainer) -> None:
    trainer.load_state_dict(content["state"])
    found = trainer.model.fingerprint()
    if found != content["fingerprint"]:
        raise ValueError(f"fingerprint {found} for {content['fingerprint']}")


def _copy_of(trainer: Trainer) -> Trainer:
    """Another trainer with copies of all that loading changes."""
    other = copy.copy(trainer)
    other.model, other.optimizer, other.controller, other.safeguard = copy.deepcopy(
        (trainer.model, trainer.optimizer, trainer.controller, trainer.safeguard)
    )
    other.compiler = copy.copy(trainer.compiler)
    return other


def _check_fits(content: Mapping[str, Any], trainer: Trainer, path: str) -> None:
    host = _host_of(trainer.model)
    if content["host"] != host:
        raise CheckpointRefused(path, f"it is of another host, {content['host']}", host)
    theirs, ours = json.loads(content["config"]), json.loads(json.dumps(trainer.config.to_dict()))
    for key in sorted(set(theirs) | set(ours)):
        if key not in _MAY_DIFFER and theirs.get(key) != ours.get(key):
            raise CheckpointRefused(path, f"its config has {key}={theirs.get(key)!r}", f"{ours.get(key)!r}")


def _host_of(model: GrownModel) -> str:
    """A host in words: its class and a digest of its slots and of its tensors' names, shapes and dtypes."""
    tensors = [(name, list(each.shape), str(each.dtype)) for name, each in model.host.state_dict().items()]
    points = [
        (slot_id, model.slots[slot_id].channels, model.slots[slot_id].topology) for slot_id in model.slot_ids
    ]
    return f"{type(model.host).__name__} {stable_digest(points, tensors):016x}"


def _digest(version: int, payload: bytes) -> bytes:
    head = struct.pack(">IQ", version, len(payload))
    digest = hashlib.blake2b(head, digest_size=32)
    digest.update(payload)  # a copy of both together would double what a large model takes
    return digest.digest()

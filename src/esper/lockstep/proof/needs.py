"""Whose coming a call can't return without: the edges of the wait-for graph that are certain."""

from __future__ import annotations

from esper.lockstep.proof.mailbox import Wait

# The result on every rank depends on every rank's input.
_ALL_TO_ALL = {
    "all_reduce",
    "all_reduce_coalesced",
    "all_gather",
    "all_gather_coalesced",
    "reduce_scatter",
    "reduce_scatter_coalesced",
    "all_to_all",
    "barrier",
    "monitored_barrier",
    "new_group",
}
_ROOT_NEEDS_ALL = {"reduce", "gather"}
_ALL_NEED_ROOT = {"broadcast", "scatter"}


def certain(wait: Wait, members: tuple[int, ...]) -> tuple[int, ...]:
    """The absent ranks without which this wait can't end, whatever the backend buffers.

    A leaf of a broadcast may already have its data while another leaf is still absent, so only what the
    result depends on counts: the root for a leaf, nobody for the root itself. With two members gloo makes
    both ends wait for each other (measured with 4 floats), and a send waits for its receive.
    """
    entry = wait.entry
    if not wait.sure:
        return ()
    if entry.op in _ALL_TO_ALL or entry.op in ("send", "recv") or len(members) == 2:
        return wait.lacks
    root = members[entry.root] if 0 <= entry.root < len(members) else entry.root
    if entry.op in _ROOT_NEEDS_ALL and entry.rank == root:
        return wait.lacks
    if entry.op in _ALL_NEED_ROOT and root in wait.lacks:
        return (root,)
    return ()

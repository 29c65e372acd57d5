"""File systems that one process of a test and all that it starts see, and nobody else."""

from __future__ import annotations

import ctypes
import os
import subprocess

# Shell commands that mount them; an environment variable of the process.
MOUNTS = "ESPER_TEST_MOUNTS"
_NEW_MOUNTS, _ALL_PRIVATE = 0x20000, 1 << 14 | 1 << 18  # CLONE_NEWNS; MS_REC, MS_PRIVATE


def may_mount() -> bool:
    """Whether this user may have mounts of its own."""
    command = ["unshare", "-m", "sh", "-c", "mount -t tmpfs none /dev/shm"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def mount_own() -> None:
    """Mount what the environment says, if it does, in a namespace of this process's own: it goes with the
    last process in it.
    """
    if (commands := os.environ.pop(MOUNTS, None)) is None:
        return
    library = ctypes.CDLL(None, use_errno=True)
    if library.unshare(_NEW_MOUNTS) or library.mount(b"none", b"/", None, _ALL_PRIVATE, None):
        raise OSError(ctypes.get_errno(), "no mounts of its own")
    subprocess.run(["sh", "-c", commands], check=True)

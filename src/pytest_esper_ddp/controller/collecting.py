"""Processes that collect the session's tests once more: how they are started, and what they are told."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any

import pytest

from pytest_esper_ddp.controller.coverage import OF_SUBPROCESSES
from pytest_esper_ddp.launch import PLACE
from pytest_esper_ddp.wire.messages import Collect

_ALREADY_IMPORTED = "ignore::pytest.PytestAssertRewriteWarning"
# Options that shape the session's output or choose among items: the zygote collects all and prints nothing.
_RESET: dict[str, Any] = {
    "numprocesses": None,
    "maxprocesses": None,
    "dist": "no",
    "tx": [],
    "looponfail": False,
    "cov_source": [],
    "no_cov": True,
    "cov_report": {},
    "xmlpath": None,
    "lf": False,
    "failedfirst": False,
    "newfirst": False,
    "stepwise": False,
    "stepwise_skip": False,
    "stepwise_reset": False,
    "keyword": "",
    "markexpr": "",
    "deselect": None,
    "maxfail": 0,
    "durations": None,
    "basetemp": None,
    "cacheclear": False,
    "collectonly": False,
    "pastebin": None,
    # A rank has no terminal: pdb would read an end of file there and end the rank.
    "usepdb": False,
    "trace": False,
    "report_log": None,
}


def start_collecting(
    config: pytest.Config,
    module: str,
    end: socket.socket,
    *,
    own_group: bool = False,
    more: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.Popen[bytes]:
    """Start `python -m module SOCKET PARENT` with that end of a socket pair, and with `more` in its
    environment. Where torchrun has launched this process it signals the whole group, and ranks have to be
    seen to their end.
    """
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture is not None:  # else it, and with -s each rank, would write into pytest's capture
        capture.suspend_global_capture(in_=True)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", module, str(end.fileno()), str(os.getpid())],
            pass_fds=[end.fileno()],
            stdin=subprocess.DEVNULL,
            process_group=0 if own_group or config.stash.get(PLACE, None) else None,
            env={
                **{name: value for name, value in os.environ.items() if name not in OF_SUBPROCESSES},
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
                **more,
            },
        )
    finally:
        if capture is not None:
            capture.resume_global_capture()


def signal_group(pid: int, number: int) -> None:
    """To a rank, which leads a process group that holds whatever its tests have started."""
    with suppress(ProcessLookupError, PermissionError):  # a group's number is not given again in its life
        os.killpg(pid, number)


def order_to_collect(config: pytest.Config, items: Sequence[pytest.Item]) -> Collect:
    """To collect the files of these items, with the options of the session."""
    options = {key: value for key, value in vars(config.option).items() if _pickles(value)}
    options.update({key: value for key, value in _RESET.items() if key in options})
    options.pop("file_or_dir", None)  # the files below; pytest's parser warns of others on stderr
    # Our own modules were imported before its pytest could rewrite them, and warnings may be errors.
    options["pythonwarnings"] = [*(options.get("pythonwarnings") or ()), _ALREADY_IMPORTED]
    files = tuple(dict.fromkeys(str(item.path) for item in items))
    return Collect(options, files, str(config.invocation_params.dir))


def _pickles(value: object) -> bool:
    try:
        pickle.dumps(value)
    except Exception:  # noqa: BLE001  whatever a plugin put among the options
        return False
    return True

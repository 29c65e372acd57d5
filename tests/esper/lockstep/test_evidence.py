"""What a rank that is alive, or was just now, says of where it is."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from esper.lockstep.frames import INTERNAL
from esper.lockstep.rank.stacks import stack_path
from esper.lockstep.run.evidence import current_line, last_words
from esper.lockstep.run.process import state

ROUNDS = 60
STOPS = f"""\
import os, signal, sys
from pathlib import Path
import torch, torch.distributed as dist
from esper.lockstep.rank.stacks import answer_stack_requests
folder = Path(sys.argv[1])
answer_stack_requests(folder, 0)
dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 1), rank=0, world_size=1)
x = torch.ones(3)
for _ in range({ROUNDS}):
    os.kill(os.getpid(), signal.SIGSTOP)
    y = torch.ones(6)
    dist.all_reduce(y)
"""
DIES = """\
import ctypes, sys
from pathlib import Path
from esper.lockstep.rank.stacks import answer_stack_requests
answer_stack_requests(Path(sys.argv[1]), 0)
def decode():
    ctypes.string_at(0)
decode()
"""


def start(folder: Path, text: str) -> subprocess.Popen[bytes]:
    script = folder / "program.py"
    script.write_text(text)
    return subprocess.Popen([sys.executable, str(script), str(folder)], stderr=subprocess.DEVNULL)


def test_a_stopped_rank_is_where_it_was_stopped_whichever_thread_wakes_first(tmp_path: Path) -> None:
    seen: Counter[tuple[str, int | None]] = Counter()
    with start(tmp_path, STOPS) as process:
        try:
            for _ in range(ROUNDS):
                end = time.monotonic() + 30.0
                while state(process.pid) != "T":
                    assert time.monotonic() < end
                    time.sleep(0.0005)
                name, site = current_line(process.pid, stack_path(tmp_path, 0), INTERNAL, 5.0)
                seen[name, site.line if site else None] += 1
        finally:
            process.kill()
    stop = STOPS.splitlines().index("    os.kill(os.getpid(), signal.SIGSTOP)") + 1
    assert seen == {("stopped", stop): ROUNDS}


def test_the_last_words_of_a_rank_are_the_line_of_its_fatal_signal(tmp_path: Path) -> None:
    with start(tmp_path, DIES) as process:
        assert process.wait(60) < 0
    site = last_words(stack_path(tmp_path, 0), INTERNAL)
    assert site is not None
    assert (Path(site.file).name, site.line, site.function) == ("program.py", 6, "decode")

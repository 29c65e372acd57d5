"""What is known of a run that did not end."""

import os
import re
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

from tests.esper.lockstep.late import evidence, marked_processes
from tests.forked import MARK

HANGS = """
import sys
from pathlib import Path
from esper.lockstep.rank.stacks import answer_stack_requests

answer_stack_requests(Path(sys.argv[1]), 0)
print("waits", flush=True)
sys.stdin.read()
"""


def test_stacks_and_files_are_there_when_a_run_is_late(tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    (tmp_path / "rank0.ledger").write_bytes(b"what it wrote")
    with subprocess.Popen(
        [sys.executable, "-c", HANGS, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, MARK: mark},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waits\n"
        assert marked_processes(f"{MARK}={mark}") == [process.pid]
        told = evidence(f"{MARK}={mark}")
        process.kill()
    assert f"-- process {process.pid}\n   {process.pid} python" in told
    assert re.search('File "<string>", line [78] in <module>', told)  # or still on its way
    kept = re.search(rf"-- {tmp_path}, kept as (.*)", told)
    assert kept is not None
    assert (Path(kept[1]) / "rank0.ledger").read_bytes() == b"what it wrote"
    shutil.rmtree(kept[1])

"""The commands in ci/, as far as they can be seen without installing anything."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from ci import install, steps

ROOT = Path(__file__).resolve().parent.parent


def call(script: str, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    merged = {**os.environ, **environment}
    return subprocess.run(
        [str(ROOT / script), *args], env=merged, capture_output=True, text=True, check=False, timeout=60
    )


def tools(folder: Path, **scripts: str) -> str:
    """A PATH on which these scripts stand in for what the machine has."""
    folder.mkdir()
    for name in ("bash", "dirname", "head", "grep", "tr"):
        found = next(path for path in ("/usr/bin", "/bin") if Path(path, name).exists())
        (folder / name).symlink_to(Path(found, name))
    for name, body in scripts.items():
        path = folder / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
    return str(folder)


class TestFindingPython:
    def test_a_named_python_that_is_too_old_is_refused_in_one_sentence(self, tmp_path: Path) -> None:
        path = tools(tmp_path / "bin", python3="echo 3.9.2; exit 1")
        done = call("ci/setup", PATH=path, ESPER_PYTHON="python3")
        assert done.returncode == 1
        assert done.stderr == (
            f"ci/setup: ESPER_PYTHON=python3 will not do: {path}/python3 (3.9.2);"
            " accepted is Python >= 3.11.\n"
        )

    def test_a_named_python_that_is_missing_is_refused(self) -> None:
        done = call("ci/setup", ESPER_PYTHON="/nowhere/python")
        assert (done.returncode, done.stdout) == (1, "")
        assert "ESPER_PYTHON=/nowhere/python will not do: no such program" in done.stderr

    def test_without_a_python_that_will_do_it_says_what_was_found(self, tmp_path: Path) -> None:
        path = tools(tmp_path / "bin", python3="echo 3.10.4; exit 1", **{"python3.12": "exit 127"})
        # A copy without .venv, or that one's Python would be taken.
        (tmp_path / "ci").mkdir()
        (tmp_path / "ci" / "setup").write_text((ROOT / "ci" / "setup").read_text())
        done = subprocess.run(
            ["bash", tmp_path / "ci" / "setup"],
            env={"PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert done.stderr == (
            "ci/setup: no Python >= 3.11 on PATH"
            f" (found: {path}/python3.12 (does not run), {path}/python3 (3.10.4));"
            " install one of 3.11 to 3.14, or name it with ESPER_PYTHON=/path/to/python.\n"
        )


class TestCudaGuard:
    @pytest.mark.parametrize(
        "packages",
        [
            {"torch": "2.13.0", "nvidia-cublas": "13.0"},
            {"torch": "2.13.0", "cuda-bindings": "13.0"},
            {"torch": "2.13.0", "triton": "3.9"},
            {"torch": "2.13.0+cu130"},
            {"torch": "2.13.0+rocm7.0"},
        ],
    )
    def test_a_build_with_cuda_is_refused(self, packages: Mapping[str, str]) -> None:
        with pytest.raises(install.SetupError, match=r"refused torch .* or give --cuda to take this one\.$"):
            install.refuse_cuda(packages)

    @pytest.mark.parametrize("version", ["2.13.0", "2.13.0+cpu"])
    def test_a_cpu_build_passes(self, version: str) -> None:
        install.refuse_cuda({"torch": version, "sympy": "1.14", "tritonclient-like": "1"})

    def test_the_sentence_names_the_build_and_the_index(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ESPER_TORCH_INDEX", "https://example.org/simple")
        names = ["nvidia-nccl", "nvidia-cublas", "nvidia-cudnn", "triton"]
        with pytest.raises(install.SetupError) as caught:
            install.refuse_cuda({"torch": "2.13.0"} | dict.fromkeys(names, "1"))
        assert str(caught.value) == (
            "refused torch 2.13.0 with nvidia-cublas, nvidia-cudnn, nvidia-nccl ...:"
            " a build with CUDA, several GB;"
            " set ESPER_TORCH_INDEX=https://download.pytorch.org/whl/cpu (it is https://example.org/simple)"
            " for a CPU build, or give --cuda to take this one."
        )


class TestStamp:
    @pytest.fixture
    def venv(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        stamp = tmp_path / "stamp.json"
        monkeypatch.setattr(install, "STAMP", stamp)
        monkeypatch.setattr(install, "PYTHON", Path(sys.executable))
        return stamp

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"inputs": 1}', '{"inputs": "0", "cuda": false}'])
    def test_a_torn_or_old_stamp_does_not_count(self, venv: Path, text: str) -> None:
        venv.write_text(text)
        assert not install.is_stamped(install.Wanted())

    @pytest.mark.parametrize(("has", "asked", "serves"), [(0, 0, 1), (1, 1, 1), (1, 0, 1), (0, 1, 0)])
    @pytest.mark.parametrize("what", ["cuda", "clients"])
    def test_an_install_that_holds_more_serves_as_well(
        self, venv: Path, what: str, has: int, asked: int, serves: int
    ) -> None:
        stamp = {"inputs": install.inputs(), "cuda": False, "clients": False}
        venv.write_text(json.dumps({**stamp, what: bool(has)}))
        assert install.is_stamped(install.Wanted(**{what: bool(asked)})) == bool(serves)

    def test_programs_of_others_come_with_their_extra(self) -> None:
        assert install.Wanted().extras == "train,test"
        assert install.Wanted(clients=True).extras == "train,test,zoo"

    def test_a_changed_pin_is_noticed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before = install.inputs()
        changed = tmp_path / "constraints.txt"
        changed.write_text(install.CONSTRAINTS.read_text().replace("torch==", "torch==9"))
        monkeypatch.setattr(install, "CONSTRAINTS", changed)
        assert install.inputs() != before


class TestNightly:
    def test_without_nvidia_smi_nothing_runs(self, tmp_path: Path) -> None:
        done = call("ci/nightly", PATH=tools(tmp_path / "bin"))
        assert (done.returncode, done.stdout) == (77, "ci/nightly: no GPUs: nothing run\n")

    def test_a_driver_that_does_not_answer_is_shown(self, tmp_path: Path) -> None:
        path = tools(tmp_path / "bin", **{"nvidia-smi": "echo 'no driver here'; exit 9"})
        done = call("ci/nightly", PATH=path)
        assert done.returncode == 77
        assert done.stdout == "ci/nightly: nvidia-smi: no driver here\nci/nightly: no GPUs: nothing run\n"

    @pytest.mark.parametrize("hidden", ["", "-1"])
    def test_hidden_gpus_do_not_count(self, tmp_path: Path, hidden: str) -> None:
        path = tools(tmp_path / "bin", **{"nvidia-smi": "echo 'GPU 0: one'; echo 'GPU 1: another'"})
        assert call("ci/nightly", PATH=path, CUDA_VISIBLE_DEVICES=hidden).returncode == 77


def python(code: str, name: str = "a step") -> steps.Step:
    class Inline(steps.Step):
        @property
        def command(self) -> list[str]:
            return [sys.executable, "-c", code]

    return Inline(name=name, module="python")


class TestSteps:
    def test_the_first_failure_is_named_and_ends_the_run(self, capfd: pytest.CaptureFixture[str]) -> None:
        plan = [python("pass", "one"), python("raise SystemExit(3)", "two"), python("print('ran')", "three")]
        assert steps.run_all([(step,) for step in plan], limit=60) == 3
        out = capfd.readouterr().out
        assert "== one: ok, " in out
        assert "ci/test: FAILED at two (python) after " in out
        assert "three" not in out

    def test_what_runs_side_by_side_is_told_apart(
        self, capfd: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        """Each waits for the other, and the second is the first to end."""
        one, two = (tmp_path / name for name in ("one", "two"))
        os.mkfifo(one)
        os.mkfifo(two)
        first = f"open({str(one)!r}, 'w').close(); open({str(two)!r}).read(); print('of the first')"
        second = (
            f"import sys; open({str(one)!r}).read(); print('of the second', file=sys.stderr)\n"
            f"open({str(two)!r}, 'w').close(); sys.exit(5)"
        )
        stage = (python(first, "one"), python(second, "two"))
        assert steps.run_all([stage, (python("print('ran')", "three"),)], limit=60) == 5
        out = capfd.readouterr().out
        assert out.index("of the first") < out.index("of the second") < out.index("ci/test: FAILED at two")
        assert "FAILED at one" not in out
        assert "three" not in out

    def test_a_process_left_behind_fails_the_step_and_is_ended(
        self, capfd: pytest.CaptureFixture[str]
    ) -> None:
        code = "import subprocess as s; print(s.Popen(['sleep', '600'], start_new_session=True).pid)"
        assert steps.run_all([(python(code),)], limit=60) == 1
        out = capfd.readouterr().out
        assert "left this process behind, now ended: " in out
        pid = next(line for line in out.splitlines() if line.isdigit())
        assert not Path("/proc", pid, "cmdline").exists() or not Path("/proc", pid, "cmdline").read_bytes()

    def test_steps_are_ended_when_the_time_is_over(self, capfd: pytest.CaptureFixture[str]) -> None:
        sleeps = python("import time; time.sleep(600)")
        assert steps.run_all([(sleeps, sleeps)], limit=0.5) == 124
        out = capfd.readouterr().out
        assert "are over during a step, a step\n" in out
        assert out.count(": status 124\n") == 2
        doing = rf"^ci/test:   \d+ \(of {os.getpid()}\) [RSD] [\d.]+ of [\d.]+ s: .*time\.sleep\(600\)$"
        assert len(re.findall(doing, out, re.MULTILINE)) == 2, out

    def test_temporary_files_are_removed(self, capfd: pytest.CaptureFixture[str]) -> None:
        code = "import tempfile; print(tempfile.mkdtemp())"
        assert steps.run_all([(python(code),)], limit=60) == 0
        made = next(line for line in capfd.readouterr().out.splitlines() if line.startswith("/"))
        assert not Path(made).parent.exists()

    def test_stress_takes_the_marked_tests_in_and_loads_the_machine_by_itself(self) -> None:
        plain, stress = (
            [[step.args for step in stage if step.module == "pytest"] for stage in steps.stages(stress=on)]
            for on in (False, True)
        )
        esper, others, examples = (
            ("tests/esper",),
            ("tests", "--ignore=tests/esper", "--ignore=tests/clients"),
            ("--ddp-world-size=4", "examples/"),
        )
        assert plain == [[], [], [], [esper, others], [examples]]
        chosen = ("-m", "not nightly")
        assert stress == [[], [], [], [(*esper, *chosen)], [(*others, *chosen)], [(*examples, *chosen)]]

    def test_clients_run_alone(self) -> None:
        ((clients,),) = steps.CLIENTS
        assert clients.args == ("tests/clients",)
        with pytest.raises(SystemExit):
            steps.main(["--clients", "--stress"])

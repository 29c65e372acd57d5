"""Who may import whom, and what an import must not drag in."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parent.parent / "src"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a package, and what is in it, may import of these two packages."""

    package: str
    may: tuple[str, ...]
    # Inside functions only: what an import of the module must not load.
    late: tuple[str, ...] = ()
    # Of the outside world.
    never: tuple[str, ...] = ("pytest", "_pytest", "pluggy")


# What all of esper above lockstep may use.
GROUND = ("esper.errors", "esper.bits", "esper.checks", "esper.modules", "esper.scheduling")
# What a program says to lockstep, and what a rank needs besides.
SPOKEN = tuple(
    f"esper.lockstep.{name}"
    for name in ("asking", "building", "errors", "frames", "tags", "waiting", "watching")
)
# The longest package that fits a module rules it. One without a line here fails: a new package costs a line.
RULES = (
    Rule(package="esper", may=("esper",)),
    Rule(package="esper.lockstep", may=("esper.lockstep",)),
    Rule(package="esper.lockstep.record", may=("esper.lockstep.errors", "esper.lockstep.record")),
    Rule(package="esper.lockstep.rank", may=(*SPOKEN, "esper.lockstep.record", "esper.lockstep.rank")),
    Rule(package="esper.lockstep.proof", may=("esper.lockstep.record", "esper.lockstep.proof")),
    Rule(
        package="esper.lockstep.report",
        may=(
            "esper.lockstep.errors",
            "esper.lockstep.record",
            "esper.lockstep.proof",
            "esper.lockstep.report",
        ),
    ),
    Rule(
        package="esper.lockstep.postmortem",
        may=(
            *(f"esper.lockstep.{room}" for room in ("errors", "frames", "record", "proof", "report")),
            "esper.lockstep.rank.stacks",
            "esper.lockstep.run.apart",
            "esper.lockstep.run.evidence",
            "esper.lockstep.postmortem",
        ),
    ),
    Rule(package="esper.errors", may=("esper.lockstep", "esper.errors")),
    Rule(package="esper.bits", may=()),
    Rule(package="esper.checks", may=GROUND),
    Rule(package="esper.modules", may=()),
    Rule(package="esper.scheduling", may=()),
    Rule(package="esper.lifecycle", may=(*GROUND, "esper.lifecycle")),
    Rule(package="esper.model", may=(*GROUND, "esper.lifecycle", "esper.model")),
    Rule(package="esper.control", may=(*GROUND, "esper.lifecycle", "esper.control")),
    Rule(package="esper.control.ppo", may=(*GROUND, "esper.lifecycle", "esper.lockstep", "esper.control")),
    Rule(
        package="esper.distributed", may=(*GROUND, "esper.lifecycle", "esper.lockstep", "esper.distributed")
    ),
    Rule(package="esper.training", may=("esper",)),
    Rule(package="esper.cli", may=("esper",)),
    Rule(package="esper.__main__", may=("esper",)),
    Rule(
        package="pytest_esper_ddp",
        may=("pytest_esper_ddp", "esper.lockstep", "esper.scheduling"),
        never=(),
    ),
    Rule(
        package="pytest_esper_ddp.faults.lifecycle",
        may=("pytest_esper_ddp", "esper.lockstep"),
        late=("esper",),
        never=(),
    ),
)
OURS = ("esper", "pytest_esper_ddp")
# Their line is for the package's own __init__, not for whatever comes to lie in it.
FACADES = ("esper",)
HOOK_LINES = 9


@dataclass(frozen=True)
class Import:
    target: str
    line: int
    late: bool


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def rule_for(module: str) -> Rule | None:
    fitting = [rule for rule in RULES if within(module, (rule.package,))]
    if not fitting:
        return None
    best = max(fitting, key=lambda rule: len(rule.package))
    return None if best.package in FACADES and best.package != module else best


def imports_of(tree: ast.Module, module: str, *, is_package: bool) -> Iterator[Import]:
    """Every import, also under `if TYPE_CHECKING` and by `import_module("...")`."""
    deferred = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        for target in targets(node, module, is_package=is_package):
            yield Import(target, getattr(node, "lineno", 0), id(node) in deferred)


def targets(node: ast.AST, module: str, *, is_package: bool) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            up = module.split(".")[: None if is_package and node.level == 1 else (is_package - node.level)]
            base = ".".join([*up, base] if base else up)
        return [f"{base}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and node.args:
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        name = node.args[0]
        if called in ("import_module", "__import__") and isinstance(name, ast.Constant):
            return [str(name.value)]
    return []


def breaches(root: Path) -> list[str]:
    """What breaks a rule under this source folder, a line each."""
    found = []
    for path in sorted(root.rglob("*.py")):
        is_package = path.name == "__init__.py"
        parts = path.relative_to(root).with_suffix("").parts
        module = ".".join(parts[:-1] if is_package else parts)
        rule = rule_for(module)
        if rule is None:
            found.append(f"{module}: no rule names this package; give it one in {Path(__file__).name}")
            continue
        for each in imports_of(ast.parse(path.read_bytes()), module, is_package=is_package):
            if why := breach(rule, each):
                found.append(f"{path.relative_to(root)}:{each.line} imports {each.target}: {why}")
    return found


def breach(rule: Rule, each: Import) -> str | None:
    if within(each.target, rule.never):
        return f"{rule.package} never imports {', '.join(rule.never)}"
    if not within(each.target, OURS) or within(each.target, rule.may):
        return None
    if within(each.target, rule.late):
        return None if each.late else f"{rule.package} imports {', '.join(rule.late)} inside functions only"
    return f"{rule.package} may import {', '.join(rule.may)}"


def not_a_hook(path: Path) -> list[str]:
    """What is no import, stash key, fixture or hook in this module, or is too long; a line each."""
    found = []
    for node in ast.parse(path.read_bytes()).body:
        # A class only groups hooks that need an instance of their own.
        for part in node.body if isinstance(node, ast.ClassDef) else [node]:
            if why := lapse_of(part):
                found.append(f"{path.name}:{part.lineno} {why}")
    return found


def lapse_of(node: ast.stmt) -> str | None:
    if not isinstance(node, ast.FunctionDef):
        return None if is_frame(node) else "is neither an import nor a hook"
    body = node.body[1:] if ast.get_docstring(node) else node.body
    lines = (node.end_lineno or node.lineno) - body[0].lineno + 1 if body else 0
    fixture = any(ast.unparse(decorator).startswith("pytest.fixture") for decorator in node.decorator_list)
    if not node.name.startswith("pytest_") and not fixture:
        return f"{node.name} is neither a hook nor a fixture"
    return f"{node.name} has {lines} lines; under ten are allowed" if lines > HOOK_LINES else None


def is_frame(node: ast.stmt) -> bool:
    """Docstring, imports, `if TYPE_CHECKING:` with imports, keys of the stash."""
    if isinstance(node, ast.If):
        return all(isinstance(inner, ast.Import | ast.ImportFrom) for inner in node.body) and not node.orelse
    if isinstance(node, ast.Assign):
        return ast.unparse(node.value).startswith("pytest.StashKey[")
    if isinstance(node, ast.AnnAssign):
        return ast.unparse(node.annotation).startswith("pytest.StashKey[")
    docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return docstring or isinstance(node, ast.Import | ast.ImportFrom)


def plant(root: Path, path: str, text: str) -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_the_directions_hold() -> None:
    assert breaches(SRC) == []


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("esper/lockstep/run/a.py", "import esper.model", "imports esper.model: esper.lockstep may import"),
        ("esper/lockstep/run/a.py", "from ...errors import EsperError", "imports esper.errors.EsperError"),
        ("esper/lockstep/__init__.py", "from ..errors import EsperError", "imports esper.errors.EsperError"),
        ("esper/lockstep/__init__.py", "from .. import errors", "imports esper.errors"),
        (
            "esper/lifecycle/gates.py",
            "def f():\n    from esper.control import x",
            "gates.py:2 imports esper.control.x",
        ),
        (
            "esper/control/a.py",
            "from importlib import import_module as m\nimport_module('esper.training')",
            "a.py:2",
        ),
        ("esper/distributed/a.py", "from esper import training", "imports esper.training"),
        ("esper/training/a.py", "import pytest", "esper.training never imports pytest"),
        ("esper/training/a.py", "from pytest_esper_ddp import plugin", "esper.training may import esper"),
        ("esper/errors.py", "from esper.lifecycle import Stage", "esper.errors may import esper.lockstep"),
        ("esper/telemetry/a.py", "", "esper.telemetry.a: no rule names this package"),
        ("other/a.py", "", "other.a: no rule names this package"),
        (
            "pytest_esper_ddp/rank/a.py",
            "def f():\n    import esper.model",
            "may import pytest_esper_ddp, esper.lock",
        ),
        ("pytest_esper_ddp/faults/lifecycle.py", "import esper.model", "imports esper inside functions only"),
    ],
)
def test_a_planted_breach_is_found(tmp_path: Path, path: str, text: str, said: str) -> None:
    plant(tmp_path, path, text)
    found = breaches(tmp_path)
    assert len(found) == 1
    assert said in found[0]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("esper/lockstep/a.py", "from . import proof\nfrom .wire import x\nimport torch"),
        ("esper/lockstep/deep/a.py", "from .. import proof\nfrom ..proof import x"),
        ("esper/lockstep/__init__.py", "from . import proof\nfrom .proof import x"),
        ("esper/__init__.py", "from esper.training import Trainer"),
        ("esper/training/tasks/a.py", "from esper.model import x\nfrom esper.lockstep import y"),
        ("pytest_esper_ddp/rank/a.py", "import pytest\nfrom esper.lockstep import tag"),
        ("pytest_esper_ddp/faults/lifecycle.py", "def f():\n    from esper.model import x"),
    ],
)
def test_what_is_allowed_is_not_reported(tmp_path: Path, path: str, text: str) -> None:
    plant(tmp_path, path, text)
    assert breaches(tmp_path) == []


def test_the_plugin_holds_hooks_only() -> None:
    assert not_a_hook(SRC / "pytest_esper_ddp" / "plugin.py") == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def helper():\n    pass", "helper is neither a hook nor a fixture"),
        ("STATE = {}", "neither an import nor a hook"),
        ("STATE: dict[str, int] = {}", "neither an import nor a hook"),
        ("class State:\n    count = 0", "neither an import nor a hook"),
        ("class State:\n    def count(self):\n        pass", "count is neither a hook nor a fixture"),
        ("def pytest_configure():\n" + "    x = 1\n" * 10, "has 10 lines"),
        ("@pytest.fixture\ndef ddp():\n" + "    x = 1\n" * 10, "has 10 lines"),
    ],
)
def test_what_is_no_hook_is_found(tmp_path: Path, text: str, said: str) -> None:
    (found,) = not_a_hook(plant(tmp_path, "plugin.py", text))
    assert said in found


def test_a_hook_of_nine_lines_and_its_docstring_may_stay(tmp_path: Path) -> None:
    body = '    """Says\n\n    what.\n    """\n' + "    x = 1\n" * 9
    keys = "KEY = pytest.StashKey[int]()\nOTHER: pytest.StashKey[torch.Tensor] = pytest.StashKey()\n"
    head = '"""Hooks."""\nif TYPE_CHECKING:\n    import torch\n' + keys
    text = head + "def pytest_configure():\n" + body
    assert not_a_hook(plant(tmp_path, "plugin.py", text)) == []


@pytest.mark.parametrize("module", ["pytest_esper_ddp.plugin", "esper", "esper.lockstep"])
def test_importing_it_does_not_import_torch(module: str) -> None:
    code = f"import sys; sys.path.insert(0, {str(SRC)!r}); import {module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-Ic", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


def test_a_session_without_tests_on_ranks_loads_nothing_of_what_runs_them(tmp_path: Path) -> None:
    plain = plant(tmp_path, "test_plain.py", "def test_plain():\n    pass\n")
    plant(tmp_path, "test_ranks.py", "import pytest\n\npytestmark = pytest.mark.ddp\n")  # not asked for
    loaded = f"sorted(name for name in sys.modules if name.split('.')[0] in {OURS})"
    options = ["-q", "-p", "pytest_esper_ddp.plugin", "-p", "no:cacheprovider", str(plain)]
    code = f"import pytest, sys; sys.path[:0] = [{str(SRC)!r}]; pytest.main({options}); print({loaded})"
    done = subprocess.run(
        [sys.executable, "-Ic", code],
        env={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    ours = ["", ".controller", ".controller.on_demand", ".declared", ".launch", ".options", ".plugin"]
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == str([f"pytest_esper_ddp{part}" for part in ours])

"""The dependency rules of docs/overview.md, read off the syntax tree. A rule about a missing file is skipped.

Each detector is a function `(tree) -> list[str]` of complaints; `test_detectors_catch` feeds every one of them a line
that breaks its rule, so that a rule cannot go quiet by itself.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_LINES = 340  # "about 300"; a table of settings may be longer
LONG_TABLES = {"recipes/config.py"}

TRL_ALLOWED = {"mpo/config.py", "mpo/trainer.py", "mpo/multimodal/logps.py"}
GENERATION_FILE = "rewards/sampling/transformers_generator.py"
MODEL_CALL_FILES = {"mpo/multimodal/scoring.py", GENERATION_FILE}
LOADING_FILE = "mpo/multimodal/loading.py"
IMAGE_FILE = "mpo/multimodal/images.py"
TORCH_ONLY = ["mpo/losses.py", "mpo/metrics.py", "mpo/types.py"]
TORCH_FREE_NAMED = [
    "mpo/multimodal/checkpoint_files.py",
    "mpo/multimodal/errors.py",
    "mpo/multimodal/hub.py",
    "mpo/multimodal/images.py",
    "mpo/multimodal/messages.py",
    "recipes/report/check.py",  # and so all that `mpo check` imports
    "rewards/prm/evaluating/benchmark.py",
    "rewards/prm/evaluating/benchmark_metrics.py",
    "rewards/prm/evaluating/given_steps.py",
    "rewards/prm/evaluating/metrics.py",
]

MODEL_NAMES = {"model", "policy_model", "reference_model", "ref_model", "base_model", "prm_model", "language_model"}
UNSAFE_MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {
    "torch.load",
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.unsafe_load",
    "os.system",
    "os.popen",
}


def files(*folders: str) -> list[str]:
    """Paths of the Python files below the folders, relative to the root, sorted."""
    return sorted(str(p.relative_to(ROOT)) for folder in folders for p in (ROOT / folder).rglob("*.py"))


TORCH_FOLDERS = ("rewards/prm/", "rewards/conversion/")
TORCH_BACKENDS = ("transformers_generator", "row_sampler", "block_cache")


def torch_free_files() -> list[str]:
    """`rewards` outside `prm/`, `conversion/` and the sampling backends, and the named files."""
    backends = {f"rewards/sampling/{name}.py" for name in TORCH_BACKENDS}
    rewards = [p for p in files("rewards") if not p.startswith(TORCH_FOLDERS) and p not in backends]
    return rewards + [p for p in TORCH_FREE_NAMED if (ROOT / p).exists()]


def module_name(path: str) -> str:
    """`mpo/multimodal/__init__.py` → `mpo.multimodal`."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@cache
def tree_of(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), filename=path)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def walk(node: ast.AST, *, at_runtime: bool = False) -> Iterator[ast.AST]:
    """Every node; with `at_runtime` without the bodies of `if TYPE_CHECKING`."""
    yield node
    skipped = set(node.body) if at_runtime and is_type_checking(node) else set()
    for child in ast.iter_child_nodes(node):
        if child not in skipped:
            yield from walk(child, at_runtime=at_runtime)


def imports(tree: ast.AST, *, path: str = "x.py", at_runtime: bool = False) -> list[tuple[int, str]]:
    """`(line, dotted name)` of every import; `from a import b` counts as `a.b`, relative imports are resolved."""
    package = module_name(path).split(".")
    package = package if path.endswith("__init__.py") else package[:-1]
    found = []
    for node in walk(tree, at_runtime=at_runtime):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            found += [(node.lineno, f"{stem}.{alias.name}") for alias in node.names]
    return found


def within(name: str, *packages: str) -> bool:
    """Whether a dotted name is one of the packages or stands below one."""
    return any(name == package or name.startswith(package + ".") for package in packages)


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    """Every call with the source text of what is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def last_name(node: ast.expr) -> str:
    """The identifier nearest to the call: `model` of `self.model` and of `unwrap(model)`'s result, `unwrap`."""
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Name):
        return node.id
    return last_name(node.func) if isinstance(node, ast.Call) else ""


# --- detectors -----------------------------------------------------------------------------------------------------


def unsafe(tree: ast.AST) -> list[str]:
    """Code that runs data: eval, exec, pickles, shells, remote code; and bare excepts, which hide all of it."""
    found = [
        f"line {line}: import of {name}" for line, name in imports(tree) if within(name, *UNSAFE_MODULES, *UNSAFE_CALLS)
    ]
    for node, name in calls(tree):
        if name in {"eval", "exec", "builtins.eval", "builtins.exec"} | UNSAFE_CALLS:
            found.append(f"line {node.lineno}: {name}(")
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append(f"line {node.lineno}: bare except")
        found += [
            f"line {node.lineno}: {name}=True" for name in true_settings(node) if name in {"shell", "trust_remote_code"}
        ]
    return found


def true_settings(node: ast.AST) -> list[str]:
    """Names that a node sets to the constant True: keyword, dict key, assignment or default value."""

    def is_true(value: ast.AST | None) -> bool:
        return isinstance(value, ast.Constant) and value.value is True

    if isinstance(node, ast.keyword):
        return [node.arg] if node.arg and is_true(node.value) else []
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return [key.value for key, value in pairs if isinstance(key, ast.Constant) and is_true(value)]
    if isinstance(node, ast.Assign):
        return [last_name(target) for target in node.targets if is_true(node.value)]
    if isinstance(node, ast.AnnAssign):
        return [last_name(node.target)] if is_true(node.value) else []
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        positional = [*node.args.posonlyargs, *node.args.args]
        tail = positional[len(positional) - len(node.args.defaults) :]
        pairs = [
            *zip(tail, node.args.defaults, strict=True),
            *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True),
        ]
        return [argument.arg for argument, default in pairs if is_true(default)]
    return []


def loads_pretrained(tree: ast.AST) -> list[str]:
    """`.from_pretrained(`: weights, processors and adapters come through one door."""
    return [f"line {n.lineno}: {name}(" for n, name in calls(tree) if last_name(n.func) == "from_pretrained"]


def generates(tree: ast.AST) -> list[str]:
    """`.generate(` of a model. A receiver named `…generator` is our Generator protocol and may be called anywhere."""
    return [
        f"line {node.lineno}: {name}("
        for node, name in calls(tree)
        if isinstance(node.func, ast.Attribute)
        and node.func.attr == "generate"
        and "generator" not in last_name(node.func.value).lower()
    ]


def calls_model(tree: ast.AST) -> list[str]:
    """`model(...)`, `self.model(...)` or `model.forward(...)`."""
    found = []
    for node, name in calls(tree):
        func = node.func
        if isinstance(func, ast.Attribute) and func.attr == "forward":
            func = func.value
        if isinstance(func, ast.Name | ast.Attribute) and last_name(func) in MODEL_NAMES:
            found.append(f"line {node.lineno}: {name}(")
    return found


def opens_image(tree: ast.AST) -> list[str]:
    """`Image.open(`: untrusted bytes reach a decoder in one place."""
    return [f"line {node.lineno}: {name}(" for node, name in calls(tree) if name in {"Image.open", "PIL.Image.open"}]


def undocumented(tree: ast.Module) -> list[str]:
    """Public functions and classes of the module level without a docstring."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return [
        f"line {node.lineno}: {node.name}"
        for node in tree.body
        if isinstance(node, kinds)
        and not node.name.startswith("_")
        and ast.get_docstring(node) is None
        and not any(last_name(decorator) == "overload" for decorator in node.decorator_list)
    ]


@pytest.mark.parametrize(
    ("detector", "source"),
    [
        (unsafe, "eval(row['image'])"),
        (unsafe, "exec(code)"),
        (unsafe, "import pickle"),
        (unsafe, "from joblib import load"),
        (unsafe, "torch.load(path, weights_only=True)"),
        (unsafe, "from torch import load"),
        (unsafe, "yaml.load(text)"),
        (unsafe, "subprocess.run(command, shell=True)"),
        (unsafe, "os.system(command)"),
        (unsafe, "load(path, trust_remote_code=True)"),
        (unsafe, "options = {'trust_remote_code': True}"),
        (unsafe, "class C:\n    trust_remote_code: bool = True"),
        (unsafe, "def f(path, trust_remote_code=True): ..."),
        (unsafe, "def f(path, *, trust_remote_code=True): ..."),
        (unsafe, "try:\n    f()\nexcept:\n    pass"),
        (loads_pretrained, "AutoModel.from_pretrained(name)"),
        (generates, "self.model.generate(**batch)"),
        (generates, "unwrap(model).generate(**batch)"),
        (calls_model, "logits = model(**batch).logits"),
        (calls_model, "self.model.forward(x)"),
        (opens_image, "Image.open(path)"),
        (undocumented, "def f(): ..."),
        (undocumented, "class C: ..."),
    ],
)
def test_detectors_catch(detector: Callable[[ast.Module], list[str]], source: str) -> None:
    assert detector(ast.parse(source))


@pytest.mark.parametrize(
    ("detector", "source"),
    [
        (unsafe, "model.eval()"),
        (unsafe, "yaml.safe_load(text)"),
        (unsafe, "load(path, trust_remote_code=arguments.trust_remote_code)"),
        (unsafe, "try:\n    f()\nexcept OSError:\n    pass"),
        (generates, "self.generator.generate(problems, 8, seed=0)"),
        (calls_model, "load_model(path)"),
        (undocumented, "def _f(): ..."),
    ],
)
def test_detectors_leave_alone(detector: Callable[[ast.Module], list[str]], source: str) -> None:
    assert detector(ast.parse(source)) == []


def test_imports_are_resolved() -> None:
    source = "from ..multimodal import errors\nfrom . import types\nif TYPE_CHECKING:\n    import torch\n"
    found = [name for _, name in imports(ast.parse(source), path="mpo/sub/x.py")]
    assert found == ["mpo.multimodal.errors", "mpo.sub.types", "torch"]
    assert "torch" not in [name for _, name in imports(ast.parse(source), path="mpo/sub/x.py", at_runtime=True)]


# --- who imports whom ----------------------------------------------------------------------------------------------


def forbidden_import(path: str, name: str) -> bool:
    """The direction rule: recipes → rewards, mpo; rewards → mpo.multimodal; mpo → itself; multimodal → itself."""
    if within(name, "tests", "benchmarks"):
        return True
    if path.startswith("recipes/"):
        return False
    if within(name, "recipes"):
        return True
    if path.startswith("rewards/") or path.startswith("mpo/multimodal/"):
        outside = within(name, "mpo") and not within(name, "mpo.multimodal")
        return outside or (path.startswith("mpo/") and within(name, "rewards"))
    return within(name, "rewards")


@pytest.mark.parametrize("path", files("mpo", "rewards", "recipes"))
def test_import_direction(path: str) -> None:
    bad = [f"line {line}: {name}" for line, name in imports(tree_of(path), path=path) if forbidden_import(path, name)]
    assert not bad, f"{path} imports against the dependency rules: {bad}"


@pytest.mark.parametrize("path", [p for p in files("mpo", "rewards") if p not in TRL_ALLOWED])
def test_trl_only_where_allowed(path: str) -> None:
    bad = [f"line {line}: {name}" for line, name in imports(tree_of(path), path=path) if within(name, "trl")]
    assert not bad, (
        f"{path} imports trl, which is allowed only in {sorted(TRL_ALLOWED)} and in recipes, benchmarks, tests: {bad}"
    )


@pytest.mark.parametrize("path", TORCH_ONLY)
def test_torch_is_the_only_third_party(path: str) -> None:
    if not (ROOT / path).exists():
        pytest.skip(f"{path} does not exist yet")
    allowed = {"torch", "mpo", *sys.stdlib_module_names}
    bad = [
        f"line {line}: {name}" for line, name in imports(tree_of(path), path=path) if name.split(".")[0] not in allowed
    ]
    assert not bad, f"{path} may use torch and the standard library only: {bad}"


@pytest.mark.parametrize("path", torch_free_files())
def test_torch_free_source(path: str) -> None:
    found = imports(tree_of(path), path=path, at_runtime=True)
    bad = [f"line {line}: {name}" for line, name in found if within(name, "torch", "torchvision")]
    assert not bad, f"{path} must work without torch: {bad}"


# --- what only one file may do -------------------------------------------------------------------------------------

SOURCES = files("mpo", "rewards", "recipes")


@pytest.mark.parametrize("path", files("mpo", "rewards", "recipes", "benchmarks"))
def test_no_unsafe_code(path: str) -> None:
    assert not unsafe(tree_of(path)), path


@pytest.mark.parametrize("path", [p for p in SOURCES if p != LOADING_FILE])
def test_from_pretrained_only_in_loading(path: str) -> None:
    assert not loads_pretrained(tree_of(path)), f"{path}: load through {LOADING_FILE}"


@pytest.mark.parametrize("path", [p for p in SOURCES if p != GENERATION_FILE])
def test_generate_only_in_its_file(path: str) -> None:
    assert not generates(tree_of(path)), f"{path}: sample through {GENERATION_FILE}"


@pytest.mark.parametrize("path", [p for p in SOURCES if p not in MODEL_CALL_FILES])
def test_model_called_only_in_its_files(path: str) -> None:
    assert not calls_model(tree_of(path)), f"{path}: a model is called only in {sorted(MODEL_CALL_FILES)}"


@pytest.mark.parametrize("path", [p for p in SOURCES if p != IMAGE_FILE])
def test_images_decoded_only_in_images(path: str) -> None:
    assert not opens_image(tree_of(path)), f"{path}: decode through {IMAGE_FILE}"


# --- form ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", files("mpo", "rewards"))
def test_public_names_have_docstrings(path: str) -> None:
    assert not undocumented(tree_of(path)), path


@pytest.mark.parametrize("path", [p for p in SOURCES if p not in LONG_TABLES])
def test_file_length(path: str) -> None:
    lines = len((ROOT / path).read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{path} has {lines} lines, about 300 at most: does it still hold one idea?"


# --- by running it -------------------------------------------------------------------------------------------------

IMPORT_EACH = """
import importlib, json, sys, traceback
report = {}
for name in json.loads(sys.argv[1]):
    try:
        importlib.import_module(name)
    except Exception:
        report[name] = traceback.format_exc(limit=-2)
    else:
        if "torch" in sys.modules and sys.argv[2] == "no-torch":
            report[name] = "imports torch"
            break
print(json.dumps(report))
"""


def import_report(names: list[str], mode: str) -> dict[str, str]:
    """Import the modules one after the other in a fresh interpreter; `{module: what went wrong}`."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-c", IMPORT_EACH, json.dumps(names), mode]
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.splitlines()[-1])


def test_every_module_imports() -> None:
    report = import_report([module_name(p) for p in SOURCES if not p.endswith("__main__.py")], "any")
    assert not report, "\n".join(f"{name}: {why}" for name, why in report.items())


def test_torch_free_modules_do_not_load_torch() -> None:
    """Also the packages themselves, whose `__init__` is lazy (PEP 562), and the CLI, whose `--help` must be quick."""
    lazy = [p for p in SOURCES if p.endswith("__init__.py") or p == "recipes/cli.py"]
    report = import_report([module_name(p) for p in sorted({*torch_free_files(), *lazy})], "no-torch")
    assert not report, report


# --- the rooms of recipes ------------------------------------------------------------------------------------------

# A room may import the rooms below it: what stands on one line does not import each other.
FLOORS = [
    ["loop", "evaluating"],
    ["report", "worlds"],
    ["data", "training", "answering"],
    ["stage"],
    ["commands"],
    ["config"],
]
ROOMS = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


ABOVE_STAGES = ("recipes.loop.", "recipes.evaluating.", "recipes.commands.")


def stage_modules() -> set[str]:
    """The modules behind the commands, without the loop and the matrix, whose business it is to call them."""
    from recipes.cli import COMMANDS

    modules = {command.module for command in COMMANDS.values()}
    return {module for module in modules if not module.startswith(ABOVE_STAGES)}


def upward_import(path: str, name: str) -> bool:
    """Whether a file of a room of `recipes` imports a room above or beside it, or the command line."""
    room = path.split("/")[1].removesuffix(".py")
    if room not in ROOMS or not within(name, "recipes"):
        return False
    target = name.split(".")[1] if "." in name else ""
    if target == room or not target:
        return False
    return ROOMS.get(target, -1) <= ROOMS[room]


def stage_to_stage(path: str, name: str, stages: set[str]) -> bool:
    """Whether one command's module imports another's."""
    own = module_name(path)
    return own in stages and any(within(name, other) for other in stages - {own})


def test_the_rules_of_the_rooms_catch() -> None:
    stages = {"recipes.data.sample", "recipes.data.verify"}
    assert stage_to_stage("recipes/data/sample.py", "recipes.data.verify.verify", stages)
    assert not stage_to_stage("recipes/data/sample.py", "recipes.stage.folder.open_stage", stages)
    assert not stage_to_stage("recipes/stage/policies.py", "recipes.data.verify.verify", stages)
    assert upward_import("recipes/stage/folder.py", "recipes.data.sample.sample")
    assert upward_import("recipes/data/sample.py", "recipes.training.weights.save_policy")
    assert upward_import("recipes/data/sample.py", "recipes.cli.main")
    assert upward_import("recipes/config.py", "recipes.stage.folder.PAIRS")
    assert not upward_import("recipes/loop/rounds.py", "recipes.report.page.report")
    assert not upward_import("recipes/data/sample.py", "recipes.data.policies.generator_of")
    assert not upward_import("recipes/cli.py", "recipes.loop.pipeline.pipeline")


@pytest.mark.parametrize("path", files("recipes"))
def test_rooms_import_downwards_and_no_stage_a_stage(path: str) -> None:
    names = [name for _, name in imports(tree_of(path), path=path)]
    bad = [name for name in names if upward_import(path, name) or stage_to_stage(path, name, stage_modules())]
    assert not bad, f"{path}: {bad}; what two stages need stands in rewards/ or recipes/stage/"


def test_the_rooms_are_few() -> None:
    """What meets a newcomer: at most 14 entries side by side; `rewards` has one more, the table of benchmarks."""
    for package, most in (("recipes", 14), ("rewards", 15)):
        entries = [p for p in (ROOT / package).iterdir() if p.name not in {"__pycache__", "py.typed"}]
        assert len(entries) <= most, sorted(p.name for p in entries)
        unknown = {p.stem for p in entries if package == "recipes"} - {
            *ROOMS,
            "cli",
            "__init__",
            "accelerate",
            "configs",
        }
        assert not unknown, f"rooms without a floor: {sorted(unknown)}"

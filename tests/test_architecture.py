"""The house: who may import whom, what stays in which room, and `import ultragen` is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from paths import ROOT

import ultragen

# Each floor may import the ones above it, and none of its own. A new room gets its place here.
FLOORS = (
    {"presets", "pictures", "hardware", "files"},
    {"video", "cluster"},
    {"ops"},
    {"model", "world"},
    {"sampling", "weights"},
    {"pipeline", "estimates", "dataset"},
    {"runs", "training", "benchmark"},
    {"batch", "evaluation", "web"},
    {"cli", "app"},
    {"benchmarks", "scripts"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# Names that saved pipelines and the interpreter know: they hold no code of their own.
ALIASES = {
    "transformer": {"model"},
    "autoencoder": {"model"},
    "clauses": {"model"},
    "__main__": {"cli"},
}
OLD_PIPELINES = set(ALIASES) - {"__main__"}
# These stand on the last floor and may import any room.
SCRIPTS = {"benchmarks", "scripts"}
# Further rules: what only some places may import.
ONLY_IN = {
    "gradio": ("ultragen.web", "app"),
    "spaces": ("ultragen.web", "app"),
    "typer": ("ultragen.cli",),
    "huggingface_hub": ("ultragen.weights.hub",),
    "torchao": ("ultragen.training.optimizers",),
    "triton": ("ultragen.ops", "ultragen.world.triton_loops"),
}
MOST_ROOMS, MOST_FLOORS = 30, 9

# What a question about devices, kernels or gradients looks like in the model's code.
QUESTIONS = {
    "is_cuda", "is_available", "is_grad_enabled", "fused_runs", "requires_grad", "is_cpu",
    "get_device_capability", "is_autocast_enabled",
}  # fmt: skip
MAY_ASK = {
    # Which cards compute in FP8 is the whole of it.
    "ultragen.model.fp8",
}


def module_name(path: Path, root: Path) -> str:
    parts = list(path.relative_to(root).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def python_files(root: Path) -> list[Path]:
    found = [root / "app.py"] if (root / "app.py").exists() else []
    for folder in ("ultragen", "benchmarks", "scripts"):
        found += sorted((root / folder).rglob("*.py"))
    return found


def read_modules(root: Path) -> dict[str, set[str]]:
    """Maps every module to what it imports, wherever in the file that stands."""
    paths = {module_name(path, root): path for path in python_files(root)}
    return {name: imports(name, path) for name, path in paths.items()}


def imports(name: str, path: Path) -> set[str]:
    """The dotted names that a file imports; those of `from a import b` as `a.b`."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            prefix = ".".join([*(base if node.level else []), *([node.module or ""])]).strip(".")
            found |= {f"{prefix}.{alias.name}" for alias in node.names}
    return found


def room_of(module: str) -> str:
    """`ultragen.world.scene` belongs to `world`, `ultragen.pipeline` to `pipeline`."""
    return module.removeprefix("ultragen.").split(".")[0]


def rooms(modules: dict[str, set[str]]) -> dict[str, set[str]]:
    """The rooms, and those that each one imports."""
    found: dict[str, set[str]] = {}
    for module, targets in modules.items():
        if module == "ultragen":
            continue
        here = found.setdefault(room_of(module), set())
        here |= {room_of(known(target, modules)) for target in targets}
    return {room: others - {room, ""} for room, others in found.items()}


def known(target: str, modules: Iterable[str]) -> str:
    """Cuts `package.module.Class` back to the module; what is not ours gives nothing."""
    while target and target not in modules:
        target = target.rpartition(".")[0]
    return "" if target == "ultragen" else target


def longest_chain(graph: dict[str, set[str]]) -> list[str]:
    """The longest chain of imports between rooms, from the first that imports to the last."""
    chains: dict[str, list[str]] = {}
    for room in TopologicalSorter(graph).static_order():
        below = max((chains[other] for other in graph.get(room, ())), key=len, default=[])
        chains[room] = [room, *below]
    return max(chains.values(), key=len)


def breaches(modules: dict[str, set[str]]) -> list[str]:
    """What stands against the rules, one line each."""
    found = []
    for here, others in sorted(rooms(modules).items()):
        if here in ALIASES:
            found += [f"{here} imports {room}" for room in sorted(others - ALIASES[here])]
            continue
        if here not in FLOOR:
            found.append(f"{here} has no place in FLOORS")
            continue
        for there in sorted(others):
            if there in OLD_PIPELINES:
                allowed = here == "pipeline"
            elif there == "training":
                allowed = here in {"cli", *SCRIPTS}
            else:
                allowed = FLOOR.get(there, 99) < FLOOR[here]
            if not allowed:
                found.append(f"{here} imports {there}")
    for module, targets in sorted(modules.items()):
        if room_of(module) in SCRIPTS:
            continue
        for library in sorted({target.split(".")[0] for target in targets} & set(ONLY_IN)):
            if not module.startswith(ONLY_IN[library]):
                found.append(f"{module} imports {library}")
    return found


def test_the_house_has_few_rooms_on_few_floors() -> None:
    graph = rooms(read_modules(ROOT))
    try:
        chain = longest_chain(graph)
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' → '.join(error.args[1])}")
    print(f"{len(graph)} rooms, {len(chain)} floors: {' → '.join(chain)}; no circle")
    assert len(graph) <= MOST_ROOMS and len(chain) <= MOST_FLOORS


def test_imports_keep_the_rules() -> None:
    assert breaches(read_modules(ROOT)) == []


def test_nothing_is_imported_in_a_circle_within_a_room() -> None:
    modules = read_modules(ROOT)
    graph = {name: {known(target, modules) for target in found} for name, found in modules.items()}
    graph = {name: others - {name, ""} for name, others in graph.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' → '.join(error.args[1])}")


def test_file_names_are_unique() -> None:
    folder = ROOT / "ultragen"
    paths = [path for path in folder.rglob("*.py") if path.name != "__init__.py"]
    own = [path.name for path in paths if path.parent != folder or path.stem not in ALIASES]
    assert [name for name, count in Counter(own).items() if count > 1] == []


def test_the_model_asks_nothing_about_devices() -> None:
    found = []
    for path in sorted((ROOT / "ultragen/model").glob("*.py")):
        module = module_name(path, ROOT)
        if module in MAY_ASK:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(node, "attr", None) or getattr(node, "id", None)
            if name in QUESTIONS:
                found.append(f"{module}:{node.lineno} asks for {name}")
    assert found == []


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("ultragen/presets.py", "from ultragen.ops import tiles", "presets imports ops"),
        ("ultragen/model/block.py", "from ..sampling import flow", "model imports sampling"),
        ("ultragen/pipeline.py", "def f():\n    from .training import loop", "imports training"),
        ("ultragen/training/loop.py", "import ultragen.runs", "training imports runs"),
        ("ultragen/training/loop.py", "from ..runs import clip", "training imports runs"),
        ("ultragen/world/scene.py", "from ..model import block", "world imports model"),
        ("ultragen/runs/clip.py", "from ..transformer import X", "runs imports transformer"),
        ("ultragen/runs/clip.py", "import gradio", "ultragen.runs.clip imports gradio"),
        ("ultragen/weights/wan.py", "import huggingface_hub", "weights.wan imports huggingface"),
        ("ultragen/model/block.py", "import triton", "ultragen.model.block imports triton"),
        ("app.py", "from ultragen.training.loop import train", "app imports training"),
        ("ultragen/unheard_of.py", "", "unheard_of has no place"),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, name: str, code: str, says: str) -> None:
    for floor in FLOORS[:-2]:
        for room in floor:
            write(tmp_path / f"ultragen/{room}/__init__.py", "import torch")
    for file in ("training/loop", "runs/clip", "world/scene", "weights/hub", "ops/tiles"):
        write(tmp_path / f"ultragen/{file}.py", "from ..presets import EMBEDDED")
    for file in ("sampling/flow", "model/block"):
        write(tmp_path / f"ultragen/{file}.py", "from ..ops import tiles")
    write(tmp_path / "ultragen/__init__.py", "")
    write(tmp_path / "ultragen/transformer.py", "from .model import block")
    write(tmp_path / "ultragen/cli/__init__.py", "import typer\nfrom ..training.loop import train")
    write(tmp_path / "app.py", "import gradio\nfrom ultragen.runs import clip")
    write(tmp_path / "ultragen/weights/hub_errors.py", "import huggingface_hub")
    assert breaches(read_modules(tmp_path)) == []
    write(tmp_path / name, code)
    (breach,) = breaches(read_modules(tmp_path))
    assert says in breach


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_importing_the_package_is_cheap() -> None:
    code = "import sys, ultragen; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & {"torch", "numpy", "diffusers", "transformers", "gradio", "spaces", "PIL"}


def test_public_names_are_found() -> None:
    assert set(ultragen.__all__) <= set(dir(ultragen))
    for name in set(ultragen.__all__) - {"__version__", "EMBEDDED_MODEL"}:
        assert getattr(ultragen, name).__name__ == name
    assert (ultragen.EMBEDDED_MODEL / "model_index.json").is_file()
    with pytest.raises(AttributeError, match="Nothing"):
        ultragen.Nothing  # noqa: B018

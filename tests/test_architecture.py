"""Imports point one way, nothing is imported in a circle, and `import ultragen` is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import ultragen

ROOT = Path(ultragen.__file__).parent.parent

# Each line may import the ones above it, and none of its own. A new module gets its place here.
ORDER = (
    {
        "presets",
        "coefficients",
        "windows",
        "video",
        "metrics",
        "strips",
        "guidance",
        "json_files",
        "pickles",
        "strict_loading",
    },
    {
        "layout",
        "request",
        "cost",
        "hub",
        "model_files",
        "flow",
        "coordinates",
        "clauses",
        "kernels",
        "linear",
    },
    {"tiles", "estimator"},
    {"hardware", "compression", "sampling", "block", "fp8", "progress"},
    {"attention"},
    {"transformer", "autoencoder", "upscale", "classifier", "wan_decoding"},
    {"inputs", "decoding", "checkpoint_keys", "checkpoint_files"},
    {"checkpoint", "features", "part_files"},
    {"wan"},
    {"pipeline"},
    {"choice"},
    {"models"},
    {"metadata"},
    {"compare"},
    {"measuring"},
    {"worker", "native", "evaluation", "benchmark", "tiers"},
    {"web", "gallery", "console"},
    {"commands"},
    {"cli", "app"},
    {"__main__"},
)
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}
# Beside the chain: it builds on everything below `compare`, and only the command line builds on it.
TRAINING = "training"
MAY_TRAIN = {"commands", TRAINING}


def module_name(path: Path, root: Path) -> str:
    parts = list(path.relative_to(root).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def read_modules(root: Path) -> dict[str, set[str]]:
    """Maps every module of ours to the ones that it imports, wherever in the file that stands."""
    paths = {module_name(path, root): path for path in sorted((root / "ultragen").rglob("*.py"))}
    if (root / "app.py").exists():
        paths["app"] = root / "app.py"
    return {
        name: {target for target in imports(name, path) for target in known(target, set(paths))}
        for name, path in paths.items()
    }


def imports(name: str, path: Path) -> set[str]:
    """Returns the dotted names a file imports; those of `from a import b` as `a.b`."""
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


def known(target: str, modules: set[str]) -> set[str]:
    """Cuts `package.module.Class` back to the module; what is not ours gives nothing."""
    while target and target not in modules:
        target = target.rpartition(".")[0]
    return {target} - {"", "ultragen"}


def part(module: str) -> str:
    """`ultragen.training.scenes` belongs to `training`, `ultragen.cli` to `cli`."""
    return module.removeprefix("ultragen.").split(".")[0]


def breaches(modules: dict[str, set[str]]) -> list[str]:
    """Lists the imports against the order, one line each."""
    found = []
    for module, targets in sorted(modules.items()):
        here = part(module)
        if here not in {*LEVEL, TRAINING, "ultragen"}:
            found.append(f"{module} has no place in ORDER")
            continue
        for target in sorted(targets):
            there = part(target)
            if there == here:
                continue
            if there == TRAINING:
                allowed = here in MAY_TRAIN
            elif here == TRAINING:
                allowed = LEVEL.get(there, 99) < LEVEL["compare"]
            else:
                allowed = LEVEL.get(there, 99) < LEVEL.get(here, -1)
            if not allowed:
                found.append(f"{module} imports {target}")
    return found


def test_imports_point_one_way() -> None:
    assert breaches(read_modules(ROOT)) == []


def test_nothing_is_imported_in_a_circle() -> None:
    modules = read_modules(ROOT)
    try:
        TopologicalSorter(modules).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' → '.join(error.args[1])}")


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("ultragen/presets.py", "from ultragen import windows", "presets imports ultragen.windows"),
        ("ultragen/attention.py", "from .transformer import X", "attention imports ultragen.trans"),
        ("ultragen/pipeline.py", "def f():\n    from .training import loop", "training.loop"),
        ("ultragen/training/loop.py", "import ultragen.compare", "imports ultragen.compare"),
        ("ultragen/training/loop.py", "from ..compare import run", "imports ultragen.compare"),
        ("ultragen/upscale.py", "from .autoencoder import X", "upscale imports ultragen.auto"),
        ("app.py", "from ultragen.training.loop import train", "app imports ultragen.training"),
        ("ultragen/unheard_of.py", "", "unheard_of has no place"),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, name: str, code: str, says: str) -> None:
    for level in ORDER[:-2]:
        for module in level:
            write(tmp_path / f"ultragen/{module}.py", "import torch")
    write(tmp_path / "ultragen/__init__.py", "")
    write(tmp_path / "ultragen/training/__init__.py", "")
    write(tmp_path / "ultragen/training/loop.py", "from ..presets import EMBEDDED")
    commands = "from .training.loop import train\nfrom . import compare"
    write(tmp_path / "ultragen/commands.py", commands)
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
    for name in set(ultragen.__all__) - {"__version__"}:
        assert getattr(ultragen, name).__name__ == name
    with pytest.raises(AttributeError, match="Nothing"):
        ultragen.Nothing  # noqa: B018

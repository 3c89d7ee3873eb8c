"""The set-up script's one-line answers, and the guard against skipped browser tests."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from paths import ROOT

pytest_plugins = ["pytester"]

SCRIPT = ROOT / "scripts" / "setup.py"


@pytest.fixture
def setup(tmp_path: Path, monkeypatch) -> ModuleType:
    """The script as a module, working in an empty project of its own."""
    spec = importlib.util.spec_from_file_location("setup_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("requirements.txt", "pyproject.toml"):
        (tmp_path / name).write_text(f"{name}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(module, "LOG", tmp_path / ".venv" / "setup.log")
    monkeypatch.setattr(module, "STAMP", tmp_path / ".venv" / "setup.stamp")
    monkeypatch.setattr(module, "has_gpu", lambda: False)
    return module


class FakeInstall:
    """Stands in for `subprocess.run`: makes the folder, and fails where it is told to."""

    def __init__(self, venv: Path, fails_at: str = "", output: str = "", returncode: int = 1):
        self.venv, self.fails_at = venv, fails_at
        self.output, self.returncode = output, returncode
        self.commands: list[str] = []

    def __call__(self, command: list[str], **_options) -> subprocess.CompletedProcess:
        text = " ".join(command)
        if "sys.version_info" in text:
            there = (self.venv / "bin" / "python").exists()
            return subprocess.CompletedProcess(command, 0, b"3.12" if there else b"", b"")
        self.commands.append(text)
        if self.fails_at and self.fails_at in text:
            return subprocess.CompletedProcess(command, self.returncode, self.output.encode())
        (self.venv / "bin").mkdir(parents=True, exist_ok=True)
        (self.venv / "bin" / "python").touch()
        return subprocess.CompletedProcess(command, 0, b"fine")


def test_script_starts_on_an_old_python() -> None:
    source = SCRIPT.read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 6))
    # What the grammar check does not see: names that came later than 3.6.
    assert not re.search(r"capture_output|text=True|annotations|removeprefix|:=", source)


def test_old_python_is_one_line(setup: ModuleType, monkeypatch) -> None:
    monkeypatch.setattr(setup.shutil, "which", lambda _name: None)
    with pytest.raises(setup.SetupError) as caught:
        setup.find_python("/usr/bin/python3", (3, 8, 18, "final", 0))
    message = str(caught.value)
    assert "needs Python 3.11 or newer, and /usr/bin/python3 is Python 3.8.18" in message
    assert "make PYTHON=" in message
    assert "\n" not in message


def test_newer_python_beside_an_old_one_is_taken(setup: ModuleType, monkeypatch) -> None:
    monkeypatch.setattr(setup.shutil, "which", lambda name: f"/opt/{name}")
    versions = {"/opt/python3.13": None, "/opt/python3.12": (3, 12)}
    monkeypatch.setattr(setup, "python_version", versions.get)
    assert setup.find_python("/usr/bin/python3", (3, 8, 18)) == "/opt/python3.12"
    assert setup.find_python("/usr/bin/python3", (3, 11, 0)) == "/usr/bin/python3"


def test_versions_are_asked_for(setup: ModuleType, tmp_path: Path) -> None:
    assert setup.python_version(sys.executable) == sys.version_info[:2]
    assert setup.python_version(str(tmp_path / "missing")) is None
    stub = tmp_path / "python3.13"
    stub.write_text("#!/bin/sh\necho 'command not found' >&2\nexit 127\n")
    stub.chmod(0o755)
    assert setup.python_version(str(stub)) is None


def test_little_disk_space_is_noticed_first(setup: ModuleType, monkeypatch, capsys) -> None:
    usage = type("Usage", (), {"free": 2**29})
    monkeypatch.setattr(setup.shutil, "disk_usage", lambda _path: usage)
    assert setup.main([]) == 1
    error = capsys.readouterr().err
    assert "3 GiB" in error
    assert "0.5 GiB left" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("output", "says"),
    [
        (
            "WARNING: Retrying (Retry(total=4)) after connection broken by"
            " 'NewConnectionError('<urllib3.connection object>: Failed to establish a new"
            " connection: [Errno -3] Temporary failure in name resolution')'\n"
            "ERROR: Could not find a version that satisfies the requirement torch==2.13.0\n"
            "ERROR: No matching distribution found for torch==2.13.0",
            "could not be reached: check the network",
        ),
        ("ERROR: Could not install packages: [Errno 28] No space left on device", "disk is full"),
        ("SSLError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate", "certificate"),
        ("The virtual environment was not created: ensurepip is not available", "python3-venv"),
        ("error: [Errno 13] Permission denied: '.venv/lib'", "folder that you own"),
        ("ERROR: No matching distribution found for torch==2.13.0", "there is no torch==2.13.0"),
        ("first\nERROR: ResolutionImpossible: a and b\nlast", "ERROR: ResolutionImpossible"),
        ("", "status 1"),
    ],
)
@pytest.mark.parametrize("step", ["-m venv", "torch==2.13.0", "--editable"])
def test_failures_are_one_line(
    setup: ModuleType, monkeypatch, capsys, step: str, output: str, says: str
) -> None:
    monkeypatch.setattr(setup.subprocess, "run", FakeInstall(setup.VENV, step, output))
    assert setup.main(["test"]) == 1
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not setup.STAMP.exists()
    if step != "-m venv":
        assert "(pip's output: .venv/setup.log)" in error
        assert output in setup.LOG.read_text()


def test_killed_installation_is_about_memory(setup: ModuleType, monkeypatch, capsys) -> None:
    install = FakeInstall(setup.VENV, "--editable", "Collecting torch", -9)
    monkeypatch.setattr(setup.subprocess, "run", install)
    assert setup.main([]) == 1
    assert "memory was not enough" in capsys.readouterr().err


def test_second_run_installs_nothing(setup: ModuleType, monkeypatch) -> None:
    install = FakeInstall(setup.VENV)
    monkeypatch.setattr(setup.subprocess, "run", install)
    assert setup.main(["test"]) == 0
    assert [step in command for step, command in zip(
        ("-m venv", "torch==2.13.0", "--editable .[test]"), install.commands, strict=True
    )] == [True] * 3  # fmt: skip
    install.commands.clear()
    assert setup.main(["test"]) == 0
    assert setup.main([]) == 0
    assert install.commands == []


def test_changed_requirements_install_again(setup: ModuleType, monkeypatch) -> None:
    install = FakeInstall(setup.VENV)
    monkeypatch.setattr(setup.subprocess, "run", install)
    assert setup.main([]) == 0
    install.commands.clear()
    assert setup.main(["test"]) == 0
    assert install.commands, "the test tools were not there"
    (setup.ROOT / "requirements.txt").write_text("something else\n")
    install.commands.clear()
    assert setup.main(["test"]) == 0
    assert not any("-m venv" in command for command in install.commands)
    assert any("--editable" in command for command in install.commands)


def test_with_a_gpu_torch_is_left_to_the_requirements(setup: ModuleType, monkeypatch) -> None:
    install = FakeInstall(setup.VENV)
    monkeypatch.setattr(setup.subprocess, "run", install)
    monkeypatch.setattr(setup, "has_gpu", lambda: True)
    monkeypatch.setattr(setup, "NEEDED_GIB_WITH_GPU", 0)
    assert setup.main([]) == 0
    assert not any("torch==" in command for command in install.commands)


def test_missing_interpreter_is_one_line() -> None:
    done = subprocess.run(
        ["make", "--no-print-directory", "setup", "PYTHON=no-such-python"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "MAKEFLAGS": ""},
    )
    assert done.returncode != 0
    assert done.stderr.splitlines()[0].startswith("UltraGen needs Python 3.11 or newer")


LEAN = ("-p", "no:hypothesispytest")  # which is imported anew in every run, in a second each
BROWSER_TEST = "import pytest\n@pytest.mark.browser\ndef test_page():\n    {}\n"


@pytest.mark.parametrize(
    ("body", "options", "code"),
    [
        ("pass", [], 0),
        ("pytest.skip('no chromium')", [], 0),
        ("pass", ["--require-browser"], 0),
        ("pytest.skip('no chromium')", ["--require-browser"], 1),
    ],
)
def test_skipped_browser_test_fails_where_one_is_required(
    pytester: pytest.Pytester, body: str, options: list[str], code: int
) -> None:
    pytester.makeconftest((ROOT / "tests" / "conftest.py").read_text())
    pytester.makeini("[pytest]\nmarkers = browser: x\n")
    pytester.makepyfile(test_page=BROWSER_TEST.format(body))
    assert pytester.runpytest_inprocess(*LEAN, *options).ret == code


@pytest.mark.parametrize(
    "module",
    ["def test_other():\n    pass\n", "import pytest\npytest.importorskip('no_such_module')\n"],
)
def test_run_without_any_browser_test_fails(pytester: pytest.Pytester, module: str) -> None:
    pytester.makeconftest((ROOT / "tests" / "conftest.py").read_text())
    pytester.makeini("[pytest]\nmarkers = browser: x\n")
    pytester.makepyfile(test_page=module, test_fine="def test_fine():\n    pass\n")
    result = pytester.runpytest_inprocess(*LEAN, "--require-browser")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["No browser test ran*"])


@pytest.mark.slow
def test_a_skipped_browser_test_is_found_in_several_processes(pytester: pytest.Pytester) -> None:
    """That one that ran is found too, the whole suite shows."""
    pytester.makeconftest((ROOT / "tests" / "conftest.py").read_text())
    pytester.makeini("[pytest]\nmarkers = browser: x\n")
    pytester.makepyfile(test_page=BROWSER_TEST.format("pytest.skip('no chromium')"))
    assert pytester.runpytest_subprocess("-n", "1", "--require-browser").ret == 1

"""Makes `.venv` and installs the project into it; run again it returns at once.

    python3 scripts/setup.py [test]

With `test` the tools of the test suite are installed too. The system's `python3` runs this file,
so it uses the standard library alone and nothing newer than Python 3.6: an old Python has to get
far enough to say that it is too old. Every failure is one line that names the way out; what pip
printed is kept in a file.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOG = VENV / "setup.log"
STAMP = VENV / "setup.stamp"
OLDEST = (3, 11)
NEWER_PYTHONS = ("python3.13", "python3.12", "python3.11")
# What an installation takes, with room for the downloads: the builds with CUDA are far larger.
NEEDED_GIB = 3
NEEDED_GIB_WITH_GPU = 12

CAUSES = (
    (
        r"No space left on device|Errno 28|Disk quota exceeded|not enough space",
        "the disk is full: free at least {gib} GiB and run the same command again",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|SSLError",
        "the package index's certificate was refused: check the system's clock and certificates,"
        " then run the same command again",
    ),
    (
        r"NewConnectionError|NameResolutionError|Temporary failure in name resolution"
        r"|Network is unreachable|ConnectTimeout|Read timed out|Max retries exceeded"
        r"|ProxyError|Connection refused|Connection reset|connection broken",
        "the package index could not be reached: check the network (or HTTPS_PROXY) and run the"
        " same command again",
    ),
    (
        r"ensurepip is not|No module named '?(venv|ensurepip)",
        "this Python has no venv module: install it (on Debian and Ubuntu: apt install"
        " python3-venv) and run the same command again",
    ),
    (
        r"Permission denied|Read-only file system",
        "files could not be written below {root}: use a folder that you own",
    ),
    (
        r"MemoryError|Cannot allocate memory|Killed",
        "the memory was not enough: close other programs and run the same command again",
    ),
)


class SetupError(Exception):
    """What went wrong and the way out, in one line."""


def has_gpu():
    """Says whether an NVIDIA driver is installed."""
    return shutil.which("nvidia-smi") is not None


def needed_gib():
    """Returns the free disk space in GiB that an installation takes."""
    return NEEDED_GIB_WITH_GPU if has_gpu() else NEEDED_GIB


def python_version(command):
    """Asks an interpreter for its version as a tuple; None when it does not start."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        # A list of names may hold stand-ins that only print an error, so the answer decides.
        answer = subprocess.run(
            [command, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        return tuple(int(part) for part in answer.stdout.decode().split("."))
    except (OSError, ValueError):
        return None


def find_python(executable, version):
    """Returns an interpreter that is new enough: the running one, or one found by its name."""
    if tuple(version[:2]) >= OLDEST:
        return executable
    for name in NEWER_PYTHONS:
        path = shutil.which(name)
        found = python_version(path) if path else None
        if found is not None and found >= OLDEST:
            return path
    raise SetupError(
        "UltraGen needs Python {}.{} or newer, and {} is Python {}: install Python 3.12, or name"
        " another one: make PYTHON=/path/to/python3.12".format(
            *OLDEST, executable, ".".join(str(part) for part in version[:3])
        )
    )


def check_disk():
    """Refuses to start what a full disk would break off half-way."""
    free = shutil.disk_usage(str(ROOT)).free / 2**30
    if free < needed_gib():
        raise SetupError(
            f"UltraGen's set-up takes about {needed_gib()} GiB of disk space, and {ROOT} has"
            f" {free:.1f} GiB left: free some space and run the same command again"
        )


def explain(output, returncode):
    """Finds the cause of a failed installation in what it printed, as one line."""
    if returncode == -9:
        output += "\nKilled"
    for pattern, text in CAUSES:
        if re.search(pattern, output, re.IGNORECASE):
            return text.format(gib=needed_gib(), root=ROOT)
    missing = re.search(r"No matching distribution found for (\S+)", output)
    if missing:
        return (
            f"there is no {missing.group(1)} for Python {platform.python_version()} on"
            f" {platform.system()} {platform.machine()}: try another Python,"
            " make PYTHON=/path/to/python3.12"
        )
    errors = [line.strip() for line in output.splitlines() if "error" in line.lower()]
    return errors[-1] if errors else f"pip ended with status {returncode}"


def run(step, command):
    """Runs one step quietly, keeping its output in the log file.

    Raises:
        SetupError: The step failed; the text names the cause and the log.
    """
    print(f"{step} ...", flush=True)
    started = time.time()
    done = subprocess.run(command, cwd=str(ROOT), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output = done.stdout.decode("utf-8", "replace")
    kept = keep_log(" ".join(command) + "\n" + output)
    if done.returncode != 0:
        raise SetupError(f"{step} failed: {explain(output, done.returncode)}{kept}")
    print(f"{step}: done in {time.time() - started:.0f} s", flush=True)


def keep_log(text):
    """Appends to the log; returns where it is, or nothing when the disk takes no more."""
    try:
        with LOG.open("a", encoding="utf-8") as log:
            log.write(text + "\n")
    except OSError:
        return ""
    return f" (pip's output: {os.path.relpath(str(LOG))})"


def fingerprint(extra):
    """Identifies what would be installed and where, so that a change installs again."""
    digest = hashlib.sha256()
    for name in ("requirements.txt", "pyproject.toml"):
        digest.update((ROOT / name).read_bytes())
    digest.update(str(ROOT).encode())
    return f"{extra} {digest.hexdigest()}"


def is_ready(extra):
    """Says whether the last set-up still holds; the test tools include what the page needs."""
    try:
        stamp = STAMP.read_text()
    except OSError:
        return False
    ready = stamp in (fingerprint(extra), fingerprint("test"))
    return ready and python_version(str(venv_python())) is not None


def venv_python():
    """Returns the environment's own interpreter."""
    return VENV / "bin" / "python"


def set_up(extra):
    """Makes the environment and installs the project, unless that was done before."""
    if is_ready(extra):
        return
    python = find_python(sys.executable, sys.version_info)
    check_disk()
    version = python_version(str(venv_python()))
    if version is None or version < OLDEST:
        run("Making .venv", [python, "-m", "venv", "--clear", str(VENV)])
    pip = [str(venv_python()), "-m", "pip", "--disable-pip-version-check", "install", "--retries=2"]
    if not has_gpu():
        # Asked for by itself, this release comes as its CPU build where the index offers one.
        run("Installing PyTorch", [*pip, "torch==2.13.0"])
    what = f".[{extra}]" if extra else "."
    run("Installing UltraGen and its packages", [*pip, "--editable", what])
    STAMP.write_text(fingerprint(extra))


def main(arguments):
    """Sets up; prints one line and returns 1 when that is not possible."""
    extra = " ".join(arguments)
    if extra not in ("", "test"):
        print("Usage: python3 scripts/setup.py [test]", file=sys.stderr)
        return 2
    try:
        set_up(extra)
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"Set-up failed: {explain(str(error), 1)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped; the same command goes on where it was.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Follows what the README and docs say of the 1.3B model, as users without the Hub do.

    python scripts/follow_readme.py WORK [--random FOLDER] [--steps N] [--tiny]

Weights are random. Commands and Python come from README.md, docs/wan.md and docs/space.md, and are
printed as they are run. The first clip is made just as it says. Of what follows only that is
changed which one would wait for: `--steps` of each clip, fewer frames from the page, and the page
is started by `python app.py`, which is what `make demo` does once the environment is there.
Besides, the files are put where a Space that preloads them finds them, and the model has to be
chosen from there.

    WORK             a new folder, for clips and, unless FOLDER is given, 18 GB of weights
    --random FOLDER  what scripts/make_random_wan.py has written before
    --steps N        of all clips but the first

On an H100 it takes about 7 minutes with 2 steps and files that are there.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter, sleep
from urllib.error import URLError
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ultragen.cli.console import run  # noqa: E402
from ultragen.presets import MAIN, ULTRAGEN_SOURCE, WAN_SOURCE  # noqa: E402

PAGE_NEEDS = ("gradio", "gradio_client", "spaces")
START = 300.0  # seconds in which the page has to be there
LIBRARIES = ("torch", "diffusers", "transformers", "gradio", "gradio_client", "spaces")
WAN_PAGE = "docs/wan.md"
COMMIT = "0" * 40  # stands for the branch's newest, where none is pinned
CHOICE = "from ultragen.runs.choice import choose; c = choose(); print(c.name, '-', c.why)"


@dataclass(frozen=True)
class Walk:
    """How the README is followed.

    Attributes:
        work: Folder to do it in.
        steps: Denoising steps of all clips but the first; None for those that README.md says.
        tiny: Whether everything is a toy that a CPU runs.
    """

    work: Path
    steps: int | None
    tiny: bool

    @property
    def environment(self) -> dict[str, str]:
        """Where commands run; `python` is the one that runs this."""
        paths = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
        modules = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        variables = {name: value for name, value in os.environ.items() if "ULTRAGEN" not in name}
        return variables | {
            "PATH": os.pathsep.join(paths),
            "PYTHONPATH": os.pathsep.join(filter(None, modules)),
            "HF_HUB_OFFLINE": "1",
        }

    @property
    def weights(self) -> dict[str, str]:
        """The variables that the README exports."""
        folder = self.work / "models" / "random"
        return {
            WAN_SOURCE.variable: str(folder / "wan"),
            ULTRAGEN_SOURCE.variable: str(folder / "ultragen_1080p.ckpt"),
        }

    def shell(self, title: str, code: str, **variables: str) -> None:
        """Runs lines of a shell.

        Raises:
            RuntimeError: if one fails.
        """
        print(f"\n== {title}\n{code.strip()}", flush=True)
        began = perf_counter()
        environment = self.environment | variables
        ended = subprocess.run(["bash", "-euc", code], cwd=self.work, env=environment, check=False)
        if ended.returncode:
            raise RuntimeError(f"{title} failed with code {ended.returncode}.")
        print(f"-- {title}: {perf_counter() - began:.0f} s", flush=True)

    def sized(self, code: str) -> str:
        """A clip's command, of toys for a small one."""
        if not self.tiny:
            return code
        code = changed(code, "--resolution 1080p", "--resolution 544p")
        return changed(code, "--num-frames 81", "--num-frames 1 --steps 1")

    def shorter(self, code: str) -> str:
        """The same with fewer steps."""
        if self.tiny or self.steps is None:
            return self.sized(code)
        return changed(code, "--num-frames 81", f"--num-frames 81 --steps {self.steps}")


def changed(code: str, old: str, new: str) -> str:
    """Code with one place changed.

    Raises:
        ValueError: if the text has it no more.
    """
    if old not in code:
        raise ValueError(f"The text has {old!r} no more: change it in {Path(__file__).name} too.")
    return code.replace(old, new)


def section(page: str, title: str) -> str:
    """A section of a page, by its heading.

    Raises:
        ValueError: if there is none.
    """
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.S | re.M)
    if found is None:
        raise ValueError(f"{page} has no section {title!r}: change {Path(__file__).name} too.")
    return found[1]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.S | re.M)


def without_the_hub(walk: Walk, made: bool) -> None:
    """Makes the files, exports both variables, and makes a clip."""
    [code] = blocks(section(WAN_PAGE, "Without the Hub"), "bash")
    first, rest = code.split("\n", 1)
    if made:
        first = "# the files are there"
    else:
        script = f"{shlex.quote(str(ROOT))}/scripts/make_random_wan.py"
        first = changed(first, "scripts/make_random_wan.py", script)
        first += " --size tiny" if walk.tiny else " --jobs 4"
    walk.shell("Without the Hub", f"{first}\n{walk.sized(rest)}")


def command_line(walk: Walk, commands: str) -> None:
    """The command that would download, with the variables in place of the Hub."""
    walk.shell("The command line", walk.shorter(commands), **walk.weights)


def python(walk: Walk, code: str) -> None:
    """The snippet in Python."""
    steps = walk.steps or 30
    code = changed(code, "num_inference_steps=30", f"num_inference_steps={steps}")
    if walk.tiny:
        for old, new in (
            ('.to("cuda")', ""),
            ("height=1088", "height=64"),
            ("width=1920", "width=96"),
            ("num_frames=81", "num_frames=5"),
        ):
            code = changed(code, old, new)
    path = walk.work / "snippet.py"
    path.write_text(f"{code}\nprint(clip.shape, clip.dtype)\n", encoding="utf-8")
    walk.shell("Python", f"cat {path.name}; python {path.name}", **walk.weights)


def page(walk: Walk, client: str) -> None:
    """Starts the page and asks it for a clip through the client."""
    absent = [name for name in PAGE_NEEDS if find_spec(name) is None]
    if absent:
        print(f"\n== The page is left out: {', '.join(absent)} is not installed here.", flush=True)
        return
    with served(walk) as url:
        client = changed(client, "http://127.0.0.1:7860", url)
        few = f"num_frames={1 if walk.tiny else 17}, num_inference_steps={walk.steps or 30}"
        client = changed(client, 'resolution="544p"', f'resolution="544p", {few}')
        path = walk.work / "client.py"
        model = "print(metadata['model']['name'], metadata['machine'])"
        path.write_text(f"{client}\n{model}\n", encoding="utf-8")
        walk.shell("A clip from the page", f"cat {path.name}; python {path.name}")


@contextmanager
def served(walk: Walk) -> Iterator[str]:
    """The page on a free port; yields its address.

    Raises:
        RuntimeError: if it does not come up.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = walk.environment | walk.weights | {"ULTRAGEN_MODEL": "wan"}
    environment |= {"GRADIO_SERVER_PORT": str(port), "GRADIO_TEMP_DIR": str(walk.work / "page")}
    print(f"\n== The page\nULTRAGEN_MODEL=wan GRADIO_SERVER_PORT={port} python app.py", flush=True)
    began, url = perf_counter(), f"http://127.0.0.1:{port}"
    process = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=environment)
    try:
        while not answers(url):
            if process.poll() is not None or perf_counter() - began > START:
                raise RuntimeError(f"The page did not come up within {START:.0f} s.")
            sleep(0.5)
        print(f"-- The page is there after {perf_counter() - began:.0f} s", flush=True)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()


def answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=10):
            return True
    except (URLError, OSError):
        return False


def preloaded(walk: Walk, lines: str) -> None:
    """The files where `preload_from_hub` puts them: the model is chosen without any variable.

    Raises:
        RuntimeError: if another one is.
    """
    home = walk.work / "preloaded"
    wan, released = (walk.weights[source.variable] for source in (WAN_SOURCE, ULTRAGEN_SOURCE))
    have = {WAN_SOURCE.repository: Path(wan), ULTRAGEN_SOURCE.repository: Path(released).parent}
    print(f"\n{lines.strip()}", flush=True)
    for line in re.findall(r"^  - (.+)$", lines, re.M):
        repository, files, commit = (*line.split(), COMMIT)[:3]
        stored = home / "hub" / f"models--{repository.replace('/', '--')}"
        place = stored / "snapshots" / commit
        if commit == COMMIT:
            (stored / "refs").mkdir(parents=True)
            (stored / "refs" / MAIN).write_text(commit, encoding="utf-8")
        # Random weights have half of the bytes, in fewer shards.
        patterns = {re.sub(r"-\d{5}-of-\d{5}", "*", name) for name in files.split(",")}
        for file in {file for one in patterns for file in have[repository].glob(one)}:
            link = place / file.relative_to(have[repository])
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
    code = f'python -c "{CHOICE}" | tee choice.txt'
    walk.shell("A Space with preloaded weights", code, HF_HOME=str(home))
    if not (walk.work / "choice.txt").read_text(encoding="utf-8").startswith("wan "):
        raise RuntimeError("The preloaded 1.3B model was not chosen: see the line above.")


def follow(walk: Walk, random: Path | None) -> None:
    """Everything in the order of the pages, the files first."""
    walk.work.mkdir(parents=True)
    if random is not None:
        (walk.work / "models").mkdir()
        (walk.work / "models" / "random").symlink_to(random.resolve(), target_is_directory=True)
    [commands] = blocks(section("README.md", "The 1.3B model"), "bash")
    demo, generate = commands.split("\n", 1)
    if demo != "ULTRAGEN_MODEL=wan make demo":
        raise ValueError(f"README.md starts the page by {demo!r}: change this script too.")
    without_the_hub(walk, random is not None)
    command_line(walk, generate)
    python(walk, blocks(section(WAN_PAGE, "In Python"), "python")[0])
    preloaded(walk, blocks(section("docs/space.md", "The 1.3B model on a Space"), "yaml")[0])
    page(walk, blocks(section("README.md", "API"), "python")[0])
    print(f"\nThe README works on {machine()}.", flush=True)


def machine() -> str:
    """Card, day and versions."""
    import torch

    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU"
    known = (name for name in LIBRARIES if find_spec(name))
    versions = ", ".join(f"{name} {version(name)}" for name in known)
    return f"{card}, {date.today()}, {versions}"


def main(arguments: list[str]) -> int:
    """Reads the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--random", type=Path)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args(arguments)
    steps = 1 if options.tiny else options.steps
    walk = Walk(options.work.resolve(), steps, options.tiny)
    return run(lambda: follow(walk, options.random))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

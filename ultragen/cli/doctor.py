"""`doctor`: what this machine has and what runs on it, to paste into a bug report."""

from __future__ import annotations

import json
import os
import platform
import re
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shutil import disk_usage
from tempfile import gettempdir
from typing import Annotated

import typer

from .. import __version__
from ..files import first_line
from . import console
from .options import app

Facts = Iterator[tuple[str, str]]
"""Name and text of each; whoever asks for the next one may meet any error."""

LIBRARIES = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "peft",
    "gradio",
    "huggingface_hub",
    "triton",
    "torchao",
    "moviepy",
)
SETTINGS = ("ULTRAGEN_", "GRADIO_", "HF_")
SECRET = re.compile("TOKEN|KEY|SECRET|PASSWORD|AUTH|COOKIE")
LOGIN = re.compile(r"(?<=://)[^/@\s]+(?=@)|hf_\w{8,}")
"""The login in an address, and what the Hub's tokens look like."""


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
) -> None:
    """Print what this machine has and what runs on it, for bug reports."""
    report = examine()
    print(json.dumps(report, indent=2, ensure_ascii=False) if as_json else as_text(report))


def examine() -> dict[str, dict[str, str]]:
    """All facts under their headings, without secrets; what can't be found out says why."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a kernel that does not run stands in the report
        attempt(console.quiet_libraries)
        return {heading: collect(find) for heading, find in PARTS.items()}


def as_text(report: dict[str, dict[str, str]]) -> str:
    lines = []
    for heading, facts in report.items():
        width = max(map(len, facts), default=0)
        lines += [heading, *(f"  {name:<{width}}  {fact}" for name, fact in facts.items())]
        lines += [] if facts else ["  none"]
    return "\n".join(lines)


def collect(find: Callable[[], Facts]) -> dict[str, str]:
    facts = {}
    try:
        for name, fact in find():
            facts[name] = presentable(fact)
    except Exception as error:  # it is asked where something is broken
        facts["not found out"] = presentable(first_line(error))
    return facts


def attempt(find: Callable[[], object]) -> str:
    """What a function gives, or why it gives nothing."""
    try:
        return str(find())
    except Exception as error:  # as above
        return f"not found out: {first_line(error)}"


def presentable(text: str) -> str:
    """A text that anyone may read: without logins and tokens, the home folder as `~`."""
    for name, value in os.environ.items():
        if SECRET.search(name.upper()) and len(value) >= 8:  # shorter ones are parts of words
            text = text.replace(value, "…")
    text = LOGIN.sub("…", text)
    home = os.path.expanduser("~").rstrip("/\\")
    return re.sub(rf"(?<![\w.-]){re.escape(home)}(?![\w.-])", "~", text) if home else text


def versions() -> Facts:
    yield "ultragen", __version__
    yield "Python", platform.python_version()
    yield "platform", platform.platform()
    for name in LIBRARIES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            yield name, "not installed"
    yield "ffmpeg", attempt(ffmpeg)


def ffmpeg() -> str:
    from imageio_ffmpeg import get_ffmpeg_version

    return get_ffmpeg_version()


def device() -> Facts:
    import torch

    from ..hardware import find_hardware, gib

    yield "GPUs", str(torch.cuda.device_count())
    yield "torch's CUDA", str(torch.version.cuda or "none")
    yield "CPU", f"{platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} threads"
    hardware = find_hardware()
    yield "device", f"{hardware.device}: {hardware.name}"
    if hardware.device == "cuda":
        yield "memory", f"{gib(hardware.memory)} free"
    else:
        yield "memory", attempt(main_memory)
    asked = os.environ.get("ULTRAGEN_DTYPE") or "auto"
    automatic = f"automatic: {WHY[hardware.device, hardware.dtype]}"
    why = automatic if asked == "auto" else f"ULTRAGEN_DTYPE={asked}"
    yield "precision", f"{hardware.dtype} ({why})"


WHY = {
    ("cuda", "bfloat16"): "GPUs have units for it from Ampere on",
    ("cuda", "float32"): "GPUs before Ampere are slower in bfloat16",
    ("cpu", "bfloat16"): "this CPU has units for it",
    ("cpu", "float32"): "this CPU is slower in bfloat16",
}
"""Of the precision that is computed in."""


def main_memory() -> str:
    from ..hardware import gib

    return f"{gib(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'))} in all"


def fused_operations() -> Facts:
    import torch

    from ..hardware import find_hardware
    from ..ops import dispatch

    for name, why_not in dispatch.report(torch.device(find_hardware().device)).items():
        line = (why_not or "").partition("\n")[0]
        yield name, f"does not run: {line}" if why_not else "runs"


def attention() -> Facts:
    import torch

    may_use = torch.backends.cuda
    for name, enabled in (
        ("cuDNN", may_use.cudnn_sdp_enabled()),
        ("flash", may_use.flash_sdp_enabled()),
        ("memory-efficient", may_use.mem_efficient_sdp_enabled()),
        ("math", may_use.math_sdp_enabled()),
    ):
        yield f"torch, {name}", "enabled" if enabled else "switched off"
    # Nothing public tells.
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    yield "diffusers", _AttentionBackendRegistry.get_active_backend()[0].value


def model() -> Facts:
    from ..runs.choice import choose

    choice = choose("auto")
    yield "auto", f"{choice.name}. {choice.why}"
    yield "other", choice.other
    if os.environ.get("ULTRAGEN_MODEL"):
        yield "ULTRAGEN_MODEL", attempt(lambda: f"{choose().name}. {choose().why}")


def disk() -> Facts:
    from ..weights.hub import constants

    yield "clips of the commands", free(Path.cwd())
    page = os.environ.get("GRADIO_TEMP_DIR") or Path(gettempdir()) / "gradio"  # as Gradio has it
    yield "clips of the page", free(Path(page))
    yield "cache of the Hub", free(Path(constants.HF_HUB_CACHE))


def free(folder: Path) -> str:
    from ..hardware import gib

    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return f"{gib(disk_usage(there).free)} free in {folder}"


def settings() -> Facts:
    for name, value in sorted(os.environ.items()):
        if name.startswith(SETTINGS):
            yield name, "set" if SECRET.search(name) else value


PARTS: dict[str, Callable[[], Facts]] = {
    "Versions": versions,
    "Device": device,
    "Fused operations": fused_operations,
    "Attention": attention,
    "Model": model,
    "Disk": disk,
    "Settings": settings,
}

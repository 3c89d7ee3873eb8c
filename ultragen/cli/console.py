"""What the commands share: a progress bar, whole results or none, errors as one line."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from ..files import cannot_write, whole_result

BAD_INPUT, FAILED, STOPPED = 2, 1, 130  # exit codes


def run(command: Callable[[], Any]) -> int:
    """Runs a command; returns its exit code.

    What is wrong with the input or the machine becomes one line on stderr. Other exceptions are
    errors of ours and keep their traceback.
    """
    from typer import Abort

    try:
        # Where Typer meets Ctrl-C first, it returns the code.
        code = int(command() or 0)
        return _say("Stopped.", STOPPED) if code == STOPPED else code
    except (KeyboardInterrupt, Abort):
        return _say("Stopped.", STOPPED)
    except ValueError as error:
        return _say(str(error), BAD_INPUT)
    except (OSError, RuntimeError, FloatingPointError) as error:
        return _stopped_or_failed(error)
    except Exception as error:
        # Typer carries its own copy of click, whose exceptions have no public base class.
        if not hasattr(error, "format_message"):
            raise
        text = error.format_message().rstrip(".")
        text += " See --help." if text.endswith("?") else ". See --help."
        return _say(text, getattr(error, "exit_code", BAD_INPUT))


def _stopped_or_failed(error: Exception) -> int:
    """Ctrl-C reaches the video encoder too, which may be the first to say so."""
    if "SIGINT" in str(error):
        return _say("Stopped.", STOPPED)
    return _say(str(error) or type(error).__name__, FAILED)


def _say(message: str, code: int) -> int:
    print("ultragen:", " ".join(message.split()), file=sys.stderr)
    return code


def quiet_libraries() -> None:
    """Leaves stderr to this program's own messages: no bars of the loaders, no warnings."""
    # Before diffusers looks for it: torchao names each of its kernels that this machine can't load,
    # and torch what torchao should do otherwise.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
        library.set_verbosity_error()


@contextmanager
def progress_bar(shown: bool = True) -> Iterator[Callable[[float, str], None]]:
    """Shows a bar on stderr, where that is a terminal; yields a function of the fraction that is
    done and a text.

    Args:
        shown: Whether there is a bar at all: one of several processes has it.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    hidden = not (shown and console.is_terminal)
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("Starting", total=1.0)

        def show(fraction: float, text: str) -> None:
            bar.update(task, completed=fraction, description=text)

        yield show


@contextmanager
def silence_unless(first: bool) -> Iterator[None]:
    """Leaves it to the first of several processes to say what all of them find; errors come from
    `run`, after that."""
    with nullcontext() if first else redirect_stderr(StringIO()):
        yield


def check_free(out: Path, names: tuple[str, ...], overwrite: bool) -> None:
    """Checks that results can go into a folder, before the work starts.

    Raises:
        OSError: if the folder is a file, if no file can have one of the names, or if it has a file
            that stays, or a folder where a file is to go, which is never replaced.
    """
    if out.exists() and not out.is_dir():
        raise OSError(f"{out} is a file: choose a folder for --out.")
    for name in names:
        try:
            (out / name).lstat()
        except OSError as error:
            if told := cannot_write(out / name, str(error)):
                raise told from error
        if Path(name).suffix and (out / name).is_dir():
            raise OSError(
                f"{out / name} is a folder, which no file replaces: choose another --out."
            )
    taken = [] if overwrite else [name for name in names if (out / name).exists()]
    if taken:
        raise OSError(
            f"{out} already holds {', '.join(taken)}: choose another --out, or add --overwrite."
        )


@contextmanager
def whole_results(out: Path, replaces: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yields a folder to work in, whose contents move to `out` once everything is there, all of
    them or, after an error, none.

    Args:
        out: Folder of the results; created when missing.
        replaces: Names of an earlier result, which goes as a whole.

    Raises:
        OSError: if `out` can't be created or written to; nothing is left behind.
    """
    created = _create(out)
    try:
        with whole_result(out, replaces) as folder:
            yield folder
    except BaseException:
        for folder in created:
            if not any(folder.iterdir()):
                folder.rmdir()
        raise


def _create(out: Path) -> list[Path]:
    """Creates a folder with its parents; returns those that are new, the innermost first."""
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"The folder {out} can't be created ({error.strerror}): choose another --out."
        ) from error
    if not os.access(out, os.W_OK):
        raise OSError(f"The folder {out} can't be written to: choose another --out.")
    return missing

"""The page of the trials, in a process of its own: `app.main` with models that draw at once.

Settings come as JSON in `TRIAL`, see `trials.Page`.
"""

from __future__ import annotations

import json
import os
import resource
import time
from collections import deque
from pathlib import Path
from threading import current_thread
from typing import Any

from fakes import FakePipeline, fake_models
from starlette.middleware import Middleware

import app
from ultragen.runs.loading import Models
from ultragen.runs.worker import _running
from ultragen.web.cards import Cards
from ultragen.web.gate import Gate

SETTINGS = json.loads(os.environ["TRIAL"])
HOLD = Path(SETTINGS["hold"])


class Logged(FakePipeline):
    """Writes down when a run begins, as step -1, when each of its steps has ended, which none does
    while it is held, and that it is cancelled meanwhile, as step -2."""

    def __call__(self, **options: Any) -> Any:
        callback, seed = options["callback_on_step_end"], options["generator"].initial_seed()

        def note(step: int) -> None:
            log.write(f"{time.monotonic()} {seed} {step}\n")

        def stepped(pipe, step: int, timestep: int, tensors: dict) -> Any:
            cancelled, told = _running[current_thread()], False
            while HOLD.exists():
                if cancelled.is_set() and not told:
                    told = True
                    note(-2)
                time.sleep(0.01)
            note(step)
            return callback(pipe, step, timestep, tensors)

        note(-1)
        return super().__call__(**options | {"callback_on_step_end": stepped})


def load_models() -> Models:
    models = fake_models(delay=SETTINGS["delay"])
    models.native = Logged(SETTINGS["delay"])
    for pipeline in (models.native, models.base):  # or they would keep all calls
        pipeline.calls = deque(maxlen=1)
    return models


def main() -> None:
    if limit := SETTINGS["file_size"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    options = app.launch_options()
    options["app_kwargs"] |= {
        "middleware": [Middleware(Gate, grace=SETTINGS["grace"]), Middleware(Cards)]
    }
    # Gradio copies examples at the start, which limited files and small disks have no room for.
    app.EXAMPLES = Path(SETTINGS["log"]).parent / "no-examples"
    app.launch_options, app.load_models = lambda: options, load_models
    app.main()


if __name__ == "__main__":
    with open(SETTINGS["log"], "a", buffering=1) as log:
        main()

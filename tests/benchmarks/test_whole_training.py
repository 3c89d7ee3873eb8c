"""`benchmarks/whole_training.py`: what it reads of a training's log, what it kills, its table."""

from __future__ import annotations

import psutil
import pytest
from training_stages import Line, run, settings
from whole_training_commands import Output, at_step
from whole_training_commands import run as run_command
from whole_training_table import rows

PARENT = """
import subprocess, sys, time
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
print(subprocess.Popen(sleep, start_new_session=True).pid, flush=True)
print("0.1 s  step      4  loss 1.0000  lr 1.0e-04", flush=True)
time.sleep(600)
"""


def printed(capsys) -> Output:
    return Output(lines=[(0.0, line) for line in capsys.readouterr().out.splitlines()])


def test_the_log_of_a_training_is_read(tmp_path, capsys):
    stage = run(Line(), settings(tmp_path, 2, log_steps=1))
    first = printed(capsys)
    assert [figures["loss"] for figures in first.steps().values()] == pytest.approx(
        stage.losses, abs=1e-4
    )
    assert first.saved()[2].keys() == {"checkpoint", "export"}
    with pytest.raises(RuntimeError, match="did not go on"):
        first.resumed()
    run(Line(), settings(tmp_path, 3, log_steps=1))
    second = printed(capsys)
    assert second.resumed() == (2, 0.0)
    assert list(second.steps()) == [3]


def test_a_training_is_killed_with_all_that_it_started():
    output = run_command(["-c", PARENT], at_step(4))
    child = int(output.lines[0][1])
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    assert output.steps()[4] == {"at": output.lines[1][0], "loss": 1.0}


@pytest.mark.parametrize(("words", "until"), [("exit(3)", None), ("print('no step')", at_step(4))])
def test_a_command_that_ends_otherwise_is_an_error(words, until):
    with pytest.raises(RuntimeError, match="ended with"):
        run_command(["-c", words], until)


def test_the_table():
    figures = {"steps_timed": 6, "peak_gib": 50.0}
    one = {**figures, "step_seconds": 7.0, "clips_a_second": 0.14, "states_gib": 22.0}
    two = {**figures, "step_seconds": 7.5, "clips_a_second": 0.26, "states_gib": 11.5}
    training = {
        **one, "first_step_seconds": 60, "checkpoint_step": 8, "checkpoint_seconds": 20,
        "checkpoint_bytes": 21e9, "export_seconds": 5, "export_bytes": 7e9,
        "killed_after_step": 11, "resumed_seconds": 40, "first_resumed_step_seconds": 70,
        "last_step": 20, "losses_again": {"9": [1.25, 1.2501], "10": [1.5, 1.5]},
    }  # fmt: skip
    gpus = {"processes": {"1": one, "2": two}}
    found = dict(rows({"training": training, "several-gpus": gpus}))
    assert found["checkpoint after step 8"] == "20.0 s, 21 GB"
    assert found["peak of memory, and states of it"] == "50.0, 22.0 GiB"
    assert found["steps after that"] == "9 to 20"
    assert found["losses logged twice, before and after"] == (
        "9: 1.2500 1.2501, 10: 1.5000 1.5000; 0.0001 apart at most"
    )
    assert found["2 processes over one"] == (
        "1.86 × the clips a second, 0.52 of the states' memory"
    )

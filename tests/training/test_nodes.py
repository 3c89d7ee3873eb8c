"""Training over several hosts, as the documentation starts it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from nodes import kill, killed_at_the_end, start, two_hosts
from paths import ROOT, SUPPORT
from ports import free_port
from wan_trainings import distance, train, words

STEPS = 5


def launched(rank: int, port: int, command: Sequence[str]) -> list[str]:
    """The documentation's command on one of two hosts with a process each, which trains a toy."""
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    [line] = re.findall(r"^accelerate launch .* train wan .*$", text, re.MULTILINE)
    accelerate, launch, *given = shlex.split(line)
    assert (accelerate, launch) == ("accelerate", "launch")
    options, module = given[: given.index("-m")], given[given.index("-m") : given.index("train")]
    changed = {
        "--num_processes": "2",
        "--machine_rank": str(rank),
        "--main_process_ip": "127.0.0.1",
        "--main_process_port": str(port),
    }
    for name, value in changed.items():
        options[options.index(name) + 1] = value
    return ["-m", "accelerate.commands.accelerate_cli", launch, *options, *module, *command]


class Killed(NamedTuple):
    """What became of a training one of whose hosts was killed.

    Attributes:
        out: Its folder.
        code: With which the other host ended.
        seconds: Until it had.
        said: By the other host.
    """

    out: Path
    code: int
    seconds: float
    said: str


@pytest.fixture(scope="module")
def killed(files, data, tmp_path_factory) -> Killed:
    """The second host is killed once the second step is saved."""
    folder = tmp_path_factory.mktemp("nodes")
    out, port = folder / "run", free_port()
    command = words(files, data, out, "--checkpoint-every", 1, steps=STEPS)
    logs = [folder / f"{rank}.txt" for rank in range(2)]
    with killed_at_the_end() as hosts:
        for rank, log in enumerate(logs):
            with log.open("w") as said:
                hosts.append(start(launched(rank, port, command), said))
        while "saved at step 2" not in logs[0].read_text():
            assert hosts[0].poll() is None, logs[0].read_text()[-3000:]
            time.sleep(0.05)
        kill(hosts[1])
        began = time.monotonic()
        code = hosts[0].wait(timeout=60)
    return Killed(out, code, time.monotonic() - began, logs[0].read_text())


@pytest.fixture(scope="module")
def whole(files, data, tmp_path_factory) -> Path:
    """The same steps on one host, uninterrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert train(files, data, out, "--batch", 2, steps=STEPS) == 0
    return out


@pytest.mark.slow
def test_a_host_that_is_killed_ends_the_other_one_which_says_so(killed):
    assert killed.code == 1
    assert killed.seconds < 60
    [line] = [line for line in killed.said.splitlines() if line.startswith("ultragen: ")]
    assert line.startswith("ultragen: another process is gone")
    assert "process 0 on" in line and "goes on from the last checkpoint" in line


@pytest.mark.slow
def test_the_same_commands_go_on(killed, whole, files, data, tmp_path):
    """To the weights that one host gives without an interruption."""
    out, port = tmp_path / "run", free_port()
    shutil.copytree(killed.out, out)
    command = words(files, data, out, "--checkpoint-every", 1, steps=STEPS)
    with killed_at_the_end() as hosts:
        hosts += [start(launched(rank, port, command)) for rank in range(2)]
        said = [host.communicate(timeout=250) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], said
    assert re.search(r"resumed at step [234]\b", said[0][0])
    assert "2 a step" in said[0][0]
    assert distance(out, whole) <= 1e-5


@pytest.mark.slow
def test_one_host_less_goes_on(killed, whole, files, data, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(killed.out, out)
    assert train(files, data, out, "--batch", 2, steps=STEPS) == 0
    assert re.search(r"resumed at step [234]\b", capsys.readouterr().out)
    assert distance(out, whole) <= 1e-5


@pytest.mark.slow
def test_a_host_without_the_data_says_so_and_the_other_one_names_it(files, data, tmp_path):
    """Before anything is trained."""

    def command(rank: int) -> list[str]:
        return ["-m", "ultragen", *words(files, (data, tmp_path / "none")[rank], tmp_path / "run")]

    with two_hosts(command) as hosts:
        _, errors = zip(*(host.communicate(timeout=150) for host in hosts), strict=True)
    assert [host.returncode for host in hosts] == [1, 2]
    assert re.search(
        r"^ultragen: process 1 on \S+ failed, and says why there: process 0", errors[0]
    )
    assert re.search(r"^ultragen: .*none", errors[1])


@pytest.mark.slow
def test_what_each_does_by_itself_may_take_longer_than_an_exchange(tmp_path):
    with two_hosts(lambda rank: [str(SUPPORT / "late_process.py"), str(tmp_path)]) as hosts:
        said = [host.communicate(timeout=150) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], said
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)] == [2, 2]


@pytest.fixture(scope="module")
def refused(tmp_path_factory) -> list[dict[str, str]]:
    out = tmp_path_factory.mktemp("refused")
    with two_hosts(lambda rank: [str(SUPPORT / "refusals.py"), str(out)]) as hosts:
        said = [host.communicate(timeout=150) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], said
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "says"),
    [
        (
            "UltraGen",
            r"same UltraGen, not 0\.0 in process 0 on \S+, 0\.1 in process 1 on .*install",
        ),
        ("torch", r"same torch, not 2\.0 in process 0 on \S+, 2\.1 in process 1 on .*install"),
        ("folder", r"^process 1 on \S+ can't see what process 0 writes into run: .*hosts share"),
        ("alike", r"^nothing$"),
    ],
)
def test_hosts_that_do_not_fit_together_are_named(refused, what, says):
    """By both of them."""
    assert refused[0][what] == refused[1][what]
    assert re.search(says, refused[0][what])

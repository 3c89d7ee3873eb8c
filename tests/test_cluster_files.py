"""The files in `examples/cluster`: run as far as they go without a cluster."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from paths import ROOT
from typer.main import get_command

from ultragen.cli import entry

FOLDER = ROOT / "examples" / "cluster"
STAND_INS = {
    # Says what it was called with.
    "accelerate": 'printf "%s\\n" "$@" > "$TASK.txt"',
    # The hosts that Slurm would name, one after the other: who reads the first alone ends it.
    "scontrol": """
        [ "$*" = "show hostnames node[7-8]" ] || exit 2
        echo node7; sleep 0.2; echo node8
    """,
    # Each task after the other.
    "srun": """
        [ "$1" = --kill-on-bad-exit=1 ] && shift
        for SLURM_PROCID in 0 1; do
            export SLURM_PROCID; TASK=$SLURM_PROCID "$@" || exit
        done
    """,
}


def test_no_file_is_forgotten_here():
    assert {path.name for path in FOLDER.iterdir()} == {
        "ray.yaml",
        "train-job.yaml",
        "train.sbatch",
    }


@pytest.fixture
def bash(tmp_path):
    """Runs Bash in a folder of the test, where programs of a cluster have stand-ins."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, script in STAND_INS.items():
        (programs / name).write_text(f"#!/bin/bash\n{script}\n")
        (programs / name).chmod(0o755)

    def run(words: Sequence[object], environment: Mapping[str, str]) -> None:
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        subprocess.run(
            ["bash", *map(str, words)],
            env={**os.environ, "PATH": path, **environment},
            cwd=tmp_path,
            check=True,
            timeout=60,
        )

    return run


def launches(folder: Path, tasks: int = 2) -> list[tuple[Namespace, dict[str, Any]]]:
    """What the launcher of each task is told, and what the command that it starts is."""
    found = []
    for task in range(tasks):
        launch, *words = (folder / f"{task}.txt").read_text().splitlines()
        assert launch == "launch"
        told = launch_command_parser().parse_args(words)
        assert told.module and told.training_script == "ultragen"
        found.append((told, options(told.training_script_args)))
    return found


def options(words: Sequence[str]) -> dict[str, Any]:
    """Those of a command of ours; unknown ones raise."""
    command, left = get_command(entry.app), list(words)
    while hasattr(command, "commands"):
        command = command.commands[left.pop(0)]
    return command.make_context("", left).params


def check_places(folder: Path, first: str, processes: int) -> None:
    """Each host is told which one it is, and where all of them meet."""
    both = [told for told, _ in launches(folder)]
    assert [told.machine_rank for told in both] == [0, 1]
    for told in both:
        assert told.multi_gpu and told.num_machines == 2
        assert told.num_processes == processes
        assert told.main_process_ip == first
    assert both[0].main_process_port == both[1].main_process_port


def test_the_slurm_script(bash, tmp_path):
    given = {
        "SLURM_JOB_ID": "40123",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_CPUS_PER_TASK": "64",
    }
    words = ("--preset", "wan-1080p", "--data", "my latents", "--out", "run")
    bash((FOLDER / "train.sbatch", *words), given)
    check_places(tmp_path, "node7", 16)
    for told, chosen in launches(tmp_path):
        assert 20000 <= told.main_process_port < 40000
        assert (chosen["preset"], chosen["data"]) == ("wan-1080p", Path("my latents"))
    lines = (FOLDER / "train.sbatch").read_text().splitlines()
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", "\n".join(lines), re.MULTILINE))
    assert (asked["ntasks-per-node"], asked["nodes"]) == ("1", "2")
    # Slurm reads them up to the first command.
    first = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first:])


def test_the_kubernetes_job(bash, tmp_path):
    service, job = yaml.safe_load_all((FOLDER / "train-job.yaml").read_text())
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    name, spec = job["metadata"]["name"], job["spec"]
    assert spec["completionMode"] == "Indexed"
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    pod = spec["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    [container] = pod["containers"]
    given = {variable["name"]: variable["value"] for variable in container["env"]}
    assert int(given["NODES"]) == spec["completions"] == spec["parallelism"]
    assert int(given["GPUS"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    seconds = pod["terminationGracePeriodSeconds"]
    assert int(given["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < seconds
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    command, *words = container["command"]
    assert command == "bash"
    for index in ("0", "1"):
        bash(words, {**given, "JOB_COMPLETION_INDEX": index, "TASK": index})
    check_places(tmp_path, f"{name}-0.{pod['subdomain']}", 16)
    for _, chosen in launches(tmp_path):
        assert chosen["out"].is_relative_to("/shared") and chosen["data"].is_relative_to("/shared")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's, where its options are read
def test_the_ray_cluster():
    ray = pytest.importorskip("ray")
    import jsonschema
    from ray.autoscaler._private.util import prepare_config
    from ray.scripts import scripts

    text = (FOLDER / "ray.yaml").read_text()
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    cluster = yaml.safe_load(text)
    jsonschema.validate(cluster, schema)
    ready = prepare_config(cluster)
    jsonschema.validate(ready, schema)
    [kind] = ready["available_node_types"].values()
    assert kind["min_workers"] == len(cluster["provider"]["worker_ips"])
    for kind in ("head", "worker"):
        *_, start = cluster[f"{kind}_start_ray_commands"]
        words = shlex.split(start[start.index("ray start") :])[2:]
        told = scripts.start.make_context("start", words).params
        assert told["head"] == (kind == "head")
    [batch] = re.findall(r"-m ultragen (batch [^']+)'", text)
    assert options(shlex.split(batch))["ray"] == "auto"

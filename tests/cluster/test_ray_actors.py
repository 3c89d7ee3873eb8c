"""Clusters that work is shared over: started, asked, and judged."""

from __future__ import annotations

import pytest

from ultragen import __version__
from ultragen.cluster import ray_actors
from ultragen.cluster.ray_actors import Room, _room

ray = pytest.importorskip("ray")


def test_a_cluster_of_this_machine_starts_by_itself(tmp_path, monkeypatch):
    def none(*_: object) -> None:
        raise ConnectionError  # that of another test is not found

    monkeypatch.setattr(ray_actors, "_init", none)
    with ray_actors._cluster("auto", 3) as started:
        assert started.cluster_resources()["CPU"] >= 3
        assert ray_actors._check_nodes(started, tmp_path, "CPU") == 1
    assert not ray.is_initialized()


def test_a_machine_that_lacks_something(tmp_path):
    ray_actors._judge("node", tmp_path, __version__, True)
    with pytest.raises(OSError, match=f"node does not see the folder {tmp_path}: choose an --out"):
        ray_actors._judge("node", tmp_path, *ray_actors._look(str(tmp_path / "token")))
    with pytest.raises(OSError, match=f"node has UltraGen 0.0.1: install {__version__} there"):
        ray_actors._judge("node", tmp_path, "0.0.1", True)
    with pytest.raises(OSError, match="node has no UltraGen"):
        ray_actors._judge("node", tmp_path, "", True)


def test_gpus_have_an_actor_each():
    nodes = [{"GPU": 1.0, "CPU": 16.0}, {"GPU": 1.0, "CPU": 16.0}, {"CPU": 4.0}]
    assert _room(nodes, None) == Room(2, "GPU", {"num_gpus": 1})
    assert _room(nodes, 1) == Room(1, "GPU", {"num_gpus": 1})
    with pytest.raises(ValueError, match=r"--workers 3 .* it has 2 GPUs"):
        _room(nodes, 3)


@pytest.mark.parametrize(
    ("cpus", "workers", "size", "each"),
    [
        ((8,), None, 1, 8),
        ((8,), 3, 3, 2),
        # An actor has to find its CPUs on one machine.
        ((1, 1), None, 2, 1),
        ((8, 2), None, 2, 4),
        ((4, 4), 1, 1, 4),
        ((3, 3), 4, 4, 1),
        ((6, 2), 3, 3, 2),
    ],
)
def test_actors_without_gpus_share_what_all_can_have(cpus, workers, size, each):
    nodes = [{"CPU": float(count)} for count in cpus] + [{"memory": 1.0}]
    assert _room(nodes, workers) == Room(size, "CPU", {"num_cpus": each})


def test_there_is_no_room():
    with pytest.raises(ValueError, match=r"--workers 3 .* it has 2 CPUs"):
        _room([{"CPU": 1.0}, {"CPU": 1.0}], 3)
    with pytest.raises(ValueError, match="it has 0 CPUs"):
        _room([{"memory": 1.0}], None)

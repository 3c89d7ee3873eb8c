"""Clusters that work is shared over: started, asked, and judged."""

from __future__ import annotations

import pytest

from ultragen import __version__
from ultragen.cluster import ray_actors

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
    assert ray_actors._room({"GPU": 2.0, "CPU": 32.0}, None) == (2, {"num_gpus": 1})
    assert ray_actors._room({"GPU": 2.0, "CPU": 32.0}, 1) == (1, {"num_gpus": 1})
    assert ray_actors._room({"CPU": 8.0}, None) == (1, {"num_cpus": 8})
    assert ray_actors._room({"CPU": 8.0}, 3) == (3, {"num_cpus": 2})
    with pytest.raises(ValueError, match="it has 2 GPUs"):
        ray_actors._room({"GPU": 2.0}, 3)

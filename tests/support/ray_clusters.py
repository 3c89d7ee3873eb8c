"""Clusters of Ray on one machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def two_machines() -> Iterator[str]:
    """A cluster of two machines with a CPU each, as Ray's own tests make them of one; its
    address."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        made.add_node(num_cpus=1)
        yield made.address
    finally:
        made.shutdown()

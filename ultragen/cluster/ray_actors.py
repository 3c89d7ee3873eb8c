"""Work on a Ray cluster: Ray Data with an actor for each GPU, or some on CPUs."""

from __future__ import annotations

import logging
import os
import pickle
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from .. import __version__
from ..files import first_line

Work = Callable[[Any], Any]

OBJECT_STORE = 256 * 2**20
"""Bytes of a cluster that starts here: items and results go through it, and no video."""
PATIENCE = 10.0  # seconds in which a cluster has to answer


class Actor:
    """An actor of Ray Data: a batch holds items, and what a worker makes of each comes back.

    Args:
        folder: Where relative paths begin.
        worker: Gives the function that does the work; it is called once an actor.
        arguments: What it is called with.
    """

    def __init__(self, folder: str, worker: Callable[..., Work], arguments: tuple) -> None:
        with suppress(OSError):  # another machine may not have it
            os.chdir(folder)
        self.work = worker(*arguments)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        return {"result": [pickle.dumps(self.work(pickle.loads(item))) for item in batch["item"]]}


def work_on_ray(
    items: Sequence[Any],
    worker: Callable[..., Work],
    arguments: tuple,
    out: Path,
    address: str,
    workers: int | None,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[Any]:
    """Works through items on a cluster, in the order in which actors take them.

    An actor that dies starts again, and gets its item again: a worker looks first what is done.
    One that raises would be started again and again: it returns what went wrong.

    Args:
        items: What there is to do; each can be pickled, as can what becomes of it.
        worker: Gives the function that does the work; it is called once an actor.
        arguments: What it is called with.
        out: Folder of the results, which lies where all machines see it.
        address: `auto` for the cluster of this machine, which starts if there is none;
            `ray://HOST:PORT` or `HOST:PORT` for another one.
        workers: Actors; without it one for each GPU, or for each machine where there is none.
        say: Takes a line on where they run.

    Yields:
        What the worker makes of each item.

    Raises:
        ValueError: The cluster has no room for so many.
        OSError: There is no such cluster, it runs another version, or one of its machines does not
            see the folder or lacks this package.
    """
    with _cluster(address, workers) as ray:
        there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        room = _room(there, workers)
        nodes = _check_nodes(ray, out, room.kind)
        say(
            f"Ray {ray.__version__}: {room.size} actors on {room.kind}s, {nodes} machines in the "
            "cluster"
        )
        run = (items, (os.getcwd(), worker, arguments), room)
        if not address.startswith("ray://"):
            yield from _results(*run)
            return
        # Ray Data needs a process of the cluster to run it, which Ray's client is none of (2.60.0).
        inside = ray.remote(num_cpus=0)(Run).remote(*run)
        while results := ray.get(inside.next.remote()):
            yield from results


@dataclass(frozen=True)
class Room:
    """What a cluster has room for.

    Attributes:
        size: How many actors.
        kind: What they run on, `GPU` or `CPU`.
        resources: What each one takes.
    """

    size: int
    kind: str
    resources: dict[str, Any]


class Run:
    """A run of Ray Data that an actor holds; arguments as for `_results`."""

    def __init__(self, *run: Any) -> None:
        self.results = _results(*run)

    def next(self) -> list[Any]:
        """The next result, or none after the last one."""
        return list(islice(self.results, 1))


def _results(items: Sequence[Any], actor: tuple, room: Room) -> Iterator[Any]:
    """What becomes of items, in actors that are made with some arguments."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # the command has a progress of its own
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rows = [{"item": pickle.dumps(item)} for item in items]
    # An item a block: what an actor that dies takes along is one.
    made = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        Actor,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=room.size, max_tasks_in_flight_per_actor=2),
        fn_constructor_args=actor,
        **room.resources,
    )
    for row in made.iter_rows():
        yield pickle.loads(row["result"])


@contextmanager
def _cluster(address: str, workers: int | None) -> Iterator[Any]:
    """Ray, connected; a cluster that was started here ends with it."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise OSError(
            "--ray needs one more package: pip install -e '.[ray]' in the clone's folder."
        ) from error
    # Which model and where its files lie: other machines have variables of their own.
    own = {name: value for name, value in os.environ.items() if name.startswith("ULTRAGEN_")}
    options: dict[str, Any] = {
        "runtime_env": {"env_vars": own},
        "log_to_driver": False,
        "logging_level": logging.ERROR,
    }
    try:
        _connect(ray, address, options, workers)
        yield ray
    finally:
        ray.shutdown()


def _connect(ray: Any, address: str, options: dict[str, Any], workers: int | None) -> None:
    if address == "auto":
        try:
            _init(ray, "auto", options)
        except ConnectionError:  # none runs here
            cpus = max(os.cpu_count() or 1, workers or 1)
            local = {"num_cpus": cpus, "object_store_memory": OBJECT_STORE}
            ray.init(address="local", **local, **options)
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"--ray {address} is no address: give auto, ray://HOST:PORT or HOST:PORT.")
    try:
        # Ray itself waits for minutes (2.60.0), and says less.
        socket.create_connection((host, int(port)), PATIENCE).close()
        _init(ray, address, options)
    except (OSError, OverflowError) as error:
        # A cluster that wants a token, which 2.60.0 makes by itself, answers no client without one.
        raise OSError(
            f"There is no Ray cluster at {address} ({first_line(error)}): start one with "
            "`ray start --head`, set RAY_AUTH_MODE=token if it has one, or use --ray auto."
        ) from error


def _init(ray: Any, address: str, options: dict[str, Any]) -> None:
    """Connects to a cluster that runs.

    Raises:
        ConnectionError: There is none.
        RuntimeError: It has another version of Ray or Python, which is named.
    """
    try:
        ray.init(address=address, **options)
    except RuntimeError as error:
        if "ersion mismatch" not in str(error):
            raise
        said = " ".join(str(error).split())
        raise RuntimeError(
            f"{said} Install ray=={ray.__version__} there, or the cluster's version here."
        ) from error


def _room(nodes: Sequence[Mapping[str, float]], workers: int | None) -> Room:
    """What actors there are on machines with such resources.

    An actor is on one machine: with more CPUs than any of them has, it would wait for ever.

    Raises:
        ValueError: They have no room for so many.
    """
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    cpus = [count for node in nodes if (count := int(node.get("CPU", 0)))]
    most, kind = (gpus, "GPU") if gpus else (sum(cpus), "CPU")
    size = workers or gpus or len(cpus)
    if size > most or not most:
        raise ValueError(
            f"--workers {size} is more than the cluster has room for: it has {most} {kind}s."
        )
    if gpus:
        return Room(size, kind, {"num_gpus": 1})
    # As many as all of them can have.
    each = next(n for n in range(max(cpus), 0, -1) if sum(count // n for count in cpus) >= size)
    return Room(size, kind, {"num_cpus": each})


def _check_nodes(ray: Any, out: Path, kind: str) -> int:
    """Checks that every machine that may work has this package and sees the folder; gives
    their number.

    Raises:
        OSError: One does not.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    token = out / f".seen-{secrets.token_hex(4)}"
    token.touch()
    try:
        nodes = [n for n in ray.nodes() if n["Alive"] and n["Resources"].get(kind)]
        task = ray.remote(num_cpus=0, max_retries=0)(_look)
        asked = [
            task.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(str(token))
            for node in nodes
        ]
        for node, answer in zip(nodes, asked, strict=True):
            _judge(node["NodeManagerHostname"], out, *_ask(ray, answer))
        return len(nodes)
    finally:
        token.unlink(missing_ok=True)


def _look(token: str) -> tuple[str, bool]:
    """What a machine has of this package, and whether it sees a file."""
    return __version__, os.path.exists(token)


def _ask(ray: Any, answer: Any) -> tuple[str, bool]:
    try:
        return ray.get(answer)
    except ray.exceptions.RayError as error:
        if "No module named 'ultragen'" in str(error):
            return "", True
        raise RuntimeError(f"The cluster can't run tasks: {first_line(error)}") from error


def _judge(host: str, out: Path, version: str, seen: bool) -> None:
    if version != __version__:
        there = f"UltraGen {version}" if version else "no UltraGen"
        raise OSError(f"{host} has {there}: install {__version__} there, as it is here.")
    if not seen:
        raise OSError(
            f"{host} does not see the folder {out}: choose an --out that all machines share."
        )

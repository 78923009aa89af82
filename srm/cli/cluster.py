"""The Ray cluster of `srm-score --engine ray`: a connection, and how many workers it has room for."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from srm.errors import UserError, first_line
from srm.extras import name_the_extra

__all__ = ["Workers", "connected", "plan_workers"]

logger = logging.getLogger(__name__)

_CONNECT_SECONDS = 10
# What a client of HTTP/2 opens with, and the kind of the frame that each server answers: Ray's head is one.
_HTTP2_HELLO, _HTTP2_SETTINGS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", b"\x04"


@dataclass(frozen=True, kw_only=True)
class Workers:
    """What a command asks Ray for.

    Attributes:
        num_workers: how many.
        num_cpus: cores of each, which are its threads.
        num_gpus: GPUs of each, 1 or 0.
    """

    num_workers: int
    num_cpus: int
    num_gpus: int


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A connection to a Ray cluster.

    Args:
        address: `HOST:PORT` of its head, `auto` for the one that runs on this machine, or `local` for one of our own that ends with the
            block. None is RAY_ADDRESS of the environment, else one that runs here, else our own.

    Raises:
        UserError: there is none.
    """
    _check_address(address or os.environ.get("RAY_ADDRESS", ""))
    with name_the_extra("--engine ray"):
        import ray

    try:
        ray.init(address=address, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise UserError(
            f"--address {address or 'left out'}: no connection to a Ray cluster ({first_line(error)}). Start one with `ray start --head`, "
            "or pass --address local."
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Refuse an address where no cluster is: Ray would try for minutes, and then end the process."""
    if address.startswith("ray://"):
        raise UserError(
            f"--address {address}: a Ray client has no place for input and output. Run srm-score on a machine of the cluster, or as a job "
            "(`ray job submit`), with the head's HOST:PORT."
        )
    if address in ("", "auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"--address {address}: give HOST:PORT of the cluster's head, auto, or local.")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS) as connection:
            connection.sendall(_HTTP2_HELLO)
            answer = connection.recv(9)
    except (OSError, OverflowError) as error:
        raise UserError(f"--address {address}: nothing answers there ({error}). Start Ray there with `ray start --head`.") from None
    if answer[3:4] != _HTTP2_SETTINGS and os.environ.get("RAY_USE_TLS", "0") == "0":
        raise UserError(f"--address {address}: what answers there is no Ray cluster. Give the HOST:PORT that `ray start --head` prints.")


def plan_workers(device: str, num_workers: int | None = None) -> Workers:
    """What to ask of the cluster that is connected.

    Args:
        device: `cuda`, `cpu`, or `auto`: GPUs where the cluster has them.
        num_workers: how many; None for one a GPU, or one a machine on CPUs.

    Raises:
        UserError: no machine of the cluster can hold a worker.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    with_gpus = [node for node in nodes if node.get("GPU", 0) >= 1]
    if device == "cuda" or (device == "auto" and with_gpus):
        room = sum(int(min(node["GPU"], node.get("CPU", 0))) for node in with_gpus)
        num_cpus, num_gpus = 1, 1
    else:
        cores = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
        a_node = -(-(num_workers or 1) // max(len(cores), 1))
        num_cpus, num_gpus = max(1, min(cores, default=1) // a_node), 0
        room = sum(count // num_cpus for count in cores)
        num_workers = num_workers or len(cores)
    if not room:
        raise UserError(
            f"--device {device}: no machine of the Ray cluster has {'a GPU and ' if num_gpus else ''}a CPU for a worker "
            f"({len(nodes)} machines). Add one, or choose another --device."
        )
    num_workers = num_workers or room
    if num_workers > room:
        logger.warning(
            "%d workers are asked for, and the cluster has room for %d now. The others start when there is more.", num_workers, room
        )
    return Workers(num_workers=num_workers, num_cpus=num_cpus, num_gpus=num_gpus)

"""Which network interface workers reach each other by: the one of their node's address in Ray."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Any

import psutil  # type: ignore[import-untyped]
import ray.util
from ray.train.backend import Backend
from ray.train.torch import TorchConfig

# Left alone, gloo takes the address that the host's name resolves to, which on Debian and Ubuntu is loopback
# (/etc/hosts: 127.0.1.1 NAME): no worker of another node reaches it.
INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


class NotConnected(RuntimeError):
    """Workers could not reach each other; the message says by what they tried."""


class _Bound(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: NodeInterface) -> None:
        if backend_config.interface is not None:
            lacking = [said for said in worker_group.execute(lacks, backend_config.interface) if said is not None]
            if lacking:
                raise NotConnected(_without(backend_config.interface, lacking))
        places = worker_group.execute(bind, backend_config.interface)
        try:
            super().on_start(worker_group, backend_config)
        except Exception as error:
            if len(places) < 2 or isinstance(error, ray.exceptions.RayActorError):
                raise
            raise NotConnected(_explained(places, error)) from error


@dataclass
class NodeInterface(TorchConfig):  # type: ignore[misc]
    """Ray Train's set-up of a process group, by one network interface.

    Attributes:
        interface: its name on every worker's host; None takes that of each node's address in Ray.
    """

    interface: str | None = None

    @property
    def backend_cls(self) -> type[Backend]:
        """What sets the group up: Ray Train's own, told the interface."""
        return _Bound


def lacks(interface: str) -> str | None:
    """Return what this worker's host has instead of a network interface; None if it has it.

    Args:
        interface: name of it.
    """
    there = psutil.net_if_addrs()
    return None if interface in there else f"{socket.gethostname()} has {', '.join(sorted(there))}"


def bind(given: str | None = None) -> str:
    """Choose this worker's network interface; return by what it is reached.

    Args:
        given: name of the interface; None takes what the environment names, or that of the node's address in Ray.
    """
    address = ray.util.get_node_ip_address()
    interface = interface_of(address)
    if given is not None:
        os.environ.update({"GLOO_SOCKET_IFNAME": given, "NCCL_SOCKET_IFNAME": f"={given}"})
    elif interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")  # this one, not any that begins with its name
    gloo, nccl = (os.environ.get(name, "").removeprefix("=") for name in INTERFACE_VARIABLES)
    by = " and ".join(dict.fromkeys(name for name in (gloo, nccl) if name)) or "an interface that gloo and NCCL choose"
    return f"{socket.gethostname()} ({address}) by {by}"


def interface_of(address: str) -> str | None:
    """Return the network interface of this machine that has an address; None if none has it, as behind a NAT.

    Args:
        address: IPv4 or IPv6.
    """
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address.partition("%")[0] == address for each in addresses):  # fe80::1%eth0
            return str(name)
    return None


def _without(interface: str, lacking: list[str]) -> str:
    hosts = "; ".join(dict.fromkeys(lacking))
    return (
        f"scaling.network_interface is {interface}, which not every worker's host has: {hosts}. "
        f"Give one that all have, or null and {' and '.join(INTERFACE_VARIABLES)} on each node, before `ray start`"
    )


def _explained(places: list[str], error: Exception) -> str:
    said = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    workers = "; ".join(f"worker {rank} on {place}" for rank, place in enumerate(places))
    return (
        f"the workers could not connect to each other: {workers}. If nodes reach each other by another interface, name "
        f"it in scaling.network_interface, or in {' and '.join(INTERFACE_VARIABLES)} in each node's environment; and "
        f"see that no firewall stands between them ({said[-1][:300]})"
    )

"""What a proxy must not get: talk within this machine, as Ray's with its own dashboard, and with a cluster's head."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

import psutil  # type: ignore[import-untyped]

# Where Ray asks which cloud this machine is in.
_CLOUD = ("169.254.169.254", "metadata.google.internal")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def keep_local(environment: MutableMapping[str, str] = os.environ) -> None:
    """Name in ``no_proxy`` what is no proxy's business, where an environment names a proxy; what is there stays.

    That is this machine's own addresses, and the head's of ``RAY_ADDRESS``.

    Args:
        environment: is changed.
    """
    if not any(environment.get(name) or environment.get(name.upper()) for name in _PROXIES):
        return
    # Some programs read the one, some the other.
    named = f"{environment.get('no_proxy', '')},{environment.get('NO_PROXY', '')}".split(",")
    if "*" in (host.strip() for host in named):  # all hosts; among others it would mean none
        environment["no_proxy"] = environment["NO_PROXY"] = "*"
        return
    head = environment.get("RAY_ADDRESS", "").rpartition("://")[2].rpartition(":")[0].strip("[]")
    hosts = dict.fromkeys(host.strip() for host in (*named, head, *_own_hosts()))
    environment["no_proxy"] = environment["NO_PROXY"] = ",".join(host for host in hosts if host)


def _own_hosts() -> list[str]:
    addresses = [
        each.address.partition("%")[0]  # fe80::1%eth0
        for interface in psutil.net_if_addrs().values()
        for each in interface
        if each.family in (socket.AF_INET, socket.AF_INET6)
    ]
    return ["localhost", "127.0.0.1", "::1", *_CLOUD, *addresses]

"""Machines of a test's own: namespaces of network, processes and mounts."""

from __future__ import annotations

import subprocess

import pytest

_NAMESPACES = ["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]


def unshare() -> list[str]:
    """The command that makes namespaces here, as root or as a user of one's own; skips the test where none can be."""
    for user in ([], ["--map-root-user"]):
        command = ["unshare", *user, *_NAMESPACES]
        try:
            if subprocess.run([*command, "ip", "link", "set", "lo", "up"], capture_output=True).returncode == 0:
                return command
        except FileNotFoundError:
            break
    pytest.skip("this machine makes no network namespaces (unshare, and iproute2's ip)")

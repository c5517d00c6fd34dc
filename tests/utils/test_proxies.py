from __future__ import annotations

import socket
import urllib.request

import psutil  # type: ignore[import-untyped]
import pytest

from mft_ray.utils.proxies import keep_local


def test_without_a_proxy_nothing_is_changed() -> None:
    environment = {"PATH": "/bin", "http_proxy": ""}
    keep_local(environment)
    assert environment == {"PATH": "/bin", "http_proxy": ""}


def test_no_proxy_for_anything_stays_so() -> None:
    environment = {"http_proxy": "http://proxy.example:3128", "NO_PROXY": "*"}
    keep_local(environment)
    assert environment["no_proxy"] == environment["NO_PROXY"] == "*"


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"])
def test_this_machine_and_the_head_are_not_asked_for_through_a_proxy(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {name: "http://proxy.example:3128", "no_proxy": ".corp, a.example", "NO_PROXY": "b.example"}
    environment["RAY_ADDRESS"] = "ray://10.1.2.3:10001"
    keep_local(environment)
    assert environment["no_proxy"] == environment["NO_PROXY"]
    hosts = environment["no_proxy"].split(",")
    assert hosts[:4] == [".corp", "a.example", "b.example", "10.1.2.3"]
    assert {"localhost", "127.0.0.1", "::1"} <= set(hosts)
    own = {each.address for some in psutil.net_if_addrs().values() for each in some if each.family == socket.AF_INET}
    assert own <= set(hosts)
    assert len(set(hosts)) == len(hosts)
    monkeypatch.setenv("no_proxy", environment["no_proxy"])
    for host in ("127.0.0.1:8265", *own):
        assert urllib.request.proxy_bypass(host)
    assert not urllib.request.proxy_bypass("huggingface.co")
    again = dict(environment)
    keep_local(again)
    assert again == environment

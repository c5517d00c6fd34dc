"""The doctor finds what is wrong where something is, and nothing where nothing is."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

from mft_ray.cli.main import main
from mft_ray.preflight import doctor
from mft_ray.preflight.doctor import Finding, look_at_cluster, look_at_machine
from mft_ray.workers.machine import Card, Machine, this_machine


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def by_name(found: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in found}


def changed(**changes: object) -> Machine:
    return Machine(**{**vars(this_machine()), **changes})  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.core
def test_nothing_is_wrong_here(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--run-dir", str(tmp_path / "runs")]) == 0
    printed = capfd.readouterr()
    assert "WRONG" not in printed.out
    for line in ("packages: mft_ray ", "processors: ", f"run folder: {tmp_path / 'runs'}: files and locks work",
                 "port 8265", "hub: HF_HUB_OFFLINE is set", "Ray: starts here and runs a task"):  # fmt: skip
        assert line in printed.out
    assert printed.err == ""
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.core
def test_a_cluster_is_looked_at_from_each_of_its_nodes(tmp_path: Path) -> None:
    """Two nodes, and the doctor as another process that is told their address."""
    (tmp_path / "runs").mkdir()
    script = f"""
import subprocess, sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 1, "include_dashboard": False}})
cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
given = ["--address", cluster.address, "--run-dir", {str(tmp_path / "runs")!r}]
ended = subprocess.run([sys.executable, "-m", "mft_ray", "doctor", *given])
cluster.shutdown()
sys.exit(ended.returncode)
"""
    outer = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # sockets need short paths
        ended = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            timeout=300,
            env={**outer, "RAY_TMPDIR": folder, "RAY_AUTH_TOKEN": "t" * 32, "RAY_AUTH_MODE": "token"},
        )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.search(r"ok    nodes: 2: ", ended.stdout)
    assert f"run folder: {tmp_path / 'runs'}: each of 2 nodes reads what the others write" in ended.stdout
    assert list((tmp_path / "runs").iterdir()) == []


def test_no_cluster_where_one_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "unset")

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("ray.init took\nno answer")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", refuse)
    [finding] = look_at_cluster("127.0.0.1:1", None)
    assert finding.status == "wrong"
    assert "no cluster answers at 127.0.0.1:1 (ray.init took no answer)" in finding.text


@pytest.mark.parametrize(
    ("there", "status", "says"),
    [("2.0.0", "ok", "2.0.0"), ("3.1", "wrong", "pip install 'thing<3,>=2'"), (None, "wrong", "is not installed")],
)
def test_a_package_of_another_version_is_wrong(there: str | None, status: str, says: str) -> None:
    found = doctor._version(Requirement("thing>=2,<3"), {} if there is None else {"thing": there})
    assert (found.status, says in found.text) == (status, True)


def test_what_runs_from_its_folder_need_not_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mft_ray.workers.machine.PACKAGE", "not_installed_here")
    found = list(doctor._versions(this_machine()))
    assert "wrong" not in {each.status for each in found}
    assert "(run from its folder)" in next(each.text for each in found if each.name == "packages")


def test_cards_that_torch_cannot_use_are_wrong() -> None:
    card = Card("NVIDIA H100", 80 * 2**30, "580.1")
    found = by_name(list(doctor._hardware(changed(cards=(card,), cuda=None))))
    assert found["CUDA"].status == "wrong"
    assert "driver 580.1" in found["GPU 0"].text
    assert by_name(list(doctor._hardware(changed(cards=(card,), cuda="13.0"))))["CUDA"].status == "ok"
    assert by_name(list(doctor._hardware(changed(cards=(), cuda=None))))["GPU"].status == "note"


def test_little_shared_memory_is_noted() -> None:
    found = by_name(list(doctor._hardware(changed(shared_memory=64 * 2**20))))
    assert found["/dev/shm"].status == "note"
    assert "--shm-size" in found["/dev/shm"].text


def test_a_proxy_that_would_get_local_calls_is_noted() -> None:
    assert list(doctor._proxies({})) == []
    [caught] = doctor._proxies({"https_proxy": "http://p:1"})
    assert caught.status == "note"
    kept = {"https_proxy": "http://p:1", "no_proxy": "*", "NO_PROXY": "*"}
    assert [finding.status for finding in doctor._proxies(kept)] == ["ok"]


def test_a_taken_port_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(doctor, "_PORTS", {taken.getsockname()[1]: "something"})
        [finding] = doctor._ports()
    assert finding.status == "note"


def test_a_folder_that_cannot_be_written_is_wrong() -> None:
    assert by_name(list(doctor._folder(Path("/proc/runs"))))["run folder"].status == "wrong"


@pytest.mark.parametrize("what", ["writes", "locks"])
def test_a_folder_where_something_does_not_work_is_wrong(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path) -> None:
        raise OSError("no such thing")

    monkeypatch.setattr(doctor, f"_{what}", fail)
    found = list(doctor._folder(tmp_path))
    assert [finding.status for finding in found if finding.name.startswith("run folder")] == ["wrong"]
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_two_can_hold_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Useless:
        def __init__(self, path: str) -> None:
            self.acquire = lambda timeout: None

        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(doctor, "FileLock", Useless)
    [wrong] = [finding for finding in doctor._folder(tmp_path) if finding.status == "wrong"]
    assert "two programs can hold one lock" in wrong.text


def test_nodes_that_differ_or_lack_the_package_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    here = this_machine()
    node = {"Alive": True, "Resources": {"CPU": 4.0}}
    nodes = [{**node, "NodeID": name, "NodeManagerHostname": name} for name in ("same", "older", "bare")]
    older = changed(packages={**here.packages, "ray": "2.59.0"}, python="3.12.1")
    said = {"same": here, "older": older, "bare": "No module named 'mft_ray'"}
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    monkeypatch.setattr(doctor, "_on_each", lambda those, work, given: {name: said[name] for name in those})
    found = list(doctor._cluster(None))
    wrong = {finding.name: finding.text for finding in found if finding.status == "wrong"}
    assert wrong.keys() == {"older: versions", "bare"}
    assert f"ray 2.59.0 (here {here.packages['ray']})" in wrong["older: versions"]
    assert "Python 3.12.1" in wrong["older: versions"]


def test_a_folder_that_not_all_nodes_see_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One node has a disk of its own under the same name."""
    nodes = {name: {"NodeManagerHostname": name} for name in ("a", "b")}

    def on_each(those: dict[str, object], work: object, given: tuple[str, ...]) -> dict[str, object]:
        return {name: work(str(tmp_path / name), *given[1:]) for name in those}  # type: ignore[operator]

    monkeypatch.setattr(doctor, "_on_each", on_each)
    monkeypatch.setattr(doctor, "_SEEN_S", 0.5)
    [wrong] = doctor._shared(nodes, tmp_path)
    assert wrong.status == "wrong"
    assert "a does not see" in wrong.text
    assert "1 of 2 files are missing" in wrong.text


def test_the_command_ends_with_1_where_something_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [Finding("ok", "a", "b"), Finding("wrong", "c", "d. Do e")]
    monkeypatch.setattr(doctor, "look_at_machine", lambda folder: iter(found))
    assert main(["doctor"]) == 1
    printed = capsys.readouterr()
    assert printed.out == "ok    a: b\nWRONG c: d. Do e\n"
    assert "1 thing is wrong" in printed.err


def test_what_the_driver_says_of_cards_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "NVIDIA H100 80GB HBM3, 81559, 580.159.04\nNVIDIA H100 80GB HBM3, [N/A], 580.159.04\n\n"
    monkeypatch.setattr("subprocess.run", lambda *_, **__: SimpleNamespace(stdout=said))
    from mft_ray.workers import machine

    assert machine._cards() == (Card("NVIDIA H100 80GB HBM3", 81559 * 2**20, "580.159.04"),)


def test_looking_can_be_stopped_at_any_time(tmp_path: Path) -> None:
    looked = look_at_machine(tmp_path)
    assert next(looked).name == "system"
    looked.close()  # type: ignore[attr-defined]

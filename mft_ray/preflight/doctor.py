"""What is right and wrong with a machine, a cluster and a run folder, before anything is run there."""

from __future__ import annotations

import os
import shutil
import socket
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import ray
from filelock import FileLock, Timeout
from packaging.requirements import Requirement
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mft_ray.config import bundled
from mft_ray.preflight.finding import Finding
from mft_ray.runs.folder import runs_home
from mft_ray.utils.formatting import size
from mft_ray.utils.proxies import keep_local
from mft_ray.workers.connection import connected
from mft_ray.workers.failures import root_cause
from mft_ray.workers.machine import PACKAGE, Machine, requirements, this_machine, version_of

_EXTRAS = {
    "eval": "benchmark tasks",
    "alpaca": "alpaca_eval",
    "8bit": "train.optimizer adamw_8bit and model.unselected_dtype",
}
_SHARED_MEMORY = 2 * 2**30  # bytes; below this Ray puts its objects on disk
_FREE_DISK = 10 * 2**30
_CLOCK_S = 5.0  # seconds between two nodes' clocks; files are compared by their times
_PORTS = {8265: "Ray's dashboard and jobs", 6379: "Ray's head node", 8080: "mft-ray dashboard"}
_NODE_S = 120
_HUB_S = 5
_SEEN_S = 30  # attributes of a network file system may be some seconds old


def look_at_machine(run_dir: Path | None) -> Iterator[Finding]:
    """Look at this machine: versions, processors, memory, cards, proxies, ports, a run folder, and a Ray of its own.

    Args:
        run_dir: folder that runs are to go to; None takes where they go by default.
    """
    machine = this_machine()
    yield from _versions(machine)
    yield from _hardware(machine)
    yield Finding("ok", "search spaces", f"{bundled.spaces_folder()} ({len(bundled.names())} of them)")
    yield from _proxies(os.environ)
    yield _hub()
    yield from _ports()
    yield from _folder(run_dir or runs_home())
    yield _own_ray()


def look_at_cluster(address: str, run_dir: Path | None) -> Iterator[Finding]:
    """Look at a cluster: what each of its nodes has, whether they are alike, and whether all see one run folder.

    Args:
        address: address of the cluster, as ``ray.init`` takes it.
        run_dir: folder that runs are to go to; None leaves that out.
    """
    os.environ["RAY_ADDRESS"] = address
    try:
        with connected():
            yield from _cluster(run_dir)
    except (ConnectionError, ValueError) as error:
        yield Finding(
            "wrong",
            "address",
            f"no cluster answers at {address} ({_line(error)}). Give HOST:6379 of its head node, or auto on one of its "
            "nodes; from outside: ray job submit --address http://HOST:8265 -- mft-ray doctor --address auto",
        )


def _versions(machine: Machine) -> Iterator[Finding]:
    yield Finding("ok", "system", f"{machine.host}: {machine.system}, Python {machine.python}")
    needed = [need for need in requirements() if need.marker is None or need.marker.evaluate({"extra": ""})]
    found = [_version(need, machine.packages) for need in needed]
    yield from (each for each in found if each.status != "ok")
    fit = [f"{each.name} {each.text}" for each in found if each.status == "ok"]
    ours = f"{PACKAGE} {machine.packages.get(PACKAGE, '(run from its folder)')}"
    yield Finding("ok", "packages", ", ".join([ours, *fit]))
    for extra, what in _EXTRAS.items():
        missing = [need.name for need in _of_extra(extra) if version_of(need.name) is None]
        if missing:
            yield Finding(
                "note",
                f"[{extra}]",
                f"not installed ({', '.join(missing)}): {what} need pip install 'mft_ray[{extra}]'",
            )


def _of_extra(extra: str) -> list[Requirement]:
    return [
        need
        for need in requirements()
        if need.marker is not None
        and need.marker.evaluate({"extra": extra})
        and not need.marker.evaluate({"extra": ""})
    ]


def _version(need: Requirement, packages: Mapping[str, str]) -> Finding:
    there = packages.get(need.name)
    if there is None:
        return Finding("wrong", need.name, f"is not installed. pip install '{need.name}{need.specifier}'")
    if not need.specifier.contains(there, prereleases=True):
        return Finding(
            "wrong",
            need.name,
            f"{there} is not what mft_ray was tested with: pip install '{need.name}{need.specifier}'",
        )
    return Finding("ok", need.name, there)


def _hardware(machine: Machine) -> Iterator[Finding]:
    yield Finding("ok", "processors", f"{machine.cpus}, {size(machine.memory)} of memory")
    if machine.shared_memory is not None:
        small = machine.shared_memory < _SHARED_MEMORY
        more = ": Ray puts its objects on disk, which is slower. In a container: --shm-size=8g" if small else ""
        yield Finding("note" if small else "ok", "/dev/shm", size(machine.shared_memory) + more)
    for number, card in enumerate(machine.cards):
        yield Finding("ok", f"GPU {number}", f"{card.name}, {size(card.memory)}, driver {card.driver}")
    if not machine.cards:
        yield Finding("note", "GPU", "none: everything runs on processors, with scaling.gpus_per_worker: 0")
    elif machine.cuda is None:
        yield Finding(
            "wrong", "CUDA", "torch was built without it, and cannot use the GPU. Install torch's CUDA build."
        )
    else:
        yield Finding("ok", "CUDA", f"torch was built for {machine.cuda}")


def _proxies(environment: Mapping[str, str]) -> Iterator[Finding]:
    given = sorted({name.lower() for name in environment if name.lower().endswith("_proxy")} - {"no_proxy"})
    if given:
        kept = dict(environment)
        keep_local(kept)
        caught = kept != dict(environment)
        more = "; no_proxy does not name this machine itself. mft_ray adds it to its own environment" if caught else ""
        yield Finding("note" if caught else "ok", "proxies", f"{', '.join(given)} set{more}")


def _hub() -> Finding:
    """Ask whether models and data can come from the hub."""
    place = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    only_local = "models and data must be local folders and files"
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON"):
        return Finding("note", "hub", f"HF_HUB_OFFLINE is set: {only_local}")
    try:
        with urllib.request.urlopen(urllib.request.Request(place, method="HEAD"), timeout=_HUB_S):
            return Finding("ok", "hub", f"{place} answers")
    except (OSError, ValueError) as error:
        return Finding("note", "hub", f"{place} does not answer ({error}): {only_local}, or copies in the hub's cache")


def _ports() -> Iterator[Finding]:
    for port, what in _PORTS.items():
        with closing(socket.socket()) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind(("127.0.0.1", port))
                yield Finding("ok", f"port {port}", f"free, for {what}")
            except OSError:
                yield Finding("note", f"port {port}", f"in use, which {what} takes by default: another is taken then")


def _folder(folder: Path) -> Iterator[Finding]:
    """Try what a run does with its folder: files that take another's place, and locks."""
    there = folder
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < _FREE_DISK:
        yield Finding("note", "disk", f"{size(free)} free at {there}: a checkpoint of FFT is 3 models in fp32")
    else:
        yield Finding("ok", "disk", f"{size(free)} free at {there}")
    scratch = there / f".mft-ray-doctor-{uuid.uuid4().hex[:8]}"
    tries: dict[str, Callable[[Path], None]] = {"writes": _writes, "locks": _locks}
    try:
        scratch.mkdir()
    except OSError as error:
        yield Finding("wrong", "run folder", f"{there} cannot be written ({error.strerror}). Give another run.dir")
        return
    try:
        for name, attempt in tries.items():
            try:
                attempt(scratch)
            except (OSError, Timeout) as error:
                yield Finding(
                    "wrong", f"run folder: {name}", f"{there}: {error}. Give a run.dir on another file system"
                )
                return
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    yield Finding("ok", "run folder", f"{folder}: files and locks work there")


def _writes(folder: Path) -> None:
    (folder / "new").write_text("new")
    (folder / "file").write_text("old")
    (folder / "new").replace(folder / "file")
    if (folder / "file").read_text() != "new":
        raise OSError("a file that took another's place reads as the old one")


def _locks(folder: Path) -> None:
    path = str(folder / "lock")
    with FileLock(path):
        try:
            FileLock(path).acquire(timeout=0)
        except Timeout:
            return
    raise OSError("two programs can hold one lock")


def _own_ray() -> Finding:
    began = time.monotonic()
    try:
        with connected(num_cpus=1):
            ray.get(ray.remote(num_cpus=1)(this_machine).remote(), timeout=_NODE_S)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        return Finding("wrong", "Ray", f"does not start here: {_line(error)}")
    return Finding("ok", "Ray", f"starts here and runs a task, in {time.monotonic() - began:.0f} s")


def _cluster(run_dir: Path | None) -> Iterator[Finding]:
    here = this_machine()
    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    yield Finding("ok", "nodes", f"{len(nodes)}: " + ", ".join(_resources(node) for node in nodes.values()))
    found: dict[str, Machine] = {}
    for node, machine in _on_each(nodes, this_machine, ()).items():
        name = nodes[node]["NodeManagerHostname"]
        if isinstance(machine, Machine):
            found[node] = machine
            yield from _node(name, machine, here)
        else:
            yield Finding("wrong", name, f"{machine}. Install mft_ray on every node, in the same versions")
    if run_dir is not None:
        yield from _shared(nodes, run_dir)


def _node(name: str, machine: Machine, here: Machine) -> Iterator[Finding]:
    cards = ", ".join(f"{card.name} ({size(card.memory)})" for card in machine.cards) or "no GPU"
    yield Finding("ok", name, f"{machine.cpus} processors, {size(machine.memory)}, {cards}")
    differ = [
        f"{package} {machine.packages.get(package, 'none')} (here {here.packages.get(package, 'none')})"
        for package in sorted(machine.packages.keys() | here.packages.keys())
        if machine.packages.get(package) != here.packages.get(package)
    ]
    if machine.python != here.python:
        differ.append(f"Python {machine.python} (here {here.python})")
    if differ:
        yield Finding("wrong", f"{name}: versions", f"{', '.join(differ)}. Give all nodes the same image")
    if machine.cards and machine.cuda is None:
        yield Finding("wrong", f"{name}: CUDA", "torch was built without it. Install torch's CUDA build there")


def _shared(nodes: Mapping[str, Any], run_dir: Path) -> Iterator[Finding]:
    """Write a file from each node and read it from all others."""
    folder, texts = run_dir / f".mft-ray-doctor-{uuid.uuid4().hex[:8]}", {}
    writer = next(iter(nodes))
    try:
        for node in nodes:
            [said] = _on_each({node: nodes[node]}, _write, (str(folder), node)).values()
            if isinstance(said, str):
                yield Finding("wrong", "run folder", f"{_host(nodes[node])} cannot write {run_dir}: {said}")
                return
            texts[node] = said
        clocks = [float(said) for said in texts.values()]
        if max(clocks) - min(clocks) > _CLOCK_S + len(clocks):
            yield Finding("note", "clocks", f"of nodes are up to {max(clocks) - min(clocks):.0f} s apart. Use NTP")
        for node, said in _on_each(nodes, _read, (str(folder), sorted(nodes))).items():
            if said is not None:
                yield Finding(
                    "wrong",
                    "run folder",
                    f"{_host(nodes[node])} does not see in {run_dir} what other nodes wrote ({said}). Give a run.dir "
                    "on storage that all nodes share",
                )
                return
    finally:
        _on_each({writer: nodes[writer]}, _remove, (str(folder),))
    yield Finding("ok", "run folder", f"{run_dir}: each of {len(nodes)} nodes reads what the others write")


def _write(folder: str, name: str) -> float:
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / name).write_text(name)
    return time.time()


def _read(folder: str, names: Sequence[str]) -> str | None:
    deadline = time.monotonic() + _SEEN_S
    missing = list(names)
    while missing and time.monotonic() < deadline:
        missing = [name for name in missing if not _is_there(Path(folder) / name)]
        time.sleep(0.2 if missing else 0)
    return f"{len(missing)} of {len(names)} files are missing" if missing else None


def _is_there(path: Path) -> bool:
    try:
        return path.read_text() == path.name
    except OSError:
        return False


def _remove(folder: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _on_each(nodes: Mapping[str, Any], work: Callable[..., Any], given: tuple[Any, ...]) -> dict[str, Any]:
    """Run something on each node; of one where it fails return the reason, as text."""
    running = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        running[node] = ray.remote(num_cpus=0, max_retries=0)(work).options(scheduling_strategy=there).remote(*given)
    ended: dict[str, Any] = {}
    for node, task in running.items():
        try:
            ended[node] = ray.get(task, timeout=_NODE_S)
        except ray.exceptions.RayError as error:
            ended[node] = f"{root_cause(error)}"
    return ended


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _host(node: Mapping[str, Any]) -> str:
    return str(node["NodeManagerHostname"])


def _resources(node: Mapping[str, Any]) -> str:
    has = node["Resources"]
    return f"{_host(node)} ({has.get('CPU', 0):g} CPU, {has.get('GPU', 0):g} GPU)"

"""A file of `ray up`: Ray's own schema and checks, and what a search needs of it."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mft_ray.preflight.cluster_files.common import Wanted
from mft_ray.preflight.finding import Finding, Status

# Families of AWS whose machines have NVIDIA GPUs: Ray asks AWS only at `ray up` what a machine has.
_AWS_GPU = re.compile(r"(g|p)\d")
_LOCAL = "local"


def look(config: Mapping[str, Any], wanted: Wanted) -> Iterator[Finding]:
    """Look at a file of ``ray up``.

    Args:
        config: what the file holds.
        wanted: what it must have room for.
    """
    prepared, complaint = _prepared(config)
    if prepared is None:
        yield Finding("wrong", "schema", f"`ray up` refuses it: {complaint}")
        return
    yield Finding("ok", "schema", "Ray's own, and the checks of `ray up`")
    if config["provider"].get("type") == _LOCAL:
        yield from _hosts(config)
    else:
        yield from _workers(prepared, wanted)
    yield from _shared_folder(prepared, wanted.runs)
    yield from _token(prepared)
    yield from _mounts(prepared)


def _prepared(config: Mapping[str, Any]) -> tuple[Any, str]:
    """Return a file as Ray completes it; None and why where Ray refuses it."""
    from jsonschema import ValidationError  # type: ignore[import-untyped]
    from ray.autoscaler._private.util import prepare_config, validate_config

    said = io.StringIO()
    quiet, logging.root.manager.disable = logging.root.manager.disable, logging.INFO  # of what it fills in
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            prepared = prepare_config(copy.deepcopy(dict(config)))
            validate_config(prepared)
    except ValidationError as error:
        return None, f"{'.'.join(map(str, error.absolute_path)) or 'the file'}: {error.message}"
    except Exception as error:  # Ray's checks raise what comes, click's exceptions too, and print some of it
        return None, " ".join(f"{error} {said.getvalue()}".split())[:400] or type(error).__name__
    finally:
        logging.disable(quiet)
    return prepared, ""


def _workers(config: Mapping[str, Any], wanted: Wanted) -> Iterator[Finding]:
    kinds, head = config["available_node_types"], config["head_node_type"]
    workers = {name: kind for name, kind in kinds.items() if name != head and kind["max_workers"] > 0}
    most = min(config["max_workers"], sum(kind["max_workers"] for kind in workers.values()))
    if most < 1:
        yield Finding("wrong", "max_workers", "no worker can ever come. Give a node type max_workers of 1 or more")
        return
    yield Finding("ok", "workers", f"0 to {most}" if not _least(workers) else f"{_least(workers)} to {most}")
    if _least(workers):
        yield Finding("note", "min_workers", f"{_least(workers)} nodes stay, and cost, until `ray down`")
    if not config.get("idle_timeout_minutes"):
        yield Finding("wrong", "idle_timeout_minutes", "is 0: nodes go while trials change. Give 5 or more")
    if _spot(kinds[head]):
        yield Finding(
            "wrong", f"{head}: spot", "the search lives on the head, which may be taken away. Make it on-demand"
        )
    with_gpus = {name for name, kind in workers.items() if _gpus(kind) is None or _gpus(kind)}
    if not with_gpus:
        gpu: tuple[Status, str]
        gpu = ("wrong", "the search asks for GPUs") if wanted.gpus else ("note", "trials run on processors")
        yield Finding(gpu[0], "GPU", f"no node type of workers has one: {gpu[1]}")
    elif wanted.gpus is not None:
        yield from _room({name: workers[name] for name in (with_gpus if wanted.gpus else workers)}, wanted)


def _room(kinds: Mapping[str, Any], wanted: Wanted) -> Iterator[Finding]:
    """See whether one trial's workers fit the nodes that may come, where the file says what those have."""
    need = {name: amount for name, amount in (("CPU", wanted.cpus), ("GPU", wanted.gpus)) if amount}
    said = {name: kind for name, kind in kinds.items() if set(need) <= set(kind["resources"])}
    if len(said) < len(kinds):
        yield Finding("note", "room", "is known at `ray up`: the file does not say what a node has")
        return
    room = sum(
        kind["max_workers"] * int(min(kind["resources"][name] / amount for name, amount in need.items()))
        for kind in said.values()
    )
    asked = f"{wanted.workers} x ({', '.join(f'{amount:g} {name}' for name, amount in need.items())})"
    if room < wanted.workers:
        yield Finding(
            "wrong", "room", f"a trial asks for {asked}, and no more than {room} such workers fit. Raise max_workers"
        )
    else:
        yield Finding("ok", "room", f"a trial asks for {asked}; {room} such workers fit")


def _hosts(config: Mapping[str, Any]) -> Iterator[Finding]:
    provider = config["provider"]
    hosts = [provider.get("head_ip"), *(provider.get("worker_ips") or [])]
    if len(set(hosts)) < len(hosts):
        yield Finding("wrong", "worker_ips", "a host is named twice, or is the head too. Name each once")
    else:
        yield Finding("ok", "hosts", f"{len(hosts)}, the head among them")


def _least(kinds: Mapping[str, Any]) -> int:
    return sum(kind.get("min_workers", 0) for kind in kinds.values())


def _gpus(kind: Mapping[str, Any]) -> float | None:
    """Return the GPUs of a node; None where a file does not say and the machine may have some."""
    if kind.get("resources"):
        return float(kind["resources"].get("GPU", 0))
    machine = kind["node_config"].get("InstanceType")
    return 0.0 if machine and not _AWS_GPU.match(machine) else None


def _spot(kind: Mapping[str, Any]) -> bool:
    node = kind["node_config"]
    scheduling = node.get("scheduling") or []
    google = scheduling if isinstance(scheduling, list) else [scheduling]
    return (
        node.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        or any(item.get("preemptible") or item.get("provisioningModel") == "SPOT" for item in google)
        or node.get("azure_arm_parameters", {}).get("priority") in ("Spot", "Low")
    )


def _shared_folder(config: Mapping[str, Any], runs: Path) -> Iterator[Finding]:
    """See whether a folder of runs is mounted on each host, and from there in each container."""
    kinds = {"": config, **{f" ({name})": kind for name, kind in config.get("available_node_types", {}).items()}}
    wrong = False
    for name, kind in kinds.items():
        first = kind.get("initialization_commands", config["initialization_commands"])
        if not any(_mounts_folder(command, runs) for command in first):
            wrong = True
            yield Finding(
                "wrong",
                f"run folder{name}",
                f"initialization_commands mount nothing at {runs}: runs would lie on one node's own disk",
            )
        if _hidden_from_container(config.get("docker") or {}, kind.get("docker") or {}, runs):
            wrong = True
            yield Finding(
                "wrong", f"run folder{name}", f"the container does not see {runs}. Add -v {runs}:{runs} to run_options"
            )
    if not wrong:
        yield Finding("ok", "run folder", f"{runs} is mounted on all nodes, and seen in their containers")


def _mounts_folder(command: str, runs: Path) -> bool:
    return bool(re.search(rf"\bmount(point)?\b.*\s{re.escape(str(runs))}(\s|$)", command))


def _hidden_from_container(general: Mapping[str, Any], own: Mapping[str, Any], runs: Path) -> bool:
    if not any(docker.get(key) for docker in (general, own) for key in ("image", "head_image", "worker_image")):
        return False
    options = [*general.get("run_options", []), *own.get("run_options", []), *own.get("worker_run_options", [])]
    return not any(re.search(rf"\s\S+:{re.escape(str(runs))}(:\S*)?$", f" {option}") for option in options)


def _token(config: Mapping[str, Any]) -> Iterator[Finding]:
    wrong = False
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [command for command in config[name] if "ray start" in command]
        if not starts or any("RAY_AUTH_MODE=token" not in command.partition("ray start")[0] for command in starts):
            wrong = True
            yield Finding(
                "wrong",
                name,
                "whoever reaches the port may run anything there. Write RAY_AUTH_MODE=token before ray start",
            )
    if not any(remote.endswith("/.ray/auth_token") for remote in config["file_mounts"]):
        wrong = True
        yield Finding("wrong", "token", "goes to no node. Add ~/.ray/auth_token: ~/.ray/auth_token to file_mounts")
    if not wrong:
        yield Finding("ok", "token", "asked for by the head and by workers")


def _mounts(config: Mapping[str, Any]) -> Iterator[Finding]:
    missing = [local for local in config["file_mounts"].values() if not Path(local).expanduser().exists()]
    for local in missing:
        todo = (
            "ray get-auth-token --generate makes it"
            if local.endswith("auth_token")
            else f"there is no such file under {Path.cwd()}. Call it, and `ray up`, from the top of the repository"
        )
        yield Finding("wrong", f"file_mounts: {local}", todo)
    if not missing:
        yield Finding("ok", "file_mounts", f"all {len(config['file_mounts'])} are here")

"""A RayJob of KubeRay: the fields that a search uses, and what it needs of them."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mft_ray.preflight.cluster_files.common import Wanted
from mft_ray.preflight.finding import Finding, Status

_SCHEMA = Path(__file__).with_name("rayjob.schema.json")
_GPU = "nvidia.com/gpu"
_GROWS = "scaling.cluster_grows_to"


@dataclass(frozen=True)
class _Pod:
    """A group of pods: its name, the container that Ray runs in, and its volumes."""

    name: str
    container: Mapping[str, Any]
    volumes: Sequence[Mapping[str, Any]]

    @classmethod
    def of(cls, name: str, group: Mapping[str, Any]) -> _Pod:
        spec = group["template"]["spec"]
        return cls(name, spec["containers"][0], spec.get("volumes") or [])

    def amount(self, name: str) -> float:
        """Return how much of something a pod may use; 0 where it does not say."""
        given = str((self.container.get("resources", {}).get("limits") or {}).get(name, 0))
        return float(given[:-1]) / 1000 if given.endswith("m") else float(re.sub(r"[A-Za-z]+$", "", given))

    def claim(self, folder: Path) -> str | None:
        """Return the claim of the volume that a folder lies on; None where it lies on no claim."""
        mounts = [mount for mount in self.container.get("volumeMounts") or [] if _under(folder, mount["mountPath"])]
        names = {mount["name"] for mount in mounts}
        claims = [volume.get("persistentVolumeClaim") for volume in self.volumes if volume["name"] in names]
        return next((str(claim["claimName"]) for claim in claims if claim), None)


def look(job: Mapping[str, Any], claims: Sequence[Any], wanted: Wanted) -> Iterator[Finding]:
    """Look at a RayJob.

    Args:
        job: the RayJob.
        claims: the PersistentVolumeClaims of the same file.
        wanted: what it must have room for.
    """
    complaints = _complaints(job)
    for where, what in complaints:
        yield Finding("wrong", where, what)
    if complaints:
        return
    yield Finding("ok", "schema", "the fields that a search uses; kubectl apply --dry-run=server checks all")
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    head = _Pod.of("head", cluster["headGroupSpec"])
    groups = cluster.get("workerGroupSpecs") or []
    pods = [_Pod.of(group["groupName"], group) for group in groups]
    yield from _lifetime(spec, cluster)
    yield from _workers(list(zip(groups, pods, strict=True)), wanted)
    yield from _shared_folder([head, *pods], claims, wanted.runs)
    yield from _entrypoint(spec["entrypoint"], list(zip(groups, pods, strict=True)), wanted.runs)
    images = {pod.container["image"] for pod in (head, *pods)}
    if len(images) > 1:
        yield Finding("wrong", "image", f"differs between pods: {', '.join(sorted(images))}. Give all the same")


def _complaints(job: Mapping[str, Any]) -> list[tuple[str, str]]:
    from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

    errors = Draft202012Validator(json.loads(_SCHEMA.read_text(encoding="utf-8"))).iter_errors(job)
    return [(".".join(map(str, error.absolute_path)) or "RayJob", error.message) for error in errors]


def _lifetime(spec: Mapping[str, Any], cluster: Mapping[str, Any]) -> Iterator[Finding]:
    if (cluster.get("authOptions") or {}).get("mode") != "token":
        yield Finding(
            "wrong", "authOptions", "whoever reaches the head may run anything there. Give authOptions: {mode: token}"
        )
    else:
        yield Finding("ok", "token", "made by the operator, which gives it to every pod")
    if not spec.get("shutdownAfterJobFinishes"):
        yield Finding("note", "shutdownAfterJobFinishes", "is not true: the cluster stays, and costs, after the job")
    idle = (cluster.get("autoscalerOptions") or {}).get("idleTimeoutSeconds", 60)
    if cluster.get("enableInTreeAutoscaling") and idle < 60:
        yield Finding("wrong", "idleTimeoutSeconds", f"is {idle}: pods go while trials change. Give 60 or more")


def _workers(groups: Sequence[tuple[Mapping[str, Any], _Pod]], wanted: Wanted) -> Iterator[Finding]:
    most = sum(group.get("maxReplicas", 0) for group, _ in groups)
    if most < 1:
        yield Finding("wrong", "maxReplicas", "no worker can ever come. Give a group maxReplicas of 1 or more")
        return
    for group, pod in groups:
        least, now, limit = (group.get(key, 0) for key in ("minReplicas", "replicas", "maxReplicas"))
        if not least <= now <= limit:
            yield Finding(
                "wrong", f"{pod.name}: replicas", f"minReplicas {least}, replicas {now}, maxReplicas {limit} contradict"
            )
    yield Finding("ok", "workers", f"{sum(group.get('minReplicas', 0) for group, _ in groups)} to {most}")
    if not any(pod.amount(_GPU) for _, pod in groups):
        gpu: tuple[Status, str]
        gpu = ("wrong", "the search asks for GPUs") if wanted.gpus else ("note", "trials run on processors")
        yield Finding(gpu[0], "GPU", f"no group of workers has one ({_GPU}): {gpu[1]}")
    if wanted.cpus is None:
        return
    room = sum(group.get("maxReplicas", 0) * _held(pod, wanted) for group, pod in groups)
    asked = f"{wanted.workers} x ({wanted.cpus:g} CPU, {wanted.gpus or 0:g} GPU)"
    if room < wanted.workers:
        yield Finding("wrong", "room", f"a trial asks for {asked}, and no more than {room} such workers fit")
    else:
        yield Finding("ok", "room", f"a trial asks for {asked}; {room} such workers fit")


def _held(pod: _Pod, wanted: Wanted) -> int:
    need = {name: amount for name, amount in (("cpu", wanted.cpus), (_GPU, wanted.gpus)) if amount}
    return int(min(pod.amount(name) / amount for name, amount in need.items()))


def _shared_folder(pods: Sequence[_Pod], claims: Sequence[Any], runs: Path) -> Iterator[Finding]:
    found = {pod.name: pod.claim(runs) for pod in pods}
    for name in [name for name, claim in found.items() if claim is None]:
        yield Finding(
            "wrong", f"{name}: run folder", f"{runs} lies on no claim: mount a volume with a persistentVolumeClaim"
        )
    if len(set(found.values())) > 1 and None not in found.values():
        yield Finding("wrong", "run folder", f"{runs} is not the same claim in all pods: {found}")
    elif None not in found.values():
        yield Finding("ok", "run folder", f"{runs} is the claim {next(iter(found.values()))} in all pods")
    for claim in claims:
        modes = claim["spec"].get("accessModes") or []
        if claim["metadata"]["name"] in found.values() and "ReadWriteMany" not in modes:
            yield Finding(
                "wrong",
                f"{claim['metadata']['name']}: accessModes",
                f"{modes}: pods on other nodes cannot mount it. Give [ReadWriteMany], and a storage class that has it",
            )


def _entrypoint(entrypoint: str, groups: Sequence[tuple[Mapping[str, Any], _Pod]], runs: Path) -> Iterator[Finding]:
    words = shlex.split(entrypoint)
    told = dict(word.split("=", 1) for word in words if re.match(r"[a-z_.]+=", word))
    where = told.get("run.dir")
    if "--resume" not in words and (where is None or not _under(Path(where), str(runs))):
        yield Finding("wrong", "entrypoint", f"run.dir is {where or 'not given'}. Give --set run.dir={runs}/NAME")
    if _GROWS not in told:
        yield Finding(
            "note", "entrypoint", f"--set {_GROWS} is not given: no more trials run at once than fit what is there"
        )
        return
    has = {"CPU": "cpu", "GPU": _GPU}
    most = {
        name: sum(group.get("maxReplicas", 0) * pod.amount(resource) for group, pod in groups)
        for name, resource in has.items()
    }
    said = yaml.safe_load(told[_GROWS])
    wrong = {name: most[name] for name in has if float(said.get(name, 0)) != most[name]}
    if wrong:
        shown = ", ".join(f"{name}: {amount:g}" for name, amount in most.items())
        yield Finding("wrong", _GROWS, f"{told[_GROWS]}, and maxReplicas times a pod's limits are {{{shown}}}")
    else:
        yield Finding("ok", _GROWS, f"{told[_GROWS]}, as maxReplicas and limits say")


def _under(path: Path, folder: str) -> bool:
    return path == Path(folder) or Path(folder) in path.parents

"""A script for sbatch: its header, and what a search needs of the rest."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from mft_ray.preflight.cluster_files.common import Wanted
from mft_ray.preflight.finding import Finding

_OPTION = re.compile(r"#SBATCH\s+--([\w-]+)(?:[=\s]\s*(\S+))?\s*$")
_TIME = re.compile(r"(\d+-)?\d+(:\d\d){0,2}$")
_SIGNAL = re.compile(r"(R?B?:)?(?:SIG)?(\w+?)(?:@(\d+))?$")
_NOTICE_S = 120  # a search ends in order after its trials' next evaluation


def look(text: str, wanted: Wanted) -> Iterator[Finding]:
    """Look at a script for sbatch.

    Args:
        text: text of the script.
        wanted: what it must have room for.
    """
    yield from _shell(text)
    header, mistakes = _header(text)
    yield from mistakes
    yield from _size(header, wanted)
    yield from _end(header, text)
    yield from _ray(text)


def _shell(text: str) -> Iterator[Finding]:
    if not re.match(r"#!.*\bbash\b", text):
        yield Finding("wrong", "line 1", "is not #!/bin/bash: sbatch refuses a script without an interpreter")
    bash = shutil.which("bash")
    if bash is None:
        yield Finding("note", "bash", "is not on this machine: the script was not parsed")
        return
    said = subprocess.run([bash, "-n"], input=text, capture_output=True, text=True)
    if said.stderr:  # its status is 0 after some errors
        yield Finding("wrong", "bash", said.stderr.strip().splitlines()[0])
    else:
        yield Finding("ok", "bash", "parses it")


def _header(text: str) -> tuple[dict[str, str], list[Finding]]:
    """Return the options that Slurm reads, and what is wrong with their lines: after a command it reads none."""
    header: dict[str, str] = {}
    mistakes: list[Finding] = []
    begun = False
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("#SBATCH"):
            begun |= bool(line.strip()) and not line.startswith("#")
            continue
        option = _OPTION.match(line)
        if begun:
            mistakes.append(Finding("wrong", f"line {number}", f"Slurm does not read {line}: it is after a command"))
        elif option is None:
            mistakes.append(
                Finding("wrong", f"line {number}", f"{line}: write #SBATCH --name=value, without a comment")
            )
        elif option[1] in header:
            mistakes.append(Finding("wrong", f"line {number}", f"--{option[1]} is given twice"))
        else:
            header[option[1]] = option[2] or ""
    return header, mistakes


def _size(header: Mapping[str, str], wanted: Wanted) -> Iterator[Finding]:
    nodes = header.get("nodes", "1")
    if not nodes.isdecimal() or int(nodes) < 1:
        yield Finding("wrong", "--nodes", f"{nodes}: give one number, for all nodes must be there before the search")
        return
    if header.get("ntasks-per-node") != "1":
        yield Finding("wrong", "--ntasks-per-node", "must be 1: each node starts one Ray")
    cpus, gpus = header.get("cpus-per-task", ""), header.get("gpus-per-node", "0").rpartition(":")[2]
    if not cpus.isdecimal() or int(cpus) < 1:
        yield Finding("wrong", "--cpus-per-task", "is not given: Slurm would give each node's Ray one processor")
        return
    if not gpus.isdecimal():
        yield Finding("wrong", "--gpus-per-node", f"{header['gpus-per-node']}: give a number, such as 4 or a100:4")
        return
    yield Finding("ok", "size", f"{nodes} node(s), each with {cpus} CPU and {gpus} GPU")
    if wanted.cpus is None:
        return
    each = int(cpus) / wanted.cpus if not wanted.gpus else min(int(cpus) / wanted.cpus, int(gpus) / wanted.gpus)
    room = int(nodes) * int(each)
    asked = f"{wanted.workers} x ({wanted.cpus:g} CPU, {wanted.gpus or 0:g} GPU)"
    if room < wanted.workers:
        yield Finding("wrong", "room", f"a trial asks for {asked}, and no more than {room} such workers fit")
    else:
        yield Finding("ok", "room", f"a trial asks for {asked}; {room} such workers fit")


def _end(header: Mapping[str, str], text: str) -> Iterator[Finding]:
    time = header.get("time")
    if time is None:
        yield Finding("note", "--time", "is not given: the partition's default holds")
    elif not _TIME.match(time):
        yield Finding("wrong", "--time", f"{time}: give HH:MM:SS or D-HH:MM:SS")
    code = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    handled = any(re.search(r"\btrap\b.*\b(SIG)?USR1\b", line) for line in code)
    given = _SIGNAL.match(header.get("signal", ""))
    if not given:
        yield Finding("wrong", "--signal", "the time limit would kill the search. Give --signal=B:USR1@300")
    elif "B" not in (given[1] or ""):
        yield Finding("wrong", "--signal", "without B: it reaches Ray's processes too, and ends them. Give B:USR1@300")
    elif given[2] != "USR1":
        yield Finding("wrong", "--signal", f"{given[2]}: a search ends in order at USR1. Give B:USR1@300")
    elif int(given[3] or 60) < _NOTICE_S:
        yield Finding("wrong", "--signal", f"{given[3] or 60} s before the end is too late to save. Give B:USR1@300")
    elif not handled:
        yield Finding("wrong", "trap", "the script has no `trap … USR1`, so that the signal ends it at once")
    else:
        yield Finding("ok", "time limit", f"the search ends in order {given[3]} s before it")
    if any("scontrol requeue" in line for line in code) and "requeue" not in header:
        yield Finding("wrong", "--requeue", "is not given, and the script calls scontrol requeue")
    if header.get("open-mode") != "append" and "requeue" in header:
        yield Finding("note", "--open-mode", "is not append: a job that is queued again overwrites its log")
    if "exclusive" not in header:
        yield Finding(
            "note", "--exclusive", "is not given: at its end `ray stop` ends your other jobs' Rays on a node too"
        )


def _ray(text: str) -> Iterator[Finding]:
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    if "ray symmetric-run" not in code:
        yield Finding("note", "ray symmetric-run", "is not called: how the script starts Ray was not looked at")
    elif not re.search(r"ray symmetric-run(?:[^\n]|\\\n)*?\s--min-nodes(?:[^\n]|\\\n)*\s--(\s|$)", code):
        yield Finding("wrong", "ray symmetric-run", "needs --min-nodes, and -- before what the head is to run")
    else:
        yield Finding("ok", "ray symmetric-run", "waits for all nodes")
    if not re.search(r"\bRAY_AUTH_MODE=token\b", code) or "RAY_AUTH_TOKEN" not in code:
        yield Finding(
            "wrong",
            "token",
            "any user of the nodes may run anything as you. Export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN",
        )
    else:
        yield Finding("ok", "token", "asked for")
    runs = re.search(r"^RUNS=[\"']?([^\s\"'#]+)", code, re.MULTILINE)
    folder = runs[1] if runs else ""
    if folder.startswith("YOUR_"):
        return
    if folder.startswith(("/tmp", "/dev/shm", "/local", "/var/tmp")) or (folder and not Path(folder).is_absolute()):
        yield Finding(
            "wrong", "run folder", f"RUNS is {folder}: give the absolute path of a folder that all nodes share"
        )
    elif folder:
        yield Finding("note", "run folder", f"RUNS is {folder}: that all nodes share it is yours to know")

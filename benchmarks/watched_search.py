"""What it costs a search to be watched: the same one with ten open pages of its dashboard, and with none.

    .venv/bin/python benchmarks/watched_search.py [--trials 40] [--pages 10] [--rounds 2] [--out FILE]

Trials are a few steps each, so that as much as possible changes in a second. Dashboard and pages run on this machine,
in processes of their own. A page asks for all of its parts whenever it is told that the run has changed, as in a
browser. Timed are the trials, from the first one's end to the last one's; runs with and without pages take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import httpx
from many_trials import LLAMA, seconds_a_trial

from mft_ray.config import parse_config
from mft_ray.searches.pipeline import search
from mft_ray.workers.connection import connected

PARTS = ("/part/state", "/part/board", "/part/log", "/figures")


def searched(trials: int, out: Path) -> None:
    """Run the search, in a process of its own."""
    sizes = {"num_attention_heads": 4, "max_position_embeddings": 32}
    config = parse_config(
        {
            "run": {"dir": str(out), "export_model": False},
            "model": {"architecture": {**LLAMA, **sizes}},
            "data": {"task": "arithmetic", "digits": 1, "n_train": 60, "n_validation": 40, "n_test": 50},
            "evaluation": {"metric": "exact_match", "resamples": 500},
            "fft": {"train": {"steps": 40, "batch_size": 16, "lr": 3e-3, "eval_every": 20, "patience": 2}},
            "train": {"steps": 20, "batch_size": 16, "eval_every": 5},
            "search": {"trials": trials, "recycle_after": trials},
        }
    )
    with connected():
        search(config)


async def page(client: httpx.AsyncClient, counted: dict[str, int]) -> None:
    """Be an open page until the server ends."""
    async with client.stream("GET", "/events", timeout=None) as events:
        async for line in events.aiter_lines():
            if line.startswith("event: changed"):
                for part in PARTS:
                    answer = await client.get(part, timeout=60)
                    answer.raise_for_status()
                    counted["answers"] += 1


def pages(address: str, number: int, told: multiprocessing.Queue[int]) -> None:
    """Open so many pages, and tell every second how often they were answered."""
    base, token = re.fullmatch(r"(https?://[^/]+)/?\?token=(\S+)", address).groups()  # type: ignore[union-attr]

    async def opened() -> None:
        counted = {"answers": 0}
        async with httpx.AsyncClient(base_url=base, follow_redirects=True) as client:
            await client.get(f"/?token={token}")
            tasks = [asyncio.create_task(page(client, counted)) for _ in range(number)]
            while True:
                await asyncio.sleep(1)
                told.put(counted["answers"])
                if (ended := [task for task in tasks if task.done()]) and ended[0].exception():
                    raise RuntimeError("a page has failed") from ended[0].exception()

    asyncio.run(opened())


def measured(trials: int, number: int, out: Path) -> dict[str, float]:
    """Run the search with so many pages, and return seconds a trial and what the pages got."""
    context = multiprocessing.get_context("spawn")
    run = context.Process(target=searched, args=(trials, out))
    run.start()
    answers = 0
    processes: list[BaseProcess | subprocess.Popen[str]] = []
    told: multiprocessing.Queue[int] = context.Queue()
    try:
        if number:
            while not (out / "config.yaml").exists():
                time.sleep(0.1)
            command = [sys.executable, "-m", "mft_ray", "dashboard", str(out)]
            server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "NO_COLOR": "1"})
            assert server.stdout
            address = next(found[0] for line in server.stdout if (found := re.search(r"http\S+token=\S+", line)))
            client = context.Process(target=pages, args=(address, number, told))
            client.start()
            processes = [client, server]
        run.join()
        while not told.empty():
            answers = told.get()
    finally:
        for process in processes:
            process.terminate()
    assert run.exitcode == 0
    return {"seconds_a_trial": seconds_a_trial(out / "work" / "trials", 1, trials - 1), "answers": answers}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--trials", type=int, default=40)
    arguments.add_argument("--pages", type=int, default=10)
    arguments.add_argument("--rounds", type=int, default=2)
    arguments.add_argument("--out", type=Path)
    options = arguments.parse_args()
    found: dict[int, list[dict[str, float]]] = {0: [], options.pages: []}
    with tempfile.TemporaryDirectory() as scratch:
        for turn in range(options.rounds):
            for number in found:
                found[number].append(measured(options.trials, number, Path(scratch) / f"{turn}-{number}"))
                print(number, found[number][-1], file=sys.stderr, flush=True)
    print("| pages | seconds a trial | answers in all |\n| --- | --- | --- |")
    for number, rows in found.items():
        seconds = ", ".join(f"{row['seconds_a_trial']:.2f}" for row in rows)
        print(f"| {number} | {seconds} | {', '.join(str(row['answers']) for row in rows)} |")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

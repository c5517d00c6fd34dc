"""What a step costs where another job has a core: how threads wait for each other decides.

    .venv/bin/python benchmarks/busy_cores.py [--seconds 10] [--rounds 2] [--out FILE]

The quickstart's model and batch, in processes of their own, with the threads that its FFT has (two), and with one. Each
is timed with nothing beside it and with as many busy processes as there are cores; rounds take turns.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

WAYS = {
    "two threads that spin (OpenMP's default)": {"OMP_NUM_THREADS": "2"},
    "two threads that sleep (workers of mft_ray)": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


def steps(seconds: float) -> None:
    """Print the mean seconds of a step."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, **shape))
    batch = torch.randint(0, 32, (32, 13))

    def step() -> None:
        model(batch, labels=batch).loss.backward()

    step()
    began, taken = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        step()
        taken += 1
    print((time.perf_counter() - began) / taken)


def spin() -> None:
    """Have a core until the process is killed."""
    while True:
        pass


@contextmanager
def beside(busy: int) -> Iterator[None]:
    """Context manager for a while in which so many processes are busy."""
    others = [multiprocessing.Process(target=spin, daemon=True) for _ in range(busy)]
    for each in others:
        each.start()
    yield
    for each in others:
        each.kill()
        each.join()


def timed(environment: dict[str, str], seconds: float) -> float:
    """Return the seconds of a step in a process of its own."""
    command = [sys.executable, __file__, "--seconds", str(seconds), "--measure"]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10, help="of each figure")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        steps(arguments.seconds)
        return
    found: dict[str, dict[int, list[float]]] = {way: {} for way in WAYS}
    for _ in range(arguments.rounds):
        for busy in (0, os.cpu_count() or 1):
            for way, environment in WAYS.items():
                with beside(busy):
                    found[way].setdefault(busy, []).append(timed(environment, arguments.seconds))
    columns = sorted(next(iter(found.values())))
    lines = [
        f"| ms a step, torch {version('torch')} | " + " | ".join(f"{busy} busy processes" for busy in columns) + " |"
    ]
    lines.append("| --- |" + " --- |" * len(columns))
    for way, by in found.items():
        lines.append(f"| {way} | " + " | ".join(f"{statistics.median(by[busy]) * 1e3:.1f}" for busy in columns) + " |")
    print("\n".join(lines))
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

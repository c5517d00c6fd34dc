"""Our generation and scores against lm-evaluation-harness's own, on the same prompts and model.

    python benchmarks/generation.py --model FOLDER --tasks gsm8k_zero_shot,ifeval --data gsm8k_zero_shot=FOLDER \\
        --data ifeval=FILE [--examples 50] [--max-new-tokens 128] [--batch-size 16] \\
        [--dtype float32] [--out FILE]

Speed: each task's prompts go through both loops twice, ours first and last, and the faster time of each counts; the
ratio of processor time is told too, for machines that others use as well. Scores: the harness's evaluator and our tasks
score the same texts.

    python benchmarks/generation.py --vllm PYTHON --model FOLDER --tasks ... (as above)

Instead: how often greedy texts by vLLM, of that interpreter's environment, are ours, and their scores.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM

from mft_ray.evaluation.generation import Generated, generate
from mft_ray.evaluation.tasks import Task, TaskOptions, load_task
from mft_ray.evaluation.tasks.harness import HarnessTask
from mft_ray.evaluation.vllm.engine import VllmEngine
from mft_ray.models.loading import load_model, load_tokenizer


class Texts(LM):  # type: ignore[misc]
    """A model that answers with texts that were made before."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__()
        self.texts = texts

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        random.seed(0)  # scores follow, and IFEval's draw what a prompt leaves open: let ours and theirs draw the same
        return [self.texts[request.doc_id] for request in requests]

    def loglikelihood(self, requests: list[Any]) -> Any:
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: list[Any]) -> Any:
        raise NotImplementedError


class Clock:
    """Seconds on the wall, and of all processors, since it was made."""

    def __init__(self) -> None:
        self._began = time.monotonic(), time.process_time()

    def read(self) -> tuple[float, float]:
        return time.monotonic() - self._began[0], time.process_time() - self._began[1]


def ours(
    model: Any, tokenizer: Any, task: Task, limit: int, batch_size: int
) -> tuple[tuple[float, float], list[Generated]]:
    clock = Clock()
    options = {"until": list(task.until), "max_new_tokens": limit, "batch_size": batch_size}
    made = dict(generate(model, tokenizer, task.prompts, **options))
    return clock.read(), [made[index] for index in range(len(task.prompts))]


def theirs(harness: HFLM, task: Task, limit: int) -> tuple[tuple[float, float], list[str]]:
    arguments = {"until": list(task.until), "max_gen_toks": limit, "do_sample": False}
    requests = [Instance("generate_until", {}, (prompt, arguments), index) for index, prompt in enumerate(task.prompts)]
    clock = Clock()
    texts = harness.generate_until(requests, disable_tqdm=True)
    return clock.read(), texts


def compare(name: str, task: HarnessTask, model: Any, tokenizer: Any, options: argparse.Namespace) -> dict[str, Any]:
    limit, batch_size = options.max_new_tokens, options.batch_size
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    first, _ = ours(model, tokenizer, task, limit, batch_size)
    third, their_texts = theirs(harness, task, limit)
    fourth, _ = theirs(harness, task, limit)
    second, made = ours(model, tokenizer, task, limit, batch_size)
    seconds, processor = (min(pair) for pair in zip(first, second, strict=True))
    their_seconds, their_processor = (min(pair) for pair in zip(third, fourth, strict=True))
    tokens = sum(text.tokens for text in made)
    texts = [text.text for text in made]
    scores = task.score(texts)
    evaluated = simple_evaluate(Texts(texts), tasks=[task._task], limit=len(texts), bootstrap_iters=0)
    known = {key.removesuffix(",none"): value for key, value in next(iter(evaluated["results"].values())).items()}
    summary = task.summarise(scores)
    return {
        "task": name,
        "examples": len(texts),
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "harness_tokens_per_second": tokens / their_seconds,
        "ratio": their_seconds / seconds,
        "processor_ratio": their_processor / processor,
        "same_texts": sum(mine == other for mine, other in zip(texts, their_texts, strict=True)),
        "scores": {metric: [value, float(known[metric])] for metric, value in summary.items()},
    }


def common(one: str, other: str) -> int:
    """How many letters two texts begin with alike."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def agreement(name: str, task: Task, model: Any, tokenizer: Any, options: argparse.Namespace) -> dict[str, Any]:
    limit = options.max_new_tokens
    (seconds, _), mine = ours(model, tokenizer, task, limit, options.batch_size)
    engine = VllmEngine(Path.cwd(), options.vllm)
    began = time.monotonic()
    made = dict(engine(model, tokenizer, task.prompts, until=list(task.until), max_new_tokens=limit))
    their_seconds = time.monotonic() - began
    theirs = [made[index] for index in range(len(task.prompts))]
    scores = [task.score([text.text for text in texts]) for texts in (mine, theirs)]
    same = [common(one.text, other.text) for one, other in zip(mine, theirs, strict=True)]
    return {
        "task": name,
        "examples": len(mine),
        "same_texts": sum(one.text == other.text for one, other in zip(mine, theirs, strict=True)),
        "same_ends": sum(one.finished == other.finished for one, other in zip(mine, theirs, strict=True)),
        "same_scores": sum(one == other for one, other in zip(*scores, strict=True)),
        "share_of_text_before_they_part": sum(same) / max(1, sum(len(one.text) for one in mine)),
        "scores": {
            metric: [value, task.summarise(scores[1])[metric]] for metric, value in task.summarise(scores[0]).items()
        },
        "seconds": seconds,
        "vllm_seconds_with_start": their_seconds,
    }


def keep(file: Path | None, options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    if file is None:
        return
    asked = ("tasks", "examples", "max_new_tokens", "batch_size", "dtype")
    about = {
        "versions": {name: version(name) for name in ("torch", "transformers", "lm_eval")},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores",
        **{name: getattr(options, name) for name in asked},
    }
    file.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tasks", required=True)
    parser.add_argument("--data", action="append", default=[])
    parser.add_argument("--examples", type=int, default=50)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--vllm", metavar="PYTHON", help="interpreter that has vLLM")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    data = dict(pair.split("=", 1) for pair in options.data)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, tokenizer = load_model(options.model, options.dtype).to(device).eval(), load_tokenizer(options.model)
    rows = []
    if not options.vllm:
        print("| task | examples | tokens/s | harness | ratio | of processor time | same texts | scores |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in options.tasks.split(","):
        task = load_task(name, TaskOptions(data.get(name), limit=options.examples))
        if options.vllm:
            rows.append(agreement(name, task, model, tokenizer, options))
            keep(options.out, options, rows)
            print(json.dumps(rows[-1]), flush=True)
            continue
        assert isinstance(task, HarnessTask)
        row = compare(name, task, model, tokenizer, options)
        rows.append(row)
        keep(options.out, options, rows)
        scores = "; ".join(f"{metric} {mine:.4f}, {other:.4f}" for metric, (mine, other) in row["scores"].items())
        print(
            f"| {name} | {row['examples']} | {row['tokens_per_second']:.0f} | {row['harness_tokens_per_second']:.0f} | "
            f"{row['ratio']:.2f} | {row['processor_ratio']:.2f} | {row['same_texts']} | {scores} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""Run benchmark tasks on a model and on masks over it, and keep every prompt, text and score."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from mft_ray.errors import UserError
from mft_ray.evaluation.generation import Generated, generate
from mft_ray.evaluation.statistics import standard_error
from mft_ray.evaluation.tasks import ExampleScores, Task
from mft_ray.evaluation.vllm_engine import VllmEngine
from mft_ray.masking import MaskFile, fingerprint, load_mask
from mft_ray.report.units import duration
from mft_ray.search.progress import say
from mft_ray.training.backbone import load_model, load_tokenizer
from mft_ray.training.export import check_fingerprint, masked_for_now
from mft_ray.training.job import write_json

_TELL_S = 10.0


@dataclass(frozen=True)
class Judged:
    """What is evaluated: a model, or the model with a mask.

    Attributes:
        name: of its files.
        fingerprint: of the model and of the mask, so that results of another one are never continued.
        mask: applied to the model; None for the model itself.
    """

    name: str
    fingerprint: str
    mask: MaskFile | None = None


class Backbone:
    """One model in memory, and masks that are put on it in turn.

    Args:
        path: folder or hub id.
        dtype: of the weights; None keeps the checkpoint's.
        before: folder or hub id of the model before fine-tuning, for masks that remove the delta.
        engine: generates in the place of our own `generate`; the GPU is then left to it.
    """

    def __init__(
        self, path: str, dtype: str | None = None, before: str | None = None, engine: VllmEngine | None = None
    ) -> None:
        self.path, self._engine = path, engine
        model = load_model(path)
        self.fingerprint = fingerprint(model)
        self._before = None if before is None else load_model(before)
        device = "cuda" if torch.cuda.is_available() and engine is None else "cpu"
        self.model: PreTrainedModel = (model if dtype is None else model.to(getattr(torch, dtype))).to(device).eval()
        self.tokenizer: Tokenizer = load_tokenizer(path)

    @property
    def about(self) -> dict[str, str]:
        """What tells its texts from others', beside the model."""
        return {"engine": "vllm"} if self._engine else {}

    def generate(self, prompts: Sequence[str], **options: Any) -> Iterator[tuple[int, Generated]]:
        """Continue prompts; options as of `mft_ray.evaluation.generation.generate`."""
        return (self._engine or generate)(self.model, self.tokenizer, prompts, **options)

    def itself(self) -> Judged:
        """Return the model without a mask."""
        return Judged(Path(self.path).name, self.fingerprint)

    def with_mask(self, path: str) -> Judged:
        """Return the model with a mask.

        Raises:
            UserError: the file is no mask, or one of another model.
        """
        mask = load_mask(path)
        check_fingerprint("backbone", self.path, self.fingerprint, mask.backbone)
        if mask.settings.removes == "delta":
            if self._before is None:
                raise UserError(f"The mask {path} removes the delta: give the model before fine-tuning as --before.")
            check_fingerprint("model before fine-tuning", path, fingerprint(self._before), mask.before)
        file = Path(path)
        name = file.stem if file.stem != "mask" else f"{file.absolute().parent.name}-mask"
        return Judged(name, f"{self.fingerprint} {hashlib.sha256(file.read_bytes()).hexdigest()}", mask)

    def prepared(self, judged: Judged) -> AbstractContextManager[None]:
        """Put a mask on for a while, or none."""
        if judged.mask is None:
            return nullcontext()
        return masked_for_now(self.model, judged.mask, self._before)


def benchmark(
    backbone: Backbone, judged: Sequence[Judged], tasks: Sequence[Task], out: Path, batch_size: int
) -> dict[str, Any]:
    """Evaluate models on tasks, or go on where that was interrupted.

    Args:
        backbone: in memory.
        judged: what to evaluate.
        tasks: by what.
        out: folder for ``TASK/NAME.jsonl`` (prompts, texts, scores) and ``results.json``.
        batch_size: prompts per forward.

    Returns:
        What ``results.json`` holds: by task and name, each metric with its standard error.

    Raises:
        UserError: the folder holds results of something else.
    """
    results: dict[str, Any] = {}
    for task in tasks:
        for one in judged:
            file = out / _plain(task.name) / f"{_plain(one.name)}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            about = {"task": task.name, "model": one.fingerprint, "max_new_tokens": task.max_new_tokens}
            about |= backbone.about
            begun = file.with_suffix(".begun.jsonl")
            with backbone.prepared(one):
                texts = _texts(backbone, one, task, about, file if file.exists() else begun, batch_size)
            scores = task.score([row["text"] for row in texts])
            scored = [{**row, "scores": score} for row, score in zip(texts, scores, strict=True)]
            _write_lines(file, [about, *scored])
            begun.unlink(missing_ok=True)
            summary = task.summarise(scores)
            errors = {metric: _error(scores, metric) for metric in summary}
            results.setdefault(task.name, {})[one.name] = {
                "metric": task.metric,
                "n": len(texts),
                "score": summary[task.metric],
                "metrics": {metric: {"score": summary[metric], "standard_error": errors[metric]} for metric in summary},
                "unfinished": sum(not row["finished"] for row in texts),
            }
            write_json(out / "results.json", results)
            say(f"{task.name}, {one.name}: {task.metric} {summary[task.metric]:.4f} ± {errors[task.metric]:.4f}")
    return results


def _texts(
    backbone: Backbone, one: Judged, task: Task, about: Mapping[str, Any], file: Path, batch_size: int
) -> list[dict[str, Any]]:
    """Generate what is not there yet; every text is in the file as soon as its batch is done."""
    done = dict(_continued(file, about, task.prompts))
    missing = [index for index in range(len(task.prompts)) if index not in done]
    if missing:
        _write_lines(file, [about, *done.values()])  # anew, since its last line may have been cut off
        with file.open("a", encoding="utf-8") as kept:
            for row in _generated(backbone, one, task, missing, len(done), batch_size):
                done[row["index"]] = row
                kept.write(json.dumps(row) + "\n")
                kept.flush()
    return [done[index] for index in range(len(task.prompts))]


def _generated(
    backbone: Backbone, one: Judged, task: Task, missing: list[int], before: int, batch_size: int
) -> Iterator[dict[str, Any]]:
    began = told = time.monotonic()
    tokens = 0
    prompts = [task.prompts[index] for index in missing]
    made = backbone.generate(prompts, until=task.until, max_new_tokens=task.max_new_tokens, batch_size=batch_size)
    for count, (place, text) in enumerate(made, start=1):
        tokens += text.tokens
        now = time.monotonic()
        if now - told >= _TELL_S or count == len(missing):
            told, seconds = now, now - began
            say(
                f"{task.name}, {one.name}: {before + count:,} of {len(task.prompts):,} examples, "
                f"{count / seconds:.2f} examples/s, {tokens / seconds:,.0f} tokens/s, about "
                f"{duration(seconds / count * (len(missing) - count))} left"
            )
        yield {
            "index": missing[place],
            "prompt": prompts[place],
            "text": text.text,
            "tokens": text.tokens,
            "finished": text.finished,
        }


def _continued(file: Path, about: Mapping[str, Any], prompts: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    if not file.exists():
        return
    first, *lines = file.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.endswith("}")]  # the last may have been cut off
    same = json.loads(first) == about and all(
        row["index"] < len(prompts) and row["prompt"] == prompts[row["index"]] for row in rows
    )  # more examples than before are welcome
    if not same:
        raise UserError(
            f"{file} holds what another model, or other settings, answered. Give another --out, or delete it."
        )
    yield from ((row["index"], {key: row[key] for key in _KEPT}) for row in rows)


_KEPT = ("index", "prompt", "text", "tokens", "finished")


def _write_lines(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    partial = file.with_name(file.name + ".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    partial.replace(file)


def _error(scores: Sequence[ExampleScores], metric: str) -> float:
    """Return the standard error over examples; of one with several numbers, its mean counts."""
    values = [row[metric] for row in scores]
    return standard_error([sum(value) / len(value) if isinstance(value, list) else value for value in values])


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)

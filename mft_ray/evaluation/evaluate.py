"""A model, and masks over it, on benchmark tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mft_ray.config import EvaluationConfig, parse_config
from mft_ray.data.text.template import with_fixed, writes_date
from mft_ray.evaluation.benchmark import RESULTS, benchmark, load_tasks
from mft_ray.evaluation.loaded_model import Backbone
from mft_ray.evaluation.vllm.engine import VllmEngine
from mft_ray.models.loading import load_tokenizer
from mft_ray.utils.console import log, log_warning
from mft_ray.utils.files import read_json
from mft_ray.utils.json_types import JsonObject


def evaluate_models(
    models: Sequence[str],
    settings: EvaluationConfig,
    out: str | Path,
    *,
    shots: int | None = None,
    template_options: Mapping[str, Any] | None = None,
    template_date: str | None = None,
    engine: str = "transformers",
    dtype: str | None = None,
    pretrained: str | None = None,
) -> JsonObject:
    """Score a model, and masks or adapters over it, on benchmark tasks.

    Args:
        models: folder or hub id of a model, then mask files or adapter folders over it.
        settings: names of the tasks, copies of their data, and limits.
        out: folder for prompts, texts and scores; what is there already is not asked again.
        shots: number of examples before each prompt; None takes the task's own.
        template_options: variables of the chat template.
        template_date: date that a chat template is to write, such as ``2026-01-31``; None takes today's.
        engine: ``transformers`` or ``vllm``.
        dtype: dtype of the weights; None takes the checkpoint's.
        pretrained: folder or hub id of the model before fine-tuning, for a mask of the delta.

    Returns:
        Contents of ``results.json``: scores by task and model, and what they were made with.

    Raises:
        UserError: something given cannot work.
    """
    folder = Path(out).expanduser()
    path, *artifacts = models
    tokenizer = load_tokenizer(path)
    if settings.chat:
        template = {"template_options": dict(template_options or {}), "template_date": template_date}
        fixed = parse_config({"model": {"path": path}, "data": template}).data
        if fixed.template_date is None and writes_date(tokenizer):
            log_warning("the chat template writes today's date; --template-date keeps one for other days")
        tokenizer = with_fixed(tokenizer, fixed.template_options, fixed.template_date)
    tasks = load_tasks(settings.tasks or [], settings, tokenizer, shots)
    for task in tasks:
        if task.runs_code is not None:
            log(f"task {task.name} runs {task.runs_code}")
    backbone = Backbone(path, dtype, pretrained, VllmEngine(folder) if engine == "vllm" else None, tokenizer)
    judged = [backbone.itself(), *(backbone.having(artifact) for artifact in artifacts)]
    for line in benchmark(backbone, judged, tasks, folder, settings.task_batch_size):
        log(line)
    return read_json(folder / RESULTS, dict)

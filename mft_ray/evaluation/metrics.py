"""One score per example. Every metric is higher-is-better.

- ``exact_match``: 1.0 if the model's first choice is right at every labelled position, else 0.0. That is
  what greedy decoding reproducing the answer means, at the price of one forward. Where the label ends the
  answer, any token that stops generation is right.
- ``answer_logprob``: mean log-probability of the labelled tokens, natural log, computed in fp32.
- ``generated_match``: 1.0 if a greedily generated text, without the thoughts before its answer, matches the
  answer (`answers.match`), else 0.0.

What ends an answer is one rule for all: `mft_ray.data.text.ends`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mft_ray.data.collate import collate
from mft_ray.data.encoded import lengths_of
from mft_ray.data.encoding import IGNORED
from mft_ray.data.text import thoughts
from mft_ray.data.text.ends import stop_tokens
from mft_ray.evaluation.answers import match
from mft_ray.evaluation.generation import generate
from mft_ray.models.positions import positions

METRICS = ("exact_match", "answer_logprob", "generated_match")
BINARY_METRICS = frozenset({"exact_match", "generated_match"})  # 0 or 1 per example

Around = Callable[[Sequence[Mapping[str, Any]], int], AbstractContextManager[Any]]

_FP32_LOGITS_AT_ONCE = 2**24  # 64 MB: the fp32 copy of the logits is made in pieces of this many numbers


def per_example(
    model: nn.Module,
    rows: Sequence[Mapping[str, Any]],
    metric: str,
    *,
    pad_id: int,
    eos_id: int,
    batch_size: int,
    most: int | None = None,
    device: torch.device | str,
    tokenizer: Any = None,
    max_new_tokens: int = 256,
    autocast: torch.dtype | None = None,
    progress: Callable[[int, int], object] | None = None,
    around: Around | None = None,
) -> list[float]:
    """Score every example.

    Under ZeRO-3 with several workers all must call this, be it with no rows: they then forward equally often.

    Args:
        model: takes and returns what a Hugging Face causal LM does, already on ``device``; or a wrapper such
            as a DeepSpeed engine that passes calls on to its ``module``.
        rows: ``input_ids`` and ``labels`` (-100 where not an answer token) of equal length; for
            ``generated_match`` instead ``prompt_ids`` and ``answer``.
        metric: one of ``METRICS``.
        pad_id: token to pad with.
        eos_id: token that ends an answer, beside those of `mft_ray.data.text.ends.stop_tokens`.
        batch_size: examples of the greatest length per forward, of shorter ones as many tokens with their padding.
            Where texts are generated, examples of any length: what that holds hardly depends on the prompt.
        most: examples per forward, however short; None is ``batch_size``.
        device: where the batches go.
        tokenizer: has the chat template that prompts are made by; None only where nothing is generated.
        max_new_tokens: generated at most; less where the model's positions end.
        autocast: compute dtype, or None for the model's own.
        progress: called after each batch with the number of examples done and in all.
        around: context manager for each forward that generates nothing, given its rows and their padded length.

    Returns:
        One score per row, in the order of ``rows``.

    Raises:
        ValueError: an unknown metric, ``generated_match`` without a tokenizer, a row with nothing to score.
    """
    _check(metric, tokenizer)
    device = torch.device(device)
    ends = stop_tokens(_unwrapped(model), tokenizer) | {eos_id}
    generates = metric == "generated_match"
    lengths = lengths_of(rows, "prompt_ids" if generates else "input_ids")
    batches = _batches(lengths, batch_size, batch_size if generates else most or batch_size)
    scores = [0.0] * len(rows)
    done = 0
    # no_grad, not inference_mode: what layers cache here is used in training afterwards.
    with _evaluating(model), torch.no_grad(), _autocast(device, autocast):
        for step in range(_steps_in_all(model, len(batches), device)):
            batch = batches[step] if step < len(batches) else []
            taken = [rows[index] for index in batch] or [_filler(eos_id)]
            if generates:
                values = _generated(model, taken, tokenizer, ends, max_new_tokens)
            else:
                values = _teacher_forced(model, taken, metric, pad_id, ends, device, around)
            for index, value in zip(batch, values, strict=False):
                scores[index] = value
            done += len(batch)
            if progress is not None and batch:
                progress(done, len(rows))
    return scores


def _check(metric: str, tokenizer: Any) -> None:
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; there are {', '.join(METRICS)}")
    if metric == "generated_match" and tokenizer is None:
        raise ValueError("generated_match needs a tokenizer")


def _batches(lengths: Sequence[int], size: int, most: int) -> list[list[int]]:
    """Indices of rows, batch by batch: similar lengths together waste little on padding."""
    # The longest come first, so that a batch too large for the memory fails at once.
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    tokens = size * lengths[order[0]] if order else 0
    batches, start = [], 0
    while start < len(order):
        taken = min(most, tokens // max(1, lengths[order[start]]))
        batches.append(order[start : start + taken])
        start += taken
    return batches


def _teacher_forced(
    model: nn.Module,
    rows: Sequence[Mapping[str, Any]],
    metric: str,
    pad_id: int,
    ends: frozenset[int],
    device: torch.device,
    around: Around | None,
) -> list[float]:
    """Scores out of one forward over prompt and answer."""
    batch = {name: tensor.to(device) for name, tensor in collate(rows, pad_id).items()}
    input_ids, attention_mask = batch["input_ids"], batch["attention_mask"]
    targets = batch["labels"][:, 1:]  # position t predicts token t + 1
    labelled = targets != IGNORED  # (B, T - 1)
    empty = (~labelled.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"example {rows[empty[0]].get('id')!r} has no answer token to score")
    columns = labelled.any(dim=0).nonzero().flatten()  # positions that some row needs
    with around(rows, input_ids.shape[1]) if around else nullcontext():
        logits = _logits_at(model, input_ids, attention_mask, columns)[labelled[:, columns]]  # (N, V)
    targets = targets[labelled]  # (N,), row by row as the logits are
    if metric == "exact_match":
        right = torch.ones_like(labelled)
        chosen, stops = logits.argmax(dim=-1), torch.tensor(sorted(ends), device=device)
        right[labelled] = (chosen == targets) | (torch.isin(chosen, stops) & torch.isin(targets, stops))
        return [float(value) for value in right.all(dim=1).tolist()]
    logprobs = torch.zeros(labelled.shape, dtype=torch.float32, device=device)
    logprobs[labelled] = _token_logprobs(logits, targets)
    means: list[float] = (logprobs.sum(dim=1) / labelled.sum(dim=1)).tolist()
    return means


def _logits_at(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, columns: Tensor) -> Tensor:
    """Logits at the given positions, (B, len(columns), V); where the model can, only those are computed."""
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
    if "logits_to_keep" in inspect.signature(_unwrapped(model).forward).parameters:
        kept: Tensor = model(**inputs, logits_to_keep=columns).logits
        return kept
    every: Tensor = model(**inputs).logits
    return every[:, columns]


def _token_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probability in fp32 of each target (N,) under logits (N, V)."""
    piece = max(1, _FP32_LOGITS_AT_ONCE // logits.shape[-1])
    pieces = zip(torch.split(logits, piece), torch.split(targets, piece), strict=True)
    # Autocast is left for this: it may decide for itself what cross_entropy is computed in.
    with torch.autocast(logits.device.type, enabled=False):
        return torch.cat([-cross_entropy(some.float(), target, reduction="none") for some, target in pieces])


def _generated(
    model: nn.Module,
    rows: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    ends: frozenset[int],
    max_new_tokens: int,
) -> list[float]:
    """Whether each greedily generated text matches its row's answer."""
    prompts, generator = [list(row["prompt_ids"]) for row in rows], _unwrapped(model)
    most = positions(generator.config)
    room = max_new_tokens if most is None else most - max(map(len, prompts))
    said = generate(
        generator,
        tokenizer,
        prompts,
        ends=ends,
        max_new_tokens=max(1, min(max_new_tokens, room)),
        batch_size=len(rows),
        in_step=_any_worker(model) if _workers_in_step(model) > 1 else None,
    )
    texts = {index: generated.text for index, generated in said}
    return [float(match(texts[index], thoughts.answer_in(row["answer"]))) for index, row in enumerate(rows)]


def _any_worker(model: nn.Module) -> Callable[[bool], bool]:
    """Return what says whether any worker still generates, asked by all of them after each forward."""
    device = next(model.parameters()).device

    def any_does(mine: bool) -> bool:
        going = torch.tensor(int(mine), device=device)
        torch.distributed.all_reduce(going, op=torch.distributed.ReduceOp.MAX)
        return bool(going)

    return any_does


def _unwrapped(model: nn.Module) -> Any:
    """The model itself: a wrapper's forward hides what the model takes, and does not generate."""
    return getattr(model, "module", model)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and each module's own mode back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def _workers_in_step(model: nn.Module) -> int:
    """How many workers must go through the same forwards: all, where ZeRO-3 has split the parameters."""
    split = any(hasattr(parameter, "ds_id") for parameter in model.parameters())
    if not (split and torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 1
    return torch.distributed.get_world_size()


def _steps_in_all(model: nn.Module, batches: int, device: torch.device) -> int:
    """Forwards to run: this worker's batches, or the most that any worker has where all go in step."""
    if _workers_in_step(model) == 1:
        return batches
    most = torch.tensor(batches, device=device)
    torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
    return int(most)


def _filler(token: int) -> dict[str, Any]:
    """A row to forward only to keep in step with workers that have more rows."""
    return {"input_ids": [token] * 2, "labels": [IGNORED, token], "prompt_ids": [token], "answer": ""}

"""How flat the loss is around a model: along random directions, and its largest curvature."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from mft_ray.data.collate import collate
from mft_ray.data.encoding import IGNORED


@dataclass(frozen=True)
class Flatness:
    """What the loss does around a model.

    Attributes:
        distances: along a direction, relative to the weights' norm.
        losses: mean loss per answer token, nats, (directions, distances).
        top_eigenvalue: largest eigenvalue of the Hessian of that loss; the largest in magnitude, with its sign.
    """

    distances: tuple[float, ...]
    losses: tuple[tuple[float, ...], ...]
    top_eigenvalue: float


def flatness(
    model: nn.Module,
    rows: Sequence[Mapping[str, Any]],
    *,
    pad_id: int,
    batch_size: int = 64,
    distances: Sequence[float] = (-0.5, -0.25, -0.1, 0.0, 0.1, 0.25, 0.5),
    directions: int = 4,
    iterations: int = 20,
    seed: int = 0,
) -> Flatness:
    """Measure the loss around a model's weights.

    Directions are random and filter-normalised (Li et al. 2018, arXiv 1712.09913): each row of a matrix is as long as
    the model's own, so that models whose weights differ in scale can be compared. What a mask has removed stays
    removed: neither directions nor the curvature go there.

    Args:
        model: a Hugging Face causal LM; its parameters are the same afterwards.
        rows: ``input_ids`` and ``labels`` (-100 where not an answer token).
        pad_id: token to pad with.
        batch_size: rows per forward.
        distances: along each direction.
        directions: how many.
        iterations: number of iterations of the power method.
        seed: seed of the directions.

    Raises:
        ValueError: there is no row.
    """
    if not rows:
        raise ValueError("flatness needs at least one example")
    batches = [_batch(rows[start : start + batch_size], pad_id, model) for start in range(0, len(rows), batch_size)]
    weights = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    generator = torch.Generator().manual_seed(seed)
    losses = []
    model.eval()
    with _trainable(weights):
        for _ in range(directions):
            direction = [_normalised(weight, generator) for weight in weights]
            losses.append(tuple(_loss_at(model, weights, direction, at, batches) for at in distances))
        top = _top_eigenvalue(model, weights, batches, iterations, generator)
    return Flatness(tuple(distances), tuple(losses), top)


def _batch(rows: Sequence[Mapping[str, Any]], pad_id: int, model: nn.Module) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    return {name: tensor.to(device) for name, tensor in collate(rows, pad_id).items()}


@contextmanager
def _trainable(weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """For a while gradients reach some parameters."""
    before = [weight.requires_grad for weight in weights]
    for weight in weights:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight, needed in zip(weights, before, strict=True):
            weight.requires_grad_(needed)


def _normalised(weight: Tensor, generator: torch.Generator) -> Tensor:
    """A random direction whose rows are as long as the weight's own; zero where the weight is."""
    drawn = torch.randn(weight.shape, generator=generator).to(weight) * (weight != 0)
    wanted, length = (torch.linalg.vector_norm(each, dim=-1, keepdim=True) for each in (weight, drawn))
    scaled: Tensor = drawn * (wanted / length.clamp_min(1e-12))
    return scaled


def _loss(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, int]:
    """The summed loss of the answer tokens, and how many there are."""
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
    logits, labels = model(**inputs).logits[:, :-1], batch["labels"][:, 1:]
    loss = cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return loss, int((labels != IGNORED).sum())


@torch.no_grad()
def _loss_at(
    model: nn.Module,
    weights: Sequence[Tensor],
    direction: Sequence[Tensor],
    distance: float,
    batches: Sequence[Mapping[str, Tensor]],
) -> float:
    kept = [weight.clone() for weight in weights]
    for weight, step in zip(weights, direction, strict=True):
        weight.add_(step, alpha=distance)
    found = [_loss(model, batch) for batch in batches]
    for weight, before in zip(weights, kept, strict=True):
        weight.copy_(before)
    return float(sum(loss for loss, _ in found)) / sum(count for _, count in found)


def _top_eigenvalue(
    model: nn.Module,
    weights: Sequence[nn.Parameter],
    batches: Sequence[Mapping[str, Tensor]],
    iterations: int,
    generator: torch.Generator,
) -> float:
    """Power iteration with products of the Hessian and a vector, over the weights that are not zero."""
    alive = [(weight != 0).to(weight) for weight in weights]
    vector = [torch.randn(mask.shape, generator=generator).to(mask) * mask for mask in alive]
    value = 0.0
    for _ in range(iterations):
        length = _dot(vector, vector) ** 0.5
        vector = [each / length for each in vector]
        curved = _hessian_times(model, weights, batches, vector)
        product = [each * mask for each, mask in zip(curved, alive, strict=True)]
        value = _dot(vector, product)
        if _dot(product, product) == 0:
            return 0.0
        vector = product
    return value


def _hessian_times(
    model: nn.Module, weights: Sequence[nn.Parameter], batches: Sequence[Mapping[str, Tensor]], vector: Sequence[Tensor]
) -> Iterator[Tensor]:
    total, tokens = [torch.zeros_like(weight) for weight in weights], 0
    for batch in batches:
        with sdpa_kernel(SDPBackend.MATH):  # others have no second derivative
            loss, count = _loss(model, batch)
            gradient = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
            inner = sum((g * v).sum() for g, v in zip(gradient, vector, strict=True) if g is not None)
            product = torch.autograd.grad(inner, weights, allow_unused=True)  # type: ignore[arg-type]
        for into, each in zip(total, product, strict=True):
            if each is not None:
                into += each
        tokens += count
    return (each / tokens for each in total)


def _dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    return float(sum((a.double() * b.double()).sum() for a, b in zip(left, right, strict=True)))

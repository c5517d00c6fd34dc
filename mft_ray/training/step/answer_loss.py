"""The loss where there are answers: the head runs at labelled positions only, and fp32 comes in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mft_ray.data.encoding import IGNORED

_FP32_AT_ONCE = 2**24  # numbers of the fp32 copy of the logits that exist at a time: 64 MB


class AnswerLoss:
    """Sums the negative log-likelihood of the labelled tokens of a batch.

    Whatever a model does to its logits entry by entry (a cap, a scale) is done to those few as well. A model that does
    something else with them has its head run at every position, as before: that is found out at the first batch.

    Args:
        model: causal LM with an output embedding.
    """

    def __init__(self, model: nn.Module) -> None:
        head = getattr(model, "get_output_embeddings", lambda: None)()
        self._head: nn.Module | None = head if isinstance(head, nn.Module) else None
        self._checked = False

    def __call__(self, model: Any, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
        """Run the model and return the sum.

        Args:
            model: the model, or an engine around it.
            inputs: what it takes, on its device: ``input_ids``, ``attention_mask``.
            labels: token at each position, shape (B, T), or -100. On the CPU: where answers are is then known without
                waiting for the device.
        """
        device = inputs["input_ids"].device
        targets = labels[:, 1:]  # position t predicts token t + 1
        rows, columns = (targets != IGNORED).nonzero(as_tuple=True)
        wanted = targets[rows, columns].to(device, non_blocking=True)
        where = (rows.to(device, non_blocking=True), columns.to(device, non_blocking=True))
        if self._head is not None:
            with _only_at(self._head, where, labels.shape) as seen:
                logits = model(**inputs, use_cache=False).logits
            if seen.picked and logits.shape[:-1] == (1, len(wanted)):
                return _summed(logits[0], wanted)
            if seen.picked:
                # Logits that are not what the head said at those positions: never again for this model.
                self._head = None
                logits = model(**inputs, use_cache=False).logits
        else:
            logits = model(**inputs, use_cache=False).logits
        return _summed(logits[where], wanted)


class _Seen:
    """Whether the head was run at some positions only."""

    picked = False


@contextmanager
def _only_at(head: nn.Module, where: tuple[Tensor, Tensor], shape: torch.Size) -> Iterator[_Seen]:
    """Have a head run, once, at some positions of a batch.

    Args:
        head: output embedding.
        where: rows and columns of the positions.
        shape: shape of the batch.
    """
    seen = _Seen()

    def pick(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden = given[0]
        if seen.picked or hidden.dim() != 3 or hidden.shape[:2] != shape:
            return None
        seen.picked = True
        return (hidden[where].unsqueeze(0), *given[1:])

    hook = head.register_forward_pre_hook(pick)
    try:
        yield seen
    finally:
        hook.remove()


def _summed(logits: Tensor, targets: Tensor) -> Tensor:
    total: Tensor = _SummedNll.apply(logits, targets)  # type: ignore[no-untyped-call]
    return total


class _SummedNll(torch.autograd.Function):
    """Cross entropy, summed, without an fp32 copy of the logits, forward or backward."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the sum, in fp32.

        Args:
            ctx: torch's.
            logits: shape (N, V).
            targets: shape (N,).
        """
        with torch.autocast(logits.device.type, enabled=False):
            norms = torch.cat([piece.float().logsumexp(dim=-1) for piece in _pieces(logits)]) if len(logits) else None
            if norms is None:
                ctx.save_for_backward(logits, targets, logits.new_zeros(0, dtype=torch.float32))
                return logits.new_zeros((), dtype=torch.float32)
            chosen = logits.gather(1, targets[:, None])[:, 0].float()
            ctx.save_for_backward(logits, targets, norms)
            return (norms - chosen).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        """Return the gradient of the logits, in their dtype."""
        logits, targets, norms = ctx.saved_tensors
        [upstream] = gradients
        gradient = torch.empty_like(logits)
        rows = _rows_at_once(logits)
        with torch.autocast(logits.device.type, enabled=False):
            for start in range(0, len(logits), rows):
                here = slice(start, start + rows)
                piece = logits[here].float().sub_(norms[here, None]).exp_()
                piece.scatter_add_(1, targets[here, None], piece.new_full((len(piece), 1), -1.0))
                gradient[here] = piece.mul_(upstream)
        return gradient, None


def _rows_at_once(logits: Tensor) -> int:
    return max(1, _FP32_AT_ONCE // logits.shape[-1])


def _pieces(logits: Tensor) -> tuple[Tensor, ...]:
    return torch.split(logits, _rows_at_once(logits))

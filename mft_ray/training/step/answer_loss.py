"""The loss where there are answers: logits at labelled positions only, and of a bounded number of them at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from mft_ray.data.encoding import IGNORED
from mft_ray.masking.kernels import Kernel
from mft_ray.training.step.head import Head

# Logits that exist at a time, and their fp32 copy: 64 MB of it. On a GPU more: of a head with 128,256 tokens, 130
# positions at a time take twice as long as 523.
_AT_ONCE = 2**24
_TIMES_ON_A_GPU = 4


class AnswerLoss:
    """Sums the negative log-likelihood of the labelled tokens of a batch.

    Whatever a model does to its logits entry by entry (a cap, a scale) is done to those few as well. A model that does
    something else with them has its head run at every position, as before: that is found out at the first batch.

    Where more logits are needed than may exist at once, they are made in pieces, and their gradients taken along.

    Args:
        model: causal LM with an output embedding.
        whole: whether its parameters are whole at any time; ZeRO-3 has them in pieces, and gathers them once a forward.
    """

    def __init__(self, model: nn.Module, whole: bool = True) -> None:
        output = getattr(model, "get_output_embeddings", lambda: None)()
        self._output: nn.Module | None = output if isinstance(output, nn.Module) else None
        self._width = getattr(output, "weight", torch.empty(1)).shape[0]
        self._head: Head | None = Head(model, self._output) if whole and self._output and Head.known(model) else None

    def __call__(self, model: Any, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
        """Run the model and return the sum.

        Args:
            model: the model, or an engine around it.
            inputs: what it takes, on its device: ``input_ids``, and what tells padding or examples apart.
            labels: token at each position, shape (B, T), or -100. On the CPU: where answers are is then known without
                waiting for the device.
        """
        device = inputs["input_ids"].device
        targets = labels[:, 1:]  # position t predicts token t + 1
        rows, columns = (targets != IGNORED).nonzero(as_tuple=True)
        wanted = targets[rows, columns].to(device, non_blocking=True)
        where = (rows.to(device, non_blocking=True), columns.to(device, non_blocking=True))
        at_once = _rows_at_once(self._width, device)
        if self._head and len(wanted) > at_once:
            hidden = self._head.hidden_states(model, inputs, where)
            if hidden is not None:
                return self._head.summed(_nll, hidden, wanted, at_once)
            self._head = None  # its logits do not follow from its decoder's hidden states
        if self._output is not None:
            with _only_at(self._output, where, labels.shape) as seen:
                logits = model(**inputs, use_cache=False).logits
            if seen.picked and logits.shape[:-1] == (1, len(wanted)):
                return _summed(logits[0], wanted)
            if seen.picked:
                # Logits that are not what the head said at those positions: never again for this model.
                self._output = self._head = None
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
        """Return the sum, in fp32. Arguments as of `_nll`."""
        total, ctx.gradient = _nll(logits, targets, ctx.needs_input_grad[0])
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        """Return the gradient of the logits, in their dtype."""
        [upstream] = gradients
        # In place, as it is large: a second backward pass finds none.
        gradient, ctx.gradient = ctx.gradient, None
        return gradient.mul_(upstream), None


def _nll(logits: Tensor, targets: Tensor, learned: bool = True) -> tuple[Tensor, Tensor | None]:
    """Return the summed negative log-likelihood, in fp32, and its gradient if that is wanted, in the logits' dtype.

    Args:
        logits: shape (N, V).
        targets: shape (N,).
        learned: whether the gradient is wanted.
    """
    total = logits.new_zeros((), dtype=torch.float32)
    gradient = torch.empty_like(logits) if learned else None
    rows = _rows_at_once(logits.shape[-1], logits.device)
    with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
        for start in range(0, len(logits), rows):
            here = slice(start, start + rows)
            nll, found = _of_piece(logits[here], targets[here, None], learned)
            total += nll
            if gradient is not None and found is not None:
                gradient[here] = found
    return total, gradient


def _of_piece(logits: Tensor, targets: Tensor, learned: bool) -> tuple[Tensor, Tensor | None]:
    if logits.is_cuda and learned:
        return _in_one_kernel(logits, targets)
    logprobs = log_softmax(logits, dim=-1, dtype=torch.float32)
    nll = -logprobs.gather(1, targets).sum()
    if not learned:
        return nll, None
    probabilities = logprobs.exp_()
    return nll, probabilities.scatter_add_(1, targets, probabilities.new_full(targets.shape, -1.0))


@Kernel
def _in_one_kernel(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `_of_piece` does, the gradient in the logits' dtype, by what a compiler can put together."""
    logprobs = log_softmax(logits, dim=-1, dtype=torch.float32)
    answers = torch.arange(logits.shape[-1], device=logits.device) == targets
    return -logprobs.gather(1, targets).sum(), (logprobs.exp() - answers.float()).to(logits.dtype)


def logits_at_once(device: str) -> int:
    """Return how many logits exist at a time, at most, on a kind of device."""
    return _AT_ONCE * (_TIMES_ON_A_GPU if device == "cuda" else 1)


def _rows_at_once(width: int, device: torch.device) -> int:
    return max(1, logits_at_once(device.type) // width)

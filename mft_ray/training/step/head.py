"""What a model makes of its last hidden states: logits, of some positions at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mft_ray.training.step.agreement import UNFIT, agree
from mft_ray.training.step.stand_in import stood_in

# A loss of logits (N, V) and targets (N,), summed, and its gradient.
Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]


class Head:
    """All that a causal LM does after its decoder, whatever that is: projection, scale, cap.

    The decoder is stood in for, so that the model's own code makes logits of any hidden states.

    Args:
        model: causal LM of which `known` says yes.
        output: its output embedding.
    """

    def __init__(self, model: nn.Module, output: nn.Module) -> None:
        self._model: Any = model
        get: Any = self._model.get_decoder
        self._decoder = get()
        decoder = {id(parameter) for parameter in self._decoder.parameters()}
        outside = [parameter for parameter in model.parameters() if id(parameter) not in decoder]
        # Tied, the output embedding is the decoder's too.
        self._weights = {id(weight): weight for weight in [*outside, *output.parameters()] if weight.requires_grad}
        self._checked = False
        self._output: type[Any] = tuple
        self._autocast: Callable[[], AbstractContextManager[Any]] = nullcontext

    @staticmethod
    def known(model: nn.Module) -> bool:
        """Say whether a model tells what of it is the decoder."""
        get: Any = getattr(model, "get_decoder", lambda: None)
        decoder = get()
        return isinstance(decoder, nn.Module) and decoder is not model

    def hidden_states(self, model: Any, inputs: dict[str, Tensor], where: tuple[Tensor, Tensor]) -> Tensor | None:
        """Return a model's last hidden states at some positions.

        Args:
            model: the model, or an engine around it.
            inputs: what it takes.
            where: rows and columns of the positions.

        Returns:
            Shape (N, H); None where the first batch shows that logits do not follow from them.
        """
        with self._cut_short(where) as found:
            logits = model(**inputs, use_cache=False).logits
        if not found:  # it goes another way
            return None
        hidden, firsts = found
        if not self._checked:
            with torch.no_grad(), self._autocast():
                self._checked = self._agrees(logits[:, 0], firsts)
        return hidden if self._checked else None

    def summed(self, loss: Loss, hidden: Tensor, targets: Tensor, rows: int) -> Tensor:
        """Return a loss, summed over positions of which only some have logits at a time.

        Args:
            loss: gives the loss of a piece, and its gradient.
            hidden: as of `hidden_states`.
            targets: shape (N,).
            rows: positions at a time.
        """
        with self._autocast():
            total: Tensor = _InPieces.apply(self._logits, loss, targets, rows, hidden, *self._weights.values())  # type: ignore[no-untyped-call]
        return total

    @contextmanager
    def _cut_short(self, where: tuple[Tensor, Tensor]) -> Iterator[list[Tensor]]:
        """Have a forward make logits of first positions only; yield hidden states at those asked for and there."""
        found: list[Tensor] = []

        def take(_: nn.Module, __: Any, output: Any) -> Any:
            hidden = output[0]
            firsts = hidden[:, :1].detach().contiguous()  # or torch multiplies matrix by matrix, each with a copy
            found.extend([hidden[where], firsts[:, 0]])
            kind = hidden.device.type
            # Which an engine turns on for the forward only.
            enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
            self._autocast = lambda: torch.autocast(kind, dtype, enabled)
            self._output = type(output)
            if isinstance(output, tuple):
                return (firsts, *output[1:])
            output.last_hidden_state = firsts
            return output

        hook = self._decoder.register_forward_hook(take)
        try:
            yield found
        finally:
            hook.remove()

    def _logits(self, hidden: Tensor) -> Tensor:
        whole = hidden[None]
        states = (whole,) if self._output is tuple else self._output(last_hidden_state=whole)
        nobody_looks_at = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        with stood_in(self._decoder, lambda *_, **__: states):
            logits: Tensor = self._model(input_ids=nobody_looks_at, use_cache=False).logits[0]
        return logits

    def _agrees(self, logits: Tensor, hidden: Tensor) -> bool:
        try:
            return agree(self._logits(hidden), logits)
        except UNFIT:
            return False


class _InPieces(torch.autograd.Function):
    """A loss summed piece by piece, gradients along: nothing of a piece is kept, and nothing is computed twice."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Callable[[Tensor], Tensor],
        loss: Loss,
        targets: Tensor,
        rows: int,
        hidden: Tensor,
        *weights: Tensor,
    ) -> Tensor:
        """Return the sum, in fp32. Arguments as of `Head.summed`."""
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        states, grown = torch.empty_like(hidden), [torch.zeros_like(weight) for weight in weights]
        for start in range(0, len(hidden), rows):
            here = slice(start, start + rows)
            with torch.enable_grad():
                piece = hidden[here].detach().requires_grad_()
                made = logits(piece)
            nll, gradient = loss(made.detach(), targets[here])
            found = torch.autograd.grad(made, [piece, *weights], gradient)
            del made, gradient
            states[here] = found[0]
            for whole, more in zip(grown, found[1:], strict=True):
                whole += more
            total += nll
        ctx.save_for_backward(states, *grown)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        """Return the gradients of hidden states and weights."""
        [upstream] = gradients
        return (None, None, None, None, *(each * upstream for each in ctx.saved_tensors))

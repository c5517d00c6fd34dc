"""The loss at labelled positions is the loss: to rounding, for every family of decoders, with its gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, SIZES, Architecture
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

from mft_ray.data.encoding import IGNORED
from mft_ray.training.step import answer_loss as module
from mft_ray.training.step.answer_loss import AnswerLoss

TOKENS = torch.tensor([[3, 4, 5, 6, 7, 8], [9, 10, 11, 12, 0, 0]])
INPUTS = {"input_ids": TOKENS, "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2])}
LABELS = torch.tensor([[IGNORED, IGNORED, IGNORED, 6, 7, 8], [IGNORED, IGNORED, 11, 12, IGNORED, IGNORED]])
# Models that cap or scale their logits.
SCALED = [Architecture("cohere"), Architecture("granite", config={"logits_scaling": 3.0})]


def plain(model: nn.Module, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    logits = model(**inputs, use_cache=False).logits
    return cross_entropy(
        logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *SCALED], ids=lambda each: each.kind)
def test_it_is_the_loss_of_all_positions(architecture: Architecture) -> None:
    model = architecture.make()
    expected = plain(model, INPUTS, LABELS)
    theirs = gradients(model, expected)
    loss = AnswerLoss(model)
    ran: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda _, given, __: ran.append(given[0].shape[:-1].numel()))
    found = loss(model, INPUTS, LABELS)
    assert ran == [5]  # the head ran at five of twelve positions
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    mine = gradients(model, found)
    assert mine.keys() == theirs.keys()
    for name, gradient in theirs.items():
        rounding = 5e-5 * max(1.0, float(gradient.abs().max()))  # fp32 sums in another order
        torch.testing.assert_close(mine[name], gradient, rtol=1e-4, atol=rounding, msg=name)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *SCALED], ids=lambda each: each.kind)
def test_it_is_the_same_in_pieces(architecture: Architecture, monkeypatch: pytest.MonkeyPatch) -> None:
    model = architecture.make()
    expected = plain(model, INPUTS, LABELS)
    theirs = gradients(model, expected)
    monkeypatch.setattr(module, "_AT_ONCE", 2 * SIZES["vocab_size"])
    loss = AnswerLoss(model)
    ran: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda _, given, __: ran.append(given[0].shape[:-1].numel()))
    for _ in range(2):  # nothing is left behind
        ran.clear()
        found = loss(model, INPUTS, LABELS)
        assert ran[-3:] == [2, 2, 1]  # never more than two at once
        assert max(ran) == 2
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        mine = gradients(model, 2 * found)
        assert mine.keys() == theirs.keys()
        for name, gradient in theirs.items():
            rounding = 2e-5 * max(1.0, float(gradient.abs().max()))
            torch.testing.assert_close(mine[name], 2 * gradient, rtol=1e-4, atol=rounding, msg=name)
    torch.testing.assert_close(plain(model, INPUTS, LABELS), expected)


def test_logits_that_do_not_follow_from_hidden_states_are_not_made_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ARCHITECTURES[0].make()
    whole = model.forward

    def forward(input_ids: Tensor, **inputs: Any) -> Any:
        found = whole(input_ids, **inputs)
        found.logits = found.logits + input_ids[:, :1, None]
        found.logits[..., 0] = 0
        return found

    monkeypatch.setattr(model, "forward", forward)
    monkeypatch.setattr(module, "_AT_ONCE", 2 * SIZES["vocab_size"])
    loss, expected = AnswerLoss(model), plain(model, INPUTS, LABELS)
    for _ in range(2):
        torch.testing.assert_close(loss(model, INPUTS, LABELS), expected)


def test_in_pieces_it_computes_in_the_dtype_of_the_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """As DeepSpeed's engine does, which turns autocast on in its forward only."""
    model = ARCHITECTURES[0].make()

    def engine(**inputs: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return model(**inputs)

    whole = AnswerLoss(model)(engine, INPUTS, LABELS)
    monkeypatch.setattr(module, "_AT_ONCE", 2 * SIZES["vocab_size"])
    dtypes: list[torch.dtype] = []
    model.lm_head.register_forward_hook(lambda _, __, output: dtypes.append(output.dtype))
    torch.testing.assert_close(AnswerLoss(model)(engine, INPUTS, LABELS), whole, rtol=1e-3, atol=1e-3)
    assert set(dtypes) == {torch.bfloat16}


def test_logits_in_pieces_stay_below_a_bound() -> None:
    largest: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
            out = function(*given, **(named or {}))
            if isinstance(out, Tensor):
                largest.append(out.numel())
            return out

    architecture = Architecture("llama", config={"vocab_size": 2**16, "max_position_embeddings": 1024})
    model, tokens = architecture.make(), torch.randint(2**16, (1, 1024))
    with Watch():
        AnswerLoss(model)(model, {"input_ids": tokens}, tokens).backward()
    assert max(largest) <= module._AT_ONCE < 1023 * 2**16


def test_pieces_sum_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = torch.randn(37, 11, requires_grad=True), torch.randint(11, (37,))
    cross_entropy(logits, targets, reduction="sum").backward()
    expected, logits.grad = logits.grad, None
    monkeypatch.setattr(module, "_AT_ONCE", 4 * 11)
    (3 * module._summed(logits, targets)).backward()
    assert logits.grad is not None and expected is not None  # noqa: PT018
    torch.testing.assert_close(logits.grad, 3 * expected)


def test_half_precision_logits_are_summed_in_fp32() -> None:
    logits = torch.randn(64, 1000).to(torch.bfloat16).requires_grad_()
    targets = torch.randint(1000, (64,))
    found = module._summed(logits, targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, cross_entropy(logits.float(), targets, reduction="sum"))
    found.backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16


def test_a_batch_without_answers_has_no_loss() -> None:
    model = ARCHITECTURES[0].make()
    found = AnswerLoss(model)(model, INPUTS, torch.full_like(LABELS, IGNORED))
    assert float(found) == 0
    found.backward()


class Mixing(nn.Module):
    """A model whose logits are not its head's alone: what positions say is mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES))

    def get_output_embeddings(self) -> nn.Module:
        head: nn.Module = self.inner.get_output_embeddings()
        return head

    def forward(self, **inputs: Any) -> Any:
        found = self.inner(**inputs)
        first = found.logits[:, :1] if found.logits.shape[1] == TOKENS.shape[1] else found.logits.new_zeros(2, 7, 13)
        found.logits = found.logits + first if first.shape[1] == 1 else first
        return found


def test_a_model_that_does_otherwise_has_its_head_run_everywhere() -> None:
    torch.manual_seed(0)
    model = Mixing()
    loss = AnswerLoss(model)
    for _ in range(2):
        torch.testing.assert_close(loss(model, INPUTS, LABELS), plain(model, INPUTS, LABELS))


def test_no_fp32_copy_of_the_logits_is_made() -> None:
    """Memory beyond logits and their gradient stays a piece, however many positions there are."""
    largest: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
            out = function(*given, **(named or {}))
            if isinstance(out, Tensor) and out.dtype == torch.float32:
                largest.append(out.numel())
            return out

    logits = torch.randn(4096, 8192).to(torch.bfloat16).requires_grad_()
    with Watch():
        module._summed(logits, torch.randint(8192, (4096,))).backward()
    assert max(largest) <= module._AT_ONCE < logits.numel()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_host_does_not_wait_for_the_device() -> None:
    model = ARCHITECTURES[0].make().cuda()
    # Without a mask, which transformers would look at.
    loss, inputs = AnswerLoss(model), {"input_ids": INPUTS["input_ids"].cuda()}
    loss(model, inputs, LABELS).backward()  # what is done once only
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss(model, inputs, LABELS).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import Make
from torch import nn
from transformers import AutoModelForCausalLM

from mft_ray.masking import fingerprint


def test_equal_models_have_equal_fingerprints(make: Make) -> None:
    assert fingerprint(make()) == fingerprint(make())
    assert len(fingerprint(make())) == 64


def test_one_bit_makes_another(make: Make) -> None:
    model = make()
    with torch.no_grad():
        weight = next(model.parameters()).view(-1)
        weight[-1:].view(torch.int32).bitwise_xor_(1)
    assert fingerprint(model) != fingerprint(make())


def test_dtype_name_and_shape_count() -> None:
    model = nn.Linear(2, 3)
    assert fingerprint(nn.Sequential(model)) != fingerprint(model)
    before = fingerprint(model)
    model.weight.data = model.weight.data.view(2, 3)
    assert fingerprint(model) != before
    # The same bytes, read differently.
    zeros = [nn.ParameterList([torch.zeros(4, dtype=dtype)]) for dtype in (torch.bfloat16, torch.float16)]
    assert fingerprint(zeros[0]) != fingerprint(zeros[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_dtype_and_layout(dtype: torch.dtype) -> None:
    odd = [torch.zeros(()), torch.zeros(0, 3), torch.ones(3, 2).t()]
    assert fingerprint(nn.ParameterList(nn.Parameter(tensor.to(dtype)) for tensor in odd))


def test_a_saved_model_keeps_its_fingerprint(make_lm: Make, tmp_path: Path) -> None:
    model: Any = make_lm()
    model.save_pretrained(tmp_path)
    assert fingerprint(AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")) == fingerprint(model)

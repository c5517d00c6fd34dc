"""README's Python, run as it stands there; and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from mft_ray.masking import keep_mask
from mft_ray.models.loading import new_model

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_snippet_masks_a_model_in_ten_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in snippet.splitlines() if line and "import" not in line]) <= 10
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 8}
    monkeypatch.chdir(tmp_path)
    new_model({"model_type": "llama", **sizes}, 50, seed=0).save_pretrained("my-fine-tuned-model")
    tokens = torch.arange(12).view(2, 6)
    exec(snippet, {"batches": [{"input_ids": tokens, "labels": tokens}] * 4})

    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in ("my-fine-tuned-model", "my-masked-model"))
    for name, weight in after.named_parameters():
        original = before.get_parameter(name)
        removed = (weight == 0) & (original != 0)
        masked = re.search(r"layers\.[4-7]\..*proj", name)
        assert int(removed.sum()) == (weight.numel() - int(keep_mask(weight, 0.1).sum()) if masked else 0), name
        assert torch.equal(weight, torch.where(removed, 0, original)), name


def test_local_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []

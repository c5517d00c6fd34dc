from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from mft_ray.models.positions import positions

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("model_type", "settings", "expected"),
    [
        ("llama", {"max_position_embeddings": 2048}, 2048),
        ("gpt2", {"n_positions": 512}, 512),
        ("gptj", {"n_positions": 300}, 300),
        ("opt", {"max_position_embeddings": 100}, 100),
        ("gpt_neox", {"max_position_embeddings": 77}, 77),
        ("bloom", {}, None),
        ("mamba", {}, None),
        ("mpt", {"max_seq_len": 640}, 640),
        ("llama", {"max_position_embeddings": 2048, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}, 4096),
        ("qwen2", {"max_position_embeddings": 1024, "rope_scaling": YARN}, 4096),
        ("qwen2", {"max_position_embeddings": 8192, "rope_scaling": YARN}, 8192),
        ("llama", {"max_position_embeddings": 131_072, "rope_scaling": LLAMA3}, 131_072),
    ],
)
def test_positions_by_what_a_configuration_calls_them(
    model_type: str, settings: dict[str, Any], expected: int | None
) -> None:
    assert positions(AutoConfig.for_model(model_type, **settings)) == expected


def test_the_positions_of_a_models_text_part() -> None:
    config = AutoConfig.for_model("gemma3", text_config={"max_position_embeddings": 4096})
    assert positions(config) == 4096

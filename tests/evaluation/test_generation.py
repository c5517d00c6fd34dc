"""Generated text against transformers' own, one prompt at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from mft_ray.data import arithmetic
from mft_ray.errors import UserError
from mft_ray.evaluation.generation import Generated, generate
from mft_ray.models.loading import new_model

PROMPTS = ["1+1=", "23+4=", "99-98=", "5", "12+34+56=", "7-7=", "1234567890", "0+0="]
LIMIT = 24


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return arithmetic.tokenizer()


@pytest.fixture(scope="module", params=["llama", "gpt2", "mistral"])
def model(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> PreTrainedModel:
    sizes: dict[str, Any] = {
        "llama": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
        "mistral": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "sliding_window": 8,
        },
    }
    made = new_model({"model_type": request.param, **sizes[request.param]}, len(tokenizer), 0)
    made.config.pad_token_id = made.generation_config.pad_token_id = tokenizer.pad_token_id
    made.generation_config.eos_token_id = tokenizer.eos_token_id
    # Spread out, so that texts differ; in doubles, so that no choice hangs on how a batch was padded.
    torch.manual_seed(0)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    return made.double().eval()


def alone(model: PreTrainedModel, tokenizer: Tokenizer, prompt: str) -> list[int]:
    given = tokenizer(prompt, return_tensors="pt")
    inputs = {name: given[name] for name in ("input_ids", "attention_mask")}
    output = model.generate(**inputs, do_sample=False, max_new_tokens=LIMIT)
    return output[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_a_batch_gives_what_each_prompt_gives_alone(
    model: PreTrainedModel, tokenizer: Tokenizer, batch_size: int
) -> None:
    made = dict(generate(model, tokenizer, PROMPTS, max_new_tokens=LIMIT, batch_size=batch_size))
    assert sorted(made) == list(range(len(PROMPTS)))
    for index, prompt in enumerate(PROMPTS):
        tokens = alone(model, tokenizer, prompt)
        ended = tokens[-1] == tokenizer.eos_token_id
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        assert made[index] == Generated(text, len(tokens), ended), prompt


@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_stop_string_ends_a_text_and_no_other(model: PreTrainedModel, tokenizer: Tokenizer, batch_size: int) -> None:
    tokens = [alone(model, tokenizer, prompt) for prompt in PROMPTS]
    whole = [tokenizer.decode(each, skip_special_tokens=True) for each in tokens]
    # What some texts have early, some late and some not at all.
    stop = max(
        {text[at : at + 2] for text in whole for at in range(len(text) - 1)},
        key=lambda pair: len({text.find(pair) for text in whole}),
    )
    made = dict(generate(model, tokenizer, PROMPTS, until=[stop], max_new_tokens=LIMIT, batch_size=batch_size))
    places = [text.find(stop) for text in whole]
    assert len(set(places)) > 2
    for index, (text, at) in enumerate(zip(whole, places, strict=True)):
        assert made[index].text == (text[:at] if at >= 0 else text)
        if at >= 0:
            assert made[index].finished
            before = tokenizer.decode(tokens[index][: made[index].tokens - 1], skip_special_tokens=True)
            assert stop not in before  # not one step more than it takes


def test_the_left_of_a_long_prompt_is_cut_off(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    limit = model.config.max_position_embeddings
    if limit > 100:
        model.config.max_position_embeddings = limit = 64
    long, short = "123456789" * 20, ("123456789" * 20)[-(limit - LIMIT) :]
    made = dict(generate(model, tokenizer, [long, short], max_new_tokens=LIMIT))
    assert made[0] == made[1]


def test_a_model_without_room_is_refused(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    positions = model.config.max_position_embeddings
    with pytest.raises(UserError, match=f"{positions} positions, so {positions} new tokens leave no room"):
        list(generate(model, tokenizer, ["1"], max_new_tokens=positions))


def test_nothing_is_generated_for_nothing(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    assert list(generate(model, tokenizer, [], max_new_tokens=LIMIT)) == []

from collections.abc import Iterator
from typing import Any, get_args

import pytest
import torch
from tokenizers import Tokenizer, models
from tokenizers.decoders import Fuse
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mft_ray.config import Metric
from mft_ray.evaluation.metrics import BINARY_METRICS, METRICS, _batches, per_example

PAD, EOS, VOCABULARY = 0, 1, 24
ANSWER_TOKENS = 6
Row = dict[str, Any]


@pytest.fixture(scope="module")
def model() -> Iterator[LlamaForCausalLM]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.5,  # far from uniform: greedy choices are clear and differ between prompts
        max_position_embeddings=64,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=EOS,
    )
    with torch.random.fork_rng():
        yield LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    pieces = ["<pad>", "<eos>", "#", " ", *"0123456789", *"abcdefghij"]
    assert len(pieces) == VOCABULARY
    inner = Tokenizer(models.WordLevel({piece: at for at, piece in enumerate(pieces)}, unk_token="<pad>"))
    inner.decoder = Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>")


def _greedy(model: LlamaForCausalLM, prompt: list[int], count: int, eos: int) -> list[int]:
    """One prompt at a time, without padding or a cache: what the metrics must agree with."""
    tokens: list[int] = []
    with torch.no_grad():
        while len(tokens) < count and eos not in tokens:
            tokens.append(int(model(torch.tensor([prompt + tokens])).logits[0, -1].argmax()))
    return tokens


def _row(prompt: list[int], answer: list[int], name: str = "") -> Row:
    labels = [-100] * len(prompt) + answer
    return {"id": name, "input_ids": prompt + answer, "labels": labels, "prompt_ids": prompt, "answer": ""}


def _prompts(count: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 12, (count,), generator=generator).tolist()
    return [torch.randint(2, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def _score(model: torch.nn.Module, rows: list[Row], metric: str, **changes: Any) -> list[float]:
    settings = {"pad_id": PAD, "eos_id": EOS, "batch_size": 4, "device": "cpu"} | changes
    return per_example(model, rows, metric, **settings)


def test_exact_match_is_greedy_decoding_reproducing_the_answer(model: LlamaForCausalLM) -> None:
    prompts = _prompts(40)
    # An end token that this untrained model does come to: whatever it likes to say third.
    third = [_greedy(model, prompt, 3, eos=-1)[2] for prompt in prompts]
    eos = max(set(third), key=third.count)
    rows = []
    for at, prompt in enumerate(prompts):
        answer = _greedy(model, prompt, ANSWER_TOKENS, eos)
        if at % 3 == 1:  # one token is another
            wrong = at % len(answer)
            answer[wrong] = (answer[wrong] + 1) % VOCABULARY
        if at % 3 == 2:  # the answer ends too early
            answer[-1] = eos
        rows.append(_row(prompt, answer))
    assert sum(row["labels"][-1] == eos for row in rows) >= 10
    expected = []
    for row in rows:
        answer = row["input_ids"][len(row["prompt_ids"]) :]
        output = model.generate(
            torch.tensor([row["prompt_ids"]]),
            attention_mask=torch.ones(1, len(row["prompt_ids"]), dtype=torch.long),
            do_sample=False,
            max_new_tokens=len(answer),
            eos_token_id=eos,
            pad_token_id=PAD,
        )
        expected.append(float(output[0, len(row["prompt_ids"]) :].tolist() == answer))
    assert {0.0, 1.0} == set(expected)
    assert _score(model, rows, "exact_match", eos_id=eos) == expected


def test_short_examples_fill_the_memory_of_long_ones() -> None:
    lengths = [3, 40, 2, 9, 10, 21, 1, 4, 2]
    batches = _batches(lengths, 2, 5)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    padded = [[lengths[index] for index in batch] for batch in batches]
    assert padded == [[40, 21], [10, 9, 4, 3, 2], [2, 1]]
    assert [len(batch) for batch in _batches(lengths, 2, 2)] == [2, 2, 2, 2, 1]
    assert _batches([], 2, 5) == []


@pytest.mark.parametrize("metric", ["exact_match", "answer_logprob"])
def test_filling_batches_by_tokens_changes_no_score(model: LlamaForCausalLM, metric: str) -> None:
    rows = [_row(prompt, [3, 4], str(index)) for index, prompt in enumerate(_prompts(20))]
    one, filled = (_score(model, rows, metric, batch_size=size, most=most) for size, most in ((1, 1), (2, 12)))
    assert filled == pytest.approx(one, abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_answer_logprob_is_the_mean_over_answer_tokens(model: LlamaForCausalLM, batch_size: int) -> None:
    rows = [_row(prompt, [5, 6, 7][: 1 + at % 3]) for at, prompt in enumerate(_prompts(11))]
    rows.append({"id": "two turns", "input_ids": [3, 4, 5, 6, 7, 8], "labels": [-100, 4, -100, -100, 7, 8]})
    expected = []
    for row in rows:
        with torch.no_grad():
            logprobs = model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        terms = [logprobs[at - 1, label].item() for at, label in enumerate(row["labels"]) if label != -100]
        expected.append(sum(terms) / len(terms))
    assert _score(model, rows, "answer_logprob", batch_size=batch_size) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("metric", ["exact_match", "answer_logprob"])
def test_a_model_that_cannot_leave_logits_out(model: LlamaForCausalLM, metric: str) -> None:
    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool) -> Any:
            return self.inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    rows = [_row(prompt, _greedy(model, prompt, 2, EOS)) for prompt in _prompts(9)]
    assert _score(Plain(), rows, metric) == pytest.approx(_score(model, rows, metric), abs=1e-6)


def test_logprobs_in_pieces_are_the_same(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [_row(prompt, [5, 6, 7]) for prompt in _prompts(9)]
    whole = _score(model, rows, "answer_logprob")
    monkeypatch.setattr("mft_ray.evaluation.metrics._FP32_LOGITS_AT_ONCE", 2 * VOCABULARY)
    assert _score(model, rows, "answer_logprob") == pytest.approx(whole, abs=1e-6)


def test_bfloat16_compute_stays_close_and_logprobs_are_fp32(model: LlamaForCausalLM) -> None:
    rows = [_row(prompt, [5, 6, 7]) for prompt in _prompts(9)]
    exact = _score(model, rows, "answer_logprob")
    rounded = _score(model, rows, "answer_logprob", autocast=torch.bfloat16)
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.1)
    as_bf16 = torch.tensor(rounded).bfloat16().float().tolist()
    assert rounded != as_bf16


def test_generated_match_agrees_with_decoding_one_by_one(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    prompts = _prompts(20, seed=3)
    third = [_greedy(model, prompt, 3, eos=-1)[2] for prompt in prompts]
    eos = max(set(third), key=third.count)
    rows, ended = [], 0
    for at, prompt in enumerate(prompts):
        tokens = _greedy(model, prompt, ANSWER_TOKENS, eos)
        ends = [place for place, token in enumerate(tokens) if token in (eos, EOS)]  # EOS is the model's own
        text = tokenizer.decode(tokens[: min(ends, default=None)], skip_special_tokens=True)
        ended += bool(ends)
        rows.append(_row(prompt, []) | {"answer": text if at % 2 else text + "a"})
    assert 3 <= ended < 20
    scores = _score(model, rows, "generated_match", eos_id=eos, tokenizer=tokenizer, max_new_tokens=ANSWER_TOKENS)
    assert scores == [float(at % 2) for at in range(20)]


def test_the_models_own_generation_defaults_do_not_leak_in(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, recwarn: pytest.WarningsRecorder
) -> None:
    rows = [
        _row(prompt, []) | {"answer": tokenizer.decode(_greedy(model, prompt, 5, EOS), skip_special_tokens=True)}
        for prompt in _prompts(8)
    ]
    own = model.generation_config
    before = own.to_dict()
    own.update(do_sample=True, temperature=5.0, repetition_penalty=3.0, num_beams=2, min_new_tokens=9)
    try:
        assert _score(model, rows, "generated_match", tokenizer=tokenizer, max_new_tokens=5) == [1.0] * 8
        assert model.generation_config is own
        assert own.temperature == 5.0
    finally:
        own.update(**before)


def test_the_models_own_end_tokens_end_an_answer_too(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    prompt = [4, 5, 6]
    tokens = _greedy(model, prompt, 4, eos=-1)
    row = _row(prompt, []) | {"answer": tokenizer.decode(tokens[:1], skip_special_tokens=True)}
    assert tokens[1] != tokens[0]
    own = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [EOS, tokens[1]]
    try:
        assert _score(model, [row], "generated_match", tokenizer=tokenizer, max_new_tokens=4) == [1.0]
    finally:
        model.generation_config.eos_token_id = own


def test_generation_stops_where_positions_end(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=8,
        n_embd=16,
        n_layer=1,
        n_head=2,
        bos_token_id=EOS,
        eos_token_id=EOS,
    )
    rows = [_row([4, 5, 6, 7, 8], []) | {"answer": "#"}]
    scores = _score(GPT2LMHeadModel(config), rows, "generated_match", tokenizer=tokenizer)
    assert scores in ([0.0], [1.0])


@pytest.mark.parametrize("metric", METRICS)
def test_modes_are_restored_and_nothing_is_learned(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, metric: str
) -> None:
    model.train()
    frozen = model.model.layers[0].eval()
    try:
        rows = [_row(prompt, [5]) for prompt in _prompts(3)]
        scores = _score(model, rows, metric, tokenizer=tokenizer, max_new_tokens=2)
        assert model.training
        assert model.lm_head.training
        assert not frozen.training
        assert all(parameter.grad is None for parameter in model.parameters())
        broken = [{"input_ids": None, "prompt_ids": None}]
        with pytest.raises(TypeError):
            _score(model, broken, metric, tokenizer=tokenizer)
        with pytest.raises(ValueError, match="'empty' has no answer token"):
            _score(model, [_row([4, 5], [], "empty")], "exact_match")
        assert model.training
    finally:
        model.eval()
    assert all(score in (0, 1) for score in scores) == (metric in BINARY_METRICS)


@pytest.mark.parametrize("metric", METRICS)
def test_no_rows_no_scores(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, metric: str) -> None:
    assert _score(model, [], metric, tokenizer=tokenizer) == []


def test_progress_counts_examples(model: LlamaForCausalLM) -> None:
    seen: list[tuple[int, int]] = []
    rows = [_row(prompt, [5]) for prompt in _prompts(10)]
    _score(model, rows, "exact_match", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 10), (8, 10), (10, 10)]


def test_an_unknown_metric_and_a_missing_tokenizer(model: LlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match="unknown metric 'bleu'; there are exact_match"):
        _score(model, [], "bleu")
    with pytest.raises(ValueError, match="tokenizer"):
        _score(model, [], "generated_match")


def test_the_metrics_are_those_of_the_config() -> None:
    assert set(get_args(Metric)) == set(METRICS)

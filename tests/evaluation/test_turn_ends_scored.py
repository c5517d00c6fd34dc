"""A model that ends turns as its template does scores alike by every metric, and thoughts are no part of an answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mft_ray.config import EvaluationConfig
from mft_ray.data.encoding import encode
from mft_ray.data.examples import Example
from mft_ray.errors import UserError
from mft_ray.evaluation.benchmark import load_tasks
from mft_ray.evaluation.generation import generate
from mft_ray.evaluation.metrics import per_example

TURNS = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<turn>' + m['role'] + '\n' + m['content'] + '<turn_end>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>assistant\n' }}{% endif %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<turn>' + m['role'] + '\n' + m['content'] + '<turn_end>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>assistant\n' }}{% else %}{{ eos_token }}{% endif %}"
)
INST = (
    "{% for m in messages %}{{ bos_token + m['content'] + '>' if m['role'] == 'user' else ' ' + m['content'] + ' ' + "
    "eos_token }}{% endfor %}"
)
LINES = (
    "{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'answer: ' }}{% endif %}"
)
THINKS = (
    "{% for m in messages %}{{ '<turn>' + m['role'] + '\n' + m['content'] + '<turn_end>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>assistant\n' }}{% if enable_thinking is not defined or enable_thinking %}"
    "{{ '<think>\n' }}{% endif %}{% endif %}"
)
ANSWERS = {"3+3": "6", "4+3": "7", "9-4": "5", "8-8": "0"}


def tokenizer_with(template: str | None, special: Sequence[str] = (), bos: bool = False) -> PreTrainedTokenizerFast:
    """A character-level tokenizer; BOS before every text, if so wanted."""
    words = ["<pad>", "<bos>", "<eos>", "<turn>", "<turn_end>", *special, "\n", *map(chr, range(32, 127))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=["<turn>", "<turn_end>", *special],
        chat_template=template,
    )


def having_learned(texts: Sequence[tuple[list[int], list[int]]], vocabulary: int) -> LlamaForCausalLM:
    """A small model that says after each prompt what it was given to say."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, max_position_embeddings=256, eos_token_id=2, **sizes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    longest = max(len(prompt) + len(said) for prompt, said in texts)
    inputs = torch.tensor([prompt + said + [0] * (longest - len(prompt + said)) for prompt, said in texts])
    labels = torch.tensor(
        [[-100] * len(prompt) + said + [-100] * (longest - len(prompt + said)) for prompt, said in texts]
    )
    for _ in range(1000):
        loss = model(input_ids=inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss < 1e-3:
            return model.eval()
    raise AssertionError(f"nothing was learned: the loss is {float(loss):.3g}")


def examples() -> list[Example]:
    return [
        Example(prompt, ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer}))
        for prompt, answer in ANSWERS.items()
    ]


@pytest.mark.parametrize(
    ("template", "tail"),
    [
        (TURNS, "<turn_end>\n<turn>user"),
        (PHI3, "<turn_end>\n<eos>"),
        (INST, " <eos>"),
        (LINES, "\n<eos>"),
        (None, "<eos>"),
    ],
)
def test_a_model_that_ends_turns_as_its_template_does_scores_alike(template: str | None, tail: str) -> None:
    tokenizer = tokenizer_with(template)
    rows = encode(examples(), tokenizer, 99)
    # Three right and one wrong.
    said = [" " + answer if template == INST else answer for answer in (*list(ANSWERS.values())[:3], "1")]
    taught = [
        (row["prompt_ids"], tokenizer(text + tail, add_special_tokens=False).input_ids)
        for row, text in zip(rows, said, strict=True)
    ]
    model = having_learned(taught, len(tokenizer))
    settings = {"pad_id": 0, "eos_id": 2, "batch_size": 4, "device": "cpu", "tokenizer": tokenizer}
    right = [1.0, 1.0, 1.0, 0.0]
    assert per_example(model, rows, "generated_match", max_new_tokens=12, **settings) == right
    assert per_example(model, rows, "exact_match", **settings) == right
    logprobs = per_example(model, rows, "answer_logprob", **settings)
    assert min(logprobs[:3]) > -0.3 > logprobs[3]
    prompts = [row["prompt_ids"] for row in rows]
    made = dict(generate(model, tokenizer, prompts, max_new_tokens=12))
    assert [made[index].text.strip() for index in range(4)] == [text.strip() for text in said]
    assert all(text.finished for text in made.values())


def test_any_token_that_stops_generation_ends_an_answer() -> None:
    tokenizer = tokenizer_with(TURNS)
    rows = encode(examples(), tokenizer, 99)
    taught = [
        (row["prompt_ids"], tokenizer(f"{row['answer']}<eos>", add_special_tokens=False).input_ids) for row in rows
    ]
    model = having_learned(taught, len(tokenizer))
    settings = {"pad_id": 0, "eos_id": 2, "batch_size": 4, "device": "cpu", "tokenizer": tokenizer}
    for metric in ("generated_match", "exact_match"):
        assert per_example(model, rows, metric, max_new_tokens=9, **settings) == [1.0] * 4


def task_of(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, chat: bool = True):
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in ANSWERS.items()))
    (task,) = load_tasks([str(file)], EvaluationConfig(chat=chat, task_max_new_tokens=24), tokenizer)
    return task


def test_bos_stands_once_before_a_rendered_prompt(tmp_path: Path) -> None:
    from mft_ray.evaluation.generation import encode as encode_prompts

    tokenizer = tokenizer_with(TURNS, bos=True)
    task = task_of(tmp_path, tokenizer)
    (row, *_) = encode(examples(), tokenizer, 99)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    )
    encoded = encode_prompts(model, tokenizer, task.prompts, task.until, 9, task.rendered)
    assert encoded.prompts[0] == row["prompt_ids"]
    assert encoded.prompts[0].count(1) == 1
    # A template that writes none was trained without.
    tokenizer.chat_template = PHI3
    task = task_of(tmp_path, tokenizer)
    assert 1 not in encode_prompts(model, tokenizer, task.prompts, [], 9, task.rendered).prompts[0]
    # Plain text has what the tokenizer puts before every text, and a BOS of its own once.
    plain = task_of(tmp_path, tokenizer, chat=False)
    assert not plain.rendered
    encoded = encode_prompts(model, tokenizer, ["<bos>3+3", *plain.prompts], [], 9, plain.rendered)
    assert [prompt.count(1) for prompt in encoded.prompts] == [1] * 5


@pytest.mark.parametrize("marks", [(), ("<think>", "</think>")])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_answer_after_a_thought_is_what_is_scored(tmp_path: Path, marks: Sequence[str], batch_size: int) -> None:
    tokenizer = tokenizer_with(THINKS, marks)
    task = task_of(tmp_path, tokenizer)
    assert all(prompt.endswith("<think>\n") for prompt in task.prompts)
    assert task.until == ["\n"]
    thoughts = ["so,\nit is 0?\n</think>\n\n", "</think>", "\n\nno\n\n</think>\n", "\n".join("abcdefghijklmnopqrstuvw")]
    ends = ["\nfor sure<turn_end>", "<turn_end>", "<eos>", ""]
    taught = [
        (
            tokenizer(prompt, add_special_tokens=False).input_ids,
            tokenizer(thought + (answer + end if end else ""), add_special_tokens=False).input_ids,
        )
        for prompt, thought, answer, end in zip(task.prompts, thoughts, ANSWERS.values(), ends, strict=True)
    ]
    model = having_learned(taught, len(tokenizer))
    made = dict(
        generate(
            model,
            tokenizer,
            task.prompts,
            until=task.until,
            max_new_tokens=len("so,\nit is 0?\n</think>\n\n6\n"),
            batch_size=batch_size,
            rendered=task.rendered,
        )
    )
    texts = [made[index] for index in range(4)]
    assert [text.text for text in texts] == ["6", "7", "5", ""]
    assert [text.finished for text in texts] == [True, True, True, False]
    assert texts[0].thought.startswith("so,\nit is 0?\n")
    assert [score["score"] for score in task.score([text.text for text in texts])] == [1, 1, 1, 0]


def test_a_thought_that_the_model_begins_itself_is_none_of_the_answer_either(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(TURNS, bos=True)
    task = task_of(tmp_path, tokenizer)
    said = ["<think>\nhm\n</think>\n\n6<turn_end>", "7<turn_end>", "\n5<turn_end>", "<think> 0<turn_end>"]
    taught = [
        (tokenizer(prompt, add_special_tokens=False).input_ids, tokenizer(text, add_special_tokens=False).input_ids)
        for prompt, text in zip(task.prompts, said, strict=True)
    ]
    model = having_learned(taught, len(tokenizer))
    made = dict(generate(model, tokenizer, task.prompts, until=["\n"], max_new_tokens=40, rendered=True))
    # A text that came to its end is the answer, though its thought did not; a line that is empty is one.
    assert [made[index].text for index in range(4)] == ["6", "7", "", "<think> 0"]
    rows = encode(examples(), tokenizer, 99)
    settings = {"pad_id": 0, "eos_id": 2, "batch_size": 4, "device": "cpu", "tokenizer": tokenizer}
    assert per_example(model, rows, "generated_match", max_new_tokens=40, **settings) == [1.0, 1.0, 1.0, 0.0]


def test_a_system_message_that_the_template_refuses_is_folded_in_tasks_too() -> None:
    from mft_ray.evaluation.benchmark import chat_renderer

    tokenizer = tokenizer_with(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TURNS
    )
    render = chat_renderer(tokenizer)
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    assert render(turns) == "<bos><turn>user\nBe brief.\n\nhi<turn_end>\n<turn>assistant\n"
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(UserError, match=r"does not take a prompt .*never"):
        chat_renderer(tokenizer)(turns)

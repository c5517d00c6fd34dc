import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mft_ray.data import arithmetic
from mft_ray.data.accounting import SplitCounts
from mft_ray.data.encoding import IGNORED, Row, encode
from mft_ray.data.examples import Example, Message
from mft_ray.errors import UserError

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NO_EOS = CHATML.replace("<eos>", "")
# As some reasoning models do: earlier answers are rewritten once the conversation goes on.
REWRITES = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{{ m.content if loop.last or m.role == 'user' else '...' }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHANGES_PROMPT = "{% for m in messages %}{{ messages|length }}{{ m.content }}{% endfor %}"
REFUSES = "{{ raise_exception('roles must alternate') }}"


def characters(template: str | None = None, bos: bool = False) -> PreTrainedTokenizerFast:
    """A character-level tokenizer for ASCII text."""
    special = ["<pad>", "<bos>", "<eos>"]
    text = [*special, "\n", *map(chr, range(32, 127))]
    vocabulary = {token: index for index, token in enumerate(text)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")
    fast.chat_template = template
    return fast


def conversation(*contents: str, name: str = "x") -> Example:
    roles = ("user", "assistant")
    messages: list[Message] = [{"role": roles[i % 2], "content": c} for i, c in enumerate(contents)]
    return Example(name, tuple(messages))


def labelled(row: Row, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The runs of labelled tokens, as text."""
    runs: list[str] = []
    previous = IGNORED
    for token, label in zip(row["input_ids"], row["labels"], strict=True):
        assert label in (IGNORED, token)
        if label != IGNORED:
            runs = [*runs, ""] if previous == IGNORED else runs
            runs[-1] += tokenizer.decode([label])
        previous = label
    return runs


def test_without_a_template_prompt_answer_and_eos_follow_each_other() -> None:
    tokenizer = arithmetic.tokenizer()
    (example,) = arithmetic.generate(2, 1, 1, 1, seed=0)["train"]
    (row,) = encode([example], tokenizer, 32)
    assert tokenizer.decode(row["input_ids"]) == f"{example.id}{example.answer}<eos>"
    assert tokenizer.decode(row["prompt_ids"]) == example.id
    assert labelled(row, tokenizer) == [f"{example.answer}<eos>"]
    assert row["answer"] == example.answer
    assert row["id"] == example.id


def test_without_a_template_turns_are_lines_and_the_last_answer_is_labelled() -> None:
    tokenizer = characters(bos=True)
    (row,) = encode([conversation("hi", "hello", "2+2?", "4")], tokenizer, 99)
    assert tokenizer.decode(row["input_ids"]) == "<bos>hi\nhello\n2+2?\n4<eos>"
    assert tokenizer.decode(row["prompt_ids"]) == "<bos>hi\nhello\n2+2?\n"
    assert labelled(row, tokenizer) == ["4<eos>"]


@pytest.mark.parametrize("bos", [False, True])
def test_with_a_template_every_answer_is_labelled_through_its_eos(bos: bool) -> None:
    tokenizer = characters(CHATML, bos)
    (row,) = encode([conversation("hi", "hello", "2+2?", "4")], tokenizer, 99)
    before = "<|user|>hi<eos>\n<|assistant|>hello<eos>\n<|user|>2+2?<eos>\n<|assistant|>"
    assert tokenizer.decode(row["prompt_ids"]) == before
    # No newline after the last end of sequence: a model that has stopped never gets there.
    assert tokenizer.decode(row["input_ids"]) == before + "4<eos>"
    assert labelled(row, tokenizer) == ["hello<eos>", "4<eos>"]


def test_a_template_that_writes_no_eos_gets_one_after_the_last_answer() -> None:
    tokenizer = characters(NO_EOS)
    (row,) = encode([conversation("hi", "hello", "2+2?", "4")], tokenizer, 99)
    assert labelled(row, tokenizer) == ["hello\n", "4\n<eos>"]


def test_an_assistant_who_speaks_first_is_part_of_the_prompt() -> None:
    tokenizer = characters(CHATML)
    greeting: Message = {"role": "assistant", "content": "Welcome"}
    example = Example("x", (greeting, *conversation("hi", "hello").messages))
    (row,) = encode([example], tokenizer, 99)
    assert labelled(row, tokenizer) == ["hello<eos>"]


def test_turns_past_the_cut_are_dropped_with_their_prompt() -> None:
    tokenizer = characters(CHATML)
    example = conversation("hi", "hello", "a long question", "4")
    first = len(tokenizer("<|user|>hi|\n<|assistant|>").input_ids)
    (row,) = encode([example], tokenizer, first + 3, too_long="cut")
    assert labelled(row, tokenizer) == ["hel"]
    assert len(row["prompt_ids"]) == first
    assert row["answer"] == "hello"


@pytest.mark.parametrize("template", [None, CHATML, NO_EOS])
def test_an_answer_that_does_not_fit_is_not_learned_unless_that_is_asked_for(template: str | None) -> None:
    tokenizer, said, counts = characters(template), [], SplitCounts()
    short, long = conversation("hi", "yo", name="short"), conversation("hi", "hello, and more", name="long")
    (row,) = encode([short], tokenizer, 99)
    most = len(row["input_ids"])
    assert encode([short, long], tokenizer, most, log=said.append, counts=counts) == [row]
    assert "1 of 2 examples left out: no answer fits data.max_length" in said[0]
    assert (counts.used, counts.rows, counts.cut, counts.left_out.rows) == (1, 1, 0, 1)
    assert (counts.tokens, counts.answer_tokens) == (most, most - len(row["prompt_ids"]))
    with pytest.raises(UserError, match="no answer tokens"):  # one token less, and the end would be missing
        encode([short], tokenizer, most - 1)
    rows = encode([short, long], tokenizer, most, too_long="cut", log=said.append, counts=(counts := SplitCounts()))
    assert (len(rows), counts.cut) == (2, 1)
    assert "teaches that it ends nowhere (1)" in said[1]


def test_a_conversation_ends_before_the_answer_that_does_not_fit() -> None:
    tokenizer, counts = characters(CHATML), SplitCounts()
    (row,) = encode([conversation("hi", "hello", "2+2?", "4")], tokenizer, 60, counts=counts)
    assert labelled(row, tokenizer) == ["hello<eos>"]
    assert row["answer"] == "hello"
    assert (counts.cut, counts.used) == (1, 1)


@settings(max_examples=60, deadline=None)
@given(
    contents=st.lists(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1), min_size=1),
    max_length=st.integers(8, 200),
    template=st.sampled_from([None, CHATML, NO_EOS]),
)
def test_rows_are_consistent_whatever_the_cut(contents: list[str], max_length: int, template: str | None) -> None:
    tokenizer = characters(template)
    turns = [turn for n, content in enumerate(contents) for turn in (f"question {n}", content)]
    try:
        (row,) = encode([conversation(*turns)], tokenizer, max_length, too_long="cut")
    except UserError:  # cut before the first answer
        reject()
    assert len(row["input_ids"]) == len(row["labels"]) <= max_length
    assert row["input_ids"][: len(row["prompt_ids"])] == row["prompt_ids"]
    assert row["labels"][len(row["prompt_ids"])] != IGNORED
    assert len(row["prompt_ids"]) < max_length
    assert row["answer"] in contents
    runs = labelled(row, tokenizer)
    if len(row["input_ids"]) < max_length:
        assert runs[-1].startswith(row["answer"])
        assert runs[-1].endswith("<eos>")


def test_examples_with_no_answer_left_are_dropped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    examples = [conversation("q" * n, "answer", name=str(n)) for n in (2, 30, 40)]
    rows = encode(examples, characters(), 10, split="The test split")
    assert [row["id"] for row in rows] == ["2"]
    assert "The test split: 2 of 3 examples left out: no answer fits data.max_length" in caplog.text


def test_data_with_no_answer_left_at_all_names_the_shortest_prompt() -> None:
    examples = [conversation("q" * n, "answer") for n in (40, 29, 50)]
    with pytest.raises(UserError, match=r"no answer tokens .*max_length is 30,.*the 3 prompts already takes 30 "):
        encode(examples, characters(), 30)


def test_no_examples_are_no_rows() -> None:
    assert encode([], characters(), 30) == []


def test_a_template_that_rewrites_earlier_answers_has_a_row_for_each() -> None:
    tokenizer, counts = characters(REWRITES), SplitCounts()
    rows = encode([conversation("hi", "hello", "2+2?", "4")], tokenizer, 99, counts=counts)
    assert [labelled(row, tokenizer) for row in rows] == [["hello<eos>"], ["4<eos>"]]
    assert (
        tokenizer.decode(rows[1]["prompt_ids"])
        == "<|user|>hi<eos>\n<|assistant|>...<eos>\n<|user|>2+2?<eos>\n<|assistant|>"
    )
    assert [row["id"] for row in rows] == ["x#1", "x#2"]
    assert {row["source"] for row in rows} == {"x"}
    assert (counts.used, counts.rows) == (1, 2)


def test_a_template_that_asks_otherwise_than_it_was_answered_is_refused_with_the_reason() -> None:
    with pytest.raises(UserError, match=r"example x .*before message 1, an answer, changes .*data.chat_template"):
        encode([conversation("hi", "hello", "2+2?", "4")], characters(CHANGES_PROMPT), 99)


def test_tokens_that_span_the_border_of_an_answer_are_parted_there() -> None:
    """As Llama 3's tokenizer, which has a token for any number of newlines."""
    tokenizer = Tokenizer(
        models.WordLevel({token: index for index, token in enumerate(["<eos>", "?", ":", "\n", "\n\n", "a", "b"])}, "?")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n+|<eos>|."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    lines = "{% for m in messages %}{{ m.content + ('<eos>' if m.role == 'assistant' else ':\n') }}{% endfor %}"
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", chat_template=lines)
    assert fast.tokenize("a:\n\nb") == ["a", ":", "\n\n", "b"]
    (row,) = encode([conversation("a", "\nb", "b", "a")], fast, 99)
    assert fast.convert_ids_to_tokens(row["input_ids"]) == [
        "a",
        ":",
        "\n",
        "\n",
        "b",
        "<eos>",
        "b",
        ":",
        "\n",
        "a",
        "<eos>",
    ]
    assert labelled(row, fast) == ["\nb<eos>", "a<eos>"]
    assert fast.decode(row["prompt_ids"]) == "a:\n\nb<eos>b:\n"


def test_a_template_that_refuses_the_conversation_is_quoted() -> None:
    with pytest.raises(UserError, match=r"example x.*roles must alternate"):
        encode([conversation("hi", "hello")], characters(REFUSES), 99)


def test_a_tokenizer_without_eos_is_refused() -> None:
    tokenizer = characters()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end-of-sequence token"):
        encode([conversation("hi", "hello")], tokenizer, 99)

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest

from mft_ray.config import DataConfig
from mft_ray.data.splits import load
from mft_ray.errors import UserError


def write(path: Path, rows: Sequence[Any]) -> str:
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(list(rows)).to_parquet(str(path))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def questions(start: int, stop: int) -> list[dict[str, str]]:
    return [{"question": f"What is {n} doubled?", "answer": f"#### {2 * n}"} for n in range(start, stop)]


def chat(*contents: str | None) -> dict[str, Any]:
    """A conversation in which user and assistant take turns."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": c} for i, c in enumerate(contents)]}


def gsm8k(**settings: Any) -> DataConfig:
    return DataConfig.model_validate({"task": "gsm8k", "n_validation": 5, "n_test": 10} | settings)


def ids(splits: dict[str, list[Any]], split: str) -> list[str]:
    return [example.id for example in splits[split]]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_test_and_validation_are_held_out_of_one_file(tmp_path: Path, suffix: str) -> None:
    splits = load(gsm8k(train=write(tmp_path / f"all{suffix}", questions(0, 40))))
    assert {split: len(examples) for split, examples in splits.items()} == {
        "train": 25,
        "validation": 5,
        "test": 10,
    }
    keys = [example.prompt_key for examples in splits.values() for example in examples]
    assert len(set(keys)) == 40
    example = splits["test"][0]
    number = int(example.id.removeprefix(f"all{suffix}:"))
    assert example.messages[0] == {"role": "user", "content": f"What is {number} doubled?"}
    assert example.answer == f"#### {2 * number}"


def test_sizes_of_later_splits_leave_earlier_ones_alone(tmp_path: Path) -> None:
    train = write(tmp_path / "all.jsonl", questions(0, 100))
    one = load(gsm8k(train=train, n_train=10))
    more = load(gsm8k(train=train, n_train=50))
    validated = load(gsm8k(train=train, n_validation=20))
    assert ids(one, "test") == ids(more, "test") == ids(validated, "test")
    assert ids(one, "validation") == ids(more, "validation")
    assert ids(one, "train") == ids(more, "train")[:10]
    assert ids(load(gsm8k(train=train, seed=1)), "test") != ids(one, "test")


def test_test_wins_a_duplicate_then_validation_then_train(tmp_path: Path) -> None:
    # Each prompt twice in train, and the first 20 in test too, written differently.
    train = write(tmp_path / "train.jsonl", questions(0, 60) + questions(0, 60))
    shouted = [row | {"question": row["question"].upper()} for row in questions(0, 20)]
    splits = load(gsm8k(train=train, test=write(tmp_path / "test.jsonl", shouted + shouted)))
    keys = {split: {example.prompt_key for example in examples} for split, examples in splits.items()}
    assert {split: len(examples) for split, examples in splits.items()} == {
        "train": 35,
        "validation": 5,
        "test": 10,
    }
    assert all(len(keys[split]) == len(splits[split]) for split in splits)
    # All of the test file stays out of training, not only the ten that were drawn.
    everything = {f"user what is {n} doubled?" for n in range(20)}
    assert keys["test"] < everything
    assert not everything & (keys["train"] | keys["validation"])
    assert not keys["train"] & keys["validation"]


def test_the_same_file_as_train_and_test_is_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = write(tmp_path / "all.jsonl", questions(0, 40))
    monkeypatch.chdir(tmp_path)
    assert load(gsm8k(train=train, test="./all.jsonl")) == load(gsm8k(train=train))


def test_a_folder_has_its_own_splits(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", questions(0, 30))
    write(tmp_path / "test.jsonl", questions(30, 40))
    splits = load(gsm8k(train=str(tmp_path), test=str(tmp_path)))
    assert {name.split(":")[1] for name in ids(splits, "test")} == {"test"}
    assert {name.split(":")[1] for name in ids(splits, "train")} == {"train"}


def test_chat_keeps_earlier_turns_and_drops_what_follows_the_last_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [chat(f"question {n}", "first", "and?", f"answer {n}", "thanks") for n in range(20)]
    rows += [chat("no answer"), chat("empty", "  "), chat("null", None), {"messages": []}]
    config = DataConfig(task="chat", train=write(tmp_path / "chat.jsonl", rows), n_validation=2, n_test=2)
    splits = load(config)
    example = splits["train"][0]
    number = example.id.split(":")[1]
    assert [message["content"] for message in example.messages] == [
        f"question {number}",
        "first",
        "and?",
        f"answer {number}",
    ]
    assert sum(map(len, splits.values())) == 20
    assert "4 of 24 rows of chat.jsonl are left out" in caplog.text


def test_instruction_files_are_read_by_named_columns_with_their_input(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Double it.", "input": str(n) if n else "", "output": str(2 * n), "response": "x"}
        for n in range(10)
    ]
    config = DataConfig(
        task="chat",
        train=write(tmp_path / "alpaca.json", rows),
        prompt_column="instruction",
        answer_column="output",
        n_validation=2,
        n_test=2,
    )
    examples = {int(e.id.split(":")[1]): e for split in load(config).values() for e in split}
    assert len(examples) == 10
    assert examples[0].messages[0]["content"] == "Double it."
    assert examples[7].messages[0]["content"] == "Double it.\n\n7"
    assert examples[7].answer == "14"


def test_arithmetic_needs_no_file_and_takes_all_that_are_left() -> None:
    splits = load(DataConfig(task="arithmetic", digits=2, n_validation=100, n_test=5000))
    assert {split: len(examples) for split, examples in splits.items()} == {
        "train": 7095,
        "validation": 100,
        "test": 5000,
    }
    with pytest.raises(UserError, match=r"Set data\.n_train"):
        load(DataConfig(task="arithmetic", digits=4))
    with pytest.raises(UserError, match="asked for"):
        load(DataConfig(task="arithmetic", digits=1))


def test_nothing_is_left_behind_or_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(home))
    load(gsm8k(train=write(work / "all.jsonl", questions(0, 40))))
    assert not list(home.iterdir())
    assert [path.name for path in work.iterdir()] == ["all.jsonl"]
    assert capfd.readouterr() == ("", "")
    assert not datasets.are_progress_bars_disabled()


@pytest.mark.parametrize("given", ["nowhere/train.jsonl", "/nowhere/train", "./train", "~/nowhere-at-all"])
def test_a_missing_path_is_never_taken_for_a_hub_id(given: str) -> None:
    with pytest.raises(UserError, match=r"data\.train is .* no such file or folder"):
        load(gsm8k(train=given))


def test_what_is_neither_path_nor_hub_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither an existing file nor a hub dataset id"):
        load(gsm8k(train="my data: everything"))
    with pytest.raises(UserError, match=r"data\.train is not given"):
        load(gsm8k())
    (tmp_path / "rows.xlsx").write_text("question,answer\n")
    with pytest.raises(UserError, match=r"unknown format.*\.parquet"):
        load(gsm8k(train=str(tmp_path / "rows.xlsx")))
    for text in ("", "  "):
        with pytest.raises(UserError, match=r"data\.train is empty"):
            load(gsm8k(train=text))
    for text in ("x" * 5000, "a\0b"):
        with pytest.raises(UserError, match=r"neither an existing file nor a hub dataset id"):
            load(gsm8k(train=f"/{text} "[1:]))


def test_a_missing_test_file_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.test is"):
        load(gsm8k(train=write(tmp_path / "a.jsonl", questions(0, 40)), test=str(tmp_path / "b.jsonl")))


def test_an_unreachable_hub_is_said_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    # Offline mode is the library's own way to have no network.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"'nobody/nothing'.*configuration main, split train.*local file"):
        load(gsm8k(train="nobody/nothing:main"))


@pytest.mark.parametrize("text", ['{"question": "a", "answer"', "[1, 2", "hello"])
def test_a_broken_file_is_said_plainly(tmp_path: Path, text: str, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"broken\.jsonl, which could not be read"):
        load(gsm8k(train=str(tmp_path / "broken.jsonl")))
    assert capfd.readouterr().err == ""


def test_missing_columns_are_named_beside_those_there_are(tmp_path: Path) -> None:
    train = write(tmp_path / "a.jsonl", [{"prompt": "a", "response": "b"}] * 3)
    with pytest.raises(UserError, match=r"no column 'question' and no column 'answer'.*prompt, response"):
        load(gsm8k(train=train))
    with pytest.raises(UserError, match=r"no column 'messages'.*data\.messages_column"):
        load(gsm8k(task="chat", train=train))
    with pytest.raises(UserError, match=r"no column 'anser'"):
        load(gsm8k(task="chat", train=train, prompt_column="prompt", answer_column="anser"))
    with pytest.raises(UserError, match="give both"):
        load(gsm8k(task="chat", train=train, prompt_column="prompt"))


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"messages": "hello"}, "messages is not a list of messages"),
        ({"messages": ["hello"]}, "messages is not a list of messages"),
        ({"messages": [{"speaker": "human", "text": "hi"}]}, "no answer of an assistant|has no role"),
        ({"messages": [{"role": "user", "content": 3}]}, "no answer of an assistant"),
        ({"messages": [{"role": "user", "content": {}}, {"role": "assistant", "content": "x"}]}, "an object, not text"),
    ],
)
def test_a_file_of_malformed_conversations_is_refused(tmp_path: Path, row: dict[str, Any], problem: str) -> None:
    with pytest.raises(
        UserError, match=rf"data\.train \(a\.jsonl\) has no row.*({problem}).*a\.jsonl, line 1, 2, 3, 4, 5, \.\.\."
    ):
        load(gsm8k(task="chat", train=write(tmp_path / "a.jsonl", [row] * 7)))


def test_one_malformed_conversation_among_many_is_left_out_and_told(tmp_path: Path) -> None:
    rows = [*(chat(f"q{n}", "a") for n in range(20)), {"messages": "hello"}, chat("q", None), {"messages": [{}]}]
    said: list[str] = []
    splits = load(gsm8k(task="chat", train=write(tmp_path / "a.jsonl", rows)), said.append)
    assert sum(map(len, splits.values())) == 20
    assert said == [
        "3 of 23 rows of a.jsonl are left out: messages is not a list of messages, each an object with role and "
        "content (1: a.jsonl, line 21); a message of the role assistant has no content (1: a.jsonl, line 22); a "
        "message has no role (role, or from as in ShareGPT files) (1: a.jsonl, line 23)"
    ]


def test_an_unknown_role_ends_it_with_its_line(tmp_path: Path) -> None:
    rows = [chat("q", "a"), {"messages": [{"role": "user", "content": "q"}, {"role": "robot", "content": "a"}]}]
    with pytest.raises(UserError, match=r"data\.train: a\.jsonl, line 2 has a message of the role 'robot'.*assistant"):
        load(gsm8k(task="chat", train=write(tmp_path / "a.jsonl", rows)))


def test_too_few_rows_say_what_there_is(tmp_path: Path) -> None:
    train = write(tmp_path / "a.jsonl", questions(0, 12))
    with pytest.raises(UserError, match=r"train 0 of 1, validation 2 of 5.*held out of"):
        load(gsm8k(train=train))
    with pytest.raises(UserError, match="test 8 of 10"):
        load(gsm8k(train=train, test=write(tmp_path / "b.jsonl", questions(20, 28))))
    with pytest.raises(UserError, match="train 7 of 8"):
        load(gsm8k(train=train, test=write(tmp_path / "c.jsonl", questions(20, 30)), n_train=8))
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(UserError, match="too few examples"):
        load(gsm8k(train=str(tmp_path / "empty.jsonl")))


def about(start: int, stop: int, each: int = 4) -> list[dict[str, str]]:
    """Questions of which so many are about the same document."""
    return [row | {"document": f"document {n // each}"} for n, row in enumerate(questions(start, stop), start)]


def documents(examples: Sequence[Any]) -> set[str]:
    return {example.source for example in examples}


def test_what_was_made_from_the_same_stays_in_one_split(tmp_path: Path) -> None:
    train = write(tmp_path / "all.jsonl", about(0, 80))
    splits = load(gsm8k(train=train, source_column="document", n_validation=6))
    found = {split: documents(examples) for split, examples in splits.items()}
    assert {split: len(examples) for split, examples in splits.items()} == {
        # Two documents are not used up: what is left of them is left out.
        "train": 60,
        "validation": 6,
        "test": 10,
    }
    assert found["test"].isdisjoint(found["validation"] | found["train"])
    assert found["validation"].isdisjoint(found["train"])
    assert load(gsm8k(train=train, source_column="document"))["test"] == splits["test"]


def test_the_first_test_examples_are_of_as_many_sources_as_can_be(tmp_path: Path) -> None:
    splits = load(gsm8k(train=write(tmp_path / "all.jsonl", about(0, 80)), source_column="document"))
    assert len(documents(splits["test"])) == len(documents(splits["test"][:3])) == 3


def test_a_test_file_keeps_its_sources_out_of_training(tmp_path: Path) -> None:
    train, test = write(tmp_path / "train.jsonl", about(0, 80)), write(tmp_path / "test.jsonl", about(62, 76))
    splits = load(gsm8k(train=train, test=test, source_column="document"))
    assert not documents(splits["test"]) & documents(splits["train"] + splits["validation"])
    assert len(splits["train"]) == 80 - 16 - 8  # documents 15 to 18, and two for validation


def test_an_example_that_does_not_say_what_it_was_made_from_is_its_own(tmp_path: Path) -> None:
    rows = [*about(0, 40), *({**row, "document": None} for row in questions(40, 80))]
    splits = load(gsm8k(train=write(tmp_path / "all.jsonl", rows), source_column="document"))
    assert sum(example.source is None for examples in splits.values() for example in examples) == 40


def test_sources_must_be_there_and_more_than_one(tmp_path: Path) -> None:
    train, test = write(tmp_path / "all.jsonl", about(0, 80)), write(tmp_path / "test.jsonl", about(80, 90, each=10))
    with pytest.raises(UserError, match=r"has no column 'page'; its columns are .*document"):
        load(gsm8k(train=train, source_column="page"))
    with pytest.raises(UserError, match=r"All 10 test examples were made from the same \(document 'document 8'\)"):
        load(gsm8k(train=train, test=test, source_column="document"))
    with pytest.raises(UserError, match=r"nor was made from the same \(document\)"):
        load(gsm8k(train=train, source_column="document", n_train=66))
    with pytest.raises(ValueError, match="source_column names a column of train and test; task arithmetic has none"):
        DataConfig(task="arithmetic", source_column="page")


def test_held_out_examples_are_further_ones_and_change_no_other_split(tmp_path: Path) -> None:
    train = write(tmp_path / "all.jsonl", questions(0, 60))
    for config in (gsm8k(train=train, n_train=20), DataConfig(task="arithmetic", n_train=20, n_validation=5, n_test=9)):
        without, held = load(config), load(config.model_copy(update={"n_held_out": 12}))
        assert {split: held[split] for split in without} == without
        assert len(held["held_out"]) == 12
        keys = [example.prompt_key for examples in held.values() for example in examples]
        assert len(set(keys)) == len(keys)
    everything = load(gsm8k(train=train, n_held_out=12))
    assert (len(everything["train"]), len(everything["held_out"])) == (33, 12)
    with pytest.raises(UserError, match="held_out 4 of 12"):
        load(gsm8k(train=train, n_train=41, n_held_out=12))

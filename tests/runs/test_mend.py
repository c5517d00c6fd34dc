"""Every file that a run leaves, emptied, cut in half, or with something else in it: named, never a traceback."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_searches
import yaml

from mft_ray.config import load_config, parse_config
from mft_ray.dashboard.optuna_page import check_study
from mft_ray.errors import UserError
from mft_ray.models.artifacts import export
from mft_ray.report.html import render
from mft_ray.runs.fft_model import FftModel
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.live.snapshot import read_live
from mft_ray.runs.repair.mend import mend_run
from mft_ray.runs.settled import check_settled
from mft_ray.searches.budget import Budget
from mft_ray.searches.leaderboard import write_results
from mft_ray.searches.pipeline import search
from mft_ray.training.job import Outcome
from mft_ray.utils.files import read_json
from mft_ray.verdict.test_looks import looks

pytestmark = pytest.mark.slow

# Nothing of ours reads these, or a half one cannot be told from a whole one: Tune's files of single trials, what a
# locked file holds, the evaluations so far of a run for whoever looks, texts that are read line by line.
UNREAD = ("progress.json", "lock", ".validate_storage_marker", "report.html", "results.json", ".jsonl", "log.txt")
TEXT = (".md", ".yaml")
# Whose content is looked at, and not only whether it is whole.
OURS = (
    "outcome.json",
    "leaderboard.json",
    "verdict.json",
    "baseline.json",
    "fft_model.json",
    "looks.json",
    "spent.json",
    ".safetensors",
)
# What cannot be made again once trials have begun.
PRECIOUS = ("work/data/", "work/fft/best/", "work/settled.json", "config.yaml")


@pytest.fixture(scope="module")
def finished(
    ray_cluster: None, make_tiny: Callable[[], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> RunFolder:
    """A search with a verdict, a benchmark task, and a trial whose mask is not kept."""
    home = tmp_path_factory.mktemp("mending")
    (home / "mine.jsonl").write_text('{"prompt": "1+2=", "answer": "3"}\n{"prompt": "2+2=", "answer": "4"}\n')
    tree = make_tiny()
    tree["run"]["dir"] = str(home / "run")
    stop = {"below_fft": False, "plateau": None}
    tree["search"] = {"trials": 3, "max_concurrent": 1, "stop": stop, "keep": 2}
    tree["evaluation"] |= {"tasks": [str(home / "mine.jsonl")], "task_max_new_tokens": 4}
    return search(parse_config(tree))


def files_of(folder: RunFolder) -> list[str]:
    found = [path.relative_to(folder.root) for path in folder.root.rglob("*") if path.is_file()]
    return sorted(str(path) for path in found if not str(path).startswith("work/tune/search/") or len(path.parts) == 4)


def empty(content: bytes) -> bytes:
    return b""


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def other(content: bytes) -> bytes:
    return b'{"schema": [1], "trials": 5}\n'


@pytest.fixture
def copies(finished: RunFolder, tmp_path: Path) -> Callable[[str, Callable[[bytes], bytes]], RunFolder]:
    """Make a copy of the run with one file damaged."""

    def make(name: str, damage: Callable[[bytes], bytes]) -> RunFolder:
        root = tmp_path / "copy"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(finished.root, root, copy_function=os.link)
        content = (root / name).read_bytes()
        (root / name).unlink()  # it is the same file as in the run
        (root / name).write_bytes(damage(content))
        return RunFolder(root)

    return make


def use(folder: RunFolder) -> None:
    """Read all that a run which goes on would read, but for what Ray is needed for."""
    config = load_config(folder.config)
    check_settled(folder, config)
    for outcome in folder.root.rglob("outcome.json"):
        if "damaged" not in outcome.parts:
            Outcome.load(outcome)
    for scores in folder.scores.glob("*.json"):
        assert all(isinstance(value, float) for value in read_json(scores, list))
    looks(folder)
    Budget(config.search.budget, folder.work)
    if folder.baseline.exists() and folder.fft_model.exists():
        baseline = FftModel.load(folder.fft_model)
        write_results(folder, baseline, 2)
        render(folder.root)


@pytest.mark.parametrize("damage", [empty, half, other])
def test_a_run_with_any_damaged_file_goes_on_or_says_which_it_is(
    finished: RunFolder,
    copies: Callable[[str, Callable[[bytes], bytes]], RunFolder],
    damage: Callable[[bytes], bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    wrong, names = [], files_of(finished)
    assert len(names) > 60
    for name in names:
        folder = copies(name, damage)
        capsys.readouterr()
        try:
            check_settled(folder, load_config(folder.config))
            mend_run(folder)
            said = capsys.readouterr().out
            use(folder)
        except UserError as error:
            said = str(error)
            if not name.startswith(PRECIOUS):
                wrong.append(f"{name} is refused: {said}")
        except Exception as error:
            wrong.append(f"{name}: {error!r}")
            continue
        # Of a splits's Arrow file the folder is named.
        told = name in said or (name.endswith(".arrow") and name.rpartition("/")[0] in said)
        mends_itself = name in ("study.db", "work/study.db") or name.endswith(UNREAD) or "/events.out.tfevents" in name
        undecided = (damage is not empty and name.endswith(TEXT)) or (damage is other and name.endswith(".json"))
        if not told and not mends_itself and not undecided:
            wrong.append(f"{name}: nothing is said of it but {said!r}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("damage", [empty, half, other])
def test_commands_that_only_read_say_which_file_it_is(
    finished: RunFolder,
    copies: Callable[[str, Callable[[bytes], bytes]], RunFolder],
    damage: Callable[[bytes], bytes],
    tmp_path: Path,
) -> None:
    def exported(folder: RunFolder) -> None:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        export(str(folder.fft / "best"), str(folder.best / "mask.safetensors"), tmp_path / "out")

    def served(folder: RunFolder) -> None:
        check_study(folder.study)
        read_live(folder.root)

    wrong = []
    for command, matters in (
        (lambda folder: render(folder.root), lambda name: "/" not in name or name.startswith("work/settled")),
        (exported, lambda name: name.startswith(("best/mask", "work/fft/best"))),
        (served, lambda name: "/" not in name),
    ):
        for name in filter(matters, files_of(finished)):
            folder = copies(name, damage)
            try:
                command(folder)
            except UserError as error:
                if Path(name).name not in str(error) and str(Path(name).parent) not in str(error):
                    wrong.append(f"{name}: {error}")
            except Exception as error:
                wrong.append(f"{name}: {error!r}")
    assert not wrong, "\n".join(wrong)


def test_what_is_known_elsewhere_is_not_lost(
    finished: RunFolder, copies: Callable[[str, Callable[[bytes], bytes]], RunFolder]
) -> None:
    board = json.loads(finished.leaderboard.read_text())
    winner = board["trials"][0]["trial_id"]
    for name in (f"work/trials/{winner}/outcome.json", f"work/trials/{winner}/config.json", "baseline.json"):
        folder = copies(name, half)
        mend_run(folder)
        use(folder)
        assert json.loads(folder.leaderboard.read_text()) == board
    mask = finished.trial(winner) / "mask.safetensors"
    folder = copies(str(mask.relative_to(finished.root)), empty)
    mend_run(folder)
    assert (folder.trial(winner) / "mask.safetensors").read_bytes() == mask.read_bytes()
    folder = copies("work/looks.json", empty)
    mend_run(folder)
    assert json.loads(folder.looks.read_text()) == json.loads(finished.looks.read_text())


def test_looks_at_the_test_examples_are_never_forgotten(
    finished: RunFolder, copies: Callable[[str, Callable[[bytes], bytes]], RunFolder]
) -> None:
    folder = copies("work/looks.json", empty)
    folder.verdict.unlink()
    with pytest.raises(UserError, match="for which trials the test examples were looked at is not known"):
        mend_run(folder)


def test_a_budget_is_never_forgotten(
    finished: RunFolder, copies: Callable[[str, Callable[[bytes], bytes]], RunFolder]
) -> None:
    folder = copies("work/spent.json", half)
    tree = yaml.safe_load(folder.config.read_text())
    tree["search"]["budget"]["tokens"] = 10_000
    folder.config.unlink()
    folder.config.write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError, match=r"how much of search\.budget is spent is not known"):
        mend_run(folder)


def test_a_search_with_several_damaged_files_goes_on(tmp_path: Path, make_tiny: Callable[[], dict[str, Any]]) -> None:
    tree = make_tiny()
    tree["search"] = {"trials": 3, "max_concurrent": 1, "stop": {"below_fft": False, "plateau": None}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
    first = small_searches.run(tmp_path, "--config", "tiny.yaml", "--set", "run.dir=run")
    assert first.returncode == 0, first.stderr
    root = tmp_path / "run"
    board = json.loads((root / "leaderboard.json").read_text())["trials"]
    winner = f"work/trials/{board[0]['trial_id']}"
    damaged = [
        "baseline.json",
        "verdict.json",
        "curves.json",
        "best/model/config.json",
        "work/fft_model.json",
        "work/discordant.json",
        "work/continued/outcome.json",
        "work/model/model.safetensors",
        "work/spent.json",
        f"{winner}/mask.safetensors",
        "work/tune/search.json",
        *(str(path.relative_to(root)) for path in root.glob("work/scores/fft-*")),
        *(str(path.relative_to(root)) for path in root.glob("work/tune/search/searcher-state*")),
        *(str(path.relative_to(root)) for path in root.glob("work/tune/search/experiment_state*")),
    ]
    (root / "work" / "fft_model.json").write_text("[]")
    for number, name in enumerate(damaged):
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[: number % 2 * len(content) // 2])
    # best/'s copy of the mask is sound, its model is not.
    resumed = small_searches.run(tmp_path, "--resume", "run", "--set", "search.trials=4")
    said = resumed.stdout + resumed.stderr
    assert "Traceback" not in said, said
    for name in damaged:
        folder = name.rpartition("/")[0]
        assert name in said or f"{folder}/" in said, (name, said)
    after = {row["trial_id"]: row for row in json.loads((root / "leaderboard.json").read_text())["trials"]}
    # Those that had ended keep their scores but for the one whose mask is gone; one more took its place.
    assert len(after) == 4
    for row in board[1:]:
        assert after[row["trial_id"]]["score"] == row["score"]
    assert resumed.returncode in (0, 2), said  # another trial may be best: its look at the test examples is asked for
    assert (resumed.returncode == 0) == ("--look-again judges it" not in resumed.stderr)
    if resumed.returncode == 2:
        again = small_searches.run(tmp_path, "--resume", "run", "--look-again")
        assert again.returncode == 0, again.stderr
    assert (root / "verdict.json").exists()
    assert len(list((root / "work" / "damaged").rglob("*"))) >= len(damaged)

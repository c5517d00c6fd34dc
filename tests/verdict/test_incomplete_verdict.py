"""A search whose continued FFT cannot be run has a verdict nonetheless, which says so; later it is tried again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mft_ray.config import parse_config
from mft_ray.errors import UserError
from mft_ray.runs.folder import RunFolder
from mft_ray.searches.pipeline import search

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(ray_cluster: None, make_tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    home: Path = tmp_path_factory.mktemp("incomplete")
    tree = make_tiny()
    tree["run"]["dir"] = str(home / "run")
    tree["fft"]["continued_lr"] = 1e30  # its loss is not finite, whenever it is tried
    tree["verdict"] = {"seeds": 2, "rivals": ["lora"]}
    tree["lora"] = {"rank": 2, "lr": 1e30}
    tree["evaluation"]["extra"] = ["answer_logprob"]
    return search(parse_config(tree))


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_the_verdict_is_on_what_there_is(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    verdict = read(run.verdict)
    assert set(verdict["not_run"]) == {"continued_fft", "rival lora"}
    assert "not finite" in verdict["not_run"]["continued_fft"]
    assert verdict["beats_fft"] is False
    assert verdict["n"] == 50
    assert verdict["fft"] is not None
    assert verdict["delta"] == pytest.approx(verdict["mft"] - verdict["fft"])
    assert verdict["continued_fft"] is verdict["delta_continued_fft"] is verdict["rival"] is None
    assert "FFT continued for the same number of tokens could not be run: " in verdict["sentence"]
    assert set(verdict["seeds"]["runs"][1]) == {"fft", "mft"}
    assert [row["continued"] for row in verdict["extra"]] == [None]
    assert read(run.baseline)["continued"] is None
    assert read(run.baseline)["test"]["n"] == 50
    assert verdict["sentence"] in (run.best / "README.md").read_text()
    assert "could not be run" in (run.root / "report.html").read_text()


def test_resume_tries_again_and_completes_it(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    before = read(run.verdict)
    search(None, resume=str(run.root))
    assert "tried again" in capsys.readouterr().out
    assert read(run.verdict)["not_run"].keys() == before["not_run"].keys()
    # What only they were to be made with may change; nothing else may.
    tree = yaml.safe_load(run.config.read_text())
    tree["train"]["lr"] = 1e-3
    with pytest.raises(UserError, match=r"begun with other settings: train\.lr"):
        search(parse_config(tree), resume=str(run.root))
    tree = yaml.safe_load(run.config.read_text())
    tree["fft"]["continued_lr"] = tree["lora"]["lr"] = 3e-3
    run.config.write_text(yaml.safe_dump(tree))
    search(None, resume=str(run.root))
    verdict = read(run.verdict)
    assert verdict["not_run"] == {}
    assert verdict["continued_fft"] is not None
    assert verdict["rival"]["method"] == "lora"
    assert (verdict["fft"], verdict["mft"]) == (before["fft"], before["mft"])
    assert len(verdict["looks"]) == 1  # the same trial: no second look
    assert read(run.baseline)["continued"]["test"]["n"] == 50
    assert verdict["sentence"] in (run.best / "README.md").read_text()
    assert read(run.settled)["stages"]["verdict"]["fft.continued_lr"] == 3e-3
    tree["lora"]["lr"] = 1e-3
    with pytest.raises(UserError, match=r"begun with other settings: lora\.lr"):  # settled now
        search(parse_config(tree), resume=str(run.root))
    # Whole now: not judged again.
    written = run.verdict.stat().st_mtime_ns
    search(None, resume=str(run.root))
    assert run.verdict.stat().st_mtime_ns == written

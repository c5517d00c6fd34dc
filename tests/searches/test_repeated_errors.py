"""The same error in one trial after another ends the search, in real processes; it can be resumed once it is gone."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_searches
import yaml

from mft_ray.runs.ray_logs import copy_logs
from mft_ray.searches.repeated_errors import RepeatedErrors

TRACE = Path("/run/work/trials/3f/traceback.txt")


def test_the_same_error_but_for_its_numbers_counts() -> None:
    errors = RepeatedErrors(3)
    assert errors.note("a", "KeyError: 'id' at step 10 of /run/work/trials/3f00c1", TRACE) is None
    assert errors.note("a", "KeyError: 'id' at step 20 of /run/work/trials/3f00c1", TRACE) is None  # the same trial
    assert errors.note("b", "ValueError: 'id' at step 20 of /run/work/trials/9abcd2", TRACE) is None
    assert errors.note("c", "KeyError: 'id' at step 1e-3 of /run/work/trials/77ab01", TRACE) is None
    why = errors.note("d", "KeyError: 'id' at step 30 of /run/work/trials/77ab02", TRACE)
    assert why is not None
    for part in ("3 trials", "KeyError: 'id' at step 30", str(TRACE), "search.same_errors"):
        assert part in why


def test_other_errors_and_no_limit_never_end_it() -> None:
    errors = RepeatedErrors(2)
    assert [errors.note(name, f"KeyError: '{name}'", None) for name in "abcdef"] == [None] * 6
    unlimited = RepeatedErrors(None)
    assert [unlimited.note(name, "KeyError: 'id'", None) for name in "abcdef"] == [None] * 6


def test_logs_are_copied_within_bounds_and_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    logs = tmp_path / "logs"
    (logs / "old").mkdir(parents=True)
    (logs / "old" / "worker-1.err").write_text("env HF_TOKEN=hf_verysecret\n")
    (logs / "socket").symlink_to("/dev/null")
    assert copy_logs(logs, tmp_path / "whole")
    assert [path.name for path in (tmp_path / "whole").rglob("*") if path.is_file()] == ["worker-1.err"]
    assert (tmp_path / "whole" / "old" / "worker-1.err").read_text() == "env HF_TOKEN=***\n"
    for number in range(40):
        (logs / f"dashboard-{number}.log").write_bytes(b"x" * (3 * 2**20) + b"end")
    assert not copy_logs(logs, tmp_path / "cut")
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "cut").rglob("*") if path.is_file()}
    assert sizes["worker-1.err"] == len("env HF_TOKEN=***\n")  # what is looked for comes first
    assert max(sizes.values()) == 2 * 2**20
    assert sum(sizes.values()) <= 50 * 2**20
    assert (tmp_path / "cut" / "dashboard-0.log").read_bytes().endswith(b"end")


@pytest.mark.slow
def test_a_search_ends_that_cannot_work_and_goes_on_when_it_can(
    tmp_path: Path, make_tiny: Callable[[], dict[str, Any]]
) -> None:
    tree = make_tiny()
    stop = {"below_fft": False, "plateau": None}
    tree["search"] = {"trials": 4, "max_concurrent": 1, "same_errors": 2, "stop": stop}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
    folder = tmp_path / "run"
    process = small_searches.start(tmp_path, "--config", "tiny.yaml", "--set", "run.dir=run")
    deadline = time.monotonic() + small_searches.TIMEOUT_S
    while not (folder / "work" / "fft_model.json").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    # Every trial reads them, on its worker, at its first evaluation.
    [scores] = (folder / "work" / "scores").glob("fft-validation-*")
    scores.write_bytes(b"")
    out, err = process.communicate(timeout=small_searches.TIMEOUT_S)

    assert process.returncode == 1, out + err
    assert "2 trials have failed with the same error" in err
    assert f"{scores} is empty" in err
    assert f"--resume {folder}" in err
    assert "Traceback" not in out + err
    failed = sorted((folder / "work" / "trials").glob("*/error.json"))
    assert len(failed) == 2
    for error in failed:
        assert json.loads(error.read_text())["raised"] is True
        trace = error.with_name("traceback.txt")
        assert str(trace) in out
        # The worker's own: where in our code it happened, and what raised it.
        for part in ("loop.py", "cache.py", "read_json", "Damaged"):
            assert part in trace.read_text()
    logs = folder / "work" / "ray-logs"
    assert f"Ray's logs are kept in {logs}" in out
    assert [path for path in logs.rglob("*") if path.name.startswith("worker-")]
    assert not [path for path in logs.rglob("*") if not path.is_file() and not path.is_dir()]

    resumed = small_searches.run(tmp_path, "--resume", "run")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "it is made again" in resumed.stdout
    rows = json.loads((folder / "leaderboard.json").read_text())["trials"]
    assert sorted(row["stopped_reason"] for row in rows) == ["completed", "completed", "failed", "failed"]
    assert (folder / "verdict.json").exists()

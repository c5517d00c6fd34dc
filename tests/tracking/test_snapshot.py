from __future__ import annotations

from pathlib import Path

import pytest
from tracking_fixtures import begin_trial, finished, write_outcome, write_progress

from mft_ray.runs.folder import RunFolder
from mft_ray.tracking.snapshot import SnapshotReader


def test_a_finished_search_is_all_there(tmp_path: Path) -> None:
    snapshot = SnapshotReader(finished(tmp_path), "mft").read()
    by_name = {training.name: training for training in snapshot.trainings}
    assert list(by_name) == ["fft", "continued_fft", "aaaa1111", "bbbb2222"]
    assert [each.score for each in by_name["fft"].history] == [0.1, 0.3, 0.5]
    ends = {name: training.end for name, training in by_name.items()}
    assert {name: end and (str(end.reason), end.score, end.step) for name, end in ends.items()} == {
        "fft": ("plateau", 0.5, 20),
        "continued_fft": ("completed", 0.52, 10),
        "aaaa1111": ("completed", 0.55, 10),
        "bbbb2222": ("failed", None, 0),
    }
    assert ends["aaaa1111"] is not None
    assert ends["aaaa1111"].delta_fft == pytest.approx(0.05)
    assert by_name["aaaa1111"].params == {"method": "mft", "ratio": 0.25, "layers": "1-2", "lr": 1e-3}
    assert snapshot.verdict is not None
    assert snapshot.verdict.trial_id == "aaaa1111"


def test_a_search_that_has_only_begun(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    reader = SnapshotReader(folder, "mft")
    assert reader.read().trainings == ()
    write_progress(folder.fft, 0.1, 0.3)
    [fft] = reader.read().trainings
    assert (fft.name, fft.end) == ("fft", None)
    assert [(each.step, each.score) for each in fft.history] == [(0, 0.1), (10, 0.3)]
    assert reader.read().trainings[0] is fft


def test_what_has_not_changed_is_the_same_object(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    out = begin_trial(folder, "cccc3333")
    write_progress(out, 0.4)
    reader = SnapshotReader(folder, "mft")
    before = {training.name: training for training in reader.read().trainings}
    write_outcome(out, 0.4, 0.6)
    after = {training.name: training for training in reader.read().trainings}
    assert {name for name in after if after[name] is not before[name]} == {"cccc3333"}
    assert after["cccc3333"].end is not None

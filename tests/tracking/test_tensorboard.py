"""Events of TensorBoard against the records of a run folder, read by our own reader and by TensorBoard's."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event
from tracking_fixtures import begin_trial, finished, write_baseline, write_outcome, write_progress

from mft_ray.runs.folder import RunFolder
from mft_ray.tracking.snapshot import SnapshotReader
from mft_ray.tracking.tensorboard import TensorBoard, _records


def sync(folder: RunFolder) -> None:
    """As a process does that is started, follows for a moment, and ends."""
    board = TensorBoard(folder.tensorboard)
    board.sync(SnapshotReader(folder, "mft").read(), final=True)
    board.close()


def scalars(folder: RunFolder, name: str, tag: str) -> list[tuple[int, float]]:
    """Every event of a scalar, in the order of the files."""
    found = []
    for path in sorted((folder.tensorboard / name).glob("events.*"), key=lambda path: path.stat().st_mtime_ns):
        for record in _records(path.read_bytes()):
            event = Event.FromString(record)
            found += [(event.step, value.simple_value) for value in event.summary.value if value.tag == tag]
    return [(step, pytest.approx(value)) for step, value in found]


def files(folder: RunFolder) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.tensorboard.rglob("events.*")}


def test_every_training_has_a_folder_with_its_curve(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    sync(folder)
    names = {path.name for path in folder.tensorboard.iterdir()}
    assert names == {"fft", "continued_fft", "aaaa1111", "bbbb2222"}
    assert scalars(folder, "fft", "validation/score") == [(0, 0.1), (10, 0.3), (20, 0.5)]
    assert scalars(folder, "aaaa1111", "validation/score") == [(0, 0.4), (10, 0.55), (20, 0.53)]
    assert scalars(folder, "aaaa1111", "training/loss") == [(10, 0.1), (20, 0.05)]
    assert scalars(folder, "aaaa1111", "mask/ratio") == [(0, 0.25), (10, 0.25), (20, 0.25)]
    assert scalars(folder, "aaaa1111", "final/score") == [(10, 0.55)]
    assert scalars(folder, "aaaa1111", "final/delta_fft") == [(10, 0.05)]
    assert scalars(folder, "bbbb2222", "final/score") == []


def test_a_second_process_adds_nothing(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    sync(folder)
    before = files(folder)
    sync(folder)
    assert files(folder) == before


def test_a_resumed_search_goes_on_where_it_was(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_baseline(folder)
    out = begin_trial(folder, "cccc3333")
    write_progress(out, 0.4, 0.5)
    sync(folder)
    # It goes on from a checkpoint at step 0 and comes to step 10 again.
    write_outcome(out, 0.4, 0.5, 0.6)
    sync(folder)
    assert scalars(folder, "cccc3333", "validation/score") == [(0, 0.4), (10, 0.5), (20, 0.6)]
    assert scalars(folder, "cccc3333", "final/score") == [(20, 0.6)]


@pytest.mark.parametrize("kept", [-1, -300, 100, 30, 5, 0])
def test_a_file_that_is_half_written_is_made_whole(tmp_path: Path, kept: int) -> None:
    folder = finished(tmp_path)
    sync(folder)
    before = scalars(folder, "aaaa1111", "training/tokens")
    [path] = (folder.tensorboard / "aaaa1111").iterdir()
    path.write_bytes(path.read_bytes()[:kept])
    sync(folder)
    assert scalars(folder, "aaaa1111", "training/tokens") == before
    assert scalars(folder, "aaaa1111", "final/score") == [(10, 0.55)]


def test_a_file_of_something_else_makes_way(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    sync(folder)
    [path] = (folder.tensorboard / "aaaa1111").iterdir()
    path.write_bytes(b"no event at all, and longer than a record's head")
    sync(folder)
    assert scalars(folder, "aaaa1111", "final/score") == [(10, 0.55)]


def test_events_that_are_not_of_the_records_make_way(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    sync(folder)
    shutil.rmtree(folder.trial("aaaa1111"))  # another has taken its place
    write_outcome(folder.fft, 0.1, 0.45, 0.5)  # trained again
    sync(folder)
    assert {path.name for path in folder.tensorboard.iterdir()} == {"fft", "continued_fft", "bbbb2222"}
    assert scalars(folder, "fft", "validation/score") == [(0, 0.1), (10, 0.45), (20, 0.5)]


@pytest.mark.slow  # with what `make test-all` installs
def test_tensorboard_reads_it(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    plugin = pytest.importorskip("tensorboard.plugins.hparams.metadata")
    folder = finished(tmp_path)
    sync(folder)
    [path] = (folder.tensorboard / "aaaa1111").iterdir()
    path.write_bytes(path.read_bytes()[:-40])  # killed in the middle, and resumed
    sync(folder)
    events = reader.EventAccumulator(str(path.parent))
    events.Reload()
    assert [(each.step, each.value) for each in events.Scalars("validation/score")] == [
        (0, pytest.approx(0.4)),
        (10, pytest.approx(0.55)),
        (20, pytest.approx(0.53)),
    ]
    times = [each.wall_time for each in events.Scalars("validation/score")]
    assert [later - times[0] for later in times] == pytest.approx([0, 20, 40], abs=0.01)
    content = events.summary_metadata[plugin.SESSION_START_INFO_TAG].plugin_data.content
    settings = plugin.parse_session_start_info_plugin_data(content).hparams
    assert settings["ratio"].number_value == 0.25
    assert settings["layers"].string_value == "1-2"
    assert plugin.SESSION_END_INFO_TAG in events.summary_metadata

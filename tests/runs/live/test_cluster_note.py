"""Nodes and workers as a search notes them in its folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from mft_ray.runs.folder import RunFolder
from mft_ray.runs.live import cluster as noting
from mft_ray.runs.live.cluster import OLD_S, cluster_noted, cluster_now
from mft_ray.runs.live.nodes import CardUse, NodeUse, WorkerUse
from mft_ray.runs.records import Cluster

NODE = NodeUse("here", 4.0, 2.0, 1.0, 1.0, 64, 32, (CardUse("H100", 1, 80, 93),), (WorkerUse(7, 5, 1),))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.work.mkdir(parents=True)
    return folder


def test_it_is_shown_while_it_is_new_and_somebody_works_on_the_run(folder: RunFolder) -> None:
    assert cluster_now(folder.root) is None
    Cluster(time=time.time() - 3, nodes=[NODE]).save(folder.cluster)
    assert cluster_now(folder.root) is None  # nobody works on it: it was left by a search that was killed
    with FileLock(folder.work / "lock"):
        found = cluster_now(folder.root)
        assert found is not None
        assert found[0].nodes == [NODE]
        assert 2.5 < found[1] < 30
        Cluster(time=time.time() + 100, nodes=[NODE]).save(folder.cluster)
        ahead = cluster_now(folder.root)
        assert ahead is not None
        assert ahead[1] == 0.0
        Cluster(time=time.time() - OLD_S - 1, nodes=[NODE]).save(folder.cluster)
        assert cluster_now(folder.root) is None
        folder.cluster.write_text('{"time":')
        assert cluster_now(folder.root) is None


def test_a_search_notes_it_and_takes_it_away(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextmanager
    def told(tell: Callable[[list[NodeUse]], object], failed: Callable[[Exception], object]) -> Iterator[None]:
        tell([NODE])
        failed(OSError("no answer"))
        yield

    monkeypatch.setattr(noting, "told_of_nodes", told)
    with cluster_noted(folder):
        assert Cluster.load(folder.cluster).nodes == [NODE]
    assert not folder.cluster.exists()
    assert "shows no nodes and workers any more (OSError: no answer)" in capsys.readouterr().out

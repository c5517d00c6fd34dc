"""How much memory a worker may take: limits of machines and containers, shared fairly."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mft_ray.training.memory import _limits, kills, most_used, node_memory, share_of_node

GB = 2.0**30
sizes = st.floats(0, 1e13)


@given(total=sizes, free=sizes, resident=sizes, group=st.integers(1, 64), places=st.integers(1, 256))
def test_shares_never_add_up_to_more_than_there_is(
    total: float, free: float, resident: float, group: int, places: int
) -> None:
    share = share_of_node(total, free, resident, group, places)
    assert share >= 0
    assert share * max(group, places) <= free
    assert (share + min(resident, total / max(group, places))) * max(group, places) <= total * 1.0001
    assert share_of_node(total, free, resident, group, places + 1) <= share


def test_a_worker_that_has_a_node_for_itself_takes_most_of_what_is_free() -> None:
    assert share_of_node(100 * GB, 80 * GB, 1 * GB, 1, 1) == pytest.approx(0.8 * 70 * GB)
    assert share_of_node(100 * GB, 80 * GB, 1 * GB, 1, 4) == pytest.approx(0.8 * 70 / 4 * GB)
    assert share_of_node(100 * GB, 80 * GB, 9 * GB, 1, 4) == pytest.approx(0.8 * (90 / 4 - 9) * GB)
    assert share_of_node(100 * GB, 5 * GB, 1 * GB, 1, 1) == 0


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def test_version_2_control_groups(tmp_path: Path) -> None:
    mine = tmp_path / "cgroup"
    mine.write_text("0::/pods/one/box\n")
    root = tmp_path / "fs"
    write(root / "pods" / "one", memory__max=8000, memory__current=5000, memory__stat="anon 1\ninactive_file 1500")
    write(root / "pods" / "one" / "box", memory__max="max", memory__current=10, memory__stat="inactive_file 0")
    assert list(_limits(root, mine)) == [(8000.0, 3500.0)]


def test_inside_a_container_the_path_may_be_of_the_world_outside(tmp_path: Path) -> None:
    mine = tmp_path / "cgroup"
    mine.write_text("0::/docker/0123\n")
    write(tmp_path / "fs", memory__max=4000, memory__current=1000, memory__stat="inactive_file 100")
    assert list(_limits(tmp_path / "fs", mine)) == [(4000.0, 900.0)]


def test_version_1_control_groups(tmp_path: Path) -> None:
    mine = tmp_path / "cgroup"
    mine.write_text("5:cpu,cpuacct:/a\n4:memory:/a\n")
    files = {"memory__usage_in_bytes": 700, "memory__stat": "total_inactive_file 50"}
    write(tmp_path / "fs" / "memory" / "a", memory__limit_in_bytes=1000, **files)
    assert list(_limits(tmp_path / "fs", mine)) == [(1000.0, 650.0)]
    assert list(_limits(tmp_path / "nowhere", mine)) == []
    assert list(_limits(tmp_path, tmp_path / "none")) == []


def test_this_machine_has_memory() -> None:
    total, free = node_memory()
    assert 0 < free < total
    assert kills() >= 0


def test_kills_are_counted_in_a_container_that_is_not_shown_the_machine(tmp_path: Path) -> None:
    mine = tmp_path / "cgroup"
    mine.write_text("0::/pod/box\n")
    root = tmp_path / "fs"
    write(root / "pod", memory__events="low 0\nmax 9\noom 4\noom_kill 3\noom_group_kill 0")
    write(root / "pod" / "box", memory__events="low 0\nmax 1\noom 1\noom_kill 1\noom_group_kill 0")
    assert kills(tmp_path / "none", root, mine) == 3
    write(tmp_path, vmstat="nr_free_pages 9\noom_kill 7")
    assert kills(tmp_path / "vmstat", root, mine) == 7
    assert kills(tmp_path / "none", tmp_path / "none", mine) == 0


def test_the_group_that_came_nearest_to_its_limit_is_told(tmp_path: Path) -> None:
    mine = tmp_path / "cgroup"
    mine.write_text("0::/pod/box\n")
    root = tmp_path / "fs"
    write(root / "pod", memory__peak=9000, memory__max=10000)
    write(root / "pod" / "box", memory__peak=500, memory__max=5000)
    assert most_used(root, mine) == (9000, 10000)
    write(root / "pod", memory__peak=9000, memory__max="max")
    assert most_used(root, mine) == (500, 5000)
    assert most_used(tmp_path / "none", mine) is None

"""Tables and figures of what an experiment found."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.image
import pytest

from mft_ray.experiments.catalogue import EXPERIMENTS
from mft_ray.experiments.figures import draw
from mft_ray.experiments.results import Curve, Results, Row
from mft_ray.experiments.tables import write_tables

COST = {"tokens": 100, "flops": 1e9, "seconds": 2.0, "memory": 1e9, "trainable": 10, "artifact_bytes": 1000}
METHODS = ("continued_fft", "lora", "mft")


def row(seed: int, name: str, delta: float, **more: object) -> Row:
    found = Row(
        seed,
        "all",
        name,
        name,
        None,
        "test",
        "exact_match",
        500,
        0.9 + delta,
        delta,
        (delta - 0.01, delta + 0.01),
        None if name == "fft" else 0.5,
        100,
        COST,
    )
    return replace(found, **more)  # type: ignore[arg-type]


def results(name: str) -> Results:
    """Three seeds: continued FFT gains a point on all of them, the mask on average."""
    rows, curves, more = [], [], []
    for seed, gain in enumerate((0.03, -0.01, 0.01)):
        deltas = dict(zip(("fft", *METHODS), (0.0, 0.01, 0.005 * seed, gain), strict=True))
        if name in ("ratio", "data"):
            rows.append(row(seed, "fft", 0.0))
            rows += [row(seed, "mft", gain * x, x=x, panel=f"share {x}") for x in (0.1, 0.5)]
        else:
            rows += [row(seed, each, delta) for each, delta in deltas.items()]
        for each in ("fft", *METHODS):
            points = [{"step": t, "tokens": 10 * t, "score": 0.5 + 0.004 * t, "ratio": 0.0} for t in (0, 50, 100)]
            curves.append(Curve(seed, "all", each, tuple(points)))
            losses = [[2.0, 1.0, 2.0 + seed]] * 2
            more.append(
                {"seed": seed, "row": each, "distances": [-0.5, 0.0, 0.5], "losses": losses, "top_eigenvalue": 7.0}
            )
    if name == "transfer":  # each domain's test examples are the other's task
        other = {"addition": "subtraction", "subtraction": "addition"}
        rows = [replace(each, panel=domain) for each in rows for domain in other]
        rows += [replace(each, on=other[each.panel]) for each in rows]
    return Results(name, rows, curves, ["mft of seed 2: too hot"], more if name == "flatness" else [])


def test_recipes_count_the_seeds_won_against_fft_and_what_went_on(tmp_path: Path) -> None:
    text = write_tables(results("recipes"), tmp_path / "recipes.md").read_text()
    assert "| seeds won | all, > fft | all, > continued_fft |" in text
    assert "| mft | 2 of 3 | 1 of 3 |" in text  # +3, -1 and +1 points against 0 and +1: a tie is not won
    assert "| lora | 2 of 3 | 0 of 3 |" in text
    assert "| continued_fft | 3 of 3" not in text
    assert "seeds won" not in write_tables(results("cost"), tmp_path / "cost.md").read_text()


def test_the_table_has_means_over_seeds_with_their_interval(tmp_path: Path) -> None:
    text = write_tables(results("cost"), tmp_path / "cost.md").read_text()
    # The mean of +3, -1 and +1, and Student's 4.303 x 2 / sqrt(3) about it.
    assert "| all | mft | test, Exact match (%) | 91.00 | +1.00 [−3.97, +5.97] | +3.00, −1.00, +1.00 |" in text
    assert "| all | continued_fft | test, Exact match (%) | 91.00 | +1.00 [+1.00, +1.00] |" in text
    assert "| all | fft | test, Exact match (%) | 90.00 | – | – |" in text
    assert "| all | lora | 100 | 1 GFLOP | 2 s | 1 GB | 10 | 1 kB |" in text
    assert "- mft of seed 2: too hot" in text
    assert "over 3 seeds" in text


def test_metrics_are_not_mixed(tmp_path: Path) -> None:
    both = results("curves")
    both = replace(both, rows=both.rows + [replace(each, metric="answer_logprob", score=-1.0) for each in both.rows])
    text = write_tables(both, tmp_path / "curves.md").read_text()
    assert "| all | fft | test, Exact match (%) | 90.00 |" in text
    assert "| all | fft | test, Log-probability per answer token (nats) | −1.0000 |" in text


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    one = results("curves")
    one = replace(one, rows=[each for each in one.rows if each.seed == 0])
    assert "| +3.00 | +3.00 |" in write_tables(one, tmp_path / "curves.md").read_text()
    assert draw(one, tmp_path / "curves").exists()


def test_flatness_has_a_table_of_its_own(tmp_path: Path) -> None:
    text = write_tables(results("flatness"), tmp_path / "flatness.md").read_text()
    assert "| mft | 1.0000 | +1.500 | 7 | 7, 7, 7 |" in text


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_figure_says_what_it_shows(name: str, tmp_path: Path) -> None:
    png = draw(results(name), tmp_path / name)
    assert matplotlib.image.imread(png).std() > 0.01  # there is something on it
    words = (tmp_path / f"{name}.svg").read_text()
    ElementTree.fromstring(words)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.png", f"{name}.svg"]
    comments = [line.strip()[5:-4] for line in words.splitlines() if line.strip().startswith("<!-- ")]
    said = " ".join(comments)
    assert EXPERIMENTS[name].question in said
    if name != "cost":
        assert "FFT" in said
    assert EXPERIMENTS[name].axis in said or name in ("curves", "cost")


def test_a_row_far_off_leaves_room_for_the_others(tmp_path: Path) -> None:
    near = results("recipes")
    said = "logarithmic beyond"
    assert said not in draw(near, tmp_path / "near").with_suffix(".svg").read_text()
    far = replace(near, rows=[*near.rows, *(row(seed, "seed 2", -0.4) for seed in range(3))])
    svg = draw(far, tmp_path / "far").with_suffix(".svg").read_text()
    assert said in svg
    assert "seed 2" in svg  # the whole name


def test_raw_rows_are_json() -> None:
    content = json.loads(json.dumps(results("ratio").raw()))
    assert {"seed", "panel", "row", "score", "delta_fft", "cost"} <= content["rows"][0].keys()
    assert content["summary"][1]["deltas"] == pytest.approx([0.003, -0.001, 0.001])

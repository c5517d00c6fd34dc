"""A made-up run folder with everything that a real search leaves, names that must be escaped included."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

FFT = 0.884
INITS, SCHEDULES = ("normal", "magnitude"), ("constant", "anneal")
REASONS = ("completed", "below_fft", "plateau", "pruned")
RunMaker = Callable[..., Path]


def _stop(reason: str) -> dict[str, Any] | None:
    """The numbers behind a rule's decision, as a search records them."""
    decided: dict[str, Any] = {"reason": reason, "step": 210, "total_steps": 300}
    if reason == "below_fft":
        numbers = {"value": -0.018, "limit": 0.0, "noise": 0.004, "best": -0.021, "projected": -0.018}
        return {**decided, **numbers, "confidence": 0.95}
    return {**decided, "value": 0.881, "limit": 0.88, "noise": 0.003, "evaluations": 4} if reason == "plateau" else None


def _trial(index: int) -> dict[str, Any]:
    ratio = 0.05 + 0.03 * index
    init, schedule = INITS[index % 2], SCHEDULES[(index // 2) % 2]
    score = FFT + 0.022 - 0.004 * index - (0.3 if index == 11 else 0.0)
    return {
        "trial_id": f"trial{index:02d}",
        "config": {
            "ratio": ratio,
            "layers": ("0-7", "0-3", "4-7")[index % 3],
            "target": ("both", "attn")[index % 2],
            "init": init,
            "schedule": schedule,
            "lr": 10 ** (-4.5 + 0.2 * index),
        },
        "step": 30 * (1 + (index * 7) % 10),
        "score": score,
        "delta_fft": score - FFT,
        "status": "completed" if index % 4 == 0 else "stopped",
        "stopped_reason": REASONS[index % 4],
        "stop": _stop(REASONS[index % 4]),
        "seconds": 31.5 + index,
        "steps": 300,
        "tokens": 230_400,
    }


def _failed(trial_id: str) -> dict[str, Any]:
    return {
        "trial_id": trial_id,
        "config": {"ratio": 0.4, "layers": "</script><b>", "target": "mlp", "init": "normal", "lr": 1e-3},
        "step": None,
        "score": None,
        "delta_fft": None,
        "status": "failed",
        "stopped_reason": "failed",
        "seconds": None,
        "error": "out of memory in <linear>",
    }


def _curve(start: float, end: float, steps: int, ratio: float | None) -> list[dict[str, Any]]:
    points = []
    for index in range(11):
        share = index / 10
        point: dict[str, Any] = {
            "step": round(steps * share),
            "score": start + (end - start) * (1 - math.exp(-4 * share)) / (1 - math.exp(-4)),
            "seconds": 30.0 * share,
            "tokens": round(230_400 * share),
            "loss": 0.1,
        }
        if ratio is not None:
            point["ratio"] = ratio * min(1.0, 2 * share)
        points.append(point)
    return points


def _verdict(trial_id: str) -> dict[str, Any]:
    return {
        "metric": "exact_match",
        "split": "test",
        "n": 6000,
        "fft": 0.8805,
        "mft": 0.9015,
        "delta": 0.021,
        "ci95": [0.0143, 0.0278],
        "p_value": 3.1e-9,
        "test": "mcnemar",
        "confidence": 0.95,
        "beats_fft": True,
        "better_than_fft": True,
        "continued_fft": 0.8918,
        "delta_continued_fft": 0.0097,
        "ci95_continued_fft": [0.0028, 0.0165],
        "p_value_continued_fft": 0.0061,
        "beats_continued_fft": True,
        "trial_id": trial_id,
        "sentence": "Yes: on 6,000 untouched test examples the masked model scores 90.15 % and FFT 88.05 %: "
        "+2.10 points (95% interval +1.43 to +2.78, p < 0.0001), a gain over FFT beyond chance. Against FFT "
        "continued for the same number of tokens (89.18 %) it is +0.97 points (95% interval +0.28 to +1.65, "
        "p = 0.0061), better beyond chance.",
        "extra": [
            {
                "metric": "answer_logprob",
                "n": 6000,
                "fft": -0.1412,
                "continued": -0.1507,
                "mft": -0.1204,
                "delta": 0.0208,
                "ci95": [0.0122, 0.0291],
                "p_value": 0.00021,
                "test": "paired_t",
            }
        ],
    }


@pytest.fixture
def make_run(tmp_path: Path) -> RunMaker:
    """Makes a run folder; ``verdict=False`` is one whose search has not ended."""

    def make(name: str = "quick<b>start", trials: int = 12, verdict: bool = True) -> Path:
        run = tmp_path / "run"
        run.mkdir(exist_ok=True)
        board = [_trial(index) for index in range(trials)]
        baseline: dict[str, Any] = {
            "method": "fft",
            "metric": "exact_match",
            "validation": {"score": FFT, "n": 2000, "standard_error": 0.0072},
            "model": "work/fft/best",
            "stopped": "plateau",
            "best_step": 1800,
            "steps": 2400,
            "tokens": 1_843_200,
            "seconds": 121.7,
        }
        curves = {
            "fft": _curve(0.0, FFT, 2400, None),
            "continued": _curve(FFT, 0.893, 300, None) if verdict else [],
            "trials": {
                row["trial_id"]: _curve(
                    FFT if row["config"]["schedule"] == "anneal" else 0.6,
                    row["score"],
                    300,
                    row["config"]["ratio"],
                )
                for row in board
            },
        }
        if verdict:
            baseline["test"] = {"score": 0.8805, "n": 6000}
            baseline["continued"] = {
                "validation": {"score": 0.893, "n": 2000},
                "test": {"score": 0.8918, "n": 6000},
                "steps": 300,
                "tokens": 230_400,
                "seconds": 29.4,
            }
            (run / "verdict.json").write_text(json.dumps(_verdict("trial00")))
        board.append(_failed("trial<i>99"))
        (run / "baseline.json").write_text(json.dumps(baseline))
        (run / "leaderboard.json").write_text(json.dumps({"baseline": baseline, "trials": board}))
        (run / "curves.json").write_text(json.dumps(curves))
        config = {
            "run": {"name": name, "seed": 3},
            "model": {"path": None, "architecture": {"model_type": "llama", "hidden_size": 96}},
            "data": {"task": "arithmetic", "digits": 2},
        }
        (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        return run

    return make

"""The verdict, from per-example scores alone."""

from __future__ import annotations

import json
import random

import pytest

from mft_ray.search.verdict import compare, judge

N = 5000
RESAMPLES = 1000
KEYS = {"metric", "split", "n", "fft", "mft", "delta", "ci95", "p_value", "beats_fft"} | {
    "delta_continued_fft",
    "ci95_continued_fft",
    "sentence",
    "p_value_continued_fft",
    "confidence",
    "test",
}


def _right(share: float, seed: int = 0) -> list[float]:
    """Right-or-wrong scores, about so many of them right."""
    rng = random.Random(seed)
    return [float(rng.random() < share) for _ in range(N)]


def _better(scores: list[float], share: float, seed: int = 1) -> list[float]:
    """The same model, but for a share of the examples that it now also gets right."""
    rng = random.Random(seed)
    return [1.0 if rng.random() < share else score for score in scores]


def _judge(mft, fft, continued=None, metric="exact_match"):
    return judge(metric, mft, fft, continued, RESAMPLES)


def test_no_when_the_mask_is_the_fft_model_itself():
    fft = _right(0.9)
    verdict = _judge(list(fft), fft, list(fft))
    assert verdict["beats_fft"] is False
    assert verdict["delta"] == 0
    assert verdict["ci95"] == [0, 0]
    assert verdict["p_value"] == 1
    assert verdict["sentence"].startswith("No: on 5,000 untouched test examples")
    assert "no gain over FFT beyond chance" in verdict["sentence"]
    assert verdict["sentence"].endswith("no difference beyond chance.")


def test_no_and_worse_when_the_mask_is_random():
    verdict = _judge(_right(0.3, seed=5), _right(0.9))
    assert verdict["beats_fft"] is False
    assert verdict["ci95"][1] < 0
    assert verdict["sentence"].startswith("No: ")
    assert "the mask is worse than FFT" in verdict["sentence"]


def test_no_when_two_models_are_as_good_but_differ():
    verdict = _judge(_right(0.9, seed=2), _right(0.9, seed=3))
    assert verdict["beats_fft"] is False
    assert verdict["ci95"][0] < 0 < verdict["ci95"][1]
    assert "no gain over FFT beyond chance" in verdict["sentence"]


def test_yes_on_a_clear_gain_over_both():
    fft = _right(0.88)
    verdict = _judge(_better(fft, 0.2), fft, _better(fft, 0.02, seed=9))
    assert verdict["beats_fft"] is True
    assert verdict["beats_continued_fft"] is True
    assert verdict["ci95"][0] > 0
    assert verdict["p_value"] < 0.001
    assert verdict["delta"] == pytest.approx(verdict["mft"] - verdict["fft"])
    assert verdict["sentence"].startswith("Yes: ")
    assert "a gain over FFT beyond chance" in verdict["sentence"]
    assert verdict["sentence"].endswith("better beyond chance.")


@pytest.mark.parametrize(("share", "end"), [(0.2, "no difference beyond chance."), (0.8, "worse beyond chance.")])
def test_only_in_part_when_continued_fft_gains_as_much(share, end):
    fft = _right(0.8)
    verdict = _judge(_better(fft, 0.2), fft, _better(fft, share, seed=1 if share == 0.2 else 4))
    assert verdict["beats_fft"] is True
    assert verdict["beats_continued_fft"] is False
    assert verdict["sentence"].startswith("Only in part: ")
    assert verdict["sentence"].endswith(end)


def test_a_handful_of_disagreements_is_no_proof():
    # All four go one way: the bootstrap interval leaves zero out, exact McNemar (p = 0.125) does not.
    fft = [1.0] * 96 + [0.0] * 4
    verdict = _judge([1.0] * 100, fft)
    assert verdict["ci95"][0] > 0
    assert verdict["p_value"] == pytest.approx(0.125)
    assert verdict["beats_fft"] is False


def test_scores_that_are_not_right_or_wrong_are_tested_by_paired_t():
    rng = random.Random(0)
    fft = [rng.gauss(-0.5, 0.2) for _ in range(N)]
    mft = [score + rng.gauss(0.02, 0.1) for score in fft]
    verdict = _judge(mft, fft, fft, metric="answer_logprob")
    assert verdict["test"] == "paired_t"
    assert verdict["beats_fft"] is True
    assert "nats/token" in verdict["sentence"]


def test_sentence_says_the_numbers_it_rests_on():
    fft = [0.0] * 1000 + [1.0] * 4000
    mft = [1.0] * 100 + fft[100:]
    sentence = _judge(mft, fft, fft)["sentence"]
    for part in ("5,000", "82.00 %", "80.00 %", "+2.00 points", "95% interval +1.6", "p < 0.0001"):
        assert part in sentence
    assert "FFT continued for the same number of tokens (80.00 %)" in sentence
    assert "\n" not in sentence


def test_without_continued_fft_the_verdict_is_about_fft_alone():
    fft = _right(0.5)
    verdict = _judge(_better(fft, 0.5), fft)
    assert verdict["beats_fft"] is True
    assert verdict["sentence"].startswith("Yes: ")
    assert "continued" not in verdict["sentence"]
    for key in ("continued_fft", "delta_continued_fft", "ci95_continued_fft", "p_value_continued_fft"):
        assert verdict[key] is None


def test_verdict_is_json_with_the_keys_that_others_read_and_the_same_each_time():
    fft = _right(0.8)
    mft = _better(fft, 0.1)
    verdict = _judge(mft, fft, fft)
    assert verdict.keys() >= KEYS
    assert verdict["split"] == "test"
    assert verdict["n"] == N
    assert json.loads(json.dumps(verdict)) == verdict == _judge(mft, fft, fft)


def test_extra_metrics_are_compared_alike():
    fft = _right(0.8)
    row = compare("generated_match", _better(fft, 0.1), fft, RESAMPLES)
    assert row.keys() >= {"metric", "n", "fft", "mft", "delta", "ci95", "p_value"}
    assert row["ci95"][0] > 0
    assert row["test"] == "mcnemar"
    assert json.loads(json.dumps(row)) == row


def test_scores_of_different_examples_are_refused():
    with pytest.raises(ValueError, match="not paired"):
        _judge(_right(0.5)[1:], _right(0.5))

"""The verdict, from per-example scores alone."""

from __future__ import annotations

import json
import random

import pytest

from mft_ray.verdict.decision import CONTINUED, SEEDS, Evidence, Rules, compare, judge, warn
from mft_ray.verdict.seeds import spread

N = 5000
RULES = Rules(resamples=1000)
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


def _judge(mft, fft, continued=None, metric="exact_match", **more):
    return judge(Evidence(metric, mft, fft, continued, **more), RULES).content()


def test_no_when_the_mask_is_the_fft_model_itself():
    fft = _right(0.9)
    verdict = _judge(list(fft), fft, list(fft))
    assert verdict["beats_fft"] is False
    assert verdict["delta"] == 0
    assert verdict["ci95"] == [0, 0]
    assert verdict["p_value"] == 1
    assert verdict["sentence"].startswith("No: on 5,000 untouched test examples")
    assert "no gain over FFT beyond chance" in verdict["sentence"]
    assert verdict["sentence"].endswith("no difference beyond chance. The two answer every example alike.")


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
    assert (verdict["better_than_fft"], verdict["beats_continued_fft"], verdict["beats_fft"]) == (True, False, False)
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


def test_no_says_what_so_many_examples_can_show():
    fft = [1.0] * 80 + [0.0] * 84
    mft = [0.0] * 8 + [1.0] * 72 + [1.0] * 10 + [0.0] * 74  # 18 of 164 differ
    verdict = _judge(mft, fft)
    sentence = verdict["sentence"]
    # Standard error of the difference: sqrt(18) / 164; 2.8 of them are found in four of five experiments.
    assert verdict["detectable"] == pytest.approx(2.8 * 18**0.5 / 164, rel=0.02)
    assert "164 examples that differ as these do cannot show a gain of less than 7.2" in sentence
    assert sentence.endswith("one as large as the one seen would take about 5,800.")
    assert verdict["needed"] == pytest.approx(5800, rel=0.02)


def test_the_best_rival_is_judged_alike_and_changes_no_claim():
    fft = _right(0.8)
    verdict = _judge(_better(fft, 0.2), fft, fft, rival=("lora", _better(fft, 0.5, seed=7)))
    assert verdict["beats_fft"] is True
    assert (verdict["rival"]["method"], verdict["rival"]["beaten"]) == ("lora", False)
    assert verdict["rival"]["delta"] < 0
    assert "Against the best rival on validation, lora (" in verdict["sentence"]
    assert verdict["sentence"].endswith("worse beyond chance.")


def _run(gain: float, over_continued: float) -> dict[str, float]:
    return {"fft": 0.8, "mft": 0.8 + gain, "continued": 0.8 + gain - over_continued}


def test_a_gain_within_seed_noise_is_called_that():
    fft = _right(0.8)
    noisy = spread([_run(0.03, 0.03), _run(-0.02, -0.01), _run(0.01, 0.02)])
    verdict = _judge(_better(fft, 0.2), fft, fft, seeds=noisy)
    assert (verdict["better_than_fft"], verdict["beats_fft"]) == (True, False)
    assert verdict["sentence"].startswith("Not surely: ")
    assert "Over 3 seeds the gain over FFT is +0.67 points on average (standard deviation 2.52" in verdict["sentence"]
    assert "within seed noise" in verdict["sentence"]
    sure = _judge(_better(fft, 0.2), fft, fft, seeds=spread([_run(0.03, 0.02), _run(0.031, 0.021), _run(0.029, 0.02)]))
    assert sure["beats_fft"] is True
    assert sure["sentence"].startswith("Yes: ")
    assert "more than seed noise" in sure["sentence"]
    assert json.loads(json.dumps(verdict)) == verdict


def test_seeds_must_agree_on_continued_fft_too():
    found = spread([_run(0.03, 0.01), _run(0.031, -0.01), _run(0.029, 0.0)])
    assert found.delta.mean == pytest.approx(0.03)
    assert found.delta.sd == pytest.approx(0.001)
    assert found.delta.ci95[0] > 0 > found.delta_continued_fft.ci95[0]
    assert found.within_noise is True


def test_a_loss_elsewhere_is_warned_of_only_beyond_noise():
    fft = _right(0.6)
    rows = [
        compare("ifeval: strict", _right(0.5, seed=4), fft, RULES),
        compare("gsm8k: score", _better(fft, 0.1), fft, RULES),
        *(compare(f"task {n}", [*fft[:-1], 1 - fft[-1]], fft, RULES) for n in range(3)),
    ]
    warned = warn(rows)
    assert [row.worse for row in warned] == [True, False, False, False, False]
    assert all(after.p_holm >= before.p_value for before, after in zip(rows, warned, strict=True))
    sentence = _judge(_better(fft, 0.2), fft, fft, other_tasks=warned)["sentence"]
    assert "Warning: the mask makes ifeval: strict worse, 0." in sentence
    assert sentence.count("Warning") == 1


def test_a_second_look_is_said():
    fft = _right(0.8)
    assert "look 2 at the test examples" in _judge(_better(fft, 0.2), fft, fft, earlier_looks=1)["sentence"]
    assert "look" not in _judge(_better(fft, 0.2), fft, fft)["sentence"]


def test_examples_of_one_source_are_not_counted_as_many():
    # Ten sources of 500 examples that all say the same: ten facts, not five thousand.
    fft, sources = [0.0, 1.0] * (N // 2), [n // 500 for n in range(N)]
    mft = [1.0 if source < 3 else score for score, source in zip(fft, sources, strict=True)]
    assert _judge(mft, fft)["better_than_fft"]
    verdict = judge(Evidence("exact_match", mft, fft), Rules(1000, sources=sources)).content()
    assert not verdict["better_than_fft"]
    assert (verdict["n"], verdict["sources"], verdict["test"]) == (N, 10, "cluster_t")
    assert "on 5,000 untouched test examples of 10 sources" in verdict["sentence"]
    assert compare("exact_match", mft[:1000], fft[:1000], Rules(1000, sources=sources)).test == "cluster_t"


def test_without_continued_fft_the_verdict_is_about_fft_alone():
    fft = _right(0.5)
    verdict = _judge(_better(fft, 0.5), fft)
    assert verdict["beats_fft"] is True
    assert verdict["sentence"].startswith("Yes: ")
    assert "continued" not in verdict["sentence"]
    for key in ("continued_fft", "delta_continued_fft", "ci95_continued_fft", "p_value_continued_fft"):
        assert verdict[key] is None


WHY = "out of memory with one example at a time: it held 4.21GB. These need less memory: a shorter data.max_length."


def test_where_continued_fft_could_not_be_run_nothing_is_claimed():
    fft = _right(0.5)
    verdict = _judge(_better(fft, 0.5), fft, not_run={CONTINUED: WHY})
    assert (verdict["better_than_fft"], verdict["beats_fft"]) == (True, False)
    assert verdict["sentence"].startswith("Not shown: on 5,000 untouched test examples")
    assert (
        "FFT continued for the same number of tokens could not be run: out of memory with one example at a time: it "
        "held 4.21GB." in verdict["sentence"]
    )
    assert "max_length" not in verdict["sentence"]  # advice is not a part of a verdict
    assert verdict["sentence"].endswith("this is a gain over FFT alone, and no claim to beat it.")
    assert verdict["not_run"] == {"continued_fft": WHY}
    for key in ("continued_fft", "delta_continued_fft", "ci95_continued_fft", "p_value_continued_fft"):
        assert verdict[key] is None
    assert verdict.keys() >= KEYS
    assert json.loads(json.dumps(verdict)) == verdict


def test_no_gain_stays_none_without_continued_fft():
    fft = _right(0.9)
    verdict = _judge(list(fft), fft, not_run={CONTINUED: "it was killed"})
    assert verdict["beats_fft"] is False
    assert verdict["sentence"].startswith("No: ")
    assert "could not be run: it was killed." in verdict["sentence"]
    assert "claim" not in verdict["sentence"]


def test_a_rival_that_could_not_be_run_is_said_and_changes_no_claim():
    fft = _right(0.8)
    verdict = _judge(_better(fft, 0.2), fft, fft, not_run={"rival lora": "no memory."})
    assert verdict["beats_fft"] is True
    assert verdict["sentence"].startswith("Yes: ")
    assert "Rival lora could not be run: no memory." in verdict["sentence"]


def test_seeds_that_could_not_be_run_leave_the_claim_open_unless_some_were():
    fft, why = _right(0.8), {SEEDS: "seed 2 of 3: no memory"}
    none = _judge(_better(fft, 0.2), fft, fft, not_run=why)
    assert none["beats_fft"] is False
    assert none["sentence"].startswith("Not shown: ")
    assert "Other seeds could not be run: seed 2 of 3: no memory." in none["sentence"]
    some = _judge(_better(fft, 0.2), fft, fft, not_run=why, seeds=spread([_run(0.03, 0.02), _run(0.031, 0.021)]))
    assert some["beats_fft"] is True
    assert "could not be run" in some["sentence"]


def test_seeds_without_continued_fft_vary_against_fft_alone():
    runs = [{"fft": 0.8, "mft": score} for score in (0.83, 0.831, 0.829)]
    found = spread(runs)
    assert found.delta.mean == pytest.approx(0.03)
    assert found.delta_continued_fft is None
    assert found.within_noise is False
    fft = _right(0.8)
    verdict = _judge(_better(fft, 0.2), fft, seeds=found, not_run={CONTINUED: "no memory"})
    assert verdict["beats_fft"] is False
    assert "Over 3 seeds the gain over FFT is +3.00 points on average" in verdict["sentence"]


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
    row = compare("generated_match", _better(fft, 0.1), fft, RULES).content()
    assert row.keys() >= {"metric", "n", "fft", "mft", "delta", "ci95", "p_value"}
    assert row["ci95"][0] > 0
    assert row["test"] == "mcnemar"
    assert json.loads(json.dumps(row)) == row


def test_scores_of_different_examples_are_refused():
    with pytest.raises(ValueError, match="not paired"):
        _judge(_right(0.5)[1:], _right(0.5))

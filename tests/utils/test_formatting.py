import pytest

from mft_ray.config import METHODS
from mft_ray.utils import formatting as units


def test_percent_metrics():
    unit = units.unit("exact_match")
    assert unit.score(0.8842) == "88.42 %"
    assert unit.delta(0.0123) == "+1.23 points"
    assert unit.interval((-0.001, 0.02)) == "−0.10 to +2.00"
    assert unit.signed(-0.000001) == "0.00"
    assert unit.score(None) == unit.delta(None) == unit.interval(None) == "–"


def test_log_probability_and_unknown_metrics_are_shown_as_they_are():
    assert units.unit("answer_logprob").score(-0.14123) == "−0.1412 nats/token"
    assert units.unit("rouge").score(0.5) == "0.5000"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.2, "0 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_duration(seconds, text):
    assert units.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (3e-9, "< 0.0001"), (0.00612, "0.0061"), (0.5, "0.50"), (1.0, "1.00")]
)
def test_p_value(value, text):
    assert units.p_value(value) == text


def test_settings_are_short():
    assert units.setting(0.3333333) == "0.333"
    assert units.setting(0.000126) == "1.3e-04"
    assert units.setting("0-7") == "0-7"
    assert units.setting(None) == "–"


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "–"), (0, "0 B"), (999, "999 B"), (999.6, "1 kB"), (5220, "5.22 kB")],
)
def test_sizes(count, text):
    assert units.size(count) == text


@pytest.mark.parametrize(("count", "text"), [(None, "–"), (0, "0 FLOP"), (1.3e12, "1.3 TFLOP"), (4.44e8, "444 MFLOP")])
def test_operations(count, text):
    assert units.operations(count) == text


def test_methods_make_something_each():
    assert {spec.makes for spec in METHODS.values()} == {"mask", "adapter", "tuned model"}

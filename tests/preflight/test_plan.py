"""`mft-ray plan`: what it says follows from the configuration, fits or says what would, and invents no price."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_models import save_tiny
from transformers import AutoConfig

from mft_ray.cli.main import main
from mft_ray.config import load_config, parse_config
from mft_ray.errors import UserError
from mft_ray.preflight.advice import _alternatives, advice_for
from mft_ray.preflight.cards import CARDS, MEASURED_SHARE, card, installed
from mft_ray.preflight.plan import Plan, Subject, Training, plan, subject, trainings_of
from mft_ray.preflight.plan_text import as_json, lines_of
from mft_ray.workers.machine import Card as MachineCard
from mft_ray.workers.machine import this_machine

DATA = {"task": "chat", "n_train": 5000, "n_validation": 100, "n_test": 100, "train": "owner/data"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The shape of a model of 700 million weights, and nothing else."""
    folder = tmp_path_factory.mktemp("shape")
    sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 8, "num_attention_heads": 32}
    grouped = {"num_key_value_heads": 8, "tie_word_embeddings": True, "architectures": ["LlamaForCausalLM"]}
    AutoConfig.for_model("llama", vocab_size=128256, **sizes, **grouped).save_pretrained(folder)
    return str(folder)


def tree(model: str, **more: Any) -> dict[str, Any]:
    scaling = {"gpus_per_worker": 1, "compute": "bfloat16", **more.pop("scaling", {})}
    search = {"trials": 6, "space": {"layers": ["2-3", "6-7"]}, **more.pop("search", {})}
    return {
        "model": {"path": model, "dtype": "bfloat16"},
        "data": DATA,
        "train": {"micro_batch_tokens": 2048, "eval_batch_size": 8},
        "fft": {"train": {"micro_batch_tokens": 2048, "eval_batch_size": 8}},
        "search": search,
        "scaling": scaling,
        **more,
    }


def planned(
    model: str, gpu: str = "h100-80g", gpus: int | None = None, price: float | None = None, **more: Any
) -> Plan:
    return plan(subject(parse_config(tree(model, **more)), gpu, 512), gpus, price)


def test_a_plan_follows_from_shapes(model: str) -> None:
    found = planned(model)
    assert [each.name for each in found.trainings] == ["FFT", "trial", "continued FFT"]
    fft, trial, _ = (each.needs for each in found.trainings)
    weights = 128256 * 2048 + 8 * (2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192 + 2 * 2048) + 2048
    assert fft.weights == fft.trained == weights
    assert fft.training.weights == 4 * weights  # FFT holds fp32
    assert trial.training.weights == 2 * weights
    # Layers 2-3: as many weights as in 6-7, and activations of four layers more.
    assert trial.trained == 2 * (2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192)
    assert found.trainings[1].job.mask is not None
    assert found.trainings[1].job.mask.layers == "2-3"
    assert found.fits
    assert (found.at_once, found.dollars) == (1, None)
    # Operations over the rate, both of which are said.
    its = found.trainings[0]
    operations = its.job.train.steps * fft.operations
    assert its.hours is not None
    assert its.hours == pytest.approx(operations / (989.4e12 * MEASURED_SHARE) / 3600, rel=0.1)
    assert fft.operations == pytest.approx(6 * weights * 512 * 32, rel=0.3)


def test_more_cards_take_more_trials_at_once_and_a_price_is_only_what_is_given(model: str) -> None:
    it = subject(parse_config(tree(model)), "h100-80g", 512)
    one, three = plan(it), plan(it, 3, 2.0)
    assert (one.at_once, three.at_once) == (1, 3)
    assert one.hours is not None
    assert three.hours is not None
    assert three.hours < one.hours
    assert three.dollars == pytest.approx(3 * 2.0 * three.hours)
    assert plan(it.changed(parse_config(tree(model, scaling={"workers": 4}))), 3).at_once == 0


def test_what_does_not_fit_is_told_with_what_makes_it_fit(model: str) -> None:
    fft = {"train": {"micro_batch_tokens": 32768, "batch_size": 128, "eval_batch_size": 8}}
    given = tree(model, scaling={"workers": 2}, fft=fft)
    it: Subject = subject(parse_config(given), "l4-24g", 512)
    found = plan(it)
    assert not found.fits
    told = advice_for(it, found.trainings)
    assert list(told) == ["FFT"]
    assert told["FFT"][0].startswith("fft.train.micro_batch_tokens=1024 (")
    assert any(line.endswith("and fits") for line in told["FFT"])
    # What is advised does so.
    [first] = [line for line in told["FFT"] if line.endswith("and fits")][:1]
    settings = [word for word in first.removeprefix("together ").split(" (")[0].split(":")[0].split() if "=" in word]
    changed = json.loads(json.dumps(given))
    for path, value in (word.split("=", 1) for word in settings):
        *parents, leaf = path.split(".")
        section = changed
        for parent in parents:
            section = section.setdefault(parent, {})
        section[leaf] = json.loads(value) if value[0] in "0123456789tf" else value
    assert plan(subject(parse_config(changed), "l4-24g", 512)).trainings[0].fits


def test_a_card_must_hold_the_whole_model_before_zero_3_shards_it(model: str) -> None:
    scaling = {"workers": 32, "zero_stage": 3}
    tiny = {"train": {"batch_size": 32, "micro_batch_tokens": 512, "eval_batch_size": 1}}
    found = planned(model, scaling=scaling, fft=tiny, **tiny)
    for each in found.trainings:
        assert each.needs.loading == 2 * each.needs.weights <= each.needs.peak
    on_cpu = parse_config(tree(model, scaling={"gpus_per_worker": 0, "workers": 2}))
    assert plan(subject(on_cpu, None, 512)).trainings[0].needs.loading == 0.0


def test_an_8b_fft_fits_one_card_with_its_optimizer_on_the_host(tmp_path: Path) -> None:
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    AutoConfig.for_model("llama", vocab_size=128256, **sizes, num_key_value_heads=8).save_pretrained(tmp_path)
    train = {"micro_batch_tokens": 512, "eval_batch_size": 1}
    its = {"fft": {"train": train}, "train": train}
    scaling = {"zero_stage": 1, "gradient_checkpointing": True}
    alone = planned(str(tmp_path), scaling=scaling, **its).trainings[0]
    helped = planned(str(tmp_path), scaling={**scaling, "offload": "cpu"}, **its)
    assert (alone.fits, helped.trainings[0].fits) == (False, True)
    host = helped.host["states of optimizers, and copies of what they change"]
    assert host == 12 * helped.trainings[0].needs.trained


def test_float32_on_a_gpu_has_memory_and_no_hours(model: str) -> None:
    found = planned(model, scaling={"compute": "float32"})
    assert found.hours is None
    assert found.trainings[0].needs.peak > 0


def test_a_card_that_is_not_known_is_refused_with_those_that_are() -> None:
    with pytest.raises(UserError, match="h100-80g"):
        card("h900")
    assert card("H100-80G") == CARDS["h100-80g"]


def test_this_machines_gpus_are_known_by_what_the_driver_calls_them() -> None:
    machine = this_machine()
    names = {
        "NVIDIA H100 80GB HBM3": (85_520_809_984, "h100-80g"),
        "NVIDIA H100 PCIe": (85_520_809_984, "h100-pcie-80g"),
        "NVIDIA A100-SXM4-40GB": (42_505_273_344, "a100-40g"),
        "NVIDIA GeForce RTX 4090": (25_757_220_864, "rtx4090-24g"),
    }
    for name, (memory, known) in names.items():
        here = type(machine)(**{**vars(machine), "cards": (MachineCard(name, memory, "1"),)})
        assert installed(here).name == known
        assert installed(here).memory == memory
    with pytest.raises(UserError, match="Tesla K80"):
        installed(type(machine)(**{**vars(machine), "cards": (MachineCard("Tesla K80", 12 * 10**9, "1"),)}))


def rows(path: Path, count: int) -> str:
    lines = [json.dumps({"prompt": f"What is {n}?", "response": "It is " + "so " * (n % 7)}) for n in range(count)]
    path.write_text("\n".join(lines))
    return str(path)


def test_local_data_is_counted_and_a_plan_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_tiny(tmp_path / "model")
    file = tmp_path / "plan.yaml"
    data = {"train": rows(tmp_path / "rows.jsonl", 90), "prompt_column": "prompt", "answer_column": "response"}
    settings = {"model": {"path": str(model)}, "data": {**data, "n_validation": 10, "n_test": 20, "max_length": 64}}
    file.write_text(json.dumps({**settings, "train": {"epochs": 4, "batch_size": 8}, "search": {"trials": 2}}))
    assert main(["plan", "--config", str(file), "--json"]) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert found["data"]["train"] == 60
    assert "90 rows counted" in found["data"]["said"]
    assert 20 < found["data"]["lengths"]["mean"] < found["data"]["lengths"]["longest"] <= 64
    trial = next(each for each in found["trainings"] if each["name"] == "trial")
    assert trial["steps"] == 30  # 4 epochs of 60 examples
    assert sum(trial["bytes"].values()) <= trial["peak_bytes"]
    # Of the five best trials, and of those at work, four bytes for each of 10 examples.
    assert found["disk_bytes"]["scores of validation examples"] in {(5 + at_once) * 4 * 10 for at_once in range(1, 9)}
    assert found["hours"] > 0
    assert found["dollars"] is None
    assert main(["plan", "--config", str(file)]) == 0
    text = capsys.readouterr().out
    for word in ("activations", "optimizer state", "2 trials", "assumed", "host memory", "disk"):
        assert word in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--gpu", "h900"], "Known are"),
        (["--gpu", "h100-80g"], "scaling.gpus_per_worker is 0"),
        (["--price", "2"], "--gpu"),
        (["--set", "scaling.gpus_per_worker=1"], "GPU"),
    ],
)
def test_mistakes_end_in_a_sentence(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "scaling.gpus_per_worker=1" in options and this_machine().cards:
        pytest.skip("this machine has a GPU")
    assert main(["plan", "--config", "quickstart", *options]) == 2
    assert said in capsys.readouterr().err


def test_rows_that_nobody_has_counted_are_asked_for(model: str) -> None:
    config = load_config("quickstart").model_copy(
        update={"data": parse_config(tree(model)).data.model_copy(update={"n_train": None})}
    )
    config = config.model_copy(update={"model": parse_config(tree(model)).model})
    with pytest.raises(UserError, match=r"data\.n_train"):
        subject(config, None, 512)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The shape of LLaMA-3.1-8B."""
    folder = tmp_path_factory.mktemp("llama")
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    AutoConfig.for_model("llama", vocab_size=128256, **sizes, num_key_value_heads=8).save_pretrained(folder)
    return str(folder)


def masked(llama: str, held: str | None, **scaling: Any) -> Training:
    """The trial of a search for masks of four layers of an 8B model, which is fine-tuned already, on a 24 GB card."""
    light = {"optimizer": "adamw_8bit", "dtype": "bfloat16", "micro_batch_tokens": 1024, "eval_batch_size": 4}
    more = {"train": light, "fft": {"given": True}, "search": {"trials": 1, "space": {"layers": ["4-7"]}}}
    given = {**tree(llama, scaling=scaling, **more), "model": {"path": llama, "dtype": "bfloat16"}}
    given["model"]["unselected_dtype"] = held
    return next(each for each in trainings_of(subject(parse_config(given), "rtx4090-24g", 400)) if each.name == "trial")


def test_masks_of_four_layers_of_an_8b_model_fit_24_gb_with_room_left(llama: str) -> None:
    whole, in_8, in_4 = (masked(llama, held) for held in (None, "int8", "nf4"))
    assert whole.room == 0.9 * 24e9
    assert not whole.fits
    assert in_4.fits
    assert in_4.needs.peak < whole.room - 2e9  # beside the tenth of the card that is left alone
    # What is saved is what the codes save, but for one weight that is unpacked.
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336
    for each, bytes_each in ((in_8, 1 + 4 / 256), (in_4, 0.5 + 4 / 64)):
        assert each.needs.packed == 28 * layer
        saved = whole.needs.training.weights - each.needs.training.weights
        assert saved == pytest.approx((2 - bytes_each) * 28 * layer)
        assert each.needs.training.unpacked == 2 * 4096 * 14336
        assert each.needs.training.total == pytest.approx(whole.needs.training.total - saved + 2 * 4096 * 14336)
        # At its end it is scored on the checkpoint: the whole model, and nothing that is trained.
        assert each.needs.judging > whole.needs.training.weights == 2 * each.needs.weights
        assert each.needs.loading == each.needs.training.weights
    assert (whole.needs.packed, whole.needs.judging, whole.needs.training.unpacked) == (0, 0, 0)
    assert masked(llama, "int8", gradient_checkpointing=True).fits


def test_a_plan_says_what_is_held_in_fewer_bits_and_advises_it(model: str) -> None:
    held = {"path": model, "dtype": "bfloat16", "unselected_dtype": "nf4"}
    it = subject(parse_config({**tree(model), "model": held}), "h100-80g", 512)
    made = plan(it)
    lines = "\n".join(lines_of(made, {}))
    fft, trial, _ = made.trainings
    assert f"{trial.needs.packed:,}" in next(line for line in lines.splitlines() if "weights in nf4" in line)
    assert "the last score, of the checkpoint" in lines
    assert (fft.job.unselected_dtype, fft.needs.packed, fft.needs.judging) == (None, 0, 0)
    written = as_json(made, {})["trainings"][1]
    assert (written["unselected_dtype"], written["in_fewer_bits"]) == ("nf4", trial.needs.packed)
    short = replace(trial, job=replace(trial.job, unselected_dtype=None))
    told = [settings for settings, _ in _alternatives(it, short) if "model.unselected_dtype" in settings]
    assert told == [{"model.unselected_dtype": "int8"}, {"model.unselected_dtype": "nf4"}]
    assert not [settings for settings, _ in _alternatives(it, fft) if "model.unselected_dtype" in settings]

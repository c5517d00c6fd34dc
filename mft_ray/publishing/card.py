"""The model card: what was measured, at which cost, what it is worth nothing for, and how it is loaded."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mft_ray import __version__
from mft_ray.models.hub import is_hub_id, split_revision
from mft_ray.publishing.metadata import backbone_metadata, data_config, data_sets, metadata
from mft_ray.publishing.publication import Publication
from mft_ray.report.verdict import TESTS, banner
from mft_ray.runs.records import Verdict
from mft_ray.utils import formatting as units
from mft_ray.utils.json_types import JsonObject

HERE = Path(__file__).parent
Facts = list[tuple[str, str]]


def card(what: Publication, licence: dict[str, str]) -> ModelCard:
    """Return the card of what is published.

    Args:
        what: what is published.
        licence: the backbone's, by the metadata's keys.
    """
    verdict = what.run.verdict if what.found.judged else None
    unit, trial = units.unit(what.found.metric), what.found.trial
    load, note = _loading(what)
    return _made(
        "card.md",
        metadata(what, licence),
        title=what.repo.rpartition("/")[2],
        lead=_lead(what),
        verdict=f"**{banner(what.run).sentence}**" if verdict else "**It has not been judged on test examples.**",
        load=load,
        load_note=note,
        product=f"the {what.made}",
        axis=unit.axis,
        validation=unit.score(trial.score),
        validation_delta=unit.delta(trial.delta_fft),
        limits=_limits(what, verdict),
        facts=_facts(what),
        version=__version__,
        **_measured(what, verdict),
    )


def backbone_card(what: Publication, licence: dict[str, str]) -> ModelCard:
    """Return the card of the FFT model that is published with a mask or an adapter.

    Args:
        what: what is published.
        licence: the licence of the model that FFT started from.
    """
    assert what.backbone_repo is not None
    verdict, unit = what.run.verdict, units.unit(what.found.metric)
    made = [("Fine-tuned from", f"`{what.start_model}`")] if what.start_model else []
    return _made(
        "backbone.md",
        backbone_metadata(what, licence),
        title=what.backbone_repo.rpartition("/")[2],
        of="a mask" if what.kind == "mask" else "an adapter",
        repo=what.repo,
        score=None if verdict is None else unit.score(verdict.fft),
        axis=unit.label.lower(),
        n=None if verdict is None else units.count(verdict.n),
        load=_ordinary(what.backbone_repo),
        facts=[*made, ("Fingerprint", f"`{what.fft.fingerprint}`"), *_of_data(what), *_of_fft(what)],
    )


def _made(template: str, data: ModelCardData, **values: object) -> ModelCard:
    text = _environment().get_template(template).render(**values)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n")


@cache
def _environment() -> Environment:
    # Markdown, not HTML: nothing is to be escaped.
    return Environment(
        loader=FileSystemLoader(HERE), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )


def _lead(what: Publication) -> str:
    base = f"`{what.base_model}`" if what.base_model else "a model of its publisher's own"
    if what.mask is None:
        return f"A LoRA adapter for {base}." if what.kind == "adapter" else f"A model made of {base} by mft_ray."
    if what.kind == "model":
        return f"A model with a learned binary mask in its weights, made of {base}: {what.mask}."
    return f"A binary mask over the weights of a fine-tuned model ({base}), which it switches off: {what.mask}."


def _loading(what: Publication) -> tuple[str, str]:
    """Return the lines that load it, and what there is to know of them."""
    if what.kind == "model":
        return _ordinary(what.repo), ""
    notes = []
    if not what.origin:
        started = f", fine-tuned from `{what.start_model}`, " if what.start_model else ""
        notes.append(
            f"`BACKBONE` is the folder of the model that it was learned on. That is a model of its publisher's own"
            f"{started or ' '}which is not published with it, and nothing else will do: its fingerprint is "
            f"`{what.fft.fingerprint}`."
        )
    elif "@" not in what.origin and what.backbone_repo is None:
        notes.append("Which revision of the backbone it was learned on is not known; another one is refused.")
    more = ""
    if what.mask is not None and what.mask.settings.removes == "delta":
        earlier = what.found.pretrained
        known = earlier is not None and is_hub_id(earlier)
        more = f', pretrained="{earlier if known else "PRETRAINED"}"'
        notes.append("It takes weights back to what they were before fine-tuning, for which it needs that model too.")
    lines = f'import mft_ray\n\nmodel = mft_ray.load_masked("{what.origin or "BACKBONE"}", "{what.repo}"{more})'
    return lines, " ".join(notes)


def _ordinary(repo: str) -> str:
    return (
        f'from transformers import AutoModelForCausalLM\n\nmodel = AutoModelForCausalLM.from_pretrained("{repo}", '
        'dtype="auto")'
    )


def _measured(what: Publication, verdict: Verdict | None) -> JsonObject:
    if verdict is None:
        return {"measured": [], "n": "", "test": "", "seeds": None, "seed_spread": "", "not_run": [], "confidence": ""}
    unit = units.unit(verdict.metric)
    rows = [
        (what.made.capitalize(), unit.number(verdict.mft), "", "", ""),
        _row("FFT", unit, verdict.fft, verdict.delta, verdict.ci95, verdict.p_value),
    ]
    if verdict.delta_continued_fft is not None:
        rows.append(
            _row(
                "Continued FFT",
                unit,
                verdict.continued_fft,
                verdict.delta_continued_fft,
                verdict.ci95_continued_fft,
                verdict.p_value_continued_fft,
            )
        )
    if verdict.rival is not None:
        rival = verdict.rival
        rows.append(_row(rival.method, unit, rival.score, rival.delta, rival.ci95, rival.p_value))
    seeds = verdict.seeds
    return {
        "measured": rows,
        "n": units.count(verdict.n),
        "test": TESTS.get(verdict.test or "", "a paired test"),
        "seeds": None if seeds is None else seeds.n or len(seeds.runs),
        "seed_spread": "" if seeds is None else f"{unit.delta(seeds.delta.mean)} ({unit.interval(seeds.delta.ci95)})",
        "not_run": list(verdict.not_run),  # the reasons may name folders of this machine
        "confidence": f"{verdict.confidence:.0%}",
    }


def _row(
    name: str,
    unit: units.Unit,
    score: float | None,
    delta: float,
    interval: tuple[float, float] | None,
    p_value: float | None,
) -> tuple[str, ...]:
    return name, unit.number(score), unit.signed(delta), unit.interval(interval), units.p_value(p_value)


def _limits(what: Publication, verdict: Verdict | None) -> list[str]:
    limits = []
    trials = sum(trial.score is not None for trial in what.run.trials)
    chosen = verdict.selection if verdict is not None else None
    if chosen is not None and chosen.by_person:
        limits.append(f"A person chose it, of {chosen.trials:,} trials; it need not be the best on validation.")
    else:
        of = chosen.trials if chosen is not None else trials
        limits.append(f"It was chosen of {of:,} trials by their scores on validation examples, not on test examples.")
    if verdict is not None:
        looks = max(1, len(verdict.looks))
        limits.append(
            "The test examples were looked at once, for this."
            if looks == 1
            else f"The test examples were looked at {looks} times, for other trials too: the more looks, the more "
            "easily one of them seems to be a gain."
        )
        limits.append("The comparison is on one task, named below; nothing is said of any other, nor of other prompts.")
    else:
        limits.append("Nothing is known of it but its score on the validation examples that it was chosen by.")
    if what.kind != "model":
        limits.append("It fits the backbone with the fingerprint below, byte for byte, and is refused on any other.")
    return limits


def _facts(what: Publication) -> Facts:
    trial = what.found.trial
    name, revision = split_revision(what.origin) if what.origin else ("", None)
    backbone = f"`{name}`" if name else "a model of its publisher's own, not on the hub"
    facts = [("Backbone", backbone)]
    if revision:
        facts.append(("Revision of the backbone", f"`{revision}`"))
    facts.append(("Fingerprint of the backbone", f"`{what.fft.fingerprint}`"))
    if what.trained_here and what.start_model:
        facts.append(("The backbone was fine-tuned from", f"`{what.start_model}`"))
    facts += [*_of_data(what), *_of_fft(what), ("Trial", f"{trial.trial_id}, best at step {trial.step}")]
    if what.mask is not None:
        facts.append(("Removed", str(what.mask)))
    chosen = {name: value for name, value in trial.config.items() if "/" not in str(value)}
    facts.append(("Chosen by the search", ", ".join(f"{key} {units.setting(each)}" for key, each in chosen.items())))
    if what.mask is not None:
        settings = {key: each for key, each in asdict(what.mask.settings).items() if each is not None}
        facts.append(("Settings of the mask", ", ".join(f"{key} {each}" for key, each in settings.items())))
    cost = (units.count(trial.steps), units.count(trial.tokens), units.duration(trial.seconds))
    facts.append(("Cost of the trial", "{} steps, {} tokens, {}".format(*cost)))
    return facts


def _of_data(what: Publication) -> Facts:
    names, data = data_sets(what), data_config(what)
    where = ", ".join(f"`{name}`" for name in names)
    local = "made by mft_ray" if data.task == "arithmetic" else "the publisher's own data"
    return [("Task", f"{data.task}: {where or local}")]


def _of_fft(what: Publication) -> Facts:
    baseline = what.run.baseline
    if not what.trained_here or baseline.steps is None:
        return []
    cost = (units.count(baseline.steps), units.count(baseline.tokens), units.duration(baseline.seconds))
    return [("Cost of FFT", "{} steps, {} tokens, {}".format(*cost))]

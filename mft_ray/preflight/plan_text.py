"""A plan in words and tables, and as JSON."""

from __future__ import annotations

from dataclasses import asdict

from mft_ray.preflight.cards import MEASURED_ON
from mft_ray.preflight.plan import Plan, Training
from mft_ray.utils.formatting import duration, operations, size
from mft_ray.utils.json_types import JsonObject

_PARTS = {
    "weights": "weights",
    "scores": "scores, mask or adapter",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "gathered": "weights gathered",
    "unpacked": "a weight unpacked",
    "buckets": "buckets",
    "activations": "activations",
    "logits": "logits",
}


def lines_of(plan: Plan, advice: dict[str, list[str]]) -> list[str]:
    """Return a plan as lines of text.

    Args:
        plan: the plan.
        advice: what would make a training run fit, by the run's name.
    """
    card = plan.card
    what = f"{plan.count} x {card.name}, {size(card.memory)} each" if card.gpu else f"{plan.count} processors"
    lines = [f"On {what}", f"  data: {plan.data.said}", *_trainings(plan), ""]
    for each in plan.trainings:
        if not each.fits:
            help_for = advice.get(each.name)
            more = "What would help:" if help_for else "What helps FFT would help"
            lines.append(f"{each.name} DOES NOT FIT: {size(each.needs.peak)} of {size(each.room)}. {more}")
            lines += [f"  {line}" for line in help_for or ()]
    if not plan.at_once:
        lines.append("Not even one trial has its place: it asks for more devices than there are")
    lines += [_host(plan), _disk(plan), _time(plan), "", *(f"  {line}" for line in basis(plan))]
    return lines


def basis(plan: Plan) -> list[str]:
    """Return what of a plan is measured, and what is assumed, a sentence each."""
    card = plan.card
    of = "measured on this card, for LLaMA-3.1-8B" if card.share_is_measured else "assumed for this device"
    said = [
        f"Rate: {operations(card.rate)}/s ({card.source}) x {card.share:.2f}, the share of it that a masked step "
        f"reached on an {MEASURED_ON} (benchmarks/results/gpu.md): {of}",
        "Several workers are assumed to be as many times as fast",
        "Hours are at the most: early stopping and hidden states that are kept save time; loading, saving, generated "
        "answers and benchmark tasks are not in them",
        "Memory is by formula, which was held against peaks measured on CPUs (benchmarks/results/plan_accuracy.md), "
        "without gaps that an allocator leaves; a tenth of each device is left free for those",
    ]
    if not all(each.needs.counted for each in plan.trainings):
        said.append("This architecture cannot be run without content: activations and operations follow from widths")
    return said


def as_json(plan: Plan, advice: dict[str, list[str]]) -> JsonObject:
    """Return a plan for machines: bytes, hours, dollars."""
    return {
        "device": {**asdict(plan.card), "count": plan.count, "share": plan.card.share},
        "data": asdict(plan.data),
        "trainings": [_training(each) for each in plan.trainings],
        "trials": plan.trials,
        "trials_at_once": plan.at_once,
        "hours": plan.hours,
        "gpu_hours": plan.gpu_hours,
        "dollars": plan.dollars,
        "host_bytes": plan.host,
        "disk_bytes": plan.disk,
        "fits": plan.fits,
        "advice": advice,
        "basis": basis(plan),
    }


def _training(one: Training) -> JsonObject:
    return {
        "name": one.name,
        "method": one.job.method,
        "layers": (one.job.mask or one.job.lora).layers if one.job.mask or one.job.lora else None,  # type: ignore[union-attr]
        "workers": one.job.scaling.workers,
        "steps": one.job.train.steps,
        "tokens": round(one.tokens),
        "micro_batch_tokens": one.needs.micro_batch,
        "weights": one.needs.weights,
        "trained": one.needs.trained,
        "unselected_dtype": one.job.unselected_dtype,
        "in_fewer_bits": one.needs.packed,
        "bytes": vars(one.needs.training),
        "evaluation_bytes": one.needs.evaluation,
        "judging_bytes": one.needs.judging,
        "loading_bytes": one.needs.loading,
        "peak_bytes": one.needs.peak,
        "room_bytes": one.room,
        "fits": one.fits,
        "operations_per_step": one.needs.operations,
        "hours": one.hours,
    }


def _trainings(plan: Plan) -> list[str]:
    """Return a table: a column for each training run, a row for each part of a device's memory."""
    runs = plan.trainings
    rows = [("", *(each.name for each in runs))]
    rows += [
        ("workers", *(f"{each.job.scaling.workers}" for each in runs)),
        ("steps, at the most", *(f"{each.job.train.steps:,}" for each in runs)),
        ("tokens, at the most", *(f"{each.tokens:,.0f}" for each in runs)),
        ("trained numbers", *(f"{each.needs.trained:,}" for each in runs)),
        ("tokens of a micro-batch", *(f"{each.needs.micro_batch:,}" for each in runs)),
    ]
    if any(each.needs.packed for each in runs):
        held = next(each.job.unselected_dtype for each in runs if each.needs.packed)
        rows.append((f"weights in {held}", *(f"{each.needs.packed:,}" for each in runs)))
    rows += [
        (label, *(size(getattr(each.needs.training, name)) for each in runs))
        for name, label in _PARTS.items()
        if any(getattr(each.needs.training, name) for each in runs)
    ]
    if any(each.needs.loading == each.needs.peak for each in runs):
        rows.append(("the model as it is loaded", *(size(each.needs.loading) for each in runs)))
    rows += [
        ("a step, in all", *(size(each.needs.training.total) for each in runs)),
        ("an evaluation, in all", *(size(each.needs.evaluation) for each in runs)),
    ]
    if any(each.needs.judging for each in runs):
        rows.append(("the last score, of the checkpoint", *(size(each.needs.judging) for each in runs)))
    rows += [
        ("a worker may take", *(size(each.room) for each in runs)),
        ("hours, at the most", *("unknown" if each.hours is None else f"{each.hours:.2f}" for each in runs)),
    ]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.rjust(width) if place else cell.ljust(width) for place, (cell, width) in enumerate(pairs))
        for pairs in (zip(row, widths, strict=True) for row in rows)
    ]


def _host(plan: Plan) -> str:
    listed = ", ".join(f"{name} {size(value)}" for name, value in plan.host.items())
    return f"host memory, all workers on one node: {size(sum(plan.host.values()))} ({listed})"


def _disk(plan: Plan) -> str:
    listed = ", ".join(f"{name} {size(value)}" for name, value in plan.disk.items())
    return f"disk: {size(sum(plan.disk.values()))} ({listed})"


def _time(plan: Plan) -> str:
    said = f"{plan.trials} trials, {plan.at_once} at a time"
    if plan.hours is None:
        unknown = "float32 on a GPU has no rate here: scaling.compute=bfloat16" if plan.at_once else "nothing can run"
        return f"{said}; hours unknown ({unknown})"
    said += f"; the whole search at most {duration(plan.hours * 3600)}"
    if plan.gpu_hours is None:
        return said
    said += f", {plan.gpu_hours:,.1f} GPU hours"
    return said + ("" if plan.dollars is None else f", {plan.dollars:,.2f} dollars at {plan.price:g} a GPU hour")

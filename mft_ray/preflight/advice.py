"""What would make a training run fit that does not, tried out one setting after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mft_ray.config import Config
from mft_ray.config.parsing.paths import with_settings
from mft_ray.errors import UserError
from mft_ray.masking import depth
from mft_ray.preflight.plan import Subject, Training, trainings_of
from mft_ray.training.step.batches import check_batch_size
from mft_ray.training.step.optimizers import check_stage
from mft_ray.training.step.unselected import check_bits
from mft_ray.utils.formatting import size

_MORE_WORKERS = (2, 4, 8, 16, 32, 64)

Settings = dict[str, Any]


def advice_for(it: Subject, trainings: Sequence[Training]) -> dict[str, list[str]]:
    """Say what would make the training runs fit that do not, by their names; of FFT and continued FFT once.

    Args:
        it: what is planned for.
        trainings: of its plan.
    """
    short = {each.job.method: each for each in reversed(trainings) if not each.fits}
    return {each.name: _advice(it, each) for each in short.values()}


def _advice(it: Subject, short: Training) -> list[str]:
    """Say in words what each setting alone would do for a training run that does not fit, and which together do.

    Args:
        it: what is planned for.
        short: the run that does not fit.

    Returns:
        One line for each setting, then one for what makes it fit; or that nothing known here does.
    """
    lines, together, fitting = [], {}, None
    for settings, cost in _alternatives(it, short):
        alone = _with(it, short.name, settings)
        if alone is None or alone.needs.peak >= 0.99 * short.needs.peak:
            continue
        fits = ", and fits" if alone.fits else ""
        lines.append(f"{_shown(settings)} ({cost}): {size(alone.needs.peak)} of {size(alone.room)}{fits}")
        together.update(settings)
        if fitting is None and not alone.fits and (both := _with(it, short.name, together)) is not None and both.fits:
            fitting = (dict(together), both)
        if alone.fits:
            return lines
    if fitting is not None:
        settings, both = fitting
        lines.append(f"together {_shown(settings)}: {size(both.needs.peak)} of {size(both.room)}, and fits")
    else:
        lines.append("nothing of this makes it fit: take devices with more memory, or a smaller model")
    return lines


def _alternatives(it: Subject, short: Training) -> Iterator[tuple[Settings, str]]:
    """Yield settings that need less memory, those that cost least first, and what each costs."""
    job, fft = short.job, short.job.method == "fft"
    train = "fft.train" if fft else "train"
    own = fft and it.config.fft.scaling is not None
    scaling = "fft.scaling" if own else "scaling"
    longest = it.data.lengths.longest
    if short.needs.micro_batch > longest:
        yield {f"{train}.micro_batch_tokens": longest}, "smaller micro-batches, the same gradient, slower where small"
    if job.train.eval_batch_size > 1 and short.needs.evaluation > short.room:
        yield {f"{train}.eval_batch_size": 1}, "one example scored at a time"
    if not job.scaling.gradient_checkpointing:
        yield {f"{scaling}.gradient_checkpointing": True}, "the forward pass is computed twice"
    if job.frozen and job.dtype == "float32":
        yield {"model.dtype": "bfloat16"}, "frozen weights of two bytes"
    if job.frozen and job.scaling.zero_stage < 3:
        for held, bits in (("int8", 8), ("nf4", 4)):
            if job.unselected_dtype not in (held, "nf4"):
                cost = f"weights that nothing is learned of in {bits} bits; needs bitsandbytes"
                yield {"model.unselected_dtype": held}, cost
    for stage in range(job.scaling.zero_stage + 1, 4) if job.scaling.workers > 1 else ():
        yield {f"{scaling}.zero_stage": stage}, "more communication"
    for workers in _MORE_WORKERS:
        if workers > job.scaling.workers and not it.config.scaling.gpus_per_worker % 1:
            yield {f"{scaling}.workers": workers, f"{scaling}.zero_stage": 3}, f"{workers} devices for one training"
    if job.scaling.offload == "none" and it.config.scaling.gpus_per_worker:
        stage = max(1, job.scaling.zero_stage)
        yield {f"{scaling}.offload": "cpu", f"{scaling}.zero_stage": stage}, "the host updates weights; slower steps"
    if job.train.optimizer == "adamw":
        yield {f"{train}.optimizer": "adamw_8bit"}, "states of one byte; needs bitsandbytes"
    if job.train.dtype == "float32" and not job.scaling.zero_stage:
        settings = {f"{train}.optimizer": "adamw_8bit", f"{train}.dtype": "bfloat16"}
        yield settings, "what is trained is held in bfloat16, rounded by chance"
    if job.mask is not None:
        for parts in (2, 4, 8):
            layers = depth(it.model) // parts
            if layers:
                group = f"{depth(it.model) - layers}-{depth(it.model) - 1}"
                yield {"mask.layers": group, "search.space.layers": [group]}, "fewer layers are searched"


def _with(it: Subject, name: str, settings: Settings) -> Training | None:
    """Return the same run with other settings; None where they cannot be."""
    try:
        changed: Config = with_settings(it.config, settings, "the plan's alternative")
        for train, scaling in (
            (changed.train, changed.scaling),
            (changed.fft.train, changed.fft.scaling or changed.scaling),
        ):
            check_batch_size(train, scaling)
            check_stage(train, scaling)
        check_bits(changed.model.unselected_dtype, changed.scaling)
        return next(each for each in trainings_of(it.changed(changed)) if each.name == name)
    except UserError:
        return None


def _shown(settings: Settings) -> str:
    written = {path: str(value).lower() if isinstance(value, bool) else value for path, value in settings.items()}
    return " ".join(f"{path}={value}" for path, value in written.items())

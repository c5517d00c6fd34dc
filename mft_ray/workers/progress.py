"""What is printed of a job that this process waits for: which step, what score, time left."""

from __future__ import annotations

import time

from mft_ray.training.job import Counted, Restart
from mft_ray.utils.console import log, log_warning
from mft_ray.utils.formatting import duration, unit
from mft_ray.workers.job_queue import Progress


class JobProgress:
    """Prints how far a job is that this process waits for.

    Args:
        label: printed before each line.
        metric: what scores are.
        steps: number of steps of a training job, at most.
    """

    def __init__(self, label: str, metric: str, steps: int | None) -> None:
        self.label, self.unit, self.steps = label, unit(metric), steps
        self.since = time.monotonic()

    def __call__(self, event: Progress) -> None:
        """Print one line."""
        if isinstance(event, Restart):
            log_warning(f"{self.label}: {restarted(event.reason)}")
            return
        if event.note:
            log(f"{self.label}: {event.note}")
        if isinstance(event, Counted):
            left = (time.monotonic() - self.since) / event.done * (event.total - event.done)
            log(f"{self.label}: {event.done:,} of {event.total:,} examples, about {duration(left)} left")
            return
        score = self.unit.score(event.score)
        if not self.steps:
            log(f"{self.label}: validation {score}")
            return
        left = event.seconds / max(event.step, 1) * (self.steps - event.step)
        tail = f", at most {duration(left)} left" if event.step else ""
        log(f"{self.label}: step {event.step} of at most {self.steps}, validation {score}{tail}")


def restarted(reason: str) -> str:
    """Return what is said where workers are started anew."""
    return f"{reason}; it is started anew and goes on from its last checkpoint"

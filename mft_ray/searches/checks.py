"""What cannot be searched, refused before anything is written."""

from __future__ import annotations

import torch

from mft_ray.config import METHODS, Config
from mft_ray.errors import UserError
from mft_ray.masking import depth, select
from mft_ray.runs.prepare import check_pretrained
from mft_ray.runs.study.server import check_server
from mft_ray.searches.space import points_to_evaluate, what_may_be_chosen
from mft_ray.tracking.checks import check_trackers
from mft_ray.training.step.batches import check_batch_size
from mft_ray.training.step.optimizers import check_installed, check_stage
from mft_ray.training.step.unselected import check_method


def check_search(config: Config, model: torch.nn.Module) -> None:
    """Refuse a search whose method or space cannot be, or one without what it needs: tracker, server of its study.

    Args:
        config: the run's configuration.
        model: the model, or its structure.

    Raises:
        UserError: the first thing found, with what to do.
    """
    if config.fft.given and config.search.method == "fft":
        raise UserError(
            "search.method fft trains from the model before fine-tuning, and fft.given says that model.path is "
            "fine-tuned already. Use continued_fft, or leave fft.given out."
        )
    check_method(config.model.unselected_dtype, METHODS[config.search.method])
    points_to_evaluate(config, depth(model))
    places = set()
    for chosen in what_may_be_chosen(config, depth(model)):
        check_pretrained(chosen)
        check_batch_size(chosen.train, config.scaling)
        check_installed(chosen.train)
        check_stage(chosen.train, config.scaling)
        places |= {(part.layers, part.target) for part in (chosen.mask, chosen.lora)}
    for layers, target in places:
        select(model, layers, target)
    check_trackers(config.tracking)
    if config.search.storage is not None:
        check_server(config.search.storage)

"""A model in memory, and the masks and adapters that are put on it in turn to be evaluated."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from mft_ray.errors import UserError
from mft_ray.evaluation.generation import Generated, generate
from mft_ray.evaluation.vllm.engine import VllmEngine
from mft_ray.masking import check_fits, fingerprint, load_mask
from mft_ray.models.adapter import check_adapter, is_adapter, put_adapter, weights_of
from mft_ray.models.export import check_fingerprint, masked_for_now
from mft_ray.models.hub import local_artifact
from mft_ray.models.loading import in_dtype, load_model, load_tokenizer
from mft_ray.models.vocabulary import check_vocabulary


@dataclass(frozen=True)
class Judged:
    """What is evaluated: a model, or the model with a mask or an adapter.

    Attributes:
        name: name of its files.
        fingerprint: fingerprint of the model and of what is put on it, so that no other's results are continued.
        put_on: puts that on the model for a while.
    """

    name: str
    fingerprint: str
    put_on: Callable[[], AbstractContextManager[None]] = nullcontext


class Backbone:
    """One model in memory; masks and adapters are put on it in turn.

    Args:
        path: folder or hub id.
        dtype: dtype of the weights; None keeps the checkpoint's.
        pretrained: folder or hub id of the model before fine-tuning, for masks that remove the delta.
        engine: generates in the place of our own `generate`; the GPU is then left to it.
        tokenizer: with the chat template that prompts are made by; None is the model's own.
    """

    def __init__(
        self,
        path: str,
        dtype: str | None = None,
        pretrained: str | None = None,
        engine: VllmEngine | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self.path, self._engine = path, engine
        model = load_model(path)
        self.fingerprint = fingerprint(model)
        self._pretrained_path = pretrained
        device = "cuda" if torch.cuda.is_available() and engine is None else "cpu"
        self._stored = model.dtype
        self.model: PreTrainedModel = in_dtype(model, path, dtype).to(device).eval()
        self.tokenizer: Tokenizer = tokenizer or load_tokenizer(path)
        check_vocabulary(self.tokenizer, self.model, path)

    @property
    def about(self) -> dict[str, str]:
        """What tells its texts from others', beside the model."""
        about = {"engine": "vllm"} if self._engine else {}
        if self.model.dtype != self._stored:  # which its fingerprint says
            about["dtype"] = str(self.model.dtype).removeprefix("torch.")
        return about

    def generate(self, prompts: Sequence[str], **options: Any) -> Iterator[tuple[int, Generated]]:
        """Continue prompts; options as of `mft_ray.evaluation.generation.generate`."""
        return (self._engine or generate)(self.model, self.tokenizer, prompts, **options)

    def itself(self, name: str | None = None) -> Judged:
        """Return the model alone."""
        return Judged(name or Path(self.path).name, self.fingerprint)

    def having(self, artifact: str, name: str | None = None) -> Judged:
        """Return the model with a mask or an adapter.

        Args:
            artifact: mask file, adapter folder or hub id.
            name: None takes the file's, the folder's or the repository's.

        Raises:
            UserError: it is none, or one of another model.
        """
        name = name or _name(Path(artifact))
        artifact = local_artifact(artifact)
        path = Path(artifact)
        if is_adapter(artifact):
            check_adapter(artifact, self.path, self.fingerprint)
            with _adapted(self.model, artifact):  # what does not fit is told before anything is generated
                pass
            return Judged(name, self._with(weights_of(path)), partial(_adapted, self.model, artifact))
        mask, before = load_mask(artifact), None
        check_fingerprint("backbone", self.path, self.fingerprint, mask.backbone, origin=mask.origin)
        if mask.settings.removes == "delta":
            before = self._before
            check_fingerprint("model before fine-tuning", artifact, fingerprint(before), mask.before)
        check_fits(self.model, mask.masks, before and dict(before.named_parameters()), artifact)
        return Judged(name, self._with(path), partial(masked_for_now, self.model, mask, before))

    @cached_property
    def _before(self) -> PreTrainedModel:
        if self._pretrained_path is None:
            raise UserError("A mask removes the delta: give the model before fine-tuning as --pretrained.")
        return load_model(self._pretrained_path)

    def _with(self, file: Path) -> str:
        return f"{self.fingerprint} {hashlib.sha256(file.read_bytes()).hexdigest()}"


@contextmanager
def _adapted(model: PreTrainedModel, adapter: str) -> Iterator[None]:
    wrapped = put_adapter(model, adapter)
    try:
        yield
    finally:
        wrapped.unload()


def _name(artifact: Path) -> str:
    """Return what tells an artifact from others: those of runs are all called alike."""
    folder = f"{artifact.absolute().parent.name}-" if artifact.stem in ("mask", "adapter") else ""
    return folder + artifact.stem

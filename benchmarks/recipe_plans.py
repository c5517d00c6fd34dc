"""What `mft-ray plan` says of the paper's recipes: the comments in them, which this writes.

    .venv/bin/python benchmarks/recipe_plans.py

Cards are 8 x h100-80g, examples are taken to have 400 tokens on average. The models' shapes stand here, so that nothing
is fetched.
"""

from __future__ import annotations

import re
import tempfile
import textwrap
from pathlib import Path

from transformers import LlamaConfig

from mft_ray.config import load_config
from mft_ray.preflight.advice import advice_for
from mft_ray.preflight.plan import plan, subject
from mft_ray.preflight.plan_text import lines_of

RECIPES = Path(__file__).parent.parent / "tune_spaces" / "paper"
SHAPES = {
    "meta-llama/Llama-2-7b-hf": LlamaConfig(intermediate_size=11008, vocab_size=32000, max_position_embeddings=4096),
    "meta-llama/Llama-3.1-8B": LlamaConfig(
        intermediate_size=14336, vocab_size=128256, num_key_value_heads=8, max_position_embeddings=131072
    ),
}
CARD, CARDS, LENGTH = "h100-80g", 8, 400
COMMAND = f"# mft-ray plan --config $R --gpu {CARD} --gpus {CARDS} --length {LENGTH}"
_COMMENT = re.compile(rf"^{re.escape(COMMAND)}\n(?:#.*\n)*", re.MULTILINE)


def comment(recipe: Path) -> str:
    """Return what a plan says, as lines of a comment, the first of which is the command."""
    config = load_config(recipe)
    with tempfile.TemporaryDirectory() as folder:
        SHAPES[config.model.path or ""].save_pretrained(folder)
        model = config.model.model_copy(update={"path": folder})
        it = subject(config.model_copy(update={"model": model}), CARD, LENGTH)
        made = plan(it, CARDS, None)
        lines = lines_of(made, advice_for(it, made.trainings))
    # What is assumed is the same for all, and stands in docs/planning.md.
    said = [part for line in lines[: lines.index("", lines.index("") + 1)] for part in _wrapped(line)]
    return "".join(f"{line.rstrip()}\n" for line in [COMMAND, *(f"#   {line}" for line in said)])


def commented(recipe: Path) -> str:
    """Return a recipe's text with the comment that it should have."""
    text = recipe.read_text()
    if not _COMMENT.search(text):
        raise SystemExit(f"{recipe} has no comment that begins with {COMMAND}")
    return _COMMENT.sub(lambda _: comment(recipe), text)


def _wrapped(line: str) -> list[str]:
    indent = " " * (len(line) - len(line.lstrip()))
    return textwrap.wrap(line, 116, subsequent_indent=f"{indent}  ") if len(line) > 116 else [line]


def main() -> None:
    for recipe in sorted(RECIPES.glob("*.yaml")):
        recipe.write_text(commented(recipe))
        print(recipe, flush=True)


if __name__ == "__main__":
    main()

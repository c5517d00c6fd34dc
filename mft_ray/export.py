"""Make an ordinary Hugging Face model of a mask or an adapter: `python -m mft_ray.export`."""

from __future__ import annotations

from pathlib import Path

from mft_ray import cli
from mft_ray.errors import UserError
from mft_ray.masking import load_mask

_EXAMPLES = """
python -m mft_ray.export --backbone runs/mine/work/fft/best --mask runs/mine/best/mask.safetensors --out my-model
"""


def main() -> None:
    """Read the options and export."""
    arguments = cli.parser(
        "Apply a mask (or a LoRA adapter) to the model that it was learned on and write the result as an ordinary "
        "Hugging Face folder that from_pretrained loads. Refused when the backbone is another one.",
        _EXAMPLES,
    )
    arguments.add_argument("--backbone", metavar="MODEL", required=True, help="folder or hub id of the FFT model")
    arguments.add_argument("--mask", metavar="FILE", help="mask file, such as RUN/best/mask.safetensors")
    arguments.add_argument("--adapter", metavar="FOLDER", help="LoRA adapter, such as RUN/best/adapter")
    arguments.add_argument("--pretrained", metavar="MODEL", help="model before fine-tuning, for a mask of the delta")
    arguments.add_argument("--out", metavar="FOLDER", required=True, help="new folder for the model")
    options = arguments.parse_args()
    if (options.mask is None) == (options.adapter is None):
        raise UserError("Give either --mask FILE or --adapter FOLDER: what is to be applied to the backbone.")
    mask = None if options.mask is None else load_mask(options.mask)
    # Imported late: transformers takes seconds, a mistyped option should be told at once.
    from mft_ray.models.artifacts import export

    export(options.backbone, options.mask or options.adapter, Path(options.out), options.pretrained)
    if mask is not None:
        print(f"{options.mask}: {mask}")
    print(f"wrote {options.out}: load it with AutoModelForCausalLM.from_pretrained({options.out!r})")


if __name__ == "__main__":
    cli.run(main)

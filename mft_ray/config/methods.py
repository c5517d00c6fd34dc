"""The methods by name: what can be done to a model."""

from __future__ import annotations

from typing import Literal

Method = Literal["fft", "continued_fft", "lora", "random_mask", "l1_mask", "wanda_mask", "movement", "mft"]

METHODS: dict[Method, str] = {
    "fft": "every weight is trained, from the model before fine-tuning",
    "continued_fft": "FFT goes on for as many tokens as the others get",
    "lora": "LoRA on the FFT model (arXiv 2106.09685)",
    "random_mask": "random weights are removed",
    "l1_mask": "the smallest |W| are removed",
    "wanda_mask": "the smallest |W| times the norm of their input are removed (arXiv 2306.11695)",
    "movement": "movement pruning of the frozen model: signed scores from zero, annealed (arXiv 2005.07683)",
    "mft": "Mask Fine-Tuning (arXiv 2503.22764)",
}

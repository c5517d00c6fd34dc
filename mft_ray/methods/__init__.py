"""What can be done to a model: one file a kind of method, each registered by its name.

A package of your own adds one by an entry point of the group ``mft_ray.methods``, whose import calls
`mft_ray.config.methods.register`.
"""

from mft_ray.methods import fft, lora, masks

__all__ = ["fft", "lora", "masks"]

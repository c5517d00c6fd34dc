"""Mask Fine-Tuning on Ray: learn which weights of a fine-tuned LLM to switch off, and whether that made it better."""

import logging

import lazy_loader

__version__ = "0.2.0"

# What is here stands in __init__.pyi, for type checkers and for this: `import mft_ray` waits for neither torch nor Ray.
__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = [*_names, "__version__"]

# peft imports bitsandbytes where it is installed, which warns of a kernel for 4-bit products that nothing here uses.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: "gemm_4bit" not in record.getMessage())

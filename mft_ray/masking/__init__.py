"""Mask Fine-Tuning itself: for any `torch.nn.Module` with linear layers, in any training loop."""

import lazy_loader

# What is here stands in __init__.pyi, for type checkers and for this: settings are read without torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

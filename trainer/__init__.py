"""One run: config → data → model → loop → record.

Importing this package is cheap; only the modules that train import torch.
"""

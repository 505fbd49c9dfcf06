"""Adaptive-rank and sparse LoRA variants: one method per file, shared code in `variants.core`.

The package depends on torch and not on trainer, configs or tasks, so a variant can be used by itself:

    from variants.lora import LoRA

    variant = LoRA(rank=8)
    variant.attach(model)          # wraps the target layers, freezes the rest
"""

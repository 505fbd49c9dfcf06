"""Adaptive-rank and sparse LoRA variants: one method per file, what they share in `variants.core`.

The package knows torch and nothing of trainers, configs or tasks, so a variant can be used alone:

    from variants.lora import LoRA

    variant = LoRA(rank=8)
    variant.attach(model)          # wraps the target layers, freezes the rest
"""

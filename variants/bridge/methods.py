"""PEFT's methods: which modules each is for, and which of its options are refused or ignored.

From the code of PEFT 0.21.2. The tests cover every method of the installed PEFT and every option of each; a method that
is not listed here is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Method:
    """A method of PEFT's.

    refused: why it can't run here; empty if it can.
    layers: the modules that it is for. "linear": any linear layers. "own": other modules (norms, biases, embeddings) or
        few linear layers, so that "all-linear" would turn it into another method. "none": no layers; it puts tokens or
        keys and values before a text.
    has_rank: whether `r` is the rank of ΔW, at most; otherwise it counts blocks, entries or reflections.
    needs_cache: whether trained parameters are passed to the model as cached keys and values.
    starts: allowed values of `init_lora_weights` besides true and false; None for a method without that option.
    unread: options that are refused, with the reason; "" for those that PEFT never reads.
    needs: options that have no effect unless another option has a value (None: any).
    """

    refused: str = ""
    layers: Literal["linear", "own", "none"] = "linear"
    has_rank: bool = False
    needs_cache: bool = False
    starts: tuple[str, ...] | None = None
    unread: Mapping[str, str] = field(default_factory=dict)
    needs: Mapping[str, tuple[str, Any]] = field(default_factory=dict)


# Fields of every config that describe the config, or that the bridge sets.
OWN_FIELDS = (
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "modules_to_save"),
)
_TASK_IDS = "it needs the task of every row, which batches do not have"
_NEVER = ""
_DATA = "it needs a pass over the data before the run"
_LOSS = "it adds to the loss only if the loop asks for its term"

# Options that AdaLoRA's config inherits from LoRA's.
_ADALORA_UNREAD = (
    *("r", "use_rslora", "rank_pattern", "alpha_pattern", "lora_bias", "loftq_config", "eva_config", "corda_config"),
    *("lora_ga_config", "velora_config", "alora_invocation_tokens", "use_qalora", "qalora_group_size", "use_bdlora"),
    *("arrow_config", "kasa_config", "megatron_config", "megatron_core", "monteclora_config", "runtime_config"),
    *("ensure_weight_tying", "use_dora"),
)
_LORA_UNREAD = {
    "eva_config": _DATA,
    "lora_ga_config": _DATA,
    "corda_config": _DATA,
    "loftq_config": "it is for a backbone that is quantized",
    "use_qalora": "it is for a backbone that is quantized",
    "qalora_group_size": "it is for a backbone that is quantized",
    "kasa_config": _LOSS,
    "monteclora_config": _LOSS,
    "velora_config": "checkpoints do not include its projections",
    "arrow_config": "it chooses among trained adapters",
    "alora_invocation_tokens": "it is for models that generate",
    "megatron_config": "it is for layers of Megatron",
    "megatron_core": "it is for layers of Megatron",
    "runtime_config": "it moves weights between devices",
    "layer_replication": "it changes the model to one whose layers share weights",
    "ensure_weight_tying": "a classifier has no layer that is tied to an adapted one",
}

METHODS: Mapping[str, Method] = {
    "adalora": Method(has_rank=True, starts=(), unread=dict.fromkeys(_ADALORA_UNREAD, _NEVER)),
    "adamss": Method(
        needs={
            "svd_threshold": ("use_dynamic_rank", True),
            **dict.fromkeys(
                (
                    *("asa_target_subspaces", "init_warmup", "final_warmup", "mask_interval"),
                    *("asa_importance_beta", "asa_uncertainty_beta", "asa_schedule_exponent"),
                ),
                ("use_asa", True),
            ),
        }
    ),
    "adaption_prompt": Method(refused="it can't save a head"),
    "beft": Method(layers="own"),
    "boft": Method(unread={"boft_n_butterfly_factor": "without a CUDA extension of its own PEFT sets it to 1"}),
    "c3a": Method(),
    "cartridge": Method(layers="none", needs_cache=True),
    "cpt": Method(refused="it is for models that generate"),
    "deft": Method(needs={"init_scale": ("init_weights", False)}),
    "delora": Method(has_rank=True),
    "fourierft": Method(),
    "frod": Method(),
    "glora": Method(),
    "gralora": Method(),
    "hira": Method(unread={"rank_pattern": "PEFT reads it and trains the same ranks"}),
    "hra": Method(),
    "ia3": Method(layers="own"),
    "lily": Method(refused="it averages over a batch and its padding, so that a row's output depends on other rows"),
    "ln_tuning": Method(layers="own"),
    "loha": Method(),
    "lokr": Method(needs={"rank_dropout_scale": ("rank_dropout", None)}),
    "lora": Method(
        has_rank=True,
        starts=("gaussian", "olora", "orthogonal", "pissa", "pissa_niter_<n>", "mica"),
        unread=_LORA_UNREAD,
    ),
    "miss": Method(needs={"mini_r": ("init_weights", "mini")}),
    "multitask_prompt_tuning": Method(refused=_TASK_IDS),
    "oft": Method(unread={"module_dropout": _NEVER}, needs={"eps": ("coft", True)}),
    "osf": Method(unread={"target_svd_config": _NEVER}),
    "p_tuning": Method(
        layers="none",
        needs=dict.fromkeys(("encoder_num_layers", "encoder_dropout"), ("encoder_reparameterization_type", "LSTM")),
    ),
    "peanut": Method(),
    "poly": Method(refused=_TASK_IDS),
    "prefix_tuning": Method(
        layers="none", needs_cache=True, needs={"encoder_hidden_size": ("prefix_projection", True)}
    ),
    "prompt_tuning": Method(
        layers="none",
        needs=dict.fromkeys(
            ("prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"), ("prompt_tuning_init", "TEXT")
        ),
    ),
    "psoft": Method(
        needs={
            "psoft_svd_lowrank_niter": ("psoft_svd", "lowrank"),
            "random_seed": ("psoft_svd", "lowrank"),
            "num_cayley_neumann_terms": ("use_cayley_neumann", True),
            "cayley_neumann_eps": ("use_cayley_neumann", True),
        }
    ),
    "pvera": Method(has_rank=True, unread={"generator_seed": "checkpoints do not include its generator"}),
    "randlora": Method(),
    "road": Method(),
    "shadow": Method(refused="it adds to the loss only if the model gets the labels"),
    "shira": Method(),
    "supertuning": Method(needs={"lora_alpha": ("r", None), "lora_dropout": ("r", None)}),
    "tinylora": Method(has_rank=True, needs={"init_v_bound": ("init_weights", "uniform")}),
    "trainable_tokens": Method(layers="own"),
    "unilora": Method(has_rank=True),
    "vblora": Method(has_rank=True),
    "vera": Method(has_rank=True),
    "waveft": Method(),
    "xlora": Method(refused="it mixes trained adapters"),
}


def known(method: str) -> Method:
    """Return the entry of `method`. Raises `ValueError` if it can't run here."""
    entry = METHODS.get(method)
    if entry is None or entry.refused:
        allowed = ", ".join(name for name, other in METHODS.items() if not other.refused)
        raise ValueError(f"method: {method!r}, allowed: {allowed}{f'; {entry.refused}' if entry else ''}")
    return entry

"""Loads a backbone once per process, and copies it with a fresh head for each run."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.errors import ConfigError
from trainer.model import agreement
from trainer.model.architecture import Architecture
from trainer.model.foreign import NO_CODE, reading
from variants.core import quantization

log = logging.getLogger(__name__)

# The names of dropout in transformers' configs.
BACKBONE_DROPOUT = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "hidden_dropout", "attention_dropout", "dropout"),
    *("dropout_rate", "activation_dropout", "embedding_dropout", "mlp_dropout", "feat_proj_dropout"),
    *("resid_pdrop", "embd_pdrop", "attn_pdrop"),
)


@dataclass(frozen=True)
class LoadedBackbone:
    """A loaded backbone that no run has changed.

    new: names of the parameters and buffers that are initialised for every run; all belong to the head. head: names of
    the task's modules. notice: the log message about a checkpoint with a trained head.
    """

    model: nn.Module
    new: tuple[str, ...]
    head: tuple[str, ...]
    notice: str | None = None


@functools.cache
def tokenizer(folder: Path, architecture: Architecture) -> Any:
    """Returns the model's tokenizer; its outputs are the model's inputs, see `agreement.model_inputs`."""
    loaded = _padding_tokenizer(folder)
    loaded.model_input_names = agreement.model_inputs(skeleton(folder, architecture), loaded.model_input_names)
    return loaded


@functools.cache
def _padding_tokenizer(folder: Path) -> Any:
    """Loads the tokenizer in `folder`; without a padding token it pads with its end-of-text token."""
    from transformers import AutoTokenizer

    with reading("its tokenizer"):
        loaded = AutoTokenizer.from_pretrained(folder, **NO_CODE)
        if loaded.pad_token is None:
            loaded.pad_token = loaded.eos_token
        loaded("a", truncation=True, max_length=min(8, loaded.model_max_length))  # the first call checks some settings
    if loaded.pad_token is None:
        raise ConfigError(
            "model: its tokenizer has neither a padding token nor an end-of-text token to replace it; "
            "allowed: a tokenizer_config.json with a pad_token"
        )
    return loaded


@functools.cache
def image_processor(folder: Path) -> Any:
    """What makes pixels of images for the model in `folder`."""
    from transformers import AutoImageProcessor

    with reading("its preprocessor_config.json"):
        return AutoImageProcessor.from_pretrained(folder, **NO_CODE)


@functools.cache
def feature_extractor(folder: Path) -> Any:
    """Returns what makes a model's inputs of sounds, for the model in `folder`."""
    from transformers import AutoFeatureExtractor

    with reading("its preprocessor_config.json"):
        return AutoFeatureExtractor.from_pretrained(folder, **NO_CODE)


@functools.cache
def model_config(folder: Path, architecture: Architecture) -> Any:
    """Loads the model's config for its architecture. Raises `ConfigError`."""
    from transformers import AutoConfig

    outputs = {} if architecture.outputs is None else {"num_labels": architecture.outputs}
    with reading("its config.json"):
        config = AutoConfig.from_pretrained(folder, **outputs, **NO_CODE)
    if type(config) not in _auto(architecture)._model_mapping:
        raise ConfigError(
            f"model: {config.model_type}, for which transformers has no {architecture.auto}; "
            "allowed: a model for which it has one"
        )
    if own := (getattr(config, "auto_map", None) or {}).get(architecture.auto):
        kind = _auto(architecture)._model_mapping[type(config)]
        log.warning(
            "model: its config.json names code of its own (%s), which is never run; transformers' own %s is taken",
            *(own, getattr(kind, "__name__", config.model_type)),
        )
    config.return_dict = True  # outputs are read by name
    if not architecture.tokens:
        return config
    for section in {id(section): section for section in (config, config.get_text_config())}.values():
        if section.pad_token_id is None:
            section.pad_token_id = _padding_tokenizer(folder).pad_token_id
        words = getattr(section, "vocab_size", None)
        if words is not None and section.pad_token_id >= words:
            raise ConfigError(
                f"model: its padding is token {section.pad_token_id} (pad_token_id of the config, or else of the"
                f" tokenizer), and its vocab_size is {words}; allowed: below {words}, or resized embeddings"
            )
    return config


def _auto(architecture: Architecture) -> Any:
    """Returns the class of transformers that `architecture` names."""
    import transformers

    return getattr(transformers, architecture.auto)


def skeleton(folder: Path, architecture: Architecture) -> nn.Module:
    """Makes the model's modules without weights, on the meta device; they suffice to check targets and ranks."""
    config = model_config(folder, architecture)
    with reading("its config.json"), torch.device("meta"):
        model: nn.Module = _auto(architecture).from_config(config, **NO_CODE)
    return model


def classes(folder: Path) -> list[str]:
    """Returns the class names in the checkpoint's config; `LABEL_0`, … if nobody named them."""
    from transformers import AutoConfig

    named = AutoConfig.from_pretrained(folder, **NO_CODE).id2label
    return [str(named[number]) for number in sorted(named)]


def check_kept_head(folder: Path, labels: Sequence[str] | None) -> None:
    """Raises `ConfigError` if the checkpoint's head has the task's classes in another order.

    labels: the task's class names by class id, or None for a regression.
    """
    kept = classes(folder)
    if labels is not None and kept != list(labels) and sorted(kept) == sorted(labels):
        order = f"the order of the checkpoint's classes is {', '.join(kept)}, that of the task's {', '.join(labels)}"
        raise ConfigError(f"model.keep_head: true, allowed: null; {order}")


@functools.lru_cache(maxsize=2)
def load_backbone(
    folder: Path,
    architecture: Architecture,
    head_of: Callable[[Any], tuple[str, ...]],
    dropout: float | None = None,
    keep_head: bool | None = None,
) -> LoadedBackbone:
    """Loads the weights in float32. Raises `ConfigError` if the checkpoint lacks weights outside the head.

    A trained head and the pooler below it belong to the checkpoint's task, so both are initialised again. `keep_head`
    keeps them; it is an error if there is no trained head or if its size differs. A pooler without a head (MiniLM's) is
    pretrained and stays.

    head_of: returns the names of the task's modules in a model.
    dropout: of the backbone, see `set_dropout`; None keeps the value in the model's config.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()  # silences the expected warning that the head is newly initialised
    logging.disable_progress_bar()
    config = copy.deepcopy(model_config(folder, architecture))
    if dropout is not None:
        set_dropout(config, dropout)
    with reading("its weights"):
        model, report = _auto(architecture).from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **NO_CODE,
        )
    if dropout is not None:
        _keep_dropout(model, skeleton(folder, architecture))
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise ConfigError(f"model: its weights: {name} has values that are not finite")
    head = head_of(model)
    missing, resized = set(report["missing_keys"]), {name for name, *_ in report["mismatched_keys"]}
    outside = sorted({name.rpartition(".")[0] for name in missing if not _inside(name, head)})
    if outside:
        raise ConfigError(f"model: the checkpoint has no weights for {outside[0]} ({len(outside)} modules in all)")
    if others := sorted(name for name in resized if not _inside(name, head)):
        raise ConfigError(
            f"model: {others[0]} has another size in its checkpoint than in its config.json; allowed: one model"
        )
    in_head = {name for name in model.state_dict() if _inside(name, head)}
    if not _sized_by_labels(folder, architecture, head) - missing:
        if keep_head:
            reason = (
                "the checkpoint has no trained head" if architecture.outputs is not None else "the task has no classes"
            )
            raise ConfigError(f"model.keep_head: true, allowed: null; {reason}")
        return LoadedBackbone(model, tuple(sorted(missing)), head)
    own = classes(folder)
    described = f"{', '.join(head)}; trained for {', '.join(own) if len(own) <= 20 else f'{len(own)} classes'}"
    if not keep_head:
        notice = f"model: the checkpoint's head ({described}) is not used, a new one is drawn"
        return LoadedBackbone(model, tuple(sorted(in_head)), head, f"{notice}; model.keep_head=true would keep it")
    if misfit := sorted(resized | missing):
        reason = f"the checkpoint's head is incomplete or its size doesn't fit {architecture.outputs} outputs"
        raise ConfigError(f"model.keep_head: true, allowed: null; {reason}: {misfit[0]}")
    return LoadedBackbone(model, (), head, f"model: the checkpoint's head ({described}) stays, the same for every seed")


def _sized_by_labels(folder: Path, architecture: Architecture, head: Sequence[str]) -> set[str]:
    """Returns the head's parameters whose shape depends on the number of outputs: those that compute logits."""
    if architecture.outputs is None:
        return set()
    few = {name: p for name, p in skeleton(folder, architecture).named_parameters() if _inside(name, head)}
    try:
        larger = skeleton(folder, replace(architecture, outputs=architecture.outputs + 1))
    except ConfigError:  # the class takes no other number, such as DistilBERT's for questions
        return {name for name, tensor in few.items() if tensor.shape[0] == architecture.outputs}
    return {name for name, tensor in few.items() if tensor.shape != larger.get_parameter(name).shape}


def set_dropout(config: Any, dropout: float) -> None:
    """Sets the dropout of hidden states and attention in a model's config. Some heads read it, too: `_keep_dropout`.

    Raises `ConfigError` for a model whose config has none of the names that transformers uses for dropout.
    """
    fields = [name for name in BACKBONE_DROPOUT if getattr(config, name, None) is not None]
    if not fields:
        known = ", ".join(BACKBONE_DROPOUT)
        raise ConfigError(f"model.dropout: {dropout}, allowed: null; {config.model_type}'s config has none of {known}")
    for name in fields:
        setattr(config, name, dropout)


def _keep_dropout(model: Any, usual: Any) -> None:
    """Gives the dropout outside the backbone of `model` the values that it has in `usual`, the model of its config.

    A head without a value of its own (BERT's, DeBERTa's, Longformer's) has taken the backbone's.
    """
    backbone = getattr(model, model.base_model_prefix, None)
    if backbone is None:
        return
    inner = set(backbone.modules())
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and module not in inner:
            module.p = usual.get_submodule(name).p


def describe(config: Any, labels: Sequence[str] | None) -> Any:
    """Replaces the checkpoint's task in a model's config by this task, and returns the config.

    labels: class names by class id, or None for a regression.
    """
    config.problem_type = "regression" if labels is None else "single_label_classification"
    named = dict(enumerate(["LABEL_0"] if labels is None else labels))
    config.id2label, config.label2id = named, {name: number for number, name in named.items()}
    return config


def as_loaded(
    folder: Path,
    architecture: Architecture,
    described: Path,
    dtype: str,
    quantize: str | None = None,
    head: Sequence[str] = (),
) -> nn.Module:
    """Loads the model as transformers does with the config.json in `described`, as the base for an adapter.

    All weights are in `dtype`; a head whose size doesn't fit is initialised. quantize: the backbone has the numbers of
    weights that were quantised so, outside the modules in `head`.
    """
    from transformers import AutoConfig

    model: nn.Module = _auto(architecture).from_pretrained(
        folder,
        config=AutoConfig.from_pretrained(described, **NO_CODE),
        dtype=getattr(torch, dtype) if quantize is None else torch.float32,
        ignore_mismatched_sizes=True,
        **NO_CODE,
    )
    if quantize is not None:
        quantization.quantize(model, quantize, head, getattr(torch, dtype))
        quantization.dequantize(model)
        model.to(getattr(torch, dtype))
    return model.eval()


def head_modules(model: Any) -> tuple[str, ...]:
    """Returns the names of the task's modules: all modules outside the pretrained backbone, and the backbone's pooler.

    A parameter of the model itself is listed by its own name. A module that shares its weight with the backbone (tied
    embeddings) is not part of the head. If the model wraps no backbone, the head is the output layer, unless it is
    tied; without an output layer it is what is outside the part that is a model of its own, as Whisper's encoder is.
    """
    from transformers import PreTrainedModel

    children = dict(model.named_children())
    if (backbone := children.pop(model.base_model_prefix, None)) is None:
        output = model.get_output_embeddings()
        parts = {name for name, child in children.items() if isinstance(child, PreTrainedModel)}
        if output is not None or not parts:
            parts = {name for name, child in children.items() if child is not output}
        backbone = nn.ModuleList(children.pop(name) for name in sorted(parts))
    pretrained = {id(parameter) for parameter in backbone.parameters()}
    head = [name for name, child in children.items() if any(id(p) not in pretrained for p in child.parameters())]
    head += [name for name, _ in model.named_parameters(recurse=False)]
    head += [name for name, _ in model.named_modules() if name.rpartition(".")[2] == "pooler" and name not in head]
    return tuple(name for name in head if _has_parameters(model, name))


def _has_parameters(model: nn.Module, name: str) -> bool:
    """Whether what is called so has parameters, or is one: a mean over places has none."""
    modules = dict(model.named_modules())
    return name not in modules or any(True for _ in modules[name].parameters())


def fresh(source: LoadedBackbone, seed: int, dtype: str = "float32", quantize: str | None = None) -> nn.Module:
    """Copies the model for one run: the new tensors are drawn with `seed`, the backbone is in `dtype`.

    quantize: how its linear layers are quantised (`variants.core.quantized`), None if they are not.

    Above a bfloat16 backbone the head stays in float32 and its inputs are cast. Batch norms keep their statistics in
    training, too: no adapter would hold new ones, and an image's outputs would depend on those beside it.
    """
    model: Any = copy.deepcopy(source.model)
    torch.manual_seed(seed)
    if source.new:
        _draw(model, set(source.new))
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.register_forward_pre_hook(_as_in_evaluation)
    wanted: torch.dtype = getattr(torch, dtype)
    if quantize is not None:
        quantization.quantize(model, quantize, source.head, wanted)
    model.to(wanted)
    if wanted.itemsize < 4:
        modules = dict(model.named_modules())
        for name in source.head:
            if name in modules:
                modules[name].to(torch.float32).register_forward_pre_hook(_to_float32)
            else:
                parameter = model.get_parameter(name)
                parameter.data = parameter.data.float()
    return model


@torch.no_grad()
def _draw(model: Any, new: set[str]) -> None:
    """Initialises the tensors `new` in the order of the model's class, and leaves all others unchanged.

    The class also visits every module around a new tensor, because T5 initialises the layers of its head when it visits
    the whole head. transformers initialises nothing that is marked `_is_hf_initialized`.
    """
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in tensors.items():
        tensor._is_hf_initialized = name not in new
    for name, module in model.named_modules():
        module._is_hf_initialized = not any(_inside(tensor, (name,)) or not name for tensor in new)
    floating = {name for name in new if tensors[name].is_floating_point()}
    for name in floating:
        tensors[name].fill_(torch.nan)
    model.initialize_weights()
    # A tensor that `_init_weights` skips gets the value that its constructor sets.
    if skipped := [name for name in floating if tensors[name].isnan().any()]:
        constructed = type(model)(copy.deepcopy(model.config)).state_dict()
        for name in skipped:
            tensors[name].copy_(constructed[name])


def refuse_half_precision(model: nn.Module, variant: str) -> None:
    """Raises `ConfigError` if a weight in half precision would be trained, because it rounds small updates to 0."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype.itemsize < 4:
            kind = str(parameter.dtype).removeprefix("torch.")
            raise ConfigError(f"model.dtype: {kind} is for a frozen backbone, and {variant} trains {name}")


def _as_in_evaluation(module: nn.Module, arguments: tuple[Any, ...]) -> None:
    module.training = False


def _to_float32(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.float() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments)


def _inside(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)

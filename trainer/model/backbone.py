"""The backbone: loaded once per process, copied and given a fresh head for each run."""

from __future__ import annotations

import copy
import functools
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

# What the configs of transformers call it. Those of a head: None where it is the backbone's.
BACKBONE_DROPOUT = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "hidden_dropout", "attention_dropout", "dropout"),
    *("dropout_rate", "activation_dropout", "embedding_dropout", "mlp_dropout"),
    *("resid_pdrop", "embd_pdrop", "attn_pdrop"),
)
HEAD_DROPOUT = ("classifier_dropout", "classifier_dropout_prob", "cls_dropout")


@dataclass(frozen=True)
class Pristine:
    """A loaded backbone that no run has touched.

    new: names of the parameters and buffers that are drawn anew for every run, all of the head. head: names of the
    modules that belong to the task. notice: what must be said of a checkpoint that was trained for a task of its own.
    """

    model: nn.Module
    new: tuple[str, ...]
    head: tuple[str, ...]
    notice: str | None = None


@functools.cache
def tokenizer(folder: Path, architecture: Architecture) -> Any:
    """The model's tokenizer, which gives what the model takes; see `agreement.model_inputs`."""
    found = _padding_tokenizer(folder)
    found.model_input_names = agreement.model_inputs(skeleton(folder, architecture), found.model_input_names)
    return found


@functools.cache
def _padding_tokenizer(folder: Path) -> Any:
    """The tokenizer in `folder`; one without a padding token pads with its end-of-text token."""
    from transformers import AutoTokenizer

    with reading("its tokenizer"):
        found = AutoTokenizer.from_pretrained(folder, **NO_CODE)
        if found.pad_token is None:
            found.pad_token = found.eos_token
        found("a", truncation=True, max_length=min(8, found.model_max_length))  # some settings are only looked at here
    if found.pad_token is None:
        raise ConfigError(
            "model: its tokenizer has no padding token, and no end-of-text token to take its place; "
            "allowed: a tokenizer_config.json with a pad_token"
        )
    return found


@functools.cache
def image_processor(folder: Path) -> Any:
    """What makes pixels of images for the model in `folder`."""
    from transformers import AutoImageProcessor

    with reading("its preprocessor_config.json"):
        return AutoImageProcessor.from_pretrained(folder, **NO_CODE)


@functools.cache
def model_config(folder: Path, architecture: Architecture) -> Any:
    """The model's config for what it is loaded as."""
    from transformers import AutoConfig

    outputs = {} if architecture.outputs is None else {"num_labels": architecture.outputs}
    with reading("its config.json"):
        config = AutoConfig.from_pretrained(folder, **outputs, **NO_CODE)
    if type(config) not in _auto(architecture)._model_mapping:
        raise ConfigError(
            f"model: a {config.model_type}, of which transformers has no {architecture.auto}; "
            "allowed: a model of which it has one"
        )
    config.return_dict = True  # its outputs are asked for by name
    if not architecture.tokens:
        return config
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        if part.pad_token_id is None:
            part.pad_token_id = _padding_tokenizer(folder).pad_token_id
        words = getattr(part, "vocab_size", None)
        if words is not None and part.pad_token_id >= words:
            raise ConfigError(
                f"model: token {part.pad_token_id} is its padding (the config's pad_token_id, or the tokenizer's where"
                f" it has none), and its vocab_size is {words}; allowed: below {words}, or resized embeddings"
            )
    return config


def _auto(architecture: Architecture) -> Any:
    """The class of transformers that `architecture` names."""
    import transformers

    return getattr(transformers, architecture.auto)


def skeleton(folder: Path, architecture: Architecture) -> nn.Module:
    """The model's modules without any weights: enough to check targets and ranks against."""
    config = model_config(folder, architecture)
    with reading("its config.json"), torch.device("meta"):
        found: nn.Module = _auto(architecture).from_config(config, **NO_CODE)
    return found


def classes(folder: Path) -> list[str]:
    """Names of the classes that the checkpoint's config has; `LABEL_0`, … where nobody named them."""
    from transformers import AutoConfig

    named = AutoConfig.from_pretrained(folder, **NO_CODE).id2label
    return [str(named[number]) for number in sorted(named)]


def check_kept_head(folder: Path, labels: Sequence[str] | None) -> None:
    """Raises `ConfigError` where the checkpoint's head has the task's classes in another order.

    labels: the task's classes by number, or None for a regression.
    """
    own = classes(folder)
    if labels is not None and own != list(labels) and sorted(own) == sorted(labels):
        order = f"the checkpoint's classes are numbered {', '.join(own)}, the task's {', '.join(labels)}"
        raise ConfigError(f"model.keep_head: true, allowed: null; {order}")


@functools.lru_cache(maxsize=2)
def pristine(
    folder: Path,
    architecture: Architecture,
    head_of: Callable[[Any], tuple[str, ...]],
    dropout: float | None = None,
    keep_head: bool | None = None,
) -> Pristine:
    """Loads the weights in float32; a checkpoint that lacks more than a head is an error.

    A head that the checkpoint was trained with belongs to another task, and with it the pooler below. Both are drawn
    anew; `keep_head` keeps them, or is an error where there is no such head or it has another size. A pooler without
    a head (MiniLM's) comes from pretraining and stays.

    head_of: says of a model which of its modules belong to the task.
    dropout: of the backbone, see `set_dropout`; None leaves what the model's config says.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()  # that the head is new is no news
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
            f"model: {others[0]} has another size in the checkpoint than its config.json says; allowed: one model's"
        )
    held = {name for name in model.state_dict() if _inside(name, head)}
    if not _sized_by_labels(folder, architecture, head) - missing:
        if keep_head:
            raise ConfigError("model.keep_head: true, allowed: null; the checkpoint has no trained head")
        return Pristine(model, tuple(sorted(missing)), head)
    own = classes(folder)
    task = f"trained for {', '.join(own) if len(own) <= 20 else f'{len(own)} classes'}"
    parts = ", ".join(head)
    if not keep_head:
        notice = f"model: the checkpoint's head ({parts}; {task}) is not used, a new one is drawn"
        return Pristine(model, tuple(sorted(held)), head, f"{notice}; model.keep_head=true would keep it")
    if misfit := sorted(resized | missing):
        lack = f"the checkpoint's head has another size than {architecture.outputs} outputs need, or lacks a part"
        raise ConfigError(f"model.keep_head: true, allowed: null; {lack}: {misfit[0]}")
    return Pristine(model, (), head, f"model: the checkpoint's head ({parts}; {task}) stays, the same for every seed")


def _sized_by_labels(folder: Path, architecture: Architecture, head: Sequence[str]) -> set[str]:
    """The head's parameters whose shape follows from the number of outputs: what makes logits."""
    if architecture.outputs is None:
        return set()
    larger = replace(architecture, outputs=architecture.outputs + 1)
    few, more = (dict(skeleton(folder, one).named_parameters()) for one in (architecture, larger))
    return {name for name, tensor in few.items() if _inside(name, head) and tensor.shape != more[name].shape}


def set_dropout(config: Any, dropout: float) -> None:
    """Makes `dropout` that of hidden states and attention in a model's config; that of the head stays as it is.

    Raises `ConfigError` for a model whose config has no dropout by any of the names that transformers uses.
    """
    found = [name for name in BACKBONE_DROPOUT if getattr(config, name, None) is not None]
    if not found:
        known = ", ".join(BACKBONE_DROPOUT)
        raise ConfigError(f"model.dropout: {dropout}, allowed: null; {config.model_type}'s config has none of {known}")
    for name in HEAD_DROPOUT:
        # None stands for the backbone's own, which is about to change.
        if getattr(config, name, 0.0) is None:
            setattr(config, name, getattr(config, found[0]))
    for name in found:
        setattr(config, name, dropout)


def describe(config: Any, labels: Sequence[str] | None) -> Any:
    """Writes the task into a model's config, in place of another that its checkpoint was trained for; the config.

    labels: names of the classes by number, or None for a regression.
    """
    config.problem_type = "regression" if labels is None else "single_label_classification"
    named = dict(enumerate(["LABEL_0"] if labels is None else labels))
    config.id2label, config.label2id = named, {name: number for number, name in named.items()}
    return config


def as_loaded(folder: Path, architecture: Architecture, described: Path, dtype: str) -> nn.Module:
    """The model as transformers loads it with the config.json in `described`: what an adapter is put on.

    All of it is in `dtype`; a head that doesn't fit is drawn anew.
    """
    from transformers import AutoConfig

    found: nn.Module = _auto(architecture).from_pretrained(
        folder,
        config=AutoConfig.from_pretrained(described, **NO_CODE),
        dtype=getattr(torch, dtype),
        ignore_mismatched_sizes=True,
        **NO_CODE,
    )
    return found.eval()


def head_modules(model: Any) -> tuple[str, ...]:
    """The modules that belong to the task: all outside the pretrained backbone, and the backbone's pooler.

    A parameter that lies in no module stands under its own name. What shares its weight with the backbone (tied
    embeddings) is no head. Of a model that wraps no backbone the output layer is, where its weight is its own.
    """
    children = dict(model.named_children())
    if (backbone := children.pop(model.base_model_prefix, None)) is None:
        output = model.get_output_embeddings()
        backbone = nn.ModuleList(child for child in children.values() if child is not output)
        children = {name: child for name, child in children.items() if child is output}
    pretrained = {id(parameter) for parameter in backbone.parameters()}
    head = [name for name, child in children.items() if any(id(p) not in pretrained for p in child.parameters())]
    head += [name for name, _ in model.named_parameters(recurse=False)]
    head += [name for name, _ in model.named_modules() if name.rpartition(".")[2] == "pooler" and name not in head]
    return tuple(name for name in head if _has_parameters(model, name))


def _has_parameters(model: nn.Module, name: str) -> bool:
    """Whether what is called so has parameters, or is one: a mean over places has none."""
    modules = dict(model.named_modules())
    return name not in modules or any(True for _ in modules[name].parameters())


def fresh(source: Pristine, seed: int, dtype: str = "float32") -> nn.Module:
    """A copy for one run: what is new drawn with `seed`, the backbone in `dtype`.

    The head stays in float32 above a bfloat16 backbone; its inputs are cast. Batch norms keep their statistics, in
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
    """Draws the tensors `new` as the model's class does when it is made, in its order, and leaves all others.

    The class is asked about every module around a new tensor, too: T5 scales the layers of its head where it comes to
    the head as a whole. `_is_hf_initialized` is transformers' mark of what it must not draw.
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
    # What `_init_weights` knows nothing of has the start that its constructor gives.
    if left := [name for name in floating if tensors[name].isnan().any()]:
        made = type(model)(copy.deepcopy(model.config)).state_dict()
        for name in left:
            tensors[name].copy_(made[name])


def refuse_half_precision(model: nn.Module, variant: str) -> None:
    """Raises `ConfigError` where a weight in half precision would be trained: small steps vanish in it."""
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

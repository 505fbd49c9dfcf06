"""The teacher of a run as a model: checked before the run, loaded beside it; see `trainer.teacher`."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, open_dict
from torch import nn

from trainer import teacher
from trainer.data.sources import fetch_model
from trainer.errors import ConfigError
from trainer.loop.counters import Counters
from trainer.loop.loop import Loop
from trainer.loop.network import Network
from trainer.model import agreement
from trainer.model import backbone as models
from trainer.objectives import kinds
from trainer.objectives.distillation import Distillation
from trainer.objectives.objective import Objective
from trainer.record import Record
from trainer.runs import assemble, finished
from trainer.runs.assemble import RunContext
from trainer.sweeps.plan import model_sources
from trainer.teacher import FIELD, TEMPERATURE, WEIGHT, Teacher

COMPARED = 64  # texts that both tokenizers must read alike


def check(context: RunContext) -> RunContext:
    """Raises `ConfigError` unless a teacher has the outputs that the student learns, of the same tokens."""
    config, objective = context.config, context.objective
    if config.train.teacher is None:
        return context
    if not objective.distils:
        raise ConfigError(f"{FIELD}: {config.train.teacher!r} in a {objective.title}, allowed: null")
    if not context.variant.trains:
        name = context.variant.name
        raise ConfigError(f"{FIELD}: {config.train.teacher!r} with variant {name}, which trains nothing; allowed: null")
    found = teacher.find(config.train.teacher)
    with _named(found):
        own = _config(config, found, objective)
        if found.run is not None:
            _refuse_other_task(found.run.record, own, context)
        source = fetch_model(model_sources(own), own.model.files)
        if own.model.get("keep_head"):
            models.check_kept_head(source, context.rows.labels)
        _refuse_other_tokens(context, source, assemble.settings(own).virtual_tokens())
    return context


def loop(context: RunContext, model: nn.Module, folder: Path, device: torch.device) -> Loop:
    """Makes a run's loop as `assemble.loop` does, with its teacher, if it has one. Raises `ConfigError`."""
    counters, train = Counters(), context.config.train
    if train.teacher is None:
        return assemble.loop(context, model, folder, device, counters)
    lesson = Distillation(
        context.objective,
        _loaded(context, device),
        TEMPERATURE if train.temperature is None else train.temperature,
        WEIGHT if train.distillation_weight is None else train.distillation_weight,
        counters,
    )
    return assemble.loop(context, model, folder, device, counters, lesson)


def _loaded(context: RunContext, device: torch.device) -> Network:
    """Loads the teacher to `device`, in evaluation mode."""
    found = teacher.find(context.config.train.teacher)
    with _named(found):
        if found.run is not None:
            with finished.opened(found.folder, str(device)) as run:
                model, source = run.model, run.context.source
        else:
            own = assemble.check(_config(context.config, found, context.objective))
            model, source = assemble.load(own), own.source
    inputs, theirs = (
        models.tokenizer(folder, context.objective.architecture).model_input_names
        for folder in (context.source, source)
    )
    model = model.to(device).eval().requires_grad_(False)
    network = _Teacher(model, source, device, context.config.train.autocast)
    network.unread = frozenset(inputs) - frozenset(theirs)
    return network


class _Teacher(Network):
    """unread: inputs of the student that the teacher's architecture doesn't take."""

    unread: frozenset[str] = frozenset()

    def __call__(self, **inputs: Any) -> Any:
        return super().__call__(**{name: value for name, value in inputs.items() if name not in self.unread})


@contextlib.contextmanager
def _named(found: Teacher) -> Iterator[None]:
    """Within it an error names the teacher."""
    try:
        yield
    except ConfigError as error:
        text = str(error).removeprefix("model.keep_head: true, allowed: null; ")
        raise ConfigError(text if text.startswith(FIELD) else f"{FIELD}: {found.folder}: {text}") from error


def _config(config: DictConfig, found: Teacher, objective: Objective) -> DictConfig:
    """The config of the teacher: of its run, or of an evaluation of the model in its folder on this run's task."""
    if found.run is not None:
        return finished.config_of(found.folder, found.run.record)
    own = copy.deepcopy(config)
    with open_dict(own):
        own.train.teacher = own.init_from = None
        own.train.recompute = own.train.gradient_checkpointing = False
        # Neither changes the model; a head, which is the model's own, would be trained.
        own.variant = {"_target_": "variants.base.Base" if objective.outputs is None else "variants.head.Head"}
        own.model = {
            "name": "teacher",
            "sources": [{"_target_": "trainer.data.sources.folder.FolderModel", "path": str(found.folder)}],
            "files": {},
            "dtype": config.model.dtype,
            "keep_head": None if objective.outputs is None else True,
        }
    return own


def _refuse_other_task(record: Record, own: DictConfig, context: RunContext) -> None:
    """Raises `ConfigError` unless the teacher's run has the student's kind of task, and its classes in their order."""
    if kinds.target(own.task.get("kind")) != kinds.target(context.config.task.get("kind")):
        raise ConfigError(f"its task is another kind ({record.task}); allowed: the same task.kind")
    theirs, classes = record.data.classes or [], list(context.rows.labels or ())
    if theirs != classes:
        named = [", ".join(names) or "none" for names in (theirs, classes)]
        raise ConfigError(f"its classes are {named[0]}, those of this task {named[1]}; allowed: the same, in one order")


def _refuse_other_tokens(context: RunContext, source: Path, virtual_tokens: int) -> None:
    """Raises `ConfigError` unless the teacher reads and writes the student's tokens, as many as a row may have.

    virtual_tokens: those that the teacher puts before every text.
    """
    objective = context.objective
    own, theirs = (models.tokenizer(folder, objective.architecture) for folder in (context.source, source))
    texts = [text for column in objective.texts("train") for text in column[:COMPARED]]
    same = own.get_vocab() == theirs.get_vocab() and own.pad_token_id == theirs.pad_token_id
    if not same or own(texts)["input_ids"] != theirs(texts)["input_ids"]:
        raise ConfigError("its tokenizer makes other tokens than the student's; allowed: a model with the same one")
    lacking = set(theirs.model_input_names) - set(own.model_input_names)
    if lacking and objective.pairs:
        raise ConfigError(f"it reads {min(lacking)}, which the student's inputs lack; allowed: a model without")
    student, model = (models.skeleton(folder, objective.architecture) for folder in (context.source, source))
    if objective.outputs is None and _words(student) != _words(model):
        raise ConfigError(f"it has {_words(model)} outputs, the student {_words(student)}; allowed: as many")
    positions = agreement.longest_text(model)
    if positions is not None and positions - virtual_tokens < context.max_length:
        beside = f" beside its {virtual_tokens} virtual ones" if virtual_tokens else ""
        raise ConfigError(
            f"it takes {positions - virtual_tokens} tokens{beside}, rows have up to {context.max_length}; "
            "allowed: a data.max_length within it"
        )


def _words(model: Any) -> int:
    """The words that a language model predicts."""
    count: int = model.config.get_text_config().vocab_size
    return count

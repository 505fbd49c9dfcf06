"""Which class a task's kind is: one that is built in, by its name, or one of your own, by its dotted path."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from trainer import class_source, classes
from trainer.errors import ConfigError
from trainer.objectives import metrics, mixture
from trainer.objectives.metrics import Metric
from variants.core import field_checks

if TYPE_CHECKING:
    from trainer.objectives.objective import Objective

DEFAULT = "sequence_classification"  # of a task that names no kind
KINDS = {
    "sequence_classification": "trainer.objectives.sequence_classification.SequenceClassification",
    "causal_lm": "trainer.objectives.causal_lm.CausalLM",
    "seq2seq": "trainer.objectives.seq2seq.Seq2Seq",
    "token_classification": "trainer.objectives.token_classification.TokenClassification",
    "image_classification": "trainer.objectives.image_classification.ImageClassification",
    "audio_classification": "trainer.objectives.audio_classification.AudioClassification",
    "ctc": "trainer.objectives.ctc.CTC",
    "rating": "trainer.objectives.rating.Rating",
    "extractive_qa": "trainer.objectives.extractive_qa.ExtractiveQA",
}
OF_EVERY_TASK = ("name", "metrics", "kind", "source")


def target(kind: Any) -> str:
    """The dotted path of the class of `task.kind`; a name that no kind has is its own. Raises `ConfigError`."""
    if kind is not None and not (isinstance(kind, str) and kind.strip()):
        raise _unknown(kind)
    return KINDS.get(kind or DEFAULT, str(kind))


def _unknown(kind: Any) -> ConfigError:
    return ConfigError(f"task.kind: {kind!r}, allowed: {', '.join(KINDS)}, or the dotted path of a class of yours")


def settings(kind: Any) -> dict[str, Any]:
    """The settings of a kind and their defaults, read from its source: nothing is imported for them."""
    return class_source.defaults(target(kind))


def of(task: DictConfig) -> Objective:
    """The objective of a task's config, made once per process. Raises `ConfigError`."""
    return _of(json.dumps(OmegaConf.to_container(task, resolve=True), sort_keys=True))


@functools.cache
def _of(task: str) -> Objective:
    from trainer.data.rows import load_source

    node = json.loads(task)
    cls = _class(node.get("kind"))
    own = {name: value for name, value in node.items() if name not in OF_EVERY_TASK and value is not None}
    known = settings(node.get("kind"))
    for other in KINDS:
        if foreign := sorted(settings(other).keys() & own.keys() - known.keys()):
            named = f"task.{foreign[0]}: {own[foreign[0]]!r}"
            raise ConfigError(f"{named} with task.kind {node.get('kind') or DEFAULT}; allowed: null")
    own = {name: value for name, value in own.items() if name in known}  # others are for the file to refer to
    _check(cls, own)
    found = cls(load_source(node["source"]), tuple(node["metrics"]), **own)
    metrics.check(found.asked, cls.metrics, found.title)
    try:
        found.check()
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"task.{error}") from None
    mixture.check(found)
    return found


def metric(task: DictConfig) -> Metric:
    """The first of a task's metrics. Raises `ConfigError` where its kind has none of that name."""
    cls, name = _class(task.get("kind")), task.metrics[0]
    metrics.check([name], cls.metrics, "task of this kind")
    return cls.metrics[name]


def _class(kind: Any) -> type[Objective]:
    if "." not in target(kind):
        raise _unknown(kind)
    try:
        return classes.chosen("task.kind", {"_target_": target(kind)})
    except ConfigError as error:
        raise ConfigError(str(error).replace("task.kind._target_", "task.kind", 1)) from None


def _check(cls: type, own: Mapping[str, Any]) -> None:
    try:
        field_checks.check_types(cls, own)
    except ValueError as error:
        raise ConfigError(f"task.{error}") from None

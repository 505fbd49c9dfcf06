"""Names that version 1 of the identity gave to runs, and what they stand for in the version of today.

Version 1 hashed every leaf of a config, defaults and dotted class paths included. Runs that it named are still found
and share a row with newer ones. So its classes and its schema are written down here as they were, and never edited:
a class that has moved is found by its name, and a config that sets an option of later times has no name in version 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Fields and their defaults by the path of the class; `...` for a field that must be given.
CLASSES: dict[str, dict[str, Any]] = {
    "trainer.sources.boolq.BoolQ": {"distribution": ..., "sha256": ...},
    "trainer.sources.files.Files": {
        "train_path": ...,
        "validation_path": None,
        "text": "text",
        "text_pair": None,
        "label": "label",
        "kind": "classification",
        "holdout": 0.1,
    },
    "trainer.sources.folder.FolderModel": {"path": ...},
    "trainer.sources.glue.Glue": {"task": ..., "repo": ..., "revision": ..., "path": None},
    "trainer.sources.hub.HubModel": {"repo": ..., "revision": "main"},
    "trainer.sources.package.ModelPackage": {
        "distribution": ...,
        "sha256": ...,
        "folder": ...,
        "archive": None,
        "files": [
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
        ],
    },
    "trainer.sources.vader.Movie": {"distribution": ..., "sha256": ...},
    "trainer.sources.vader.MoviePair": {"distribution": ..., "sha256": ..., "margin": 1.5},
    "trainer.sources.vader.Opinion": {"distribution": ..., "sha256": ...},
    "variants.adalora.AdaLoRA": {
        "name": "adalora",
        "targets": "all-linear",
        "exclude": [],
        "layers": None,
        "rank": 12,
        "target_rank": 8,
        "alpha": 16,
        "dropout": 0,
        "orthogonality": 0.1,
        "initial_steps": 0,
        "final_steps": 0,
        "interval": 1,
        "beta1": 0.85,
        "beta2": 0.85,
        "score": "sensitivity_uncertainty",
        "profile": "paper",
        "hard": False,
        "budget": None,
    },
    "variants.bitfit.BitFit": {"name": "bitfit"},
    "variants.dora.DoRA": {
        "name": "dora",
        "targets": "all-linear",
        "exclude": [],
        "layers": None,
        "rank": 8,
        "alpha": 16,
        "dropout": 0,
        "magnitude_decay": 0,
        "budget": None,
    },
    "variants.dylora.DyLoRA": {
        "name": "dylora",
        "targets": "all-linear",
        "exclude": [],
        "layers": None,
        "rank": 8,
        "alpha": 16,
        "dropout": 0,
        "eval_rank": None,
        "frozen": True,
        "profile": "paper",
        "seed": 0,
        "budget": None,
    },
    "variants.elalora.ElaLoRA": {
        "name": "elalora",
        "targets": "all-linear",
        "exclude": [],
        "layers": None,
        "rank": 8,
        "alpha": 16,
        "dropout": 0,
        "orthogonality": 0.1,
        "pool": 2,
        "exchange": 4,
        "schedule": "cubic",
        "initial_steps": 0,
        "final_steps": 1,
        "interval": 10,
        "beta1": 0.85,
        "beta2": 0.85,
        "profile": "paper",
        "budget": None,
    },
    "variants.full.Full": {"name": "full"},
    "variants.head.Head": {"name": "head"},
    "variants.incremental.IncreLoRA": {
        "name": "increlora",
        "targets": "all-linear",
        "exclude": [],
        "layers": None,
        "rank": 1,
        "target_rank": 8,
        "alpha": 16,
        "dropout": 0,
        "orthogonality": 0.1,
        "initial_steps": 0,
        "interval": 1,
        "top": 8,
        "add": 1,
        "warmup": None,
        "reserve": True,
        "beta1": 0.85,
        "beta2": 0.85,
        "profile": "paper",
        "budget": None,
    },
    "variants.lora.LoRA": {
        "name": "lora",
        "targets": "all-linear",
        "exclude": [],
        "layers": None,
        "rank": 8,
        "alpha": 16,
        "dropout": 0,
        "scaling": "lora",
        "lr_ratio": 1,
        "frozen_a": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "init": "lora",
        "init_iterations": None,
        "budget": None,
    },
    "variants.lora_xs.LoRAXS": {
        "name": "lora_xs",
        "targets": "all-linear",
        "exclude": [],
        "layers": None,
        "rank": 16,
        "decomposition": "svd",
        "iterations": None,
        "seed": 0,
        "budget": None,
        "alpha": 16,
        "dropout": 0,
        "init_std": 1e-05,
    },
    "variants.peft.Peft": {"name": "", "method": "lora", "targets": "all-linear", "options": {}},
    "variants.rosa.RoSA": {
        "name": "rosa",
        "targets": "all-linear",
        "exclude": [],
        "layers": None,
        "rank": 8,
        "alpha": 16,
        "dropout": 0,
        "density": 0.006,
        "warmup_steps": 64,
        "collect_steps": 1,
        "statistic": "squared_mean",
        "restart": False,
        "budget": None,
        "sparse_share": 0.5,
    },
    "variants.shira.SHiRA": {
        "name": "shira",
        "targets": "all-linear",
        "exclude": [],
        "layers": None,
        "rank": 8,
        "mask": "random",
        "scale": 1,
        "collect_steps": 1,
        "seed": 0,
        "budget": None,
    },
    "variants.sora.SoRA": {
        "name": "sora",
        "targets": "all-linear",
        "exclude": [],
        "layers": None,
        "rank": 8,
        "alpha": 16,
        "dropout": 0,
        "l1": 10,
        "threshold": 0.0003,
        "schedule": "constant",
        "max_threshold": None,
        "stages": None,
        "stage_steps": None,
        "first_stage_steps": None,
        "gate_lr_scale": 1,
        "decay_after_step": 0,
        "initial_steps": 0,
        "final_steps": 0,
        "profile": "paper",
        "budget": None,
    },
    "variants.sparse.SparseLoRA": {
        "name": "sparse",
        "targets": "all-linear",
        "exclude": [],
        "layers": None,
        "rank": 16,
        "alpha": 16,
        "dropout": 0,
        "density": 0.5,
        "score": "magnitude",
        "scope": "layer",
        "schedule": "gradual",
        "initial_steps": 1,
        "final_steps": 1,
        "interval": 1,
        "beta": 0.85,
        "regrow": 0.3,
        "seed": 0,
        "budget": None,
    },
    "variants.spiel.SpIEL": {
        "name": "spiel",
        "targets": "all-linear",
        "exclude": [],
        "layers": None,
        "density": 0.01,
        "reselection_steps": 20,
        "accumulation_steps": 5,
        "reselection_rate": 0.2,
        "rate_schedule": "linear",
        "seed": 0,
        "profile": "paper",
        "budget": None,
    },
    "variants.svdiff.SVDiff": {
        "name": "svdiff",
        "targets": "all-linear",
        "exclude": [],
        "layers": None,
        "rank": None,
        "decomposition": "svd",
        "iterations": None,
        "seed": 0,
        "budget": None,
        "scale": 1,
    },
    "variants.svft.SVFT": {
        "name": "svft",
        "targets": "all-linear",
        "exclude": [],
        "layers": None,
        "rank": None,
        "decomposition": "svd",
        "iterations": None,
        "seed": 0,
        "budget": None,
        "pattern": "plain",
        "off_diagonals": 0,
        "profile": "paper",
    },
}

# The schema's fields and their defaults. The optimizer has any fields.
SCHEMA: dict[str, Any] = {
    "data.protocol": "dev",
    "data.select_share": 0.1,
    "data.limit": None,
    "data.eval_limit": None,
    "data.max_length": 128,
    "optim.lr": ...,
    "optim.head_lr": None,
    "optim.weight_decay": 0,
    "optim.schedule": "linear",
    "optim.warmup": 0.06,
    "optim.max_grad_norm": 1,
    "train.epochs": 3,
    "train.max_steps": None,
    "train.batch_size": 32,
    "train.accumulate": 1,
    "train.processes": None,
    "train.eval_batch_size": 128,
    "train.eval_every": "epoch",
    "train.checkpoint": "best",
    "train.early_stopping": None,
    "train.group_by_length": True,
    "train.autocast": False,
    "train.gradient_checkpointing": False,
    "train.recompute": None,
    "train.max_skipped": 10,
    "model.dtype": "float32",
    "model.dropout": None,
}

# Groups that had no other fields than these.
CLOSED = ("data.", "optim.", "train.")
OPEN = ("optim.optimizer.",)

# Options that were true or null then and are true or false now.
SWITCHES = ("train.recompute", "variant.frozen_a")

_PATHS = {path.rpartition(".")[2]: path for path in CLASSES}


def leaves(settings: Mapping[str, Any], kinds: Mapping[str, str], defaults: Mapping[str, Any]) -> dict[str, Any] | None:
    """What version 1 hashed of a run's settings; None for a run that it could not have named.

    kinds: what stands for the class of each node, by the node's name. defaults: those of today, by the field's name.
    """
    found: dict[str, Any] = {}
    for name, value in settings.items():
        node, _, field = name.rpartition(".")
        if field == "_target_":
            found[name] = _PATHS.get(kinds[node], value)
        elif value is None or (name in SWITCHES and value is False):
            continue
        elif _knew(name, kinds):
            found[name] = value
        elif name not in defaults or value != defaults[name]:
            return None
    return found


def read(found: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
    """Settings, kinds and defaults of a run, as `trainer.identity.reduced` takes them, from what version 1 hashed."""
    targets = {name.removesuffix("._target_"): path for name, path in found.items() if name.endswith("._target_")}
    kinds = {node: path.rpartition(".")[2] if path in CLASSES else path for node, path in targets.items()}
    defaults = dict(SCHEMA)
    absent: dict[str, Any] = {}
    for node, path in targets.items():
        for field, default in CLASSES.get(path, {}).items():
            name = f"{node}.{field}"
            defaults[name] = default
            # Version 1 left out nulls. A dictionary's leaves have longer names, an empty one has none.
            if default not in (None, ..., {}) and name not in found and not name.endswith("path"):
                absent[name] = None
    return {**found, **absent}, kinds, defaults


def _knew(name: str, kinds: Mapping[str, str]) -> bool:
    """Whether version 1 had the field that a leaf belongs to."""
    for node, kind in kinds.items():
        if name.startswith(f"{node}."):
            fields = CLASSES.get(_PATHS.get(kind, ""))
            return fields is None or name.removeprefix(f"{node}.").partition(".")[0] in fields
    return name in SCHEMA or name.startswith(OPEN) or not name.startswith(CLOSED)

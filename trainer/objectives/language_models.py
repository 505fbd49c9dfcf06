"""What every language model must be and do: rows that can be learned, causality, batches, generation."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from trainer.errors import ConfigError
from trainer.model import agreement
from trainer.objectives import generated
from trainer.objectives.objective import IGNORED

if TYPE_CHECKING:
    from trainer.data.sources import TaskData
    from trainer.loop.network import Network

log = logging.getLogger(__name__)

TOLERANCE = 1e-4  # change of logits, of the largest, that is rounding; beyond it something else was read


def check_rows(content: TaskData, form: str, numbers: bool) -> None:
    """Raises `ConfigError` for a row that nothing can be learned from. numbers: whether answers must have one."""
    for split, table in content.splits.items():
        for number, row in enumerate(table, 1):
            if wrong := _wrong(row, form):
                raise ConfigError(f"task: row {number} of {split}: {wrong}")
            if numbers and split != "train" and generated.last_number(answer(row)) is None:
                raise ConfigError(
                    f"task.metrics: 'numeric_match', and row {number} of {split} has the answer {answer(row)[:40]!r}; "
                    "allowed: answers with a number"
                )


def answer(row: Mapping[str, Any]) -> str:
    """What a model should write in a row of prompt and response, of messages, or of source and target."""
    if "messages" in row:
        found: str = row["messages"][-1]["content"]
        return found
    return str(row["response"] if "response" in row else row["target"])


def _wrong(row: Mapping[str, Any], form: str) -> str | None:
    """What is wrong with a row, and what is allowed; None if nothing is."""
    if "messages" in row and form == "response":
        return _wrong_messages(row["messages"])
    filled = {"text": ("text",), "response": ("response",), "choices": (), "target": ("source", "target")}[form]
    for column in ("prompt", *filled) if form in ("response", "choices") else filled:
        if row[column] is None or (column in filled and not row[column].strip()):
            return f"its {column} is empty; allowed: a text"
    if form != "choices":
        return None
    choices, label = row["choices"] or (), row["label"]
    if len(choices) < 2:
        return f"{len(choices)} choice; allowed: two or more" if len(choices) == 1 else "no choices; allowed: two"
    if any(choice is None or not choice.strip() for choice in choices):
        return "one of its choices is empty; allowed: a text"
    if label is None or not 0 <= label < len(choices):
        return f"its label is {label!r}; allowed: the number of the right choice, 0 to {len(choices) - 1}"
    return None


def _wrong_messages(messages: Sequence[Mapping[str, Any]] | None) -> str | None:
    if not messages or len(messages) < 2:
        return "fewer than two messages; allowed: a question, say, and its answer"
    if any(not message["role"] or message["content"] is None for message in messages):
        return "a message without role or content; allowed: {role, content}"
    if messages[-1]["role"] != "assistant":
        return f"its last message is of the role {messages[-1]['role']!r}; allowed: assistant, for that is learned"
    return None if messages[-1]["content"].strip() else "its last message is empty; allowed: a text"


def room(model: Any, new: int, most: int) -> int:
    """Tokens that a prompt may have where `new` follow it; most: that a row may have."""
    positions = agreement.longest_text(model)
    return most if positions is None else max(1, min(most, positions - new))


def padded(rows: Sequence[Sequence[int]], filling: int, left: bool = False) -> dict[str, torch.Tensor]:
    """Rows of tokens as `input_ids` and `attention_mask` (rows, longest)."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), filling, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for place, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        ids[place, where], mask[place, where] = torch.tensor(row, dtype=torch.long), 1
    return {"input_ids": ids, "attention_mask": mask}


def called(network: Network, inputs: Mapping[str, torch.Tensor]) -> Any:
    """What a model returns of a batch."""
    # Positions that begin anew keep the texts of a block apart, where no mask is given.
    ids, positions = inputs["input_ids"], inputs.get("position_ids")
    apart = {"position_ids": positions, "use_cache": False}
    how = apart if positions is not None else {"attention_mask": inputs["attention_mask"]}
    return network(input_ids=ids, **how)


def logits(network: Network, inputs: Mapping[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """What a model predicts at each place of `labels` (rows, length, vocabulary), in at least float32."""
    found: torch.Tensor = called(network, inputs).logits
    found = found[:, -labels.shape[1] :]  # a method may have put words of its own in front
    return found if found.dtype.itemsize >= 4 else found.float()


def targets(labels: torch.Tensor) -> torch.Tensor:
    """The token that each place predicts. The labels are moved, not the logits: a part of these would be a copy."""
    return F.pad(labels, (0, 1), value=IGNORED)[:, 1:]


def written(network: Network, inputs: Mapping[str, torch.Tensor], tokenizer: Any, most: int) -> list[str]:
    """What a model writes behind each prompt of a batch, at most so many tokens, always the likeliest one."""
    ids, mask = inputs["prompt_input_ids"], inputs["prompt_attention_mask"]
    with without_defaults(network.model):
        found = network.generate(input_ids=ids, attention_mask=mask, generation_config=greedy(tokenizer, most))
    texts: list[str] = tokenizer.batch_decode(found[:, ids.shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


@contextlib.contextmanager
def without_defaults(model: nn.Module) -> Iterator[None]:
    """Within it no checkpoint's generation_config.json has a say: `generate` would take from it what nobody sets."""
    from transformers import GenerationConfig

    own = [(module, module.generation_config) for module in model.modules() if "generation_config" in vars(module)]
    for module, _ in own:
        module.generation_config = GenerationConfig()  # type: ignore[assignment]
    try:
        yield
    finally:
        for module, config in own:
            module.generation_config = config


def greedy(tokenizer: Any, most: int) -> Any:
    """How texts are written: always the likeliest token, at most so many."""
    from transformers import GenerationConfig

    return GenerationConfig(
        max_new_tokens=most,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        use_cache=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )


@torch.no_grad()
def refuse_not_causal(model: Any, row: Sequence[int]) -> None:
    """Raises `ConfigError` where a model's logits depend on later tokens, which it is to predict."""
    first = torch.tensor([list(row[:16])])
    if first.shape[1] < 2:
        return
    other = first.clone()
    other[0, -1] = (other[0, -1] + 1) % model.get_input_embeddings().weight.shape[0]
    one, two = (_in_eval(model, input_ids=ids, attention_mask=torch.ones_like(ids))[:, :-1] for ids in (first, other))
    if _change(one, two) > TOLERANCE:
        raise ConfigError(
            f"model: {type(model).__name__} reads tokens that are still to come; allowed: a model that is causal, as "
            "GPT and Llama are (an encoder is one with is_decoder in its config.json)"
        )


@torch.no_grad()
def say_of_blocks(model: Any, texts: Sequence[Sequence[int]]) -> None:
    """Warns where a text in a block sees the texts before it: where positions that begin anew don't keep them apart, as
    they do in transformers' own attention masks."""
    first, second = (list(text[:16]) for text in texts)
    block = torch.tensor([[*first, *second]])
    positions = torch.tensor([[*range(len(first)), *range(len(second))]])
    together = _in_eval(model, input_ids=block, position_ids=positions, use_cache=False)[:, len(first) :]
    alone = _in_eval(model, input_ids=block[:, len(first) :], position_ids=positions[:, len(first) :])
    if _change(alone, together) > TOLERANCE:
        log.warning("task: %s can't keep apart the texts of a block: each sees those before it", type(model).__name__)


@torch.no_grad()
def refuse_padding(model: Any, tokenizer: Any, pair: Sequence[Sequence[int]]) -> None:
    """Raises `ConfigError` where padding on a prompt's left changes what follows: it would depend on other prompts."""
    if len(pair[0]) == len(pair[1]):
        return
    together = padded(pair, tokenizer.pad_token_id, left=True)
    alone = padded(pair[1:], tokenizer.pad_token_id)
    one, two = (_next(model, tokenizer, batch)[-1] for batch in (together, alone))
    if _change(one, two) > TOLERANCE:
        raise ConfigError(
            "model: padding on the left of a prompt changes what follows it, so that it depends on the prompts beside "
            "it; allowed: a model whose positions are counted from the first token of a text"
        )


def _next(model: Any, tokenizer: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The logits behind each prompt (rows, vocabulary)."""
    config = greedy(tokenizer, 1)
    config.output_logits = config.return_dict_in_generate = True
    training = model.training
    with without_defaults(model):
        found: torch.Tensor = model.eval().generate(**batch, generation_config=config).logits[0]
    model.train(training)
    return found


def _in_eval(model: Any, **inputs: Any) -> torch.Tensor:
    training = model.training
    found: torch.Tensor = model.eval()(**inputs).logits
    model.train(training)
    return found


def _change(one: torch.Tensor, two: torch.Tensor) -> float:
    return float((one.float() - two.float()).abs().max() / one.float().abs().max().clamp_min(1e-30))

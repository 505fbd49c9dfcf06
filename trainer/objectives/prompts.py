"""Texts of language models as tokens: documents, and prompts with what follows them.

The letters of a special token in a text, as `</s>` in a log, are letters.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trainer.errors import ConfigError, message
from trainer.objectives.objective import IGNORED

AT_ONCE = 10_000  # texts that are tokenised together


@dataclass(frozen=True)
class Pair:
    """Tokens of a prompt and of what follows it; letters: see `trainer.data.tokens.Tokens`."""

    prompt: list[int]
    answer: list[int]
    letters: int = 0


def lead(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text, if anything."""
    found = tokenizer("")["input_ids"]
    return [] if not found or found[0] == tokenizer.eos_token_id != tokenizer.bos_token_id else [found[0]]


def start(tokenizer: Any) -> list[int]:
    """What the first token of a text is predicted from: what the tokenizer puts there, or its token of begin or end."""
    own = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return lead(tokenizer) or ([] if own is None else [own])


def special_letters(tokenizer: Any, text: str) -> bool:
    """Whether a text has the letters of a special token."""
    return any(token in text for token in _special(tokenizer))


@functools.lru_cache(maxsize=8)
def _special(tokenizer: Any) -> dict[str, int]:
    """The tokenizer's special tokens and their numbers, that for unknown words apart."""
    named = {str(token): tokenizer.convert_tokens_to_ids(str(token)) for token in tokenizer.all_special_tokens}
    named |= {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {token: number for token, number in named.items() if number != tokenizer.unk_token_id}


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of texts alone, without any that the tokenizer would put around them."""
    found: list[list[int]] = []
    plain = {"add_special_tokens": False, "truncation": False, "verbose": False}
    for first in range(0, len(texts), AT_ONCE):
        found += tokenizer(list(texts[first : first + AT_ONCE]), **plain)["input_ids"]
    for place, text in enumerate(texts):
        if special_letters(tokenizer, text):
            found[place] = tokenizer(text, split_special_tokens=True, **plain)["input_ids"]
    return found


def documents(tokenizer: Any, texts: Sequence[str]) -> Iterator[tuple[list[int], list[int], int]]:
    """Of each text its tokens, between the token from which its first one is predicted and the end of a text, which of
    them are learned, and letters."""
    first, end = start(tokenizer), [tokenizer.eos_token_id]
    for text, ids in zip(texts, encode(tokenizer, texts), strict=True):
        yield [*first, *ids, *end], [IGNORED] * len(first) + [*ids, *end], letters(tokenizer, [text], ids)


def letters(tokenizer: Any, texts: Sequence[str], tokens: Sequence[int]) -> int:
    """1 where one of `texts` has the letters of a special token, 2 where a special token is among `tokens`, else 0."""
    if not any(special_letters(tokenizer, text) for text in texts):
        return 0
    return 1 if set(_special(tokenizer).values()).isdisjoint(tokens) else 2


def pairs(tokenizer: Any, prompts: Sequence[str], answers: Sequence[str]) -> list[Pair]:
    """Prompts and answers as they are tokenised one behind the other.

    A space stands between them where neither has white space there. White space at the end of a prompt goes with the
    answer, for tokens begin with it, as in lm-evaluation-harness.
    """
    heads = [prompt.rstrip() for prompt in prompts]
    tails = [
        (prompt[len(head) :] or ("" if answer[:1].isspace() or not head else " ")) + answer
        for prompt, head, answer in zip(prompts, heads, answers, strict=True)
    ]
    whole = encode(tokenizer, [head + tail for head, tail in zip(heads, tails, strict=True)])
    known = dict(zip(dict.fromkeys(heads), encode(tokenizer, list(dict.fromkeys(heads))), strict=True))
    first, found = lead(tokenizer), []
    for head, tail, together in zip(heads, tails, whole, strict=True):
        before = known[head]
        behind = together[len(before) :]
        if together[: len(before)] != before or not behind:  # a token lies across
            behind = encode(tokenizer, [tail])[0]
        prompt = [*first, *before] or start(tokenizer)
        found.append(Pair(prompt, behind, letters(tokenizer, (head, tail), [*before, *behind])))
    return found


def conversation(tokenizer: Any, messages: Sequence[dict[str, str]], where: str) -> Pair:
    """A conversation through the tokenizer's chat template: all before the last message, and that. Raises `ConfigError`
    where the template refuses it, or writes the beginning of a conversation otherwise than it writes the whole."""
    try:
        before: str = tokenizer.apply_chat_template(list(messages[:-1]), tokenize=False, add_generation_prompt=True)
        whole: str = tokenizer.apply_chat_template(list(messages), tokenize=False)
    except Exception as error:  # a template is a program of others
        what = f"task: {where}: the tokenizer's chat template refuses it"
        raise ConfigError(
            f"{what} ({type(error).__name__}: {message(error)[:200]}); allowed: a conversation that it writes"
        ) from error
    if not whole.startswith(before):
        raise ConfigError(
            f"task: {where}: the tokenizer's chat template writes other letters before the last message than without "
            "it; allowed: a template that writes the beginning of a conversation as it is"
        )
    plain = {"add_special_tokens": False, "truncation": False, "verbose": False}
    prompt, answer = (tokenizer(text, **plain)["input_ids"] for text in (before, whole[len(before) :]))
    if tokenizer.eos_token_id in answer:
        answer = answer[: answer.index(tokenizer.eos_token_id) + 1]
    marked = any(special_letters(tokenizer, one["content"]) for one in messages)
    return Pair(prompt, answer, 2 if marked else 0)


def alone(tokenizer: Any, text: str, templated: bool, of_text: bool) -> Pair:
    """A prompt that nothing follows yet; answer: a stand-in.

    templated: whether it goes through the chat template. of_text: whether it is the beginning of a text.
    """
    if templated:
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "."}]
        return conversation(tokenizer, messages, "the prompt")
    (pair,) = pairs(tokenizer, [text], ["."])
    return replace(pair, prompt=[*start(tokenizer), *pair.prompt[len(lead(tokenizer)) :]]) if of_text else pair


def fitted(pair: Pair, first: Sequence[int], most: int) -> tuple[list[int], list[int]] | None:
    """Prompt and answer in at most `most` tokens, the prompt cut from its left; None where the answer leaves no room.

    first: tokens that stay in front of a prompt that is cut.
    """
    room = most - len(pair.answer)
    if len(pair.prompt) <= room:
        return pair.prompt, pair.answer
    if room < len(first) + 1:
        return None
    kept = pair.prompt[len(pair.prompt) - (room - len(first)) :]
    return [*first, *kept], pair.answer

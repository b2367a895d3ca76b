"""Prompts on their way to a language model: chat formats, answer tokens, lengths, and what a prompt shows."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from zoo.backbones import LLM
from zoo.prompts import PromptTemplate, count_control_tokens, render
from zoo.schema import CorpusView, Labels, LazySamples, Sample, Split, Turn

log = logging.getLogger(__name__)

CHAT_TUNED = re.compile(r"(?i)(?<![a-z])(instruct|chat|it)(?![a-z])")  # in a model's name
LABEL_TOKENS = 16  # positions that are left free for a label word and its end


def parts_shown(
    template: PromptTemplate,
    window: int | None,
    descriptions: Sequence[str],
    variables: Mapping[str, Any] | None = None,
    later_window: int = 0,
) -> tuple[str, ...]:
    """Return which of text, turns and descriptions a template shows: those without which it writes another text.

    Args:
        template, window, descriptions: as `zoo.prompts.render` takes them.
        variables: values of the template's other variables.
        later_window: as of `zoo.prompts.render`.
    """
    described = dict.fromkeys(descriptions, "a description")
    earlier = Turn("earlier", "A", "an earlier turn", descriptions=described)
    target = Turn("target", "B", "the utterance", descriptions=described)
    later = Turn("later", "A", "a later turn", descriptions=described)
    whole = Sample("sample", "dialogue", Labels("any", ("one", "other")), target, (earlier,), later=(later,))
    without = {
        "text": replace(whole, target=replace(target, text="")),
        "turns": replace(whole, history=()),
        "later turns": replace(whole, later=()),
        "descriptions": replace(
            whole,
            target=replace(target, descriptions={}),
            history=(replace(earlier, descriptions={}),),
            later=(replace(later, descriptions={}),),
        ),
    }

    def text(sample: Sample) -> str:
        return render(
            template,
            sample,
            window=window,
            later_window=later_window,
            descriptions=descriptions,
            words=sample.labels.names,
            variables=variables,
        )

    return tuple(part for part, bare in without.items() if text(bare) != text(whole))


def report_control_tokens(data: CorpusView, split: Split) -> None:
    """Warn, and note for metrics.json, how many utterances of a split hold chat-template tokens."""
    samples = data.samples(split)
    if isinstance(samples, LazySamples):
        return  # to look at them would make every one
    affected = count_control_tokens(samples)
    if affected:
        log.warning(
            "%d of %d %s utterances hold chat-template tokens; they are written apart in the prompt",
            affected,
            len(samples),
            split,
        )
        data.add_note(split, "utterances with chat-template tokens, written apart", affected)


def require_descriptions(samples: Sequence[Sample], kinds: Sequence[str], split: str) -> None:
    """Check that every kind of description that a prompt shows occurs in the split.

    Raises:
        ValueError: not a single sample has a description of some kind.
    """
    for kind in kinds:
        if not any(kind in s.target.descriptions for s in samples):
            present = sorted({k for s in samples for k in s.target.descriptions})
            raise ValueError(
                f"no {split} sample has a description of kind {kind!r}; the data has {present or 'none'}. "
                "Give the description files with --data.descriptions"
            )


def answer_ids(tokenizer: Any, word: str, chat: bool = False) -> list[int]:
    """Return the tokens of a word as an answer.

    In plain text they are those of `` word`` as it stands after a colon: training and scoring agree, and sentencepiece
    adds no second space. In a ``chat`` the answer begins a line.
    """

    def tokenize(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    if chat:
        return tokenize(word)
    before, whole = tokenize(":"), tokenize(f": {word}")
    if whole[: len(before)] != before:
        raise ValueError(
            f"this tokenizer merges ':' with what follows ({word!r}); answers cannot be separated from prompts"
        )
    return whole[len(before) :]


def usable_prompt_length(llm: LLM, max_length: int, answer: int) -> int:
    """Return the longest prompt in tokens: ``max_length``, or what the model's positions leave beside an answer.

    Args:
        answer: tokens of the longest answer.

    Raises:
        ValueError: the answer alone takes all positions.
    """
    positions = getattr(getattr(llm.causal_lm, "config", None), "max_position_embeddings", None)
    if not isinstance(positions, int) or max_length + answer <= positions:
        return max_length
    if positions - answer < 2:
        raise ValueError(
            f"{llm.path} has {positions} positions, and an answer may take {answer} of them, which leaves no room for "
            "a prompt; lower --model.max_new_tokens"
        )
    if max_length > positions:  # else only the room of the answer is missing
        rank_zero_info(
            f"{llm.path} has {positions} positions: prompts of more than {positions - answer} tokens are cut, as an "
            f"answer may take {answer} (--model.max_length {max_length})"
        )
    return positions - answer


def has_chat_format(tokenizer: Any) -> bool:
    """Return whether a tokenizer (or None) has a chat format (``chat_template``)."""
    return bool(getattr(tokenizer, "chat_template", None))


def report_plain_text(llm: LLM, chat: bool | None) -> None:
    """Warn of a model whose name says that it was trained on chats, but which is asked in plain text unasked.

    Args:
        chat: as the user set it; None: not at all.
    """
    if chat is not None or llm.tokenizer is None or has_chat_format(llm.tokenizer):
        return
    settings = getattr(llm.tokenizer, "init_kwargs", {})
    places = (str(llm.path), getattr(llm.tokenizer, "name_or_path", ""), settings.get("name_or_path", ""))
    names = [Path(str(place)).name for place in places]
    if tuned := next((name for name in names if CHAT_TUNED.search(name)), None):
        log.warning(
            "%s is by its name trained on chats, but its tokenizer has no chat format (chat_template), so it is asked "
            "in plain text; add chat_template to its tokenizer_config.json, or say --model.chat false",
            tuned,
        )


def chat_text(tokenizer: Any, messages: Sequence[Mapping[str, str]], system_prompt: str | None) -> str:
    """Return a chat as text in the tokenizer's format, up to where the assistant's next turn begins.

    Args:
        messages: ``role`` (user or assistant) and ``content`` of each turn, oldest first.
        system_prompt: system message in front of them, or None.

    Raises:
        ValueError: the tokenizer has no chat format.
    """
    if not has_chat_format(tokenizer):
        raise ValueError(
            "chat needs a tokenizer with a chat format (chat_template); set --model.chat false, and "
            "--model.system_prompt null"
        )
    first = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
    text: str = tokenizer.apply_chat_template([*first, *messages], tokenize=False, add_generation_prompt=True)
    return text

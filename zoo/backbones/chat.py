"""Chat templates of model folders, run within the limits of `zoo.templates`: a template is a program."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from zoo.templates import BadTemplate, bounded


def with_limits(tokenizer: Any, path: str) -> Any:
    """Return the tokenizer, with an ``apply_chat_template`` that always ends."""
    tokenizer.apply_chat_template = functools.partial(_apply_chat_template, tokenizer, path)
    return tokenizer


def _apply_chat_template(
    tokenizer: Any,
    path: str,
    conversation: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = False,
    tokenize: bool = False,
    **options: Any,
) -> Any:
    """Write a conversation as text; with ``tokenize``, as ids.

    Raises:
        ValueError: the template is damaged, refuses this conversation, or does not end; names the folder.
    """
    try:
        template = tokenizer.get_chat_template()
        text = render_chat(template, conversation, add_generation_prompt, dict(tokenizer.special_tokens_map) | options)
    except (BadTemplate, ValueError) as error:
        raise ValueError(
            f"the chat template of {path} cannot be used: {error}; correct chat_template in its tokenizer_config.json "
            "(or its chat_template.jinja), or leave the chat form out: --model.chat false"
        ) from error
    return tokenizer(text, add_special_tokens=False)["input_ids"] if tokenize else text


def render_chat(
    template: str, conversation: Sequence[Mapping[str, Any]], add_generation_prompt: bool, options: Mapping[str, Any]
) -> str:
    """Write a conversation as text, within limits.

    Args:
        options: what the template sees beside the messages, e.g. the special tokens.

    Raises:
        BadTemplate, ValueError: the template is damaged, refuses this conversation, or does not end.
    """
    return bounded(_render, [dict(m) for m in conversation], template, add_generation_prompt, dict(options))


def _render(
    messages: list[dict[str, Any]], template: str, add_generation_prompt: bool, options: Mapping[str, Any]
) -> str:
    """Render one conversation (in a process with limits)."""
    texts, _ = render_jinja_template(  # type: ignore[str-unpack]  # it gives a pair, whatever its annotation says
        conversations=[messages], chat_template=template, add_generation_prompt=add_generation_prompt, **options
    )
    return texts[0]

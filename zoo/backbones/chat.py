"""Chat templates: a model folder's own program for writing a conversation, within the limits of `zoo.templates`."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from zoo.templates import BadTemplate, bounded


def with_limits(tokenizer: Any, path: str) -> Any:
    """The tokenizer, whose ``apply_chat_template`` ends in any case."""
    tokenizer.apply_chat_template = functools.partial(_applied, tokenizer, path)
    return tokenizer


def _applied(
    tokenizer: Any,
    path: str,
    conversation: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = False,
    tokenize: bool = False,
    **options: Any,
) -> Any:
    """A conversation as text; with ``tokenize``, its ids.

    Raises:
        ValueError: the template is damaged, refuses this conversation, or does not end; names the folder.
    """
    try:
        template = tokenizer.get_chat_template()
        text = bounded(
            _written,
            [dict(m) for m in conversation],
            template,
            add_generation_prompt,
            dict(tokenizer.special_tokens_map) | options,
        )
    except (BadTemplate, ValueError) as error:
        raise ValueError(
            f"the chat template of {path} cannot be used: {error}; correct chat_template in its tokenizer_config.json "
            "(or its chat_template.jinja), or leave the chat form out: --model.chat false"
        ) from error
    return tokenizer(text, add_special_tokens=False)["input_ids"] if tokenize else text


def _written(
    messages: list[dict[str, Any]], template: str, add_generation_prompt: bool, options: Mapping[str, Any]
) -> str:
    texts, _ = render_jinja_template(
        conversations=[messages], chat_template=template, add_generation_prompt=add_generation_prompt, **options
    )
    return texts[0]

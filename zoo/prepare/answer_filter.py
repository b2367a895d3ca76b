"""Which answers of models cannot be used: refusals, web pages, other languages, label words."""

from __future__ import annotations

import re
from collections.abc import Collection

REFUSALS = re.compile(
    r"^\W*(?:i(?:['’]m| am) (?:sorry|unable|not able)|sorry\b|(?:as|i['’]m|i am) an ai\b|unfortunately, i\b"
    r"|i (?:cannot|can['’]?t|can not|won['’]?t) (?:help|assist|comply|provide|describe|see|view|hear|listen|determine)"
    r"|(?:非常|很)?抱歉|对不起|作为(?:一个|一名)?(?:AI|人工智能)|我(?:无法|不能))",
    re.IGNORECASE,
)
CJK = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")


def rejection_reason(text: str, max_words: int, language: str, forbidden: Collection[str] = ()) -> str | None:
    """Return why an answer cannot be used, or None if it can.

    Args:
        text: the answer.
        max_words: a longer answer is none; a Chinese character counts as a word.
        language: en or zh.
        forbidden: words that must not occur, in any case; in Chinese anywhere, else as whole words.
    """
    chinese = len(CJK.findall(text))
    letters = sum(char.isalpha() for char in text)
    words = len(CJK.sub(" ", text).split()) + chinese
    if not letters:
        return "empty"
    if REFUSALS.match(text):
        return f"a refusal: {text[:60]!r}"
    if re.search(r"<(?:!doctype|html|body)\b", text, re.IGNORECASE):
        return "a web page"
    if words > max_words:
        return f"{words} words, over {max_words}"
    if language == "zh" and chinese < 0.3 * letters:
        return f"not in Chinese: {text[:60]!r}"
    if language == "en" and chinese > 0.1 * letters:
        return f"not in English: {text[:60]!r}"
    for word in forbidden:
        pattern = re.escape(word) if CJK.search(word) else rf"\b{re.escape(word)}\b"
        if re.search(pattern, text, re.IGNORECASE):
            return f"names the label word {word!r}"
    return None

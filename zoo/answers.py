"""What an answer in words says: the one reading that evaluation, votes and rewards share. Plain Python, no tensors.

An answer names a label if its first line holds exactly one of the label words and no negation. Nothing is guessed: an
answer that names no label, or two, is an outcome of its own, counted as wrong.
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence

from zoo.schema import Labels

# Scripts that put no space between words: there a word may stand directly beside other letters.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # kana and Han
    "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af"  # Hangul, whose particles follow the word without a space
)
_LETTER = rf"[^\W{_UNSPACED}]"  # a letter, digit or underscore of a script with spaces

_NEGATION = re.compile(
    r"(?<![^\W_])(?:not|no|non|nope|none|nothing|nobody|cannot|neither|nor|never|without|hardly|scarcely|barely"
    r"|anything but|far from|rather than|instead of|lack(?:s|ing)?|absen(?:t|ce)"
    r"|(?:is|are|was|were|do|does|did|has|have|had|wo|ca|would|could|should|ai)nt"
    r"|nicht|kein\w*|ohne|niemals|pas|jamais|sans|aucune?|nunca|nessun\w*)(?![^\W_])"
    r"|n['’`´]t(?![^\W_])|(?<![^\W_])un-|-free(?![^\W_])"
    r"|[不没沒無无非未别別勿莫否毋]|缺乏|缺少|缺失|ない|なく|なかっ|ません|않|아[니닌님닙]|없|ไม่"
)
# Chinese words with a character of a negation that negate nothing.
_HARMLESS = re.compile(
    "非常|[无無]比|毫[无無]疑[问問]|[无無]疑|特[别別]|[别別]人|性[别別]|分[别別]|级[别別]|[识識][别別]|未[来來]|莫名"
    "|不禁|不由得|不由自主|忍不住|禁不住|控制不住|按捺不住|抑制不住|不[仅僅]|不但|不得不|不得了|[无無]奈|[沒没]想到"
)
_JSON_KEYS = ("emotion", "label", "answer", "prediction", "情绪", "情感", "答案")  # of an answer written as an object


def label_words(labels: Labels, verbalizer: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Return the word the model says for each label, in index order.

    Args:
        verbalizer: label -> word, e.g. ``{"joy": "joyful"}``; labels it does not name keep their own word. One
            verbalizer may serve several corpora, so it may name labels that this corpus lacks.

    Raises:
        ValueError: if two labels get the same word (as `parse_label` compares them), or one gets none.
    """
    chosen = tuple((verbalizer or {}).get(name, name) for name in labels.names)
    if len({_folded(word) for word in chosen} - {""}) != len(chosen):
        raise ValueError(
            f"the verbalizer gives two labels of {labels.corpus} the same word, or one an empty word: "
            f"{dict(zip(labels.names, chosen, strict=True))}"
        )
    return chosen


def parse_label(answer: str, words: Sequence[str]) -> int | None:
    """Return the index of the label an answer names, or None if it is unreadable.

    Strict: the first line that is not empty must hold exactly one of the label words, as a whole word in any case, and
    no negation. Chinese, Japanese, Korean and Thai words may stand inside a sentence without spaces. Of a JSON object,
    also one in a code fence, the emotion is read: the value of ``emotion``, ``label`` or ``answer``, or the only value.

    >>> parse_label("The emotion is Joy.", ("joy", "anger")), parse_label("not joy", ("joy", "anger"))
    (0, None)
    >>> parse_label("情绪是愤怒。", ("高兴", "愤怒"))
    1
    """
    if not words:  # free answers
        return None
    line = _folded(_first_line(answer))
    pattern = _pattern(tuple(words))
    named = {str(match.lastgroup) for match in pattern.finditer(line)}
    if len(named) != 1 or _NEGATION.search(_HARMLESS.sub(" ", pattern.sub(" ", line))):  # a label may be "no emotion"
        return None
    return int(named.pop().removeprefix("label"))


def _first_line(answer: str) -> str:
    """Return the part of an answer that is read."""
    text = re.sub(r"\A\s*```[^\S\n]*(?:json\b)?", "", answer, flags=re.IGNORECASE)
    text = re.sub(r"```\s*\Z", "", text) if text != answer else text
    if text.lstrip().startswith("{"):
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError):
            fields = None  # not finished, or followed by more: read as words
        if isinstance(fields, dict):
            named = {str(key).strip().lower(): value for key, value in fields.items()}
            only = list(named.values())[0] if len(named) == 1 else None
            value = next((named[key] for key in _JSON_KEYS if key in named), only)
            text = value if isinstance(value, str) else ""
    lines = text.replace("\r", "\n").split("\n")
    return next((line.strip() for line in lines if line.strip()), "")


@functools.lru_cache(maxsize=64)
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    """Return the pattern that finds label words, longer ones first, since "no emotion" is not also "emotion".

    The name of the matched group holds the index of the label.
    """
    parts = []
    for index, word in enumerate(map(_folded, words)):
        before = "" if _unspaced(word[:1]) else rf"(?<!{_LETTER})"
        after = "" if _unspaced(word[-1:]) else rf"(?!{_LETTER})"
        parts.append((word, rf"(?P<label{index}>{before}{re.escape(word)}{after})"))
    return re.compile("|".join(part for _, part in sorted(parts, key=lambda pair: -len(pair[0]))))


def _unspaced(character: str) -> bool:
    return re.match(f"[{_UNSPACED}]", character) is not None


def _folded(text: str) -> str:
    """As two spellings of one word compare: full-width letters, composed accents and case are no difference."""
    return unicodedata.normalize("NFKC", text).casefold().strip()

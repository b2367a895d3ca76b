"""Rewards that come with the engine: the length rewards, to the letter."""

import pytest

from zoo.rl import Answer
from zoo.rl.rewards import Overlength


def answer(tokens: int = 0, text: str = "") -> Answer:
    return Answer(text, tokens, finished=True, sample=None)


@pytest.mark.parametrize(
    "kind, tokens, expected",
    [  # Lc = 64, Lm = 224
        ("paper", 0, 0.0),
        ("paper", 64, 0.0),  # |o| <= Lc
        ("paper", 65, 159 / 160),  # (Lm - |o|) / (Lm - Lc): up by one at one token more
        ("paper", 144, 0.5),
        ("paper", 223, 1 / 160),
        ("paper", 224, 0.0),
        ("paper", 225, -1.0),
        ("dapo", 0, 0.0),
        ("dapo", 100, 0.0),
        ("dapo", 160, 0.0),  # |o| <= Lm - Lc
        ("dapo", 161, -1 / 64),  # ((Lm - Lc) - |o|) / Lc
        ("dapo", 192, -0.5),
        ("dapo", 224, -1.0),
        ("dapo", 225, -1.0),
        ("dapo", 1000, -1.0),
        ("none", 144, 0.0),
        ("none", 225, 0.0),
    ],
)
def test_length_in_tokens(kind, tokens, expected):
    assert Overlength(kind)(answer(tokens, "x" * 2000)) == expected


def test_other_sizes():
    """Exchanging the two lengths of a term must not go unnoticed: with 64 and 224, 224 - 160 is 64 again."""
    assert [Overlength("paper", 10, 50)(answer(n)) for n in (10, 11, 30, 50, 51)] == [0, 39 / 40, 0.5, 0, -1]
    assert [Overlength("dapo", 10, 50)(answer(n)) for n in (40, 41, 45, 50, 51)] == [0, -0.1, -0.5, -1, -1]


@pytest.mark.parametrize("characters, expected", [(0, 0.0), (1024, 0.0), (1025, 1.0)])
def test_length_in_characters(characters, expected):
    """The authors' script counts characters, whatever the tokens."""
    for tokens in (1, 10_000):
        assert Overlength("code")(answer(tokens, "é" * characters)) == expected


@pytest.mark.parametrize("desired, longest", [(0, 224), (-1, 224), (224, 224), (225, 224)])
def test_lengths_in_the_wrong_order(desired, longest):
    with pytest.raises(ValueError, match=f"0 < desired < longest, got {desired} and {longest}"):
        Overlength("paper", desired, longest)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="unknown kind 'papers'"):
        Overlength("papers")

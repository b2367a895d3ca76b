"""The reward for the right label."""

import pytest

from zoo.rl import Answer
from zoo.rl.rewards import Correct
from zoo.schema import Labels, Sample, Turn

LABELS = Labels("toy", ("neutral", "joy", "no emotion", "very happy"))


def answer(text: str, label: str | None = "joy") -> Answer:
    return Answer(text, 1, True, Sample("toy/test/a", "toy/test/d", LABELS, Turn("a", "", "Hm.", label)))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("joy", 1.0),
        (" Joy.\n", 1.0),
        ("JOY! Pure joy", 1.0),
        ("I think:\nthe emotion is joy", 0.0),  # the first line alone is read, as in evaluation
        ("<answer>joy</answer>", 1.0),
        ("neutral", 0.0),
        ("joy or neutral", 0.0),
        ("neutral\n\njoy", 0.0),
        ("neutral, joy, no emotion, very happy", 0.0),  # every label is no answer
        ("joyful", 0.0),
        ("enjoy", 0.0),
        ("joy_1", 0.0),
        ("happy", 0.0),
        ("", 0.0),
    ],
)
def test_correct(text, expected):
    assert Correct()(answer(text)) == expected


def test_labels_of_two_words():
    assert Correct()(answer("No emotion", "no emotion")) == 1
    assert Correct()(answer("very happy", "very happy")) == 1
    assert Correct()(answer("very, very happy and no emotion", "very happy")) == 0


def test_other_words():
    reward = Correct({"joy": "joyful", "very happy": "glad (very)"})
    assert [reward(answer(t)) for t in ("joyful", "joy", "Joyful, glad (very)")] == [1, 0, 0]
    assert reward(answer("GLAD (very)", "very happy")) == 1


def test_an_unknown_label_is_never_right():
    assert [Correct()(answer(t, None)) for t in ("joy", "None", "", "neutral joy")] == [0, 0, 0, 0]

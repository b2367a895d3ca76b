"""What a corpus of somebody's own must keep to is checked when it is read, not when its results are written."""

from __future__ import annotations

import logging

import pytest

from zoo.data import EmotionData, Reading
from zoo.schema import Labels, Sample, Turn

LABELS = Labels("mine", ("sun", "storm"))


def sample(name: str = "mine/train/1", dialogue: str = "mine/train/d", label: str | None = "sun") -> Sample:
    return Sample(name, dialogue, LABELS, Turn("1", "Ada", "Oh.", label))


class Mine(EmotionData):
    labels = LABELS

    def __init__(self, reading: object) -> None:
        super().__init__()
        self.content = reading

    def read(self, split):
        return self.content


@pytest.mark.parametrize(
    ("reading", "message"),
    [
        ([sample()], "Mine.read returned a list; expected a Reading"),
        (Reading([sample("1")]), "has the id '1'; expected mine/<split>/<name>"),
        (Reading([sample(dialogue="d")]), "has the dialogue 'd'; expected mine/<split>/<name>"),
        (Reading([sample(), sample()]), "two train samples of Mine have the id 'mine/train/1'"),
        (Reading([sample(label="rain")]), "mine/train/1 has the label 'rain'; expected one of sun, storm"),
        (Reading([]), "Mine has no train samples"),
    ],
)
def test_what_a_corpus_gets_wrong_is_named(reading, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        Mine(reading).samples("train")


def test_many_excluded_rows_are_counted(caplog):
    reading = Reading([sample(label=None)], excluded={f"row {i}": "no label" for i in range(9)})
    with caplog.at_level(logging.WARNING):
        assert Mine(reading).samples("train")
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "Mine train: row 0 left out: no label" and len(lines) == 6
    assert lines[-1] == "Mine train: 4 more left out; metrics.json of a test lists all"

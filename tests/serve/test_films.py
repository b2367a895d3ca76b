"""What the page says of films, with a reader of faces: nobody or five to be seen, silence, too long, two at once."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from tests.backbones.test_vision import keras_file
from tests.label.test_parts import READER, TEXT, clips, face  # noqa: F401  (fixtures)
from tests.media_files import write_clip
from zoo.serve.answers import Answers, Question, Rejected

LONG = 610  # seconds; ten minutes are the limit of a film


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """The page's answers, where a reader of expressions with random weights was pulled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("films"))
        READER.parent.mkdir(parents=True)
        keras_file(READER)
        yield Answers()


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """Three pictures, of which the last comes after ten minutes, and silence."""
    picture = np.full((48, 64, 3), 120, np.uint8)
    sound = np.zeros((1, 8000 * LONG), np.float32)
    path = tmp_path_factory.mktemp("long") / "film.mp4"
    return write_clip(path, [picture] * 3, sound, times=[0, 1000, 1000 * LONG], rate=8000)


def parts_of(answers: Answers, clip: Path) -> dict:
    """The parts of the answer about a clip."""
    return answers(Question(("parts",), clip=clip, lines=(("", TEXT),)))["systems"][0]["rows"][0]


def test_who_is_to_be_seen_and_heard(answers, clips):  # noqa: F811  (a fixture)
    rows = {name: parts_of(answers, clips[name]) for name in ("face", "no face", "five faces", "silence")}
    assert rows["face"]["parts"]["face"]["faces"] == 1 and rows["face"]["used"] == ["text", "face", "voice"]
    assert rows["no face"]["unused"]["face"] == "no face found"
    assert (
        rows["five faces"]["parts"]["face"]["faces"] == 5 and rows["five faces"]["description"]["scene"]["faces"] == 5
    )
    assert rows["silence"]["unused"]["voice"] == "silence"


def test_a_film_of_ten_minutes(answers, film):
    row = parts_of(answers, film)
    assert row["used"] == ["text"]
    assert row["unused"]["face"].startswith(
        f"lasts {LONG} s, and an utterance at most 60 s; give the cut into utterances"
    )
    with pytest.raises(Rejected, match="is longer than 600 s; cut it into clips") as error:
        answers(Question(("parts",), clip=film, segments=True))
    assert "limit" not in str(error.value) and "--" not in str(error.value)  # the page has no such option


def test_two_clips_at_once_are_answered_each_by_itself(answers, clips):  # noqa: F811  (a fixture)
    names = ("five faces", "no face") * 2
    alone = {name: parts_of(answers, clips[name])["parts"] for name in names}
    together: dict[int, dict] = {}

    def ask(number: int) -> None:
        together[number] = parts_of(answers, clips[names[number]])["parts"]

    users = [threading.Thread(target=ask, args=(number,)) for number in range(len(names))]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert together == {number: alone[name] for number, name in enumerate(names)}

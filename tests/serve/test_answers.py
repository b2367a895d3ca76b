"""What the page is answered, with the small systems that come with the repository."""

from dataclasses import replace

import numpy as np
import pytest

from tests.media_files import write_clip
from zoo.serve import answers as serve_answers
from zoo.serve.answers import Answers, Question, Rejected
from zoo.serve.examples import Examples

LINES = (("Nina", "I miss her so much."), ("Omar", "<script>alert(1)</script>"), ("", "What a surprise!"))
SMALL = ("dialoguellm-sitcom", "merit-sitcom")


@pytest.fixture(scope="module", autouse=True)
def where_nothing_was_pulled(tmp_path_factory):
    """Whoever runs the tests may have pulled models into the repository."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("nothing"))
        yield


@pytest.fixture(scope="module")
def answers():
    return Answers()


@pytest.fixture(scope="module")
def example():
    examples = Examples()
    yield examples.clip(0)
    del examples


def test_systems_to_choose_from(answers):
    names = [choice["name"] for choice in answers.choices]
    assert names[0] == "parts" and set(SMALL) < set(names)
    assert not any(name.endswith("goemotions") for name in names)  # needs a download: it answers as a part


def test_a_conversation_by_two_systems(answers):
    answer = answers(Question(SMALL, lines=LINES))
    assert [u["text"] for u in answer["utterances"]] == [text for _, text in LINES]
    assert [u["speaker"] for u in answer["utterances"]] == ["Nina", "Omar", ""]
    assert [system["name"] for system in answer["systems"]] == list(SMALL)
    for system in answer["systems"]:
        assert all(sum(row["scores"].values()) == pytest.approx(1, abs=1e-3) for row in system["rows"])
    first, third = (answer["systems"][0]["rows"][i] for i in (0, 2))
    assert "earlier turns" not in first["used"] and "words" in third["used"]


def test_a_clip_is_seen_and_heard(answers, example):
    answer = answers(Question(("merit-sitcom", "parts"), clip=example, lines=(("", "Did you talk to them?"),)))
    system, parts = (s["rows"][0] for s in answer["systems"])
    assert system["used"] == ["words", "picture", "sound"]
    assert parts["parts"]["voice"]["used"] and parts["description"]["loudness"]["times"]
    assert "--" not in str(parts["unused"]) + str(parts["parts"]["face"])  # the page has no such options
    assert parts["description"]["scene"]["faces"] == 0  # no reader of faces is here, or it finds none in a drawing


@pytest.mark.parametrize("off", ["text", "face", "voice"])
def test_parts_are_switched_off(answers, example, off):
    parts = tuple(part for part in serve_answers.PARTS if part != off)
    whole = answers(Question(("parts",), clip=example, lines=(("", "Hello!"),)))["systems"][0]["rows"][0]
    row = answers(Question(("parts",), clip=example, lines=(("", "Hello!"),), parts=parts))["systems"][0]["rows"][0]
    assert row["parts"] == {part: whole["parts"][part] for part in parts}


def test_words_stay_as_they_were_said(answers):
    words = "the --text (--segments) stays"
    assert (
        answers(Question(("parts",), lines=(("", words),)))["systems"][0]["rows"][0]["parts"]["text"]["said"] == words
    )


def test_an_answer_nobody_waits_for_is_not_computed(answers, monkeypatch):
    monkeypatch.setattr(Answers, "_samples", lambda *a: pytest.fail("computed"))
    with pytest.raises(Rejected, match="nobody waits"):
        answers(Question(("parts",), lines=LINES), gone=lambda: True)


def test_what_is_refused(answers, example, tmp_path, monkeypatch):
    def refusal(question):
        with pytest.raises(Rejected) as error:
            answers(question)
        return str(error.value)

    base = Question(("dialoguellm-sitcom",), lines=LINES)
    assert "unknown system '../x'; expected one of" in refusal(replace(base, systems=("../x",)))
    assert "3 systems were asked" in refusal(replace(base, systems=(*SMALL, "parts")))
    assert "there is nothing to label" in refusal(replace(base, lines=()))
    assert "line 1 has 3000 characters" in refusal(replace(base, lines=(("", "x" * 3000),)))
    text = tmp_path / "clip.mp4"
    text.write_text("no film")
    answer = answers(Question(("parts",), clip=text))["systems"][0]["rows"][0]
    assert answer["label"] is None and "nothing of it could be used" in answer["error"]
    assert str(tmp_path) not in refusal(Question(("parts",), clip=text, segments=True))  # no path of this machine
    silent = write_clip(
        tmp_path / "silent.mp4", [np.zeros((48, 64, 3), np.uint8)] * 10, np.zeros((1, 17_640), np.float32)
    )
    assert "nobody speaks in it" in refusal(Question(("parts",), clip=silent, segments=True))
    assert "--" not in refusal(Question(("parts",), clip=silent, segments=True))  # the page has no such options
    (tmp_path / "wide.srt").write_text("00:00:01,000 --> 00:00:02,000\nOh!\n", encoding="utf-16")
    assert refusal(Question(("parts",), subtitles=tmp_path / "wide.srt")).endswith("Save it as UTF-8 again")
    monkeypatch.setattr(serve_answers, "MOST_UTTERANCES", 2)
    assert "that is 3 utterances; this page answers 2 at once" in refusal(base)


def test_what_nobody_waits_for_is_left_after_an_utterance(answers):
    for systems in (("parts",), ("dialoguellm-sitcom",)):
        asked = []

        def gone(asked=asked):
            asked.append(None)
            return len(asked) > 2

        with pytest.raises(Rejected, match="nobody waits"):
            answers(Question(systems, lines=LINES * 8), gone)
        assert len(asked) == 3
    assert answers(Question(("parts",), lines=LINES[:1]))["systems"][0]["rows"][0]["label"]  # the next one is answered


def test_subtitles_alone_are_the_words(answers, tmp_path):
    (tmp_path / "film.srt").write_text(
        "00:00:05,000 --> 00:00:04,000\nNo.\n\n"
        "00:00:01,000 --> 00:00:02,000\nI miss her.\n\n00:00:03,000 --> 00:00:04,000\nOh!\n"
    )
    answer = answers(Question(("parts",), subtitles=tmp_path / "film.srt"))
    assert [(u["start"], u["text"]) for u in answer["utterances"]] == [(1.0, "I miss her."), (3.0, "Oh!")]
    assert answer["left_out"] == ["line 1: '00:00:05,000 --> 00:00:04,000' does not end after it begins"]


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"segments": True, "lines": (("", "Oh!"),)}, "what is said goes with one utterance"),
        ({"lines": LINES}, "a clip goes with one line, got 3"),
    ],
)
def test_words_of_a_film_are_not_dropped(answers, example, question, message):
    with pytest.raises(Rejected, match=message):
        answers(Question(("parts",), clip=example, **question))


def test_words_are_read_as_the_command_reads_them(answers):
    (utterance,) = answers(Question(("parts",), lines=(("Nina", "it\u00e2\u20ac\u2122s so\0 good"),)))["utterances"]
    assert utterance["text"] == "it\u2019s so good"
    with pytest.raises(Rejected, match="line 1 is not UTF-8"):
        answers(Question(("parts",), lines=(("Nina", "half \ud800"),)))


def test_a_system_without_its_weights_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where nothing was pulled
    with pytest.raises(Rejected, match="smollm2-goemotions: no language model at 'smollm2-135m'"):
        Answers(["smollm2-goemotions"])(Question(("smollm2-goemotions",), lines=LINES))

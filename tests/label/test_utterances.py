"""Films cut into utterances: by the voice, or by subtitles; what is said may be written down by a recogniser."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import soundfile

from zoo.label.requests import Request
from zoo.label.transcription import Transcriber
from zoo.label.utterances import HISTORY, LONGEST, read_utterances, utterance_spans, with_words
from zoo.media import Media
from zoo.media.clips import RATE, utterance_sound
from zoo.schema import Labels

LABELS = Labels("made_up", ("joy", "anger"))
SPOKEN = ((1.0, 2.0), (2.6, 3.4), (5.0, 6.0))  # seconds; the first two are nearer than half a second to nobody


def spoken(spans=SPOKEN, seconds=7.0) -> np.ndarray:
    """A buzz with a pitch where somebody speaks, and silence."""
    time = np.arange(round(seconds * RATE)) / RATE
    buzz = 0.1 * sum(np.sin(2 * np.pi * 150 * k * time) / k for k in range(1, 8))
    loud = np.any([(time >= start) & (time < end) for start, end in spans], axis=0) if spans else np.zeros(len(time))
    return (buzz * loud).astype(np.float32)


@pytest.fixture
def film(tmp_path):
    soundfile.write(tmp_path / "film.wav", spoken(), RATE)
    return tmp_path / "film.wav"


def test_spans_are_joined_parted_and_widened():
    assert utterance_spans([], 5.0) == []
    assert utterance_spans([(1.0, 2.0), (2.3, 3.0), (4.0, 4.1), (5.0, 6.0)], 6.05) == [(0.9, 3.1), (4.9, 6.05)]
    assert utterance_spans([(0.05, 1.0), (1.5, 2.0)], 2.0) == [(0.0, 1.1), (1.4, 2.0)]
    long = [(i * 1.0, i + 0.7 if i != 12 else i + 0.6) for i in range(20)]  # pauses of .3 s, one of .4 s
    first, second = utterance_spans(long, 30.0)
    assert first == pytest.approx((0.0, 12.7)) and second == pytest.approx((12.9, 19.8))
    unbroken = utterance_spans([(0.0, 40.0)], 40.0)
    assert len(unbroken) == 3 and max(end - start for start, end in unbroken) <= LONGEST
    crowd = utterance_spans([(i * 0.6, i * 0.6 + 0.3) for i in range(5000)], 3000.0)  # in no recursion
    assert all(end - start <= LONGEST + 0.2 for start, end in crowd)


def test_a_film_is_a_dialogue_of_utterances(film):
    samples = read_utterances(Request(film, segments=True), LABELS, Media())
    spans = [(sample.target.start, sample.target.end) for sample in samples]
    assert np.allclose(spans, [(0.9, 2.1), (2.5, 3.5), (4.9, 6.1)], atol=0.05)
    assert [sample.target.id for sample in samples] == ["film.wav#0001", "film.wav#0002", "film.wav#0003"]
    assert [[turn.id for turn in sample.history] for sample in samples] == [
        [],
        ["film.wav#0001"],
        ["film.wav#0001", "film.wav#0002"],
    ]
    assert {sample.dialogue for sample in samples} == {"made_up/asked/film.wav"}
    wave = utterance_sound(Media(), samples[1].target)  # a system with a checkpoint hears its seconds alone
    assert abs(len(wave) / RATE - 1.0) < 0.1


def test_subtitles_are_a_dialogue(film, tmp_path, capsys):
    subtitles = tmp_path / "film.vtt"
    subtitles.write_text("WEBVTT\n\n00:01 --> 00:02\n<v Anna>Oh.\n\nbad\n\n00:03 --> 00:04\nNo.\n")
    first, second = read_utterances(Request(film, subtitles=subtitles), LABELS, Media())
    assert (first.target.text, first.target.speaker, first.target.start) == ("Oh.", "Anna", 1.0)
    assert second.history == (first.target,) and second.target.audio == film
    assert "1 blocks left out: line 6: 'bad' has no times" in capsys.readouterr().err
    (alone, _) = read_utterances(Request(subtitles=subtitles), LABELS, Media())
    assert alone.target.id == "film.vtt#0001" and alone.target.audio is None


def test_the_history_of_a_long_film_is_bounded(tmp_path):
    path = tmp_path / "long.srt"
    path.write_text("\n".join(f"00:{i // 60:02}:{i % 60:02} --> 00:59:59\nline {i}\n" for i in range(300)))
    samples = read_utterances(Request(subtitles=path), LABELS, Media())
    assert len(samples) == 300 and max(len(sample.history) for sample in samples) == HISTORY
    assert samples[-1].history[-1].text == "line 298"


@pytest.mark.parametrize(
    "request_, message",
    [
        (Request(None, segments=True), "give CLIP"),
        (Request("film.wav", segments=True, subtitles="film.srt"), "give one of them"),
        (Request("film.wav", segments=True, text="Oh."), "--text goes with one utterance"),
        (Request("film.wav", segments=True, speaker="Anna"), "--speaker goes with one utterance"),
        (Request("face.png", segments=True), "no film or sound"),
        (Request("table.csv", segments=True), "no film or sound"),
        (Request("none.wav", segments=True), "no file"),
        (Request("silence.wav", segments=True), "nobody speaks in it"),
        (Request("text.mp4", segments=True), "is broken, or no video"),
        (Request("film.srt", segments=True), "is a text and no clip"),
        (Request("film.wav", subtitles="none.srt"), "no file"),
        (Request("film.wav", subtitles="damaged.srt"), "holds no subtitle"),
    ],
)
def test_refused(film, tmp_path, monkeypatch, request_, message):
    monkeypatch.chdir(tmp_path)
    soundfile.write("silence.wav", spoken(()), RATE)
    for name in ("face.png", "table.csv", "text.mp4", "film.srt", "damaged.srt"):
        (tmp_path / name).write_text("id,text\n")
    paths = {k: tmp_path / v for k in ("clip", "subtitles") if (v := getattr(request_, k)) is not None}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_utterances(Request(**vars(request_) | paths), LABELS, Media())


@pytest.fixture
def whisper(monkeypatch):
    """A stand-in for the package, with its calls: what it was given, as names of models and seconds of sound."""
    given = []

    class WhisperModel:
        def __init__(self, model_size_or_path, device="auto", **options):
            if model_size_or_path == "none":
                raise RuntimeError("Unable to open file 'model.bin'")
            given.append(model_size_or_path)

        def transcribe(self, audio, language=None, **options):
            assert audio.dtype == np.float32 and audio.ndim == 1
            given.append(round(len(audio) / RATE, 1))
            texts = [f" It lasts {len(audio) / RATE:.1f}", " seconds. "]
            return (SimpleNamespace(start=0.0, end=1.0, text=text) for text in texts), SimpleNamespace(language="en")

    package = ModuleType("faster_whisper")
    package.WhisperModel = WhisperModel
    monkeypatch.setitem(sys.modules, "faster_whisper", package)
    return given


def test_what_is_said_is_written_down(film, whisper):
    samples = read_utterances(Request(film, segments=True), LABELS, Media())
    first, second, third = with_words(samples, Transcriber("base"), Media())
    assert first.target.text == "It lasts 1.2 seconds." and third.target.text == "It lasts 1.2 seconds."
    assert second.history == (first.target,) and third.history == (first.target, second.target)
    assert whisper == ["base", 1.2, 1.0, 1.2]


def test_words_that_are_given_stay(film, tmp_path, whisper):
    path = tmp_path / "film.srt"
    path.write_text("00:01 --> 00:02\nOh.\n")
    samples = read_utterances(Request(film, subtitles=path), LABELS, Media())
    assert with_words(samples, Transcriber("base"), Media()) == samples and whisper == ["base"]


def test_a_recogniser_that_is_not_there(monkeypatch, whisper):
    with pytest.raises(ValueError, match="--transcribe none: faster-whisper could not load it"):
        Transcriber("none")
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(ValueError, match=r"needs the package faster-whisper .*pip install 'emotion-zoo\[transcribe\]'"):
        Transcriber("base")

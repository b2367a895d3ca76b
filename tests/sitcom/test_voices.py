"""The voices: what is heard follows from the six numbers, and from nothing else that the label decides."""

import itertools
import math
import time

import numpy as np
import pytest
from scipy.signal import find_peaks

from zoo.sitcom.voices import LABELS, PROSODY, RATE, SPEAKERS, loudness, speak

REST = (0.0,) * 6
SEEDS = range(3)


def say(name=None, value=0.0, speaker="Joan", seed=0, seconds=2.0, domain="studio"):
    return speak([value * (n == name) for n in PROSODY.names], speaker, seed, seconds, domain)


def frames(waveform, size=640, hop=160):
    return np.lib.stride_tricks.sliding_window_view(waveform.astype(float), size)[::hop]


def melody(waveform):
    """Time (0..1) and pitch (semitones above 1 Hz) of the loud frames: the first high peak of the autocorrelation."""
    cut = frames(waveform)
    spectrum = np.abs(np.fft.rfft(cut * np.hanning(640), 2048)) ** 2
    spectrum[:, 192:] = 0  # 1500 Hz
    window = np.fft.irfft(np.abs(np.fft.rfft(np.hanning(640), 2048)) ** 2)[:320]
    similarity = np.fft.irfft(spectrum)[:, :320] / window
    similarity = similarity[:, 30:] / similarity[:, :1]
    peak = np.zeros(similarity.shape, bool)
    peak[:, 1:-1] = (similarity[:, 1:-1] > similarity[:, :-2]) & (similarity[:, 1:-1] >= similarity[:, 2:])
    high = peak & (similarity > 0.9 * np.where(peak, similarity, 0).max(1, keepdims=True))
    pitch = 12 * np.log2(RATE / (30 + high.argmax(1)))
    level = (cut**2).mean(1)
    kept = (level > 0.05 * level.max()) & high.any(1)
    kept &= np.abs(pitch - np.median(pitch[kept])) < 10
    return np.linspace(0, 1, len(cut))[kept], pitch[kept]


def syllables_per_second(waveform):
    """From the time between the peaks of the smoothed level below 1500 Hz, where there are no consonants."""
    spectrum = np.abs(np.fft.rfft(frames(waveform) * np.hanning(640), 1024)) ** 2
    level = np.convolve(spectrum[:, 6:96].sum(1), np.hanning(9), "same")
    peaks = find_peaks(level, prominence=0.05 * level.max())[0]
    return (len(peaks) - 1) / ((peaks[-1] - peaks[0]) * 0.01)


def band(waveform, low, high):
    """Level in dB."""
    f = np.fft.rfftfreq(waveform.size, 1 / RATE)
    return 10 * np.log10((np.abs(np.fft.rfft(waveform)[(f >= low) & (f < high)]) ** 2).sum())


def measured(waveform):
    """What the six parameters claim to move, in their order; each in units of about one step of its parameter."""
    when, pitch = melody(waveform)
    trend = np.polyfit(when, pitch, 1)
    return np.array(
        [
            pitch.mean() / 3.5,
            math.log2((pitch - np.polyval(trend, when)).std()) / 0.75,
            trend[0] / 6.5,
            10 * math.log10((waveform.astype(float) ** 2).mean()) / 4.5,
            math.log2(syllables_per_second(waveform)) / 0.5,
            (band(waveform, 1000, 5000) - band(waveform, 60, 1000)) / 5,
        ]
    )


@pytest.mark.parametrize("domain", ["studio", "wild"])
def test_same_arguments_same_samples(domain):
    calls = list(itertools.product(("Nina", "Omar", "somebody else"), (3, "an id")))
    first = [say(speaker=s, seed=seed, seconds=1.0, domain=domain) for s, seed in calls]
    again = [say(speaker=s, seed=seed, seconds=1.0, domain=domain) for s, seed in reversed(calls)][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in itertools.combinations(first, 2))
    assert np.array_equal(say(seed=7), say(seed="7"))


@pytest.mark.parametrize("domain", ["studio", "wild"])
def test_any_values_give_a_waveform_within_range(domain):
    corners = [*itertools.islice(itertools.product((-2.5, 2.5), repeat=6), 0, None, 5), REST, (9.0,) * 6, (-9.0,) * 6]
    for i, values in enumerate(corners):
        seconds = (0.8, 1.2345, 2.5)[i % 3]
        waveform = speak(values, list(SPEAKERS)[i % 10], i, seconds, domain)
        assert waveform.dtype == np.float32 and waveform.shape == (round(seconds * RATE),)
        assert np.isfinite(waveform).all() and waveform.std() > 1e-3
        assert np.abs(waveform).max() < 1.0  # the limiter bends peaks, it does not cut them
        if max(np.abs(values)) < 3:
            assert np.count_nonzero(np.abs(waveform) > 0.9) <= 0.002 * waveform.size
    assert speak(REST, "Nina", 0, 0.01, domain).shape == (160,)


def test_each_parameter_moves_its_own_quantity():
    def heard(name, value):
        return np.mean([measured(say(name, value, seed=seed)) for seed in SEEDS], axis=0)

    rest = heard(None, 0.0)
    for i, name in enumerate(PROSODY.names):
        seen = np.array([heard(name, -2.0), heard(name, -1.0), rest, heard(name, 1.0), heard(name, 2.0)])
        own, others = seen[:, i], np.delete(seen - rest, i, axis=1)
        assert (np.diff(own) > 0.5).all(), (name, own)  # no knee
        assert 3.2 < own[-1] - own[0] < 5.2, (name, own)  # about one unit per unit
        assert np.abs(others[[1, 3]]).max() < 0.45, (name, others.round(2))


def test_speakers_keep_their_pitch_and_their_timbre():
    def heard(speaker, domain, seeds):
        clips = [say(speaker=speaker, seed=s, seconds=1.5, domain=domain) for s in seeds]
        upper = [np.average(np.arange(2000, 7000), weights=_spectrum(c)[2000:7000]) for c in clips]
        return np.median(np.concatenate([melody(c)[1] for c in clips])), np.mean(upper)

    def _spectrum(clip):
        return np.abs(np.fft.rfft(clip, RATE * 2)[::2]) ** 2  # one value per Hz

    first = np.array([heard(s, "studio", (0, 1, 2)) for s in SPEAKERS])
    again = np.array([heard(s, "studio", (3, 4, 5)) for s in SPEAKERS])
    base = 12 * np.log2([s[0] for s in SPEAKERS.values()])
    assert np.abs(first - again)[:, 0].max() < 1.2  # semitones
    assert np.abs(first[:, 0] - base).max() < 1.5
    assert np.corrcoef(base, first[:, 1])[0, 1] > 0.95  # who does not know the speaker hears it from the timbre
    assert len(SPEAKERS) == 10
    wild = np.array([heard(s, "wild", (0, 1, 2))[0] for s in SPEAKERS])
    assert (np.abs(wild - first[:, 0]) > 1).all()  # other people


def test_wild_is_another_recording_of_the_same_cues():
    studio, wild = (np.array([say(seed=s, domain=d) for s in SEEDS]) for d in ("studio", "wild"))
    floor = [20 * math.log10(np.mean([w[:600].std() for w in x])) for x in (studio, wild)]  # before the speech begins
    assert floor[1] > floor[0] + 3
    treble = [np.mean([band(w, 4500, 8000) - band(w, 500, 4500) for w in x]) for x in (studio, wild)]
    assert treble[1] < treble[0] - 3
    for name in ("pitch", "energy", "rate", "tension"):
        i = PROSODY.names.index(name)
        low, high = (np.mean([measured(say(name, v, seed=s, domain="wild"))[i] for s in SEEDS]) for v in (-1.5, 1.5))
        assert high - low > 1.5, (name, low, high)


def test_the_level_survives_normalisation():
    """Encoders normalise the waveform; the distance to the noise floor must tell the energy then."""
    quiet, loud = (say("energy", v) / say("energy", v).std() for v in (-1.0, 1.0))
    assert 20 * math.log10(quiet[:600].std() / loud[:600].std()) > 6


def test_likelihood_is_the_written_mixture():
    values = (0.5, -0.3, 0.2, 0.9, -0.4, 0.7)

    def density(label, intensity):
        centre = [intensity * d for d in PROSODY.directions[label]]
        return math.exp(-sum((v - c) ** 2 for v, c in zip(values, centre, strict=True)) / (2 * 0.5**2))

    shown = {label: sum(density(label, k / 10) for k in range(3, 11)) / 8 for label in LABELS}
    expected = [
        0.04 * sum(shown[mask] for mask in PROSODY.masks[label]) / len(PROSODY.masks[label])
        + (0.96 * shown[label] if label == "neutral" else 0.84 * shown[label] + 0.12 * shown["neutral"])
        for label in LABELS
    ]
    got = PROSODY.likelihood(values)
    np.testing.assert_allclose(got / got.sum(), np.array(expected) / sum(expected), rtol=1e-9)
    assert PROSODY.labels == LABELS and PROSODY.directions["neutral"] == (0.0,) * 6


def test_loudness_follows_the_voice_and_not_its_level():
    burst = np.zeros(RATE, np.float32)
    burst[4000:8000] = 0.1 * np.sin(np.arange(4000))
    level = loudness(burst, 8)
    assert level.dtype == np.float32 and level.shape == (8,)
    assert level.argmax() in (2, 3) and level.max() == 1 and level[[0, 5, 6, 7]].max() == 0
    np.testing.assert_allclose(loudness(burst / 9, 8), level, rtol=1e-5)
    assert (loudness(np.zeros(100), 5) == 0).all()
    for frames_ in (1, 18, 60, 5000):
        level = loudness(say(seconds=1.0), frames_)
        assert level.shape == (frames_,) and level.min() >= 0 and level.max() == 1
    with pytest.raises(ValueError, match="frames >= 1"):
        loudness(burst, 0)
    with pytest.raises(ValueError, match="waveform"):
        loudness(np.zeros((2, 100)), 3)


def test_speaking_is_fast():
    say(domain="wild")  # the backgrounds are made once
    taken = []
    for seed in range(12):
        start = time.process_time()
        say(seed=seed, seconds=1.5, domain="wild")
        taken.append(time.process_time() - start)
    assert min(taken) < 0.04  # about 10 ms, with room for a slow machine


@pytest.mark.parametrize(
    "values, seconds, domain, message",
    [
        ((0.0,) * 5, 1.0, "studio", "6 finite values"),
        ((0.0,) * 5 + (math.nan,), 1.0, "studio", "6 finite values"),
        (REST, 0.0, "studio", "positive number of seconds"),
        (REST, -1.0, "wild", "positive number of seconds"),
        (REST, math.inf, "wild", "positive number of seconds"),
        (REST, 1.0, "stage", "domain must be one of"),
    ],
)
def test_bad_arguments_are_refused(values, seconds, domain, message):
    with pytest.raises(ValueError, match=message):
        speak(values, "Nina", 0, seconds, domain)

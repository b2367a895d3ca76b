"""What a file holds, in words, by the decoding process."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
from PIL import Image

from tests.builders import label_clip
from zoo.media import Media, Unreadable


def test_clips_sounds_and_pictures_say_what_they_hold(tmp_path):
    (tmp_path / "a.mp4").write_bytes(label_clip("joy", "a"))
    soundfile.write(tmp_path / "a.wav", np.zeros((22_050, 2), np.float32), 44_100)
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    media = Media()
    assert media.facts(tmp_path / "a.mp4", "video") == "0.50 s, 5 frames of 32x32, 10 per second"
    assert media.facts(tmp_path / "a.mp4", "audio").endswith("s at 16000 Hz")
    assert media.facts(tmp_path / "a.wav", "audio") == "0.50 s at 44100 Hz"
    assert media.facts(tmp_path / "a.png", "video") == "a picture of 40x30"


def test_what_cannot_be_read_says_why(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no clip")
    with pytest.raises(Unreadable, match="is broken"):
        Media().facts(tmp_path / "a.mp4", "video")
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000, np.float32), 16_000)
    with pytest.raises(Unreadable, match="has no video stream"):
        Media().facts(tmp_path / "a.wav", "video")
    with pytest.raises(Unreadable, match="is longer than 0.5 s"):
        Media(max_seconds=0.5).facts(tmp_path / "a.wav", "audio")

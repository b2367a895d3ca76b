"""``zoo prepare describe``: clips in plain words without an endpoint: face, voice, picture.

    zoo prepare describe --data MELD --data.root DIR --analyzer DlibFaces --analyzer.expression FILE --out OUT
    zoo fit ... --data.descriptions '[OUT]'

One clip in Python:

    describer = ClipDescriber(DlibFaces("fer2013_mini_XCEPTION.102-0.66.hdf5"))
    description = describer.describe(Path("clip.mp4"), Path("clip.mp4"))
    description.video     # A face that turns from neutral to happy (0.80).
    description.audio     # Voice at 62 dB, pitch 212 Hz (varies by 41 Hz), ...; speaking 83 % of the time, no pause.
"""

from zoo.prepare.describe.activity import Loudness, Span, loudness_curve, pauses_between, voice_activity
from zoo.prepare.describe.describer import ClipDescriber, ClipDescription
from zoo.prepare.describe.faces import SeenFace
from zoo.prepare.describe.scene import Scene
from zoo.prepare.describe.voice import UNITS, read_bins

__all__ = [
    "UNITS",
    "ClipDescriber",
    "ClipDescription",
    "Loudness",
    "Scene",
    "SeenFace",
    "Span",
    "loudness_curve",
    "pauses_between",
    "read_bins",
    "voice_activity",
]

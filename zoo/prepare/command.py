"""The command ``zoo prepare``."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable

import zoo.prepare

Add = Callable[..., argparse.ArgumentParser]
COMMANDS = {  # command with options of its own -> its module, and what it is for
    "leaks": ("zoo.data.leaks", "utterances that stand in two splits or two corpora"),
    "speech": ("zoo.prepare.speech", "descriptions of voices from measured loudness, pitch and pace"),
    "describe": ("zoo.prepare.describe.command", "descriptions of faces, voices and pictures, without an endpoint"),
    "biographies": ("zoo.prepare.biographies", "what a model of yours thinks of the speakers of every dialogue"),
    "captions": ("zoo.prepare.captions", "descriptions of clips and voices by a model of yours"),
    "features": ("zoo.prepare.features", "one vector for words, face and voice of every utterance, by frozen encoders"),
    "faces": ("zoo.prepare.faces", "faces of a corpus' clips and their expressions, for Emotion-Qwen's face capture"),
    "ver": ("zoo.prepare.ver.command", "reasoning texts for labelled clips by models of yours, rated by you"),
}


def main(args: list[str]) -> None:
    """Run ``zoo prepare synthetic | media | tiny | tiny-vit | tiny-hubert`` and `COMMANDS`."""
    from zoo.prepare.media import add_media
    from zoo.prepare.sitcom import add_synthetic
    from zoo.prepare.tiny import add_tiny, add_tiny_encoder

    if args and args[0] in COMMANDS:
        importlib.import_module(COMMANDS[args[0]][0]).main(args[1:])
        return
    parser = argparse.ArgumentParser("zoo prepare", description=zoo.prepare.__doc__)
    what = parser.add_subparsers(dest="what", required=True)
    runs = {
        "synthetic": add_synthetic(what.add_parser),
        "media": add_media(what.add_parser),
        "tiny": add_tiny(what.add_parser),
        "tiny-vit": add_tiny_encoder(what.add_parser, "vit"),
        "tiny-hubert": add_tiny_encoder(what.add_parser, "hubert"),
    }
    for name, (_, purpose) in COMMANDS.items():
        what.add_parser(name, help=purpose, add_help=False)
    options = parser.parse_args(args)
    runs[options.what](options)

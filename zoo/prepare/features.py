"""``zoo prepare features``: one vector for the words, the face and the voice of every utterance, by frozen encoders.

    zoo prepare features --data Synthetic --data.root runs/sitcom --text tiny-llama-sitcom --vision tiny-vit-sitcom \\
        --audio tiny-hubert-sitcom --out runs/features
    zoo fit ... --model.text features:runs/features/text --model.vision features:runs/features/vision ...

Written are ``OUT/{text,vision,audio}/{split}/{utterance}.npy``, float32 (W,), as `zoo.training.given_features` reads
them, ``OUT/settings.json`` with the encoders' fingerprints, and ``OUT/left_out.jsonl``. A vector is the mean of

- text: the last hidden states of a language model over the tokens of the utterance;
- vision: the image encoder's CLS tokens, or the mean of its tokens, over frames of the utterance;
- audio: HuBERT's frames over the whole sound.

What is written already is not computed again, so a run that was killed goes on.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

from zoo.backbones import LLM, Audio, Vision
from zoo.data import EmotionData
from zoo.media import Media, Unreadable
from zoo.media.clips import RATE, middle_of_sound, utterance_frames, utterance_sound
from zoo.prepare.answer_store import keep_settings
from zoo.prepare.options import add_decoding_options
from zoo.progress import reported
from zoo.schema import Turn
from zoo.storage import write_jsonl, write_whole

MODALITIES = ("text", "vision", "audio")
Encode = Callable[[Turn], np.ndarray]


class NothingToEncode(ValueError):
    """An utterance that has no words, no clip or no sound; the text says which."""


# ------------------------------------------------------------------------------------------------------------ encoders
def text_encoder(llm: LLM, max_length: int) -> Encode:
    """Return what makes one vector of the words of an utterance, of which the last ``max_length`` tokens are read."""
    tokenizer: Any = llm.tokenizer
    if tokenizer is None:
        raise ValueError(f"{llm.path} has no tokenizer; give a model folder that has one (--text)")

    def encode(turn: Turn) -> np.ndarray:
        if not turn.text:
            raise NothingToEncode("has no words")
        ids = torch.tensor([tokenizer(turn.text)["input_ids"][-max_length:]])  # (1, T)
        return _vector(llm.hidden(llm.embed(ids), torch.ones_like(ids, dtype=torch.bool))[0])

    return encode


def vision_encoder(vision: Vision, media: Media, frames: int, middle: float) -> Encode:
    """Return what makes one vector of frames from the middle part of an utterance."""

    def encode(turn: Turn) -> np.ndarray:
        if turn.video is None:
            raise NothingToEncode("has no clip")
        side = vision.size
        pixels = utterance_frames(media, turn, frames, side=side, square=side is not None, middle=middle)
        hidden = vision.hidden(torch.from_numpy(np.ascontiguousarray(pixels)), normed=True)  # (F, tokens, W)
        return _vector(hidden[:, 0] if vision.has_cls else hidden.mean(1))

    return encode


def audio_encoder(audio: Audio, media: Media, max_seconds: float) -> Encode:
    """Return what makes one vector of the sound of an utterance, of a longer one of its middle."""

    def encode(turn: Turn) -> np.ndarray:
        if turn.audio is None:
            raise NothingToEncode("has no sound")
        wave, _ = middle_of_sound(utterance_sound(media, turn), round(max_seconds * RATE))
        hidden, _ = audio.hidden(torch.from_numpy(wave)[None], torch.tensor([len(wave)]))  # (1, T, W)
        return _vector(hidden[0])

    return encode


def _vector(rows: Tensor) -> np.ndarray:
    """Return the mean of (N, W) as float32 (W,)."""
    vector: np.ndarray = rows.float().mean(0).numpy()
    if not np.isfinite(vector).all():
        raise FloatingPointError("an encoder gave numbers that are not finite; expected float32 weights that are whole")
    return vector


# ---------------------------------------------------------------------------------------------------------- the command
def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "zoo prepare features",
        usage="zoo prepare features --data NAME --data.root DIR --text M --vision M --audio M --out DIR [options]",
        description="One vector for the words, the face and the voice of every utterance, in files.",
    )
    add = parser.add_argument
    parser.add_subclass_arguments(EmotionData, "data", required=True, help="a corpus, as of `zoo fit`")
    add("--text", help="language model, as of --model.llm; none if not given")
    add("--vision", help="image encoder, as of --model.vision; none if not given")
    add("--audio", help="HuBERT, as of --model.audio; none if not given")
    add("--out", type=Path, required=True, help="folder of the features")
    add("--split", nargs="+", choices=["train", "dev", "test"], help="which; all of the corpus if not given")
    add("--max_length", type=int, default=256, help="tokens of an utterance that are read")
    add("--frames", type=int, default=4, help="of a clip")
    add("--middle", type=float, default=0.5, help="share of the clip around its middle that they are taken from")
    add("--max_seconds", type=float, default=15.0, help="of longer sound the middle is read")
    add_decoding_options(parser)
    return parser


def main(args: list[str]) -> None:
    """Run ``zoo prepare features``."""
    parser = _parser()
    options = parser.parse_args(args)
    if not any(options[modality] for modality in MODALITIES):
        raise ValueError("nothing to encode with; give --text, --vision or --audio")
    if min(options.max_length, options.frames) < 1 or not 0 < options.middle <= 1 or not options.max_seconds > 0:
        raise ValueError("--max_length and --frames are 1 or more, --middle from over 0 to 1, --max_seconds over 0")
    data = parser.instantiate(options).data
    turns = {
        split: {s.target.id: s.target for s in data.samples(split)} for split in options.split or list(data.splits())
    }
    encoders, settings = _encoders(options)
    out: Path = options.out
    keep_settings(out / "settings.json", settings, [out / modality for modality in encoders])
    left_out: list[dict[str, str]] = []
    for modality, encode in encoders.items():
        for split, split_turns in turns.items():
            left_out += _write(out / modality / split, modality, split, list(split_turns.values()), encode)
    write_jsonl(out / "left_out.jsonl", left_out)
    if left_out:
        reasons = Counter(row["why"] for row in left_out).most_common(5)
        named = "; ".join(f"{n} {why}" for why, n in reasons)
        print(f"left out, each named in {out / 'left_out.jsonl'}: {named}")


def _encoders(options: Namespace) -> tuple[dict[str, Encode], dict[str, Any]]:
    """Return what encodes each modality, and what the features depend on, encoders by their weights."""
    media = Media(options.cache, options.timeout, options.max_clip_seconds)
    encoders: dict[str, Encode] = {}
    settings: dict[str, Any] = {"command": "features"}
    if options.text:
        llm = LLM(options.text).eval().requires_grad_(False)
        encoders["text"] = text_encoder(llm, options.max_length)
        settings |= {"text": llm.fingerprint(), "max_length": options.max_length}
    if options.vision:
        vision = Vision(options.vision).freeze()
        encoders["vision"] = vision_encoder(vision, media, options.frames, options.middle)
        settings |= {"vision": vision.fingerprint(), "frames": options.frames, "middle": options.middle}
    if options.audio:
        audio = Audio(options.audio).freeze()
        encoders["audio"] = audio_encoder(audio, media, options.max_seconds)
        settings |= {"audio": audio.fingerprint(), "max_seconds": options.max_seconds}
    return encoders, settings


@torch.inference_mode()
def _write(folder: Path, modality: str, split: str, turns: Sequence[Turn], encode: Encode) -> list[dict[str, str]]:
    """Write the features of a split that are not there yet; return what has none, with the reason."""
    folder.mkdir(parents=True, exist_ok=True)
    todo = [turn for turn in turns if not (folder / f"{turn.id}.npy").exists()]
    left_out = []
    for turn in reported(todo, len(todo), f"{modality}, {split}", "utterances"):
        try:
            file = io.BytesIO()
            np.save(file, encode(turn), allow_pickle=False)
            write_whole(folder / f"{turn.id}.npy", file.getvalue())
        except NothingToEncode as error:
            left_out.append({"modality": modality, "split": split, "id": turn.id, "why": str(error)})
        except Unreadable as error:
            left_out.append({"modality": modality, "split": split, "id": turn.id, "why": error.reason})
    print(f"{folder}: {len(turns) - len(left_out)} of {len(turns)} utterances ({len(todo)} now)")
    return left_out

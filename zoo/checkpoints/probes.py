"""A probe: a few stored utterances (with clips, for systems that see or hear) and what the published system answered.

    probe.json     samples, solved examples if the system shows some, and the rows it answered with
    probe_K.mp4    the clips of the utterances, made up as the embedded sitcom's are

Comparing goes the user's whole way: the config's templates and tokenizer, decoding, encoders, the answer. Weights,
code or base that changed show as other answers; numbers may differ by `TOLERANCE`, for other machines.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from zoo.backbones import LLM, Vision
from zoo.data import EmotionData
from zoo.data.base import Reading
from zoo.schema import Labels, Sample, Split, Turn
from zoo.sitcom.clips import encode, render
from zoo.sitcom.release import split_dialogues
from zoo.sitcom.settings import Settings
from zoo.storage import inside, read_json, read_jsonl
from zoo.training.module import EmotionModule

PROBE = "probe.json"
FORMAT = 1
SEED, TURNS, EXAMPLES = 9, 4, 12  # of the sitcom: which corpus, how many utterances, how many dialogues of examples
TOLERANCE = 2e-3  # of probabilities; other numbers relative to their size if they are above 1


class ProbeData(EmotionData):
    """The probe as a corpus: its utterances are to be predicted, its examples are the training and dev split."""

    def __init__(self, samples: Sequence[Sample], examples: Sequence[Sample]) -> None:
        super().__init__(seed=0, batch_size=len(samples))
        self.probed, self.examples = list(samples), list(examples)

    @property
    def label_sets(self) -> dict[str, Labels]:
        return {s.labels.corpus: s.labels for s in self.probed}

    def read(self, split: Split) -> Reading:
        return Reading(self.probed if split == "test" else self.examples)


# ---- making one
def write(module: EmotionModule, folder: Path, labels: Sequence[Labels], options: Mapping[str, Any]) -> None:
    """Write the probe of a module that was loaded from ``folder``.

    Args:
        labels: label sets it answers with; the utterances take turns.
        options: ``init_args`` of the model; ``descriptions`` and numbers of examples are read from there.
    """
    clips = any(hasattr(module, part) for part in ("vision", "audio"))
    shots = any(options.get(option) for option in module.example_options)
    kinds = options.get("descriptions") or ()
    (dialogue,) = split_dialogues(SEED, "test", 1, Settings())
    turns: list[Turn] = []
    for i, utterance in enumerate(dialogue.utterances[:TURNS]):
        clip = None
        if clips:
            clip = folder / f"probe_{i}.mp4"
            clip.write_bytes(encode(*render(utterance, dialogue.place, f"probe/{i}")))
        descriptions = _with_kinds(utterance.descriptions, kinds)
        turns.append(Turn(utterance.id, utterance.speaker, utterance.text, utterance.label, descriptions, clip, clip))
    samples = [
        _sample(turns[: i + 1], labels[i % len(labels)], "test", dialogue.id, keep_label=True)
        for i in range(len(turns))
    ]
    examples = []
    for number, other in enumerate(split_dialogues(SEED, "train", EXAMPLES, Settings()) if shots else ()):
        example = [Turn(u.id, u.speaker, u.text, u.label, _with_kinds(u.descriptions, kinds)) for u in other.utterances]
        examples.append(_sample(example, labels[number % len(labels)], "train", other.id, keep_label=False))
    content = {
        "format": FORMAT,
        "labels": {one.corpus: list(one.names) for one in labels},
        "samples": [_to_json(s) for s in samples],
        "examples": [_to_json(s) for s in examples],
        "expected": _answers(module, samples, examples),
    }
    (folder / PROBE).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _with_kinds(descriptions: Mapping[str, str], kinds: Sequence[str]) -> dict[str, str]:
    """Return the descriptions; kinds that the sitcom does not have get the words of its voices."""
    return dict.fromkeys(kinds, descriptions["audio"]) | dict(descriptions)


def _sample(turns: Sequence[Turn], labels: Labels, split: str, dialogue: str, keep_label: bool) -> Sample:
    """Return the last turn as a sample.

    A label that the corpus does not have is left out, or replaced in an example.
    """

    def fitted(turn: Turn) -> Turn:
        known = turn.label in labels.names
        other = None if keep_label else labels.names[len(turn.text) % len(labels)]
        return replace(turn, label=turn.label if known else other)

    *before, target = map(fitted, turns)
    where = f"{labels.corpus}/{split}"
    return Sample(f"{where}/{target.id}", f"{where}/{dialogue}", labels, target, tuple(before))


# ---- comparing
def compare(module: EmotionModule, folder: Path) -> None:
    """Raise ValueError if a module answers the probe of a folder otherwise than was recorded."""
    samples, examples, expected = read(folder)
    got = _answers(module, samples, examples)
    problems = []
    for was, now in zip(expected, got, strict=True):
        problems += [f"{was['id']}: {place} is {b!r}, was {a!r}" for place, a, b in _differ(was, now)]
    if problems:
        raise ValueError(
            f"{folder} does not answer its probe as it did when it was published: {'; '.join(problems[:3])} "
            f"({len(problems)} differences in {len(expected)} answers, tolerance {TOLERANCE}). Its base model, its "
            "prompt template or the code of the system changed"
        )


def encoder_outputs(path: str) -> list[float]:
    """Compute the logits of an image encoder for one fixed picture: stripes, and a square."""
    rows, columns = torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij")
    picture = torch.stack([rows * 2, columns * 2, (rows + columns) % 32 * 8]).to(torch.uint8)
    picture[:, 30:60, 40:70] = 255
    with torch.inference_mode():
        return [round(x, 5) for x in Vision(path).eval().logits(picture[None])[0].double().tolist()]


def compare_encoder(name: str, path: str, expected: Sequence[float]) -> None:
    """Raise ValueError if an image encoder answers the fixed picture otherwise than was recorded."""
    got = encoder_outputs(path)
    if _differ(list(expected), got):
        raise ValueError(f"{name} in {path} does not answer its probe as recorded: {got}, expected {list(expected)}")


def text_outputs(path: str, text: str) -> list[float]:
    """Compute the log-probability of each token of a text but the first, given those before, by a language model."""
    llm = LLM(path).eval()
    ids = torch.tensor(llm.tokenizer(text, add_special_tokens=False)["input_ids"])
    with torch.inference_mode():
        logprobs = llm.causal_lm(ids[None]).logits[0, :-1].double().log_softmax(-1)
    return [round(x, 4) for x in logprobs.gather(1, ids[1:, None])[:, 0].tolist()]


def compare_language_model(name: str, path: str, expected: Mapping[str, Any]) -> None:
    """Raise ValueError if a language model gives the stored text other log-probabilities than were recorded.

    Args:
        expected: ``text`` and ``logprobs``, see `text_outputs`.
    """
    got = text_outputs(path, expected["text"])
    if _differ(list(expected["logprobs"]), got):
        raise ValueError(
            f"{name} in {path} does not answer its probe as recorded: {got}, expected {expected['logprobs']}"
        )


def read(folder: Path) -> tuple[list[Sample], list[Sample], list[dict[str, Any]]]:
    """Read samples, examples and recorded rows. ValueError for a file that is no probe."""
    file = folder / PROBE
    try:
        content = read_json(file)
        if content["format"] != FORMAT:
            raise ValueError(f"{file} has format {content['format']}, this version reads {FORMAT}")
        labels = {corpus: Labels(corpus, tuple(names)) for corpus, names in content["labels"].items()}
        samples, examples = ([_from_json(s, labels, folder) for s in content[key]] for key in ("samples", "examples"))
        return samples, examples, content["expected"]
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{file} is no probe ({type(error).__name__}: {error}); write it with zoo export") from error


def _answers(module: EmotionModule, samples: Sequence[Sample], examples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Return the rows of a prediction, in the order of the samples; the module is left as it was."""
    training, trainer = module.training, module._trainer
    with tempfile.TemporaryDirectory() as folder, _silent(), torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        ).predict(module, datamodule=ProbeData(samples, examples), return_predictions=False)
        rows = read_jsonl(Path(folder) / module.predictions_file)
    module._trainer = trainer
    module.train(training)
    return rows


@contextmanager
def _silent() -> Iterator[None]:
    """Silence what Lightning and the systems say about a run: this is none."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "zoo")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _differ(was: Any, now: Any, place: str = "") -> list[tuple[str, Any, Any]]:
    """List place, recorded and present value of everything that differs, numbers by more than the tolerance."""
    if isinstance(was, dict) and isinstance(now, dict):
        keys = list(dict.fromkeys((*was, *now)))
        return [d for k in keys for d in _differ(was.get(k), now.get(k), f"{place}.{k}".lstrip("."))]
    if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        return [d for i, (a, b) in enumerate(zip(was, now, strict=True)) for d in _differ(a, b, f"{place}[{i}]")]
    if isinstance(was, float) and isinstance(now, float):
        near = abs(was - now) <= TOLERANCE * max(1.0, abs(was)) or (math.isnan(was) and math.isnan(now))
        return [] if near else [(place, was, now)]
    return [] if was == now else [(place, was, now)]


# ---- samples as JSON
def _to_json(sample: Sample) -> dict[str, Any]:
    def turn(one: Turn) -> dict[str, Any]:
        fields = {"id": one.id, "speaker": one.speaker, "text": one.text, "label": one.label}
        return fields | {"descriptions": dict(one.descriptions), "clip": one.video.name if one.video else None}

    return {
        "id": sample.id,
        "dialogue": sample.dialogue,
        "corpus": sample.labels.corpus,
        "turns": [turn(one) for one in (*sample.history, sample.target)],
    }


def _from_json(row: Mapping[str, Any], labels: Mapping[str, Labels], folder: Path) -> Sample:
    turns = []
    for fields in row["turns"]:
        clip = None if fields["clip"] is None else inside(folder, fields["clip"], folder / PROBE)
        if clip is not None and not clip.is_file():
            raise ValueError(f"{folder} lacks {fields['clip']}, a clip of its probe; restore the folder")
        turns.append(
            Turn(fields["id"], fields["speaker"], fields["text"], fields["label"], fields["descriptions"], clip, clip)
        )
    return Sample(row["id"], row["dialogue"], labels[row["corpus"]], turns[-1], tuple(turns[:-1]))

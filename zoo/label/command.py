"""The command ``zoo label``."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from zoo.data.text import some
from zoo.imports import take_imports, trust_words
from zoo.label.output import AnswerFile
from zoo.label.parts import PARTS, PartsLabeler
from zoo.label.requests import TABLE, Request, read_samples
from zoo.label.samples import AnswerHandler
from zoo.label.system import System, silence_lightning
from zoo.label.transcription import Transcriber
from zoo.label.used_inputs import UsedInputs
from zoo.label.utterances import read_utterances, with_words
from zoo.media import MAX_SECONDS, Media
from zoo.runs import given_checkpoint
from zoo.schema import Labels, Prediction, Sample
from zoo.storage import locked, parse_yaml


def main(args: list[str]) -> None:
    """Run ``zoo label CLIP``, with ``--ckpt_path NAME`` by one system, else part by part by what is installed."""
    changes, rest = _split_changes(take_imports(args))
    options = _parser().parse_args(rest)
    silence_lightning()
    trust_words(args)
    request = Request(
        options.clip,
        options.clips,
        options.text,
        options.speaker,
        options.context,
        options.descriptions,
        options.encoding,
        options.separator,
        segments=options.segments,
        subtitles=options.subtitles,
    )
    transcriber = None if options.transcribe is None else Transcriber(options.transcribe)
    media = Media(max_seconds=options.max_clip_seconds)
    about = {"transcribed_by": options.transcribe}
    if options.ckpt_path is None:
        _refuse_options_of_a_system(options, changes)
        labeler = PartsLabeler(options.parts or PARTS, options.max_clip_seconds)
        samples = _samples(request, labeler.labels, media, transcriber)
        about |= {"option_parts": list(labeler.parts), "systems": labeler.systems}

        def answer(answers: AnswerFile) -> None:
            label_parts(labeler, samples, answers, write_failures=request.makes_many)
    else:
        if options.parts:
            raise ValueError("--parts goes without --ckpt_path: which parts of a clip a system reads is its own option")
        checkpoint = given_checkpoint(options.ckpt_path)
        system = System(checkpoint, changes)
        request = replace(request, columns=system.table_columns)
        samples = _samples(request, system.labels(options.labels), media, transcriber)
        about |= {"system": system.name, "checkpoint": checkpoint, "options": changes}
        about |= {"selector": options.selector}

        def answer(answers: AnswerFile) -> None:
            label(system, samples, answers, options.selector, write_failures=request.makes_many)

    with _lock_output(options.out):
        answers = AnswerFile(options.out, {key: value for key, value in about.items() if value})
        answer(answers)
    _report(samples, answers.failed, request.makes_many)


def _parser() -> argparse.ArgumentParser:
    """Return the parser of the options that are not those of the system."""
    parser = argparse.ArgumentParser(
        "zoo label",
        allow_abbrev=False,
        description="Names the emotion of a clip or line: one JSON line on stdout; exit code 1 if nothing of it could "
        "be used. Without --ckpt_path, the words are read by the best published system that is here, the face by a "
        "reader of expressions, and the voice is measured; the three answers stand side by side, and the label is that "
        "of the words. Of a folder, table or cut film: a JSON line each, in --out FILE or on stdout; what got no "
        "answer is a line with `error`, counted and listed on stderr, and the exit code is 1 only if nothing got one. "
        "With --ckpt_path, any --model.X V and --data.X V replaces an option of the run's config.yaml, e.g. "
        "--model.llm DIR, or --data.root DIR for a system with solved examples.",
    )
    add = parser.add_argument
    add(
        "clip",
        nargs="?",
        type=Path,
        metavar="CLIP",
        help="a video, sound or picture, a folder of them, or a table (CSV, TSV, JSONL) with columns like "
        f"{TABLE}; may be left out if --text, --descriptions or --subtitles is given",
    )
    add(
        "--ckpt_path",
        metavar="NAME",
        help="run folder, checkpoint, published name, or best: of the newest run; else part by part",
    )
    add("--parts", nargs="+", choices=PARTS, metavar="PART", help=f"without --ckpt_path: some of {', '.join(PARTS)}")
    add("--text", help="what is said")
    add("--speaker", default="", help="who says it")
    add("--context", type=Path, metavar="CSV", help="earlier turns of the dialogue, oldest first: a table")
    add("--descriptions", nargs="+", default=[], metavar="KIND=TEXT", help="what shows or sounds: audio='a calm voice'")
    add("--segments", action="store_true", help="cut a film or sound where somebody speaks; a row each")
    add("--subtitles", type=Path, metavar="FILE", help="an .srt or .vtt file: what is said, and when; a row each")
    add(
        "--transcribe",
        metavar="MODEL",
        help="have what is said written down by faster-whisper (pip install 'emotion-zoo[transcribe]'), where no words "
        "are given: the folder of a model, or a name, which that package fetches. Untried with the package itself: "
        "its code is tested on a stand-in with the same calls",
    )
    add(
        "--max_clip_seconds",
        type=float,
        default=MAX_SECONDS,
        metavar="S",
        help=f"a longer film is refused; {MAX_SECONDS:g} if not given. With --ckpt_path: of the film that is cut, "
        "and --model.max_clip_seconds of what the system reads",
    )
    add("--clips", type=Path, metavar="DIR", help="of a table without video: files named after the ids, dia0_utt0.mp4")
    add("--encoding", metavar="NAME", help="of tables and subtitles, e.g. cp1252 or gb18030; UTF-8 if not given")
    add("--separator", metavar="CHARACTER", help="of the tables' cells, e.g. ';'; what their endings say if not given")
    add("--labels", metavar="CORPUS", help="whose labels, for a run on several corpora")
    add(
        "--selector",
        metavar="RUN",
        help="a modality selector that decides first; the system gets its decisions as --model.selection",
    )
    add("--out", type=Path, metavar="FILE", help="JSON lines; those that are there already are kept, the rest is done")
    add(
        "--import",
        metavar="DIR",
        help="folder whose modules the config.yaml of the checkpoint may name; without it "
        "nothing is imported but the zoo and installed packages",
    )
    return parser


def _refuse_options_of_a_system(options: argparse.Namespace, changes: Mapping[str, Any]) -> None:
    """Raise ValueError for an option that only a system named by ``--ckpt_path`` has."""
    names = [name for name in ("labels", "selector") if getattr(options, name) is not None] + list(changes)
    if names:
        raise ValueError(f"--{names[0]} is an option of one system; name the system with --ckpt_path")


def _samples(request: Request, labels: Labels, media: Media, transcriber: Transcriber | None) -> list[Sample]:
    """Return the samples of a request, with the words that were heard."""
    samples = read_utterances(request, labels, media) if request.is_cut else read_samples(request, labels)
    return samples if transcriber is None else with_words(samples, transcriber, media)


def _report(samples: Sequence[Sample], failed: Mapping[str, str], many: bool) -> None:
    """Say on stderr what got no label. ValueError if nothing got one."""
    if failed and not many:
        raise ValueError(f"no label: {next(iter(failed.values()))}")
    if many:
        print(f"{len(samples) - len(failed)} of {len(samples)} labelled", file=sys.stderr)
        for name, why in failed.items():
            print(f"no label for {name}: {why}", file=sys.stderr)
        if len(failed) == len(samples):
            raise ValueError(f"none of the {len(samples)} got a label; {some(failed.values(), 1)}")


def label_parts(labeler: PartsLabeler, samples: Sequence[Sample], answers: AnswerFile, write_failures: bool) -> None:
    """Answer, part by part, what the file of answers does not hold yet."""
    for sample in answers.unanswered(samples):
        answer = labeler(sample)
        if answer.error is not None:
            answers.write_failure(sample, answer.error, write_failures)
            continue
        answers.write(sample, answer.row)
        for damage in answer.row.get("damaged", ()):
            print(f"{sample.target.id}: a part of its file was used, {damage}", file=sys.stderr)


def _lock_output(out: Path | None) -> contextlib.AbstractContextManager[None]:
    """Return the lock of the file that a command writes to."""
    if out is None:
        return contextlib.nullcontext()
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; name a file")
    return locked(out.with_name(f".{out.name}.lock"), f"the file {out}")


def label(
    system: System,
    samples: Sequence[Sample],
    answers: AnswerFile,
    selector: str | None = None,
    write_failures: bool = True,
) -> None:
    """Label what the file of answers does not hold yet.

    Args:
        system: that answers.
        samples: what is asked about.
        answers: where the labels go.
        selector: checkpoint of a system whose rows decide for the other, which takes them as ``model.selection``.
        write_failures: write a line for a sample without a label, too.
    """
    todo = answers.unanswered(samples)
    with tempfile.TemporaryDirectory() as folder:
        decisions: dict[str, dict[str, Any]] = {}  # sample id -> what the selector decided
        if selector is not None:
            policy = System(selector)

            def decide(sample: Sample, p: Prediction, inputs: UsedInputs, seconds: float) -> None:
                thoughts = {} if p.text is None else {"text": p.text}
                decisions[sample.id] = {
                    "system": policy.name,
                    **(p.details or {}),
                    **thoughts,
                    "used": list(inputs.used),
                }

            todo = _answer(policy, todo, Path(folder), decide, answers, write_failures)
            system.model["selection"] = folder

        def write(sample: Sample, p: Prediction, inputs: UsedInputs, seconds: float) -> None:
            selection = decisions.get(sample.id)
            answers.write_answer(sample, p, inputs.with_selection(selection), seconds, selection=selection)

        _answer(system, todo, Path(folder) / "answers", write, answers, write_failures)


def _answer(
    system: System,
    samples: Sequence[Sample],
    folder: Path,
    handle: AnswerHandler,
    answers: AnswerFile,
    write_failures: bool,
) -> list[Sample]:
    """Answer samples and note those that could not be answered; return the others."""
    failed = system.answer(samples, folder, handle) if samples else {}
    for s in samples:
        if s.id in failed:
            answers.write_failure(s, f"{system.name}: {failed[s.id]}", write_failures)
    return [s for s in samples if s.id not in failed]


def _split_changes(args: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Split off changes of options: ``--model.llm DIR`` -> ``{"model.llm": "DIR"}``, and the other arguments."""
    changes, others, waiting = {}, [], list(args)
    while waiting:
        arg = waiting.pop(0)
        name, equals, value = arg.partition("=")
        if not re.fullmatch(r"--(model|data)(\.\w+)+", name):
            others.append(arg)
            continue
        if not equals and not waiting:
            raise ValueError(f"{name} needs a value")
        changes[name.removeprefix("--")] = parse_yaml(value if equals else waiting.pop(0), name)
    return changes, others

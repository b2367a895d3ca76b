"""The command ``zoo label``."""

from __future__ import annotations

import argparse
import contextlib
import logging
import re
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.data.text import some
from zoo.imports import take_imports, trust_words
from zoo.label.output import AnswerFile
from zoo.label.requests import TABLE, Request, read_samples
from zoo.label.samples import AnswerHandler
from zoo.label.system import System
from zoo.label.used_inputs import UsedInputs
from zoo.schema import Prediction, Sample
from zoo.storage import locked, parse_yaml


def main(args: list[str]) -> None:
    """Run ``zoo label CLIP --ckpt_path NAME``."""
    parser = argparse.ArgumentParser(
        "zoo label",
        allow_abbrev=False,
        description="Names the emotion of a clip or line: one JSON line on stdout; exit code 1 if it got no label. Of "
        "a folder or table: a JSON line each, in --out FILE or on stdout; what got no label is a line with `error`, "
        "counted and listed on stderr, and the exit code is 1 only if nothing got one. Any --model.X V and --data.X V "
        "replaces an option of the run's config.yaml, e.g. --model.llm DIR, or --data.root DIR for a system with "
        "solved examples.",
    )
    add = parser.add_argument
    add(
        "clip",
        nargs="?",
        type=Path,
        metavar="CLIP",
        help="a video, sound or picture, a folder of them, or a table "
        f"(CSV, TSV, JSONL) with columns like {TABLE}; may be left out if --text or --descriptions is given",
    )
    add("--ckpt_path", required=True, metavar="NAME", help="run folder, checkpoint, or published name")
    add("--text", help="what is said")
    add("--speaker", default="", help="who says it")
    add("--context", type=Path, metavar="CSV", help="earlier turns of the dialogue, oldest first: a table")
    add("--descriptions", nargs="+", default=[], metavar="KIND=TEXT", help="what shows or sounds: audio='a calm voice'")
    add("--clips", type=Path, metavar="DIR", help="of a table without video: files named after the ids, dia0_utt0.mp4")
    add("--encoding", metavar="NAME", help="of the tables, e.g. cp1252 or gb18030; UTF-8 if not given")
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
    changes, rest = _split_changes(take_imports(args))
    options = parser.parse_args(rest)
    _silence_lightning()
    trust_words(args)
    system = System(options.ckpt_path, changes)
    request = Request(
        options.clip,
        options.clips,
        options.text,
        options.speaker,
        options.context,
        options.descriptions,
        options.encoding,
        options.separator,
        system.table_columns,
    )
    samples = read_samples(request, system.labels(options.labels))
    many = request.asks_for_many
    about = {"system": system.name, "checkpoint": options.ckpt_path, "options": changes, "selector": options.selector}
    with _lock_output(options.out):
        answers = AnswerFile(options.out, {key: value for key, value in about.items() if value})
        label(system, samples, answers, options.selector, write_failures=many)
    if answers.failed and not many:
        raise ValueError(f"no label: {next(iter(answers.failed.values()))}")
    if many:
        print(f"{len(samples) - len(answers.failed)} of {len(samples)} labelled", file=sys.stderr)
        for name, why in answers.failed.items():
            print(f"no label for {name}: {why}", file=sys.stderr)
        if len(answers.failed) == len(samples):
            raise ValueError(f"none of the {len(samples)} got a label; {some(answers.failed.values(), 1)}")


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


def _silence_lightning() -> None:
    """Silence what Lightning says about a run: stdout is for the answers."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", r".*does not have many workers.*")
    warnings.filterwarnings("ignore", r".*LeafSpec.*")

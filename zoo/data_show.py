"""``zoo data show``: the first rows of a corpus as a system will see them, its labels, and what was left out.

Nothing is trained and no weights are read: of a system the tokenizers and the sizes are enough, so that a config for a
GPU can be looked at without one.
"""

from __future__ import annotations

import logging
import textwrap
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from lightning.pytorch import Trainer

from zoo.arguments import ZooParser, options_of_fit, parser_of_fit
from zoo.checkpoints.listing import display_name
from zoo.configs import instantiated
from zoo.data import EmotionData
from zoo.data.text import some
from zoo.media import Media, Unreadable
from zoo.memory.prediction import on_meta
from zoo.schema import LazySamples, Sample, Split, Turn
from zoo.training.language_model import LanguageModelModule
from zoo.training.module import EmotionModule

DESCRIPTION = (
    "Shows a corpus as a system of a config will see it: labels and dialogues per split, what is left out and why, and "
    "the first rows with their clips and, where the system asks a language model, their prompts with all special "
    "tokens. Needs no GPU; reads no weights and trains nothing."
)
WIDTH = 96
Rows = Sequence[Sequence[str]]


class Refused(ValueError):
    """Raised after everything was shown, for what a fit would refuse."""


def main(args: list[str]) -> None:
    """Run ``zoo data show --config FILE`` or ``zoo data show --data NAME --data.X V``."""
    if args[:1] != ["show"]:
        if args[:1] in (["-h"], ["--help"]):
            print(f"usage: zoo data show --config FILE [options]   (zoo data show --help)\n\n{DESCRIPTION}")
            return
        raise ValueError(
            f"zoo data {args[0] if args else ''}: expected zoo data show --config FILE, or zoo data show --data NAME "
            "with its options"
        )
    options = options_of_fit("data show", args[1:], make_parser)
    if options["rows"] < 0:
        raise ValueError(f"--rows {options['rows']}: expected a number of rows, at least 0")
    logging.getLogger("zoo").setLevel(logging.ERROR)  # what readers log is shown in full
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", r".*GPU available but not used.*")
    file = Path(options["config"]) if options.get("config") else None
    data: EmotionData = instantiated("data", EmotionData, options["data"], file)
    system = None
    if options.get("model") is not None:
        system = cast(EmotionModule, instantiated("model", EmotionModule, options["model"], file))
    for line in show(data, system, options["split"], options["rows"]):
        print(_visible(line))  # headings, ids and names of files, too, are of others


def make_parser() -> ZooParser:
    """Return a parser of the options of a fit, and those of this command."""
    parser = parser_of_fit("data show", "[--split train] [--rows N]", DESCRIPTION, model_required=False)
    parser.add_argument("--split", choices=["train", "dev", "test"], default="train", help="whose rows are shown")
    parser.add_argument("--rows", type=int, default=3, metavar="N", help="how many of them (3)")
    return parser


def show(data: EmotionData, system: EmotionModule | None, split: Split, rows: int) -> Iterator[str]:
    """Yield the lines about a corpus.

    Args:
        data: the corpus.
        system: as its config makes it, not built; None: only the data is shown.
        split, rows: the first so many samples of this split are shown.

    Raises:
        Refused: at the end, for what a fit would refuse.
    """
    yield from _head(data)
    refused = {}
    for name in data.splits():
        try:
            data.reading(name)
        except (ValueError, FileNotFoundError) as error:
            refused[name] = str(error)
    yield ""
    yield from _table(list(_counts(data, [name for name in data.splits() if name not in refused])))
    notes = [line for name in data.splits() if name not in refused for line in _left_out(data, name)]
    notes += [line for name, why in refused.items() for line in _wrapped(f"{name} cannot be used: {why}", 2)]
    yield from ["", *notes] if notes else []
    if split not in data.splits():
        raise Refused(f"there is no {split} split; expected one of {', '.join(data.splits())} for --split")
    if split not in refused and rows:
        yield from _rows(data, system, split, rows)
    if refused:
        raise Refused("; ".join(f"{name}: {why}" for name, why in refused.items()))


# -------------------------------------------------------------------------------------------------------------- splits
def _head(data: EmotionData) -> Iterator[str]:
    """Yield what the corpus is."""
    yield f"{type(data).__name__}: {data.material}" if data.material != "?" else type(data).__name__
    if data.root is not None:
        yield f"  folder    {data.root}"
    for name, labels in data.label_sets.items():
        yield from _wrapped(f"  labels    {name}: {', '.join(labels.names) or 'none (free answers)'}", 12)
    yield f"  protocol  {data.protocol}"


def _counts(data: EmotionData, splits: Sequence[Split]) -> Iterator[list[str]]:
    """Yield the table of splits: heads, then a line each; labels are counted where samples need not be made for it."""
    counted = [name for name in splits if not isinstance(data.samples(name), LazySamples)]
    labels = {name: Counter(s.target.label for s in data.samples(name)) for name in counted}
    words = list(dict.fromkeys(word for one in data.label_sets.values() for word in one.names))
    yield ["split", "dialogues", "to classify", "left out", *words]
    for name in splits:
        samples, reading = data.samples(name), data.reading(name)
        dialogues = str(len({s.dialogue for s in samples})) if name in labels else "?"
        shares = [f"{labels[name][word]}" if name in labels else "?" for word in words]
        yield [name, dialogues, str(len(samples)), str(len(reading.excluded)), *shares]


def _left_out(data: EmotionData, split: Split) -> Iterator[str]:
    """Yield what was left out of a split, and what else is noted."""
    reading = data.reading(split)
    reasons: dict[str, list[str]] = {}
    for key, reason in reading.excluded.items():
        reasons.setdefault(reason, []).append(key)
    report = reading.report()
    for reason, keys in reasons.items():
        yield from _wrapped(f"{split}: {len(keys)} left out, {reason}: {some(keys)}", 2)
    for what, count in report["notes"].items():
        names = reading.listed.get(what)
        yield from _wrapped(f"{split}: {count} {what}" + (f": {some(names)}" if names else ""), 2)


def _table(rows: Rows) -> Iterator[str]:
    """Yield a table; one that is too wide has its columns as lines."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    if sum(widths) + 2 * len(widths) > WIDTH:
        rows = [list(column) for column in zip(*rows, strict=True)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = (
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


# ---------------------------------------------------------------------------------------------------------------- rows
def _rows(data: EmotionData, system: EmotionModule | None, split: Split, count: int) -> Iterator[str]:
    """Yield the first samples of a split."""
    samples = data.samples(split)
    first = [samples[i] for i in range(min(count, len(samples)))]
    prompts = _Prompts(data, system)
    yield ""
    yield f"the first {len(first)} of {len(samples)} {split} samples{prompts.described}"
    for sample in first:
        yield ""
        yield from _sample(sample)
        yield from prompts.lines(sample)
    if prompts.refusal is not None:
        raise Refused(f"{prompts.refusal}")


def _sample(sample: Sample) -> Iterator[str]:
    turn = sample.target
    facts = [sample.id, f"label {turn.label}" if turn.label is not None else "no label"]
    facts += [f"speaker {turn.speaker}"] if turn.speaker else []
    facts += [f"{len(sample.history)} earlier turns"] if sample.history else []
    yield from _wrapped("   ".join(facts), 2)
    for what, text in (("question", sample.question), ("words", turn.text), ("to write", sample.answer)):
        if text:
            yield from _wrapped(f"  {what:<9} {_visible(text)}", 12)
    for kind, text in turn.descriptions.items():
        yield from _wrapped(f"  described {kind}: {_visible(text)}", 12)
    for part in ("video", "audio"):
        yield from _clip(turn, part)


def _clip(turn: Turn, part: Any) -> Iterator[str]:
    """Yield what is known of a turn's clip or sound: how long, how many, how large."""
    file = getattr(turn, part)
    if file is None:
        return
    try:
        facts = Media().facts(file, part)
    except Unreadable as error:
        facts = f"cannot be read: {error.reason}"
    span = f", of which {turn.start:g} to {turn.end:g} s" if turn.start is not None and turn.end is not None else ""
    half = f", the {turn.crop} half" if turn.crop is not None and part == "video" else ""
    yield from _wrapped(f"  {part:<9} {Path(file).name}: {facts}{span}{half}", 12)


class _Prompts:
    """Writes the prompts of samples as a system does in training, and says what it would refuse.

    Attributes:
        described: behind the heading of the rows.
        refusal: what a fit would refuse of the data; None for nothing.
    """

    def __init__(self, data: EmotionData, system: EmotionModule | None) -> None:
        self.described, self.refusal = "", None
        self.collator: Any = None
        self.tokenizer: Any = None
        if system is None:
            return
        name = type(system).__name__
        if not isinstance(system, LanguageModelModule):
            self.described = f"; no prompt of {name} is shown here"
            return
        built = cast(LanguageModelModule, on_meta(system))
        if built.llm.tokenizer is None:
            self.described = f"; {display_name(built.llm.path)} has no tokenizer, so no prompt is shown"
            return
        trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
        trainer.datamodule = data  # type: ignore[attr-defined]  # set by one of its connectors in a run
        built.trainer = trainer
        try:
            built.setup("fit")
            self.collator = built.collator(training=True)
        except (ValueError, FileNotFoundError) as error:
            self.described, self.refusal = f"; {name} refuses them, see below", f"{name}: {error}"
            return
        self.tokenizer = built.llm.tokenizer
        self.described = f", as {name} learns from them with the tokens of {display_name(built.llm.path)}"

    def lines(self, sample: Sample) -> Iterator[str]:
        """Yield the prompts and answers of a sample, with the number of their tokens."""
        if self.collator is None:
            return
        try:
            batch = self.collator([sample], np.random.default_rng(0))
        except ValueError as error:
            yield from _wrapped(f"  prompt    cannot be written: {error}", 12)
            self.refusal = str(error)
            return
        for problem in batch.get("problems", ()):
            yield from _wrapped(f"  {problem['problem']}  {problem['name']}: {problem['reason']}", 12)
        for name, part in {"prompt": batch, **batch}.items():
            if isinstance(part, Mapping) and "input_ids" in part:  # a second one, as of InstructERC's impact
                yield from self._prompt(name, part)

    def _prompt(self, name: str, batch: Mapping[str, Any]) -> Iterator[str]:
        """Yield a prompt and, in training, its answer: in the same row, or (FARCER) in one of its own."""
        mask = batch["mask"][0]
        ids: list[int] = batch["input_ids"][0][mask].tolist()
        slots = batch.get("slots", batch.get("image_at"))  # where features of a clip stand in place of a token
        at_clip: list[bool] = [False] * len(ids) if slots is None else (slots[0][mask] > 0).tolist()
        common: list[int] = (
            batch["fixed"].tolist() if "fixed" in batch else []
        )  # what all prompts of a batch begin with
        ids, at_clip = [*common, *ids], [*([False] * len(common)), *at_clip]
        answer: list[int] = []
        if "answer_mask" in batch:
            answer = batch["answer"][0][batch["answer_mask"][0]].tolist()
        elif "answer" in batch:
            learnt = int(batch["answer"][0].sum())
            ids, answer = ids[: len(ids) - learnt], ids[len(ids) - learnt :]
        cut = ", shortened to --model.max_length" if batch.get("truncated") else ""
        clips = f", {sum(at_clip)} of them for clips" if any(at_clip) else ""
        yield f"  {name:<9} {len(ids)} tokens{clips}{cut}"
        yield from self._text(ids, at_clip)
        if answer:
            yield f"  {'answer':<9} {len(answer)} tokens"
            yield from self._text(answer, [False] * len(answer))

    def _text(self, ids: Sequence[int], at_clip: Sequence[bool]) -> Iterator[str]:
        """Yield the text of tokens, special ones included, between bars; positions of clips are counted."""
        parts: list[str] = []
        start = 0
        while start < len(ids):
            end = start + 1
            while end < len(ids) and at_clip[end] == at_clip[start]:
                end += 1
            if at_clip[start]:
                parts.append(f"[clip x {end - start}]")
            else:
                parts.append(self.tokenizer.decode(ids[start:end], skip_special_tokens=False))
            start = end
        for line in "".join(parts).split("\n"):
            pieces = textwrap.wrap(_visible(line), WIDTH - 4, drop_whitespace=False, break_on_hyphens=False)
            for i, piece in enumerate(pieces or [""]):
                yield f"  {'|' if i == 0 else ':'} {piece}".rstrip()


# ---------------------------------------------------------------------------------------------------------------- text
def _visible(text: str) -> str:
    """Return a text whose control characters are written out, so that none reaches the terminal."""
    return "".join(ascii(c)[1:-1] if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co") else c for c in text)


def _wrapped(text: str, indent: int) -> list[str]:
    """Return a text in lines of the terminal, those after the first indented."""
    before = len(text) - len(text.lstrip())
    lines = textwrap.wrap(
        text.lstrip(), WIDTH, initial_indent=" " * before, subsequent_indent=" " * indent, break_on_hyphens=False
    )
    return lines or [text]

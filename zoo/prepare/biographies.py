"""``zoo prepare biographies``: what a model thinks of each speaker of a dialogue, as files for --data.descriptions.

    zoo prepare biographies --data MELD --data.root DIR --split train dev test --model NAME --send_to URL --out OUT
    zoo fit ... --data.descriptions '[OUT]' --model.descriptions '[biography]'

The model reads the words of one dialogue, all of them, and no label; it is asked once for each speaker. In OUT lie
``biography_description_{split}.json``, in which every utterance has the biography of who says it. Beside them, each
with ``biography_`` before its name, are ``settings.json`` with the model's name and the prompt's hash,
``answers.jsonl`` (see `zoo.prepare.answer_store.AnswerStore`: a run that was killed goes on), and ``left_out.jsonl``,
the speakers without one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from zoo.backbones.llm_client import ChatModel, QueryFailed
from zoo.data import EmotionData
from zoo.data.text import clean_text
from zoo.prepare.answer_filter import rejection_reason
from zoo.prepare.answer_store import AnswerStore, CachedClient, keep_settings, map_in_order
from zoo.prepare.options import add_options, announce, build_models
from zoo.prepare.prompt_files import fill_prompt, load_prompt
from zoo.prompts import PromptTemplate
from zoo.schema import Sample, Turn
from zoo.storage import write_jsonl, write_whole

PROMPT = "biography"  # name of our prompt, without its language


@dataclass(frozen=True)
class Portrait:
    """One question: who a speaker of a dialogue is.

    Attributes:
        dialogue: id of the dialogue.
        speaker: name.
        turns: all of the dialogue.
    """

    dialogue: str
    speaker: str
    turns: tuple[Turn, ...]

    def prompt(self, template: PromptTemplate, max_words: int) -> str:
        """Return the question: words and names, no label."""
        turns = [{"speaker": turn.speaker, "text": turn.text} for turn in self.turns]
        return fill_prompt(template, turns=turns, speaker=self.speaker, max_words=max_words)


def portraits(samples: Iterable[Sample]) -> list[Portrait]:
    """Return a question for every named speaker of every dialogue, in the corpus' order."""
    dialogues: dict[str, dict[str, Turn]] = {}  # dialogue -> id -> turn
    for s in samples:
        dialogues.setdefault(s.dialogue, {}).update((t.id, t) for t in (*s.history, s.target, *s.later))
    return [
        Portrait(dialogue, speaker, tuple(turns.values()))
        for dialogue, turns in dialogues.items()
        for speaker in dict.fromkeys(t.speaker for t in turns.values() if t.speaker)
    ]


@dataclass
class Biographies:
    """What `ask` did, for one split.

    Attributes:
        texts: utterance key -> biography of its speaker.
        listed: speakers without one: ``dialogue``, ``speaker``, ``what`` (dropped or no answer) and ``why``.
    """

    texts: dict[str, str] = field(default_factory=dict)
    listed: list[dict[str, str]] = field(default_factory=list)


def ask(
    asked: Sequence[Portrait],
    model: ChatModel,
    client: CachedClient,
    template: PromptTemplate,
    max_words: int = 250,
    language: str = "en",
    workers: int = 1,
) -> Biographies:
    """Ask for every speaker; a biography that is longer than ``max_words``, or a refusal, is dropped and listed.

    Raises:
        AbortRun: too many failures; what was answered until then is in the client's store.
    """

    def answer(one: Portrait) -> tuple[str, str]:
        try:
            text = clean_text(client(model, one.prompt(template, max_words)))
        except QueryFailed as error:
            return "no answer", str(error)
        reason = rejection_reason(text, max_words, language, ())
        return ("", text) if reason is None else ("dropped", reason)

    result = Biographies()
    answers = map_in_order(answer, asked, workers, "biographies", "speakers")
    for one, (what, text) in zip(asked, answers, strict=True):
        if what:
            result.listed.append({"dialogue": one.dialogue, "speaker": one.speaker, "what": what, "why": text})
        else:
            result.texts |= {turn.id: text for turn in one.turns if turn.speaker == one.speaker}
    return result


# ---------------------------------------------------------------------------------------------------------- the command
def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "zoo prepare biographies",
        usage="zoo prepare biographies --data NAME --data.root DIR --model M --out DIR [options]",
        description="What a model thinks of each speaker of a dialogue, in the files that --data.descriptions reads.",
    )
    add = parser.add_argument
    parser.add_subclass_arguments(EmotionData, "data", required=True, help="a corpus, as of `zoo fit`")
    add("--split", nargs="+", choices=["train", "dev", "test"], default=["train"], help="which, one or several")
    add("--model", required=True, help="its name at the address of --send_to, or local:PATH for one of this machine")
    add("--out", type=Path, required=True, help="folder of the biographies and the answers")
    add("--max_words", type=int, default=250, help="a longer biography is dropped; a Chinese character is a word")
    add("--template", type=Path, help="your own prompt (Jinja: turns, speaker, max_words)")
    add_options(parser)
    return parser


def main(args: list[str]) -> None:
    """Run ``zoo prepare biographies``."""
    parser = _parser()
    options = parser.parse_args(args)
    for name in ("max_words", "workers"):
        if options[name] < 1:
            raise ValueError(f"--{name} is 1 or more, got {options[name]}")
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"--limit is 1 or more, got {options.limit}")
    (model,) = build_models([options.model], options)
    data = parser.instantiate(options).data
    asked = {split: portraits(data.samples(split))[: options.limit] for split in options.split}
    count = sum(map(len, asked.values()))
    if not count:
        raise ValueError(
            f"{type(data).__name__} names no speakers in {', '.join(options.split)}; expected names, a biography is of "
            "one of them"
        )
    announce([(model, f"the words of whole dialogues, {count} questions", False)], options.yes_send_media)
    _run(options, model, asked)


def _run(options: Any, model: ChatModel, asked: dict[str, list[Portrait]]) -> None:
    out: Path = options.out
    template, digest = load_prompt(options.template, PROMPT, options.language)
    settings = {"command": "biographies", "model": model.name, "language": options.language, "template": digest}
    settings |= {"max_words": options.max_words}
    paths = {split: out / f"biography_description_{split}.json" for split in asked}
    answers, settings_file = out / "biography_answers.jsonl", out / "biography_settings.json"
    keep_settings(settings_file, settings, [*paths.values(), answers])
    listed: list[dict[str, str]] = []
    try:
        with AnswerStore(answers) as store:
            client = CachedClient(store, options.max_failures)
            for split, of_split in asked.items():
                result = ask(of_split, model, client, template, options.max_words, options.language, options.workers)
                write_whole(paths[split], json.dumps(result.texts, ensure_ascii=False, indent=0) + "\n")
                listed += [{"split": split, **row} for row in result.listed]
                written = len(of_split) - len(result.listed)
                print(f"{paths[split]}: {written} of {len(of_split)} speakers ({client.sent} asked so far)")
    finally:
        write_jsonl(out / "biography_left_out.jsonl", listed)
    if listed:
        counts = Counter(f"{row['what']}: {row['why']}" for row in listed)
        print("  " + "; ".join(f"{n} {what}" for what, n in counts.most_common(5)))
        print(f"  each named in {out / 'biography_left_out.jsonl'}")
    if unanswered := sum(row["what"] == "no answer" for row in listed):
        raise ValueError(f"{unanswered} speakers have no answer, see above; run the command again to ask again")

"""Synthetic: the embedded corpus, a sitcom that is generated and whose best reachable scores are known.

`zoo.sitcom` generates it. Read the principle at the top of `zoo.sitcom.script` before comparing systems that select or
drop modalities.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from zoo.data.base import EmotionData, Reading, dialogue_samples
from zoo.data.meld import MELD
from zoo.schema import Labels, Sample, Split, Turn
from zoo.sitcom.cues import LABELS
from zoo.sitcom.posteriors import posterior, with_history
from zoo.sitcom.release import read_record, split_dialogues
from zoo.sitcom.settings import Dialogue, Settings

SIZES: dict[Split, int] = {"train": 400, "dev": 60, "test": 100}


class Synthetic(EmotionData):
    """The synthetic sitcom: generated dialogues with MELD's labels and shares, texts, faces, voices and descriptions.

    Without ``root`` it needs no files: texts and descriptions are made in memory, the same on every machine. Faces and
    voices are clips, so they need a folder that ``zoo prepare synthetic --out DIR`` wrote: with ``--data.root DIR`` the
    corpus is read from there through the reader of `MELD`, and the arguments below come from its ``corpus.json`` (one
    that is given all the same must agree).

    What a classifier must not see (whether a text misleads, whether a face is a mask, the exact posteriors) is not in
    the samples; get it from ``dialogues(split)``, whose utterances are in the order of the samples. Source and licence:
    ours.

    Args:
        corpus_seed: which corpus is generated (``seed`` is that of the training order); at least 0; 0 if None.
        train_dialogues: dialogues of the training split, about 8.5 utterances each; 400 if None. More of them extend
            the split.
        dev_dialogues: dialogues of the development split; 60 if None.
        test_dialogues: dialogues of the test split; 100 if None.
        descriptions: captioner: clean (6 % wrong; the default), noisy (wrong in 55 % of the explicit texts, 10 % of the
            others) or noisy_independent (35 % wrong).
        domain: studio (the default), or wild for a domain shift: another wording of texts and captions, other faces,
            lights and microphones; reworded shifts the wording alone. Labels stay the same.
    """

    unpublished_options = (
        "corpus_seed",
        "train_dialogues",
        "dev_dialogues",
        "test_dialogues",
        "descriptions",
        "domain",
    )
    licence = "Apache-2.0"
    material = "generated: English sentences from templates, drawn faces, synthetic voices"
    labels = Labels("synthetic", LABELS)

    def __init__(
        self,
        corpus_seed: int | None = None,
        train_dialogues: int | None = None,
        dev_dialogues: int | None = None,
        test_dialogues: int | None = None,
        descriptions: Literal["clean", "noisy", "noisy_independent"] | None = None,
        domain: Literal["studio", "wild", "reworded"] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        values: dict[str, Any] = {
            "corpus_seed": corpus_seed,
            "train_dialogues": train_dialogues,
            "dev_dialogues": dev_dialogues,
            "test_dialogues": test_dialogues,
            "descriptions": descriptions,
            "domain": domain,
        }
        options = {name: value for name, value in values.items() if value is not None}
        for name, value in options.items():
            least = 0 if name == "corpus_seed" else 1
            if isinstance(value, int) and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if self.root is None:
            self.corpus_seed: int = options.get("corpus_seed", 0)
            self.sizes: dict[Split, int] = {s: options.get(f"{s}_dialogues", n) for s, n in SIZES.items()}
            self.settings = Settings(descriptions=descriptions or "clean", domain=domain or "studio")  # checks them
            return
        self.record = read_record(self.root)
        self.corpus_seed, self.sizes, self.settings = (
            self.record[name] for name in ("corpus_seed", "dialogues", "settings")
        )
        written = {f"{split}_dialogues": n for split, n in self.sizes.items()} | {
            "corpus_seed": self.corpus_seed,
            "descriptions": self.settings.descriptions,
            "domain": self.settings.domain,
        }
        differs = [f"{name} {written[name]}, not {value}" for name, value in options.items() if value != written[name]]
        if differs:
            raise ValueError(
                f"the corpus in {self.root} has {'; '.join(differs)}; leave the option out, or write "
                "another corpus with zoo prepare synthetic"
            )

    def dialogues(self, split: Split) -> list[Dialogue]:
        """Generate the split as written, hidden truth and all: anew at each call, about 0.3 s per 1000 utterances."""
        return split_dialogues(self.corpus_seed, split, self.sizes[split], self.settings)

    def reachable(self, split: Split, reads: Sequence[str]) -> dict[str, str] | None:
        """Return the most probable label of every utterance, exact; ``turns`` adds the turns before it.

        None where turns after it are read, which the posterior does not know.
        """
        if "later turns" in reads:
            return None
        parts = [part for part in reads if part != "turns"]
        answers: dict[str, str] = {}
        for dialogue in self.dialogues(split):
            posteriors = (
                with_history(dialogue, parts)
                if "turns" in reads
                else [posterior(u, parts) for u in dialogue.utterances]
            )
            answers |= {
                f"{self.labels.corpus}/{split}/{u.id}": LABELS[int(np.argmax(p))]
                for u, p in zip(dialogue.utterances, posteriors, strict=True)
            }
        return answers

    def read(self, split: Split) -> Reading:
        if self.root is not None:
            official = {s: (self.record["utterances"][s], n) for s, n in self.sizes.items()}
            return _Written(self.root, official).read(split)
        samples: list[Sample] = []
        for dialogue in self.dialogues(split):
            turns = [Turn(u.id, u.speaker, u.text, u.label, u.descriptions) for u in dialogue.utterances]
            where = f"synthetic/{split}"
            samples += dialogue_samples(turns, where, f"{where}/{dialogue.id}", self.labels)
        return Reading(samples)


class _Written(MELD):
    """A written sitcom in the layout of the MELD release, without the faults of MELD's own files."""

    labels = Synthetic.labels
    known_bad = {}

    def __init__(self, root: Path, official: dict[Split, tuple[int, int]]) -> None:
        super().__init__(root=root, descriptions=[root])
        self.official = official

"""Synthetic: the embedded corpus, a sitcom that is generated and whose best reachable scores are known.

`script` writes the dialogues and knows every probability, `phrases` has the words. Read the principle at the top of
`script` before comparing systems that select or drop descriptions.
"""

from __future__ import annotations

from typing import Any, Literal

from zoo.data.base import EmotionData, Reading, Split
from zoo.data.synthetic.script import LABELS, Dialogue, Settings, generate
from zoo.schema import Labels, Sample, Turn


class Synthetic(EmotionData):
    """The synthetic sitcom: generated dialogues with MELD's labels and shares, texts, and audio and video descriptions.

    Needs no files and no download; the same arguments give the same corpus on every machine. What a classifier must not
    see (whether a text misleads, whether a description is wrong, the exact posteriors) is not in the samples; get it
    from ``dialogues(split)``, whose utterances are in the order of the samples. Source and licence: ours.

    Args:
        corpus_seed: which corpus is generated (``seed`` is that of the training order); at least 0.
        train_dialogues: dialogues of the training split, about 8.5 utterances each. More of them extend the split.
        dev_dialogues: dialogues of the development split.
        test_dialogues: dialogues of the test split.
        descriptions: captioner: clean (6 % wrong), noisy (wrong in 55 % of the explicit texts, 10 % of the others) or
            noisy_independent (35 % wrong).
        domain: wording of texts and captions: studio, or wild for a domain shift. Labels stay the same.
    """

    labels = Labels("synthetic", LABELS)

    def __init__(
        self,
        corpus_seed: int = 0,
        train_dialogues: int = 400,
        dev_dialogues: int = 60,
        test_dialogues: int = 100,
        descriptions: Literal["clean", "noisy", "noisy_independent"] = "clean",
        domain: Literal["studio", "wild"] = "studio",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if self.root is not None:
            raise ValueError(f"Synthetic is generated and reads no folder, got root {self.root}; leave out --data.root")
        if corpus_seed < 0:
            raise ValueError(f"corpus_seed must be at least 0, got {corpus_seed}")
        self.sizes: dict[Split, int] = {"train": train_dialogues, "dev": dev_dialogues, "test": test_dialogues}
        for split, size in self.sizes.items():
            if size < 1:
                raise ValueError(f"{split}_dialogues must be at least 1, got {size}")
        self.corpus_seed = corpus_seed
        self.settings = Settings(descriptions=descriptions, domain=domain)  # checks them

    def dialogues(self, split: Split) -> list[Dialogue]:
        """The split as written, hidden truth and all; generated anew at each call, about 0.3 s per 1000 utterances."""
        seed = len(self.sizes) * self.corpus_seed + list(self.sizes).index(split)  # no two splits of any corpora alike
        return generate(seed, self.sizes[split], descriptions=self.settings.descriptions, domain=self.settings.domain)

    def read(self, split: Split) -> Reading:
        samples = []
        for dialogue in self.dialogues(split):
            turns = tuple(Turn(u.id, u.speaker, u.text, u.label, u.descriptions) for u in dialogue.utterances)
            for i, turn in enumerate(turns):
                samples.append(Sample(
                    f"synthetic/{split}/{turn.id}", f"synthetic/{split}/{dialogue.id}", self.labels, turn, turns[:i]))
        return Reading(samples)

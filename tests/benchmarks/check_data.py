"""Reads the real MELD, EmoryNLP and GoEmotions, compares every count with what is known, exits 1 where one differs.

python tests/benchmarks/check_data.py --data-root ../shared/data
"""

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

from zoo.data import leaks
from zoo.data.emorynlp import EmoryNLP
from zoo.data.goemotions import GoEmotions
from zoo.data.meld import MELD

SPLITS = ("train", "dev", "test")
MELD_LABELS = {  # neutral, surprise, fear, sadness, joy, disgust, anger
    "train": (4710, 1205, 268, 683, 1743, 271, 1109),
    "dev": (470, 150, 40, 111, 163, 22, 153),
    "test": (1256, 281, 50, 208, 402, 68, 345),
}
DESCRIBED = {  # of the released descriptions, test lacks the two of mis-cut clips
    "speech": (9988, 1108, 2610 - 2),
    "stage": (943, 96, 262),
    "scene": (7832, 915, 2053),
}
GOEMOTIONS = {"train": (43410, 39555), "dev": (5426, 4946), "test": (5427, 4968)}  # sentences, with a single label
EMORYNLP = {  # utterances, scenes; joyful, mad, peaceful, neutral, sad, powerful, scared
    "train": ((7551, 659), (1677, 785, 638, 2485, 474, 551, 941)),
    "dev": ((954, 89), (205, 97, 82, 322, 51, 70, 127)),
}
LEAKS = (1691, 314)  # MELD's test utterances of five words or more (between spaces), and those also in EmoryNLP


def expect(what: str, got: object, expected: object) -> None:
    if got != expected:
        sys.exit(f"{what}: got {got}, expected {expected}")
    print(f"{what}: {got}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path, required=True, help="holds meld/, emorynlp/ and goemotions/")
    root = parser.parse_args().data_root
    start = time.perf_counter()
    meld = MELD(root=root / "meld", descriptions=[root / "meld"])
    last = MELD(root=root / "meld", protocol="last_utterance")
    for i, split in enumerate(SPLITS):
        samples = meld.samples(split)
        expect(f"meld {split} utterances", len(samples), (9989, 1109, 2610)[i])
        expect(f"meld {split} dialogues", len({s.dialogue for s in samples}), (1038, 114, 280)[i])
        expect(f"meld {split} last utterances", len(last.samples(split)), (1038, 114, 280)[i])
        expect(f"meld {split} ids differ", len({s.id for s in samples}), len(samples))
        counts = Counter(s.target.label for s in samples)
        expect(f"meld {split} labels", tuple(counts[name] for name in MELD.labels.names), MELD_LABELS[split])
        for kind, numbers in DESCRIBED.items():
            expect(f"meld {split} {kind} descriptions", sum(kind in s.target.descriptions for s in samples), numbers[i])
        expect(f"meld {split} left out", meld.reading(split).excluded, {})
        print(f"meld {split} notes: {meld.reading(split).report()['notes']}")
    emorynlp = EmoryNLP(root=root / "emorynlp")
    for split, (numbers, labels) in EMORYNLP.items():
        samples = emorynlp.samples(split)
        expect(f"emorynlp {split} utterances, scenes", (len(samples), len({s.dialogue for s in samples})), numbers)
        counts = Counter(s.target.label for s in samples)
        expect(f"emorynlp {split} labels", tuple(counts[name] for name in EmoryNLP.labels.names), labels)
        expect(f"emorynlp {split} left out", emorynlp.reading(split).excluded, {})
    both = [*emorynlp.samples("train"), *emorynlp.samples("dev")]
    shared = leaks.leak_report({"meld/test": meld.samples("test"), "emorynlp": both}).iloc[0]
    got = int(shared["utterances in a"]), int(shared["also in b"])
    expect("meld test utterances of five words or more, also in emorynlp train and dev", got, LEAKS)
    clean = EmoryNLP(root=root / "emorynlp", drop_leaks_to=root / "meld")
    kept = [*clean.samples("train"), *clean.samples("dev")]
    expect("of those after drop_leaks_to", leaks.find_leaks(meld.samples("test"), kept), [])
    print(f"emorynlp notes: {clean.reading('train').report()['notes']}, {clean.reading('dev').report()['notes']}")
    for option, column in (("first", 0), ("exclude", 1)):
        goemotions = GoEmotions(root=root / "goemotions", multi_label=option)
        for split in SPLITS:
            expect(f"goemotions {split}, {option}", len(goemotions.samples(split)), GOEMOTIONS[split][column])
            expect(f"goemotions {split} left out", goemotions.reading(split).excluded, {})
            print(f"goemotions {split} notes: {goemotions.reading(split).report()['notes']}")
    print(f"read in {time.perf_counter() - start:.1f} s")
    leaks.main([f"--{name}={root / name}" for name in ("meld", "emorynlp", "goemotions")])
    print("all counts as expected")


if __name__ == "__main__":
    main()

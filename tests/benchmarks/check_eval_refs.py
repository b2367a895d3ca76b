"""Reads the real reference files of MER2024, DFEW and EMER and compares every count with what is known; exits 1 at the
first that differs.

    python tests/benchmarks/check_eval_refs.py --data-root ../shared/data/eval_refs

The folder holds mer2024_reference-{semi,noise}.csv, dfew_set_1.csv, emer_gt-eng.csv and emer_final-EMER-reason.csv;
they are read through links in a temporary folder of the released layout. There are no clips and no training lists.
"""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

from zoo.data import DFEW, EMER, MER2024, EmotionData
from zoo.metrics import emotions, reason_overlap

LAYOUT = {
    "mer2024_reference-semi.csv": "mer/reference-semi.csv",
    "mer2024_reference-noise.csv": "mer/reference-noise.csv",
    "dfew_set_1.csv": "dfew/EmoLabel_DataSplit/test(single-labeled)/set_1.csv",
    "emer_gt-eng.csv": "emer/dataset-v1/gt-eng.csv",
    "emer_final-EMER-reason.csv": "emer/dataset-v2/final-EMER-reason.csv",
}
MER = {  # happy, sad, neutral, angry, surprise, worried
    "semi": (1169, (246, 317, 201, 163, 83, 159)),
    "noise": (1170, (233, 295, 232, 236, 55, 119)),
}
DFEW_1 = (489, 379, 534, 435, 294, 29, 181)  # happy, sad, neutral, angry, surprise, disgust, fear; 2341
EMER_1 = (32, 11, 0, 36, 4, 17)  # MER2024's order; 100


def expect(what: str, got: object, expected: object) -> None:
    if got != expected:
        sys.exit(f"{what}: got {got}, expected {expected}")
    print(f"{what}: {got}")


def labels(data: EmotionData) -> tuple[int, ...]:
    counts = Counter(s.target.label for s in data.samples("test"))
    return tuple(counts[name] for name in data.labels.names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    given = parser.parse_args().data_root.resolve()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for source, place in LAYOUT.items():
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            (root / place).symlink_to(given / source)
        check(root)
    print("all counts as expected")


def check(root: Path) -> None:
    names = {}
    for track, (n, counts) in MER.items():
        data = MER2024(root=root / "mer", track=track)
        names[track] = {s.target.id for s in data.samples("test")}
        expect(f"mer2024 {track} clips", len(names[track]), n)
        expect(f"mer2024 {track} as the authors state", data.reading("test").official, n)
        expect(f"mer2024 {track} {', '.join(data.labels.names)}", labels(data), counts)
        expect(f"mer2024 {track} left out", data.reading("test").excluded, {})
        expect(f"mer2024 {track} protocol", data.protocol, f"mer2024_{track}")
    expect("mer2024 clips in both tracks", len(names["semi"] & names["noise"]), 0)

    data = DFEW(root=root / "dfew", fold=1)
    ids = [int(s.target.id) for s in data.samples("test")]
    expect("dfew fold 1 test clips", len(set(ids)), 2341)
    expect(f"dfew fold 1 {', '.join(data.labels.names)}", labels(data), DFEW_1)
    expect("dfew fold 1 first and last number", (min(ids), max(ids)), (1, 4342))
    expect("dfew fold 1 left out", data.reading("test").excluded, {})
    expect("dfew WAR of Emotion-Qwen as hits, 77.19 %", round(0.7719 * 2341), 1807)

    v1, v2 = (EMER(root=root / "emer", version=version) for version in ("v1", "v2"))
    expect("emer v1 clips", len(v1.samples("test")), 100)
    expect(f"emer v1 {', '.join(v1.labels.names)}", labels(v1), EMER_1)
    expect("emer v1 without words", v1.reading("test").notes["without words"], 7)
    expect("emer v2 clips", len(v2.samples("test")), 332)
    shared = {s.target.id for s in v1.samples("test")} & {s.target.id for s in v2.samples("test")}
    expect("emer clips in both versions", len(shared), 39)
    expect("emer v2 with an emotion word, from v1", sum(s.target.label is not None for s in v2.samples("test")), 39)
    for name, emer in (("v1", v1), ("v2", v2)):
        expect(f"emer {name} left out", emer.reading("test").excluded, {})
        reasons = emer.reasons()
        own = [{"id": key, "text": text} for key, text in reasons.items()]
        scores = reason_overlap(own, reasons)
        expect(f"emer {name} references against themselves", (scores["clue_overlap/f1"], scores["n"]), (1.0, len(own)))
        unnamed = sum(not emotions(text) for text in reasons.values())
        print(f"emer {name}: {unnamed} of {len(own)} references name no emotion by one of the listed words")
        shifted = [{"id": a["id"], "text": b["text"]} for a, b in zip(own, [*own[1:], own[0]], strict=True)]
        chance = reason_overlap(shifted, reasons)
        print(
            f"emer {name}: F1 of another clip's explanation: clues {chance['clue_overlap/f1']:.3f}, "
            f"labels {chance['label_overlap/f1']:.3f}"
        )


if __name__ == "__main__":
    main()

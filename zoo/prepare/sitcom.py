"""``zoo prepare synthetic``: the embedded sitcom as files."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from zoo.prepare.command import Add
from zoo.schema import Split


def add_synthetic(add: Add) -> Callable[[argparse.Namespace], None]:
    """Add the command ``synthetic``; return what runs it."""
    parser = add(
        "synthetic",
        help="the embedded sitcom as files, in the layout of the MELD release, with clips",
        description="Writes the embedded sitcom: CSVs, clips (H.264 and AAC), descriptions, hidden truth, questions "
        "about the scene and a contact sheet. Train on it with --data Synthetic --data.root OUT.",
    )
    parser.add_argument("--out", required=True, type=Path, help="a folder that does not exist yet")
    parser.add_argument("--seed", type=int, default=0, help="which corpus; another seed shares no line of the plot")
    parser.add_argument(
        "--dialogues", type=int, default=100, help="of all splits together, about 8.5 utterances each (100)"
    )
    parser.add_argument(
        "--shares",
        type=float,
        nargs=3,
        default=(0.7, 0.1, 0.2),
        metavar=("TRAIN", "DEV", "TEST"),
        help="how the dialogues are shared out (.7 .1 .2)",
    )
    parser.add_argument("--descriptions", choices=["clean", "noisy", "noisy_independent"], default="clean")
    parser.add_argument("--domain", choices=["studio", "wild", "reworded"], default="studio")
    parser.add_argument(
        "--label_shares", type=float, nargs=7, metavar="SHARE", help="weight of each label; MELD's if not given"
    )
    parser.add_argument(
        "--text_modes", type=float, nargs=3, metavar=("EXPLICIT", "AMBIGUOUS", "MISLEADING"), help="(.50 .32 .18)"
    )
    parser.add_argument("--inertia", type=float, help="how often a label is the speaker's own last one (.30)")
    parser.add_argument("--contagion", type=float, help="how often it follows the previous utterance (.25)")
    parser.add_argument(
        "--face_cues",
        type=float,
        nargs=2,
        metavar=("ABSENT", "MISLEADING"),
        help="how often a face shows nothing, and how often another label (.12 .04)",
    )
    parser.add_argument("--voice_cues", type=float, nargs=2, metavar=("ABSENT", "MISLEADING"), help="(.12 .04)")
    parser.add_argument("--workers", type=int, help="processes; one per core if not given")
    parser.add_argument("--report", action="store_true", help="print the best reachable scores")
    return write_sitcom


def write_sitcom(options: argparse.Namespace) -> None:
    """Write the sitcom that the options describe."""
    from zoo.data.text import whole_number
    from zoo.sitcom.contact_sheet import contact_sheet
    from zoo.sitcom.posteriors import ceilings
    from zoo.sitcom.release import write
    from zoo.sitcom.settings import Settings

    if options.workers is not None:
        whole_number("--workers", options.workers, 1)
    whole_number("--seed", options.seed)
    knobs = {
        "descriptions": options.descriptions,
        "domain": options.domain,
        "shares": options.label_shares,
        "text_modes": options.text_modes,
        "inertia": options.inertia,
        "contagion": options.contagion,
        "face_cues": options.face_cues,
        "voice_cues": options.voice_cues,
    }
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in knobs.items() if v is not None}
    settings = Settings(**fields)
    start = time.perf_counter()
    sizes = share_out(options.dialogues, options.shares)
    corpus = write(options.out, sizes, options.seed, settings, options.workers)
    contact_sheet(options.out, corpus["test"][:3], "test", options.out / "contact_sheet.png")
    counts = {split: sum(len(d.utterances) for d in dialogues) for split, dialogues in corpus.items()}
    summary = ", ".join(f"{split} {n} ({sizes[split]} dialogues)" for split, n in counts.items())
    print(f"wrote {options.out}: {summary}, {time.perf_counter() - start:.0f} s")
    print(f"look at {options.out / 'contact_sheet.png'}")
    if options.report:
        every = [dialogue for dialogues in corpus.values() for dialogue in dialogues]
        print_ceilings(ceilings(every), sum(counts.values()))


def share_out(dialogues: int, shares: Sequence[float]) -> dict[Split, int]:
    """Dialogues of each split: the shares, rounded, and at least one each.

    Raises:
        ValueError: fewer than 3 dialogues, or shares that are not positive.
    """
    if dialogues < 3 or min(shares) <= 0:
        raise ValueError(
            f"need at least 3 dialogues (one for each split) and positive shares, got {dialogues} and {list(shares)}"
        )
    dev, test = (min(max(1, round(dialogues * share / sum(shares))), dialogues - 2) for share in shares[1:])
    test = min(test, dialogues - dev - 1)
    return {"train": dialogues - dev - test, "dev": dev, "test": test}


def print_ceilings(scores: dict[str, dict[str, float]], n: int) -> None:
    """Print a table of the best reachable scores, with and without what came before."""
    from rich.console import Console
    from rich.table import Table

    endings = ("", " + history", " + past labels", " + history + past labels")
    table = Table(title=f"Best reachable accuracy / weighted F1 in percent, by the exact posteriors (n = {n})")
    for column in ("seen of the utterance", "it alone", "+ history", "+ past labels", "+ both"):
        table.add_column(column, justify="left" if column.startswith("seen") else "right")
    for name in (name for name in scores if not name.endswith(endings[1:3])):
        cells = (scores[name + ending] for ending in endings)
        table.add_row(name, *(f"{100 * s['accuracy']:.1f} / {100 * s['weighted_f1']:.1f}" for s in cells))
    Console(width=120).print(table)

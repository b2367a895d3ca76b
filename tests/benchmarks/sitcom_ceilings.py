"""The embedded sitcom against its own ceilings, on a corpus that nothing was trained or tuned on.

    python tests/benchmarks/sitcom_ceilings.py --out runs/sitcom_ceilings               # everything
    python tests/benchmarks/sitcom_ceilings.py --out runs/sitcom_ceilings --parts lm    # probes | encoders | lm

Makes a new corpus (``--seed``), studio and wild, and scores on its test split: simple probes (TF-IDF, a small CNN on
the middle frame, prosody features), the published encoders and language model
(as published, nothing is trained). Prints accuracy beside that of the exact posterior on the same utterances, with the
difference in points and its paired standard error. Exit code 1 if a bound of the table is missed. Made corpora and runs
are kept, so the command can be stopped and given again.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchaudio
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from zoo.data import Synthetic
from zoo.media import Media
from zoo.sitcom.cues import LABELS
from zoo.sitcom.posteriors import posterior

RATE = 16_000


# -------------------------------------------------------------------------------------------------------------- corpora
def corpus(options: argparse.Namespace, domain: str, train: int, test: int) -> Synthetic:
    """A written corpus of the new seed; made once."""
    root = options.out / f"{domain}-{options.seed}"
    if not root.exists():
        total = train + test + 1
        shares = [str(n / total) for n in (train, 1, test)]
        start = time.perf_counter()
        run(
            "prepare",
            "synthetic",
            "--seed",
            options.seed,
            "--domain",
            domain,
            "--dialogues",
            total,
            "--shares",
            *shares,
            "--out",
            root,
        )
        print(f"made {root} in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return Synthetic(root=root)


def run(*args: object) -> None:
    command = [sys.executable, "-m", "zoo", *map(str, args)]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-3000:]}")


def utterances(data: Synthetic, split: str) -> list:
    return [u for d in data.dialogues(split) for u in d.utterances]


def truth(data: Synthetic, split: str = "test") -> np.ndarray:
    return np.array([LABELS.index(u.label) for u in utterances(data, split)])


# ---------------------------------------------------------------------------------------------------------------- table
class Table:
    """Rows of (what, accuracy, ceiling, difference), each with its bound."""

    def __init__(self) -> None:
        self.missed: list[str] = []
        print("| what | n | accuracy [95 %] | weighted F1 | ceiling | difference ± s.e. | bound |")
        print("|---|---|---|---|---|---|---|")

    def add(self, what: str, right: np.ndarray, best: np.ndarray, wf1: float, least: float | None) -> None:
        """``right`` and ``best`` say for each utterance whether the system and the exact posterior were right."""
        difference = right.astype(float) - best
        mean, error = 100 * difference.mean(), 100 * difference.std(ddof=1) / np.sqrt(len(right))
        half = 196 * right.std(ddof=1) / np.sqrt(len(right))
        ok = mean <= 3 * error and (least is None or mean >= least)
        bound = "no more than 3 s.e. above" + (f", at least {least:+g}" if least is not None else "")
        cells = (
            what,
            len(right),
            f"{100 * right.mean():.1f} ± {half:.1f}",
            f"{100 * wf1:.1f}",
            f"{100 * best.mean():.1f}",
            f"{mean:+.1f} ± {error:.1f}",
            f"{bound}: {'holds' if ok else 'MISSED'}",
        )
        print("|", " | ".join(map(str, cells)), "|", flush=True)
        if not ok:
            self.missed.append(what)

    def require(self, what: str, value: float, least: float) -> None:
        print(f"| {what} | | {value:.1f} | | | | at least {least:g}: {'holds' if value >= least else 'MISSED'} |")
        if value < least:
            self.missed.append(what)


def bayes(data: Synthetic, given: tuple[str, ...], split: str = "test") -> np.ndarray:
    """Whether the most probable label is right, for each utterance."""
    us = utterances(data, split)
    return np.stack([posterior(u, given) for u in us]).argmax(1) == truth(data, split)


def weighted_f1(predicted: np.ndarray, true: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return f1_score(true, predicted, average="weighted")


def read_predictions(run_folder: Path) -> np.ndarray:
    rows = [json.loads(line) for line in (run_folder / "predictions.jsonl").read_text().splitlines()]
    return np.array([LABELS.index(r["predicted"]) if r["predicted"] else -1 for r in rows])


# --------------------------------------------------------------------------------------------------------------- probes
def text_probe(test: Synthetic) -> np.ndarray:
    """Trained on 3,000 dialogues of another seed: text needs no clips."""
    train = Synthetic(corpus_seed=test.corpus_seed + 1, train_dialogues=3000)
    texts = {s: [u.text for u in utterances(d, s)] for d, s in ((train, "train"), (test, "test"))}
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 3), sublinear_tf=True, token_pattern=r"[\w']+|[?!.,]+", min_df=2),
        LogisticRegression(C=4, max_iter=200),
    )
    return model.fit(texts["train"], truth(train, "train")).predict(texts["test"])


def face_probe(train: Synthetic, test: Synthetic, media: Media, epochs: int = 14) -> np.ndarray:
    """A CNN of four convolutions on the middle frame, with mirrored and shifted copies."""

    def frames(data: Synthetic, split: str) -> torch.Tensor:
        return torch.from_numpy(
            np.concatenate([media.frames(s.target.video, n=1, position="middle") for s in data.samples(split)])
        )

    torch.manual_seed(0)
    x, y, held = frames(train, "train"), torch.from_numpy(truth(train, "train")), frames(test, "test")
    layers: list[nn.Module] = []
    for before, after in ((3, 24), (24, 48), (48, 64), (64, 96)):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(96 * 36, len(LABELS)))
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.02)
    steps = epochs * (len(x) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    for step in range(steps):
        rows = torch.randint(len(x), (64,))
        batch = x[rows].float() / 127.5 - 1
        batch = torch.where(torch.rand(64, 1, 1, 1) < 0.5, batch.flip(-1), batch)
        batch = torch.roll(batch, tuple(torch.randint(-4, 5, (2,)).tolist()), (2, 3))
        loss = nn.functional.cross_entropy(model(batch), y[rows], label_smoothing=0.05)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 200 == 0:
            print(f"face probe {step}/{steps}: {loss.item():.3f}", file=sys.stderr, flush=True)
    model.eval()
    with torch.no_grad():
        return torch.cat([model(b.float() / 127.5 - 1) for b in held.split(256)]).argmax(1).numpy()


def prosody(wave: np.ndarray) -> np.ndarray:
    """f0, level, rhythm and spectrum of a waveform in about 130 numbers (torchaudio)."""
    x = torch.from_numpy(wave)
    power = torchaudio.functional.spectrogram(x, 0, torch.hann_window(640), 1024, 160, 640, 2.0, False)  # (513, T)
    mel = torchaudio.functional.melscale_fbanks(513, 60.0, 7600.0, 24, RATE)
    log_mel = 10 * torch.log10(power.T @ mel + 1e-6)  # (T, 24)
    level = 10 * torch.log10(power.sum(0) + 1e-6)
    voiced = level > level.quantile(0.95) - 15
    f0 = torchaudio.functional.detect_pitch_frequency(x, RATE, frame_time=0.01, freq_low=70, freq_high=500)
    n = min(len(f0), len(level))
    f0, heard = torch.log2(f0[:n]), voiced[:n]
    f0 = f0[heard] if heard.sum() > 5 else f0
    time_ = torch.linspace(-0.5, 0.5, len(f0))
    middle = f0.median()
    kept = (f0 - middle).abs() < 0.7  # octave errors
    slope = (time_ * (f0 - f0[kept].mean()))[kept].sum() / (time_[kept] ** 2).sum().clamp(min=1e-3)
    spread = (f0 - slope * time_)[kept].std()
    beat = (level - level.mean())[voiced.nonzero().min() : voiced.nonzero().max() + 1].clamp(min=-15)
    rhythm = torch.fft.rfft(beat * torch.hann_window(len(beat)), 1024).abs()[15:130] ** 2  # 1.5 to 12.7 Hz
    rhythm = rhythm.unflatten(0, (23, 5)).sum(1)
    rate = (torch.arange(23) * rhythm).sum() / rhythm.sum()
    edges = ((4, 26), (26, 64), (64, 128), (128, 320))  # bins of 15.6 Hz
    bands = [10 * torch.log10(power[a:b][:, voiced].mean() + 1e-9) for a, b in edges]
    numbers = torch.stack(
        [
            middle,
            f0[kept].mean(),
            spread,
            torch.log(spread + 0.01),
            slope,
            f0[kept].quantile(0.9) - f0[kept].quantile(0.1),
            level.quantile(0.95),
            level.quantile(0.95) - level.min(),
            level[voiced].std(),
            rate,
            *bands,
            bands[0] - bands[2],
            bands[0] - bands[3],
            bands[1] - bands[3],
            kept.float().mean(),
            torch.tensor(len(wave) / RATE),
        ]
    )
    shape = torch.cat([log_mel[voiced].mean(0), log_mel[voiced].std(0), log_mel.amin(0)[::4]])
    return torch.cat([numbers, shape, 10 * torch.log10(rhythm / rhythm.sum() + 1e-4)]).numpy()


def voice_probe(train: Synthetic, test: Synthetic, media: Media) -> np.ndarray:
    """Logistic regression on prosody; nobody tells it who speaks."""

    def features(data: Synthetic, split: str) -> np.ndarray:
        return np.stack([prosody(media.waveform(s.target.audio)) for s in data.samples(split)])

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    return model.fit(features(train, "train"), truth(train, "train")).predict(features(test, "test"))


def probes(options: argparse.Namespace, table: Table) -> None:
    studio = corpus(options, "studio", options.train, options.test)
    media = Media(options.out / "cache")
    y = truth(studio)
    tests: dict[str, tuple[str, Callable[[], np.ndarray]]] = {
        "text": ("TF-IDF + logistic regression", lambda: text_probe(studio)),
        "voice": ("prosody features + logistic regression", lambda: voice_probe(studio, studio, media)),
        "face": ("small CNN, middle frame", lambda: face_probe(studio, studio, media)),
    }
    for modality, (what, predict) in tests.items():
        predicted = predict()
        table.add(f"{modality}: {what}", predicted == y, bayes(studio, (modality,)), weighted_f1(predicted, y), -8)
    ceilings = {given: 100 * bayes(studio, given).mean() for given in (("text",), ("text", "face", "voice"))}
    table.require("ceiling of text + face + voice above text alone", np.diff(list(ceilings.values()))[0], 15)
    print(f"| majority class | {len(y)} | {100 * (y == 0).mean():.1f} | | | | |")


# ------------------------------------------------------------------------------------------------------------ published
def tested(options: argparse.Namespace, name: str, *args: object) -> Path:
    """The run folder of a test; run once."""
    root = options.out / "runs" / name
    folder = root / "lightning_logs" / "version_0"
    if not (folder / "predictions.jsonl").is_file():
        run(
            "test",
            *args,
            "--trainer.default_root_dir",
            root,
            "--trainer.enable_progress_bar=false",
            "--trainer.accelerator=cpu",
        )
    return folder


def encoders(options: argparse.Namespace, table: Table) -> None:
    data = {d: corpus(options, d, options.train if d == "studio" else 1, options.test) for d in ("studio", "wild")}
    for name, modality in (("tiny-vit-sitcom", "face"), ("tiny-hubert-sitcom", "voice")):
        accuracy = {}
        for domain, d in data.items():
            folder = tested(
                options,
                f"{name}-{domain}",
                "--ckpt_path",
                name,
                "--data.root",
                d.root,
                "--model.cache",
                options.out / "cache",
            )
            predicted, y = read_predictions(folder), truth(d)
            accuracy[domain] = 100 * (predicted == y).mean()
            table.add(
                f"{name}, {domain} {modality}",
                predicted == y,
                bayes(d, (modality,)),
                weighted_f1(predicted, y),
                -8 if domain == "studio" else None,
            )
        table.require(f"{name}: what wild costs", accuracy["studio"] - accuracy["wild"], 10)


def lm(options: argparse.Namespace, table: Table) -> None:
    for domain in ("studio", "wild"):
        data = Synthetic(
            corpus_seed=options.seed, domain=domain, train_dialogues=1, dev_dialogues=1, test_dialogues=options.test
        )
        for given, kinds in ((("text",), "[]"), (("text", "descriptions"), "[audio, video]")):
            folder = tested(
                options,
                f"lm-{domain}-{len(given)}",
                "--ckpt_path",
                "tiny-llama-sitcom",
                "--data",
                "Synthetic",
                f"--data.corpus_seed={options.seed}",
                f"--data.domain={domain}",
                "--data.train_dialogues=1",
                "--data.dev_dialogues=1",
                f"--data.test_dialogues={options.test}",
                f"--model.descriptions={kinds}",
            )
            predicted, y = read_predictions(folder), truth(data)
            table.add(
                f"tiny-llama-sitcom, {domain}, {' + '.join(given)}",
                predicted == y,
                bayes(data, given),
                weighted_f1(predicted, y),
                -4 if domain == "studio" else None,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/sitcom_ceilings"))
    parser.add_argument("--seed", type=int, default=77, help="of the new corpus; the published weights saw 20 and 0")
    parser.add_argument("--train", type=int, default=500, help="training dialogues of the face and voice probes")
    parser.add_argument("--test", type=int, default=200, help="test dialogues, about 8.5 utterances each")
    parts = {"probes": probes, "encoders": encoders, "lm": lm}
    parser.add_argument("--parts", nargs="+", choices=list(parts), default=list(parts))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    table = Table()
    for part in options.parts:
        parts[part](options, table)
    if table.missed:
        sys.exit(f"missed: {'; '.join(table.missed)}")


if __name__ == "__main__":
    main()

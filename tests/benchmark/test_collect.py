"""Every number of results.json comes back from the predictions alone, by pandas and scikit-learn."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, recall_score

from tests.benchmark.conftest import Made, bench
from tests.data.miniature import LABELS
from tests.runs_helper import refused
from zoo.data import Synthetic
from zoo.metrics import mean_over_seeds, paired_difference
from zoo.schema import Labels

MELD = Labels("meld", tuple(LABELS))


def read(made: Made) -> dict:
    return json.loads((made.out / "results.json").read_text())


def predictions(made: Made, row: dict) -> list[pd.DataFrame]:
    return [pd.read_json(made.out / run["predictions"], lines=True) for run in row["runs"]]


def score(frame: pd.DataFrame, metric: str) -> float:
    true, said = frame["label"], frame["predicted"].fillna("unreadable")
    return {
        "accuracy": lambda: accuracy_score(true, said),
        "weighted_f1": lambda: f1_score(true, said, labels=LABELS, average="weighted", zero_division=0),
        "macro_f1": lambda: f1_score(
            true, said, average="macro", zero_division=0, labels=sorted({*true, *said} - {"unreadable"})
        ),
        "uar": lambda: recall_score(true, said, labels=sorted(set(true)), average="macro", zero_division=0),
        "unparsed": lambda: float((said == "unreadable").mean()),
    }[metric]()


def test_every_score_recomputes(made):
    found = read(made)
    assert {r["name"] for r in found["rows"]} == {"plain", "lora", "slower", "further", "last", "untrained"}
    for row in found["rows"]:
        frames = predictions(made, row)
        assert len(frames) == len(row["seeds"]) and all(len(f) == found["n"] for f in frames)
        for metric, said in row["scores"].items():
            own = [score(f, metric) for f in frames]
            assert said["values"] == pytest.approx(own), (row["name"], metric)
            assert said["mean"] == pytest.approx(np.mean(own))
        counts = sum(
            confusion_matrix(f["label"], f["predicted"].fillna("unreadable"), labels=[*LABELS, "unreadable"])
            for f in frames
        )[:-1]
        assert row["confusion"] == counts.tolist()
        per_class = np.mean(
            [
                f1_score(f["label"], f["predicted"].fillna("unreadable"), labels=LABELS, average=None, zero_division=0)
                for f in frames
            ],
            axis=0,
        )
        assert list(row["per_class"].values()) == pytest.approx(per_class.tolist())
    assert found["dialogues"] == predictions(made, found["rows"][0])[0]["dialogue"].nunique()


def test_every_interval_recomputes_from_resampled_dialogues(made):
    """A bootstrap written out with pandas, over dialogues, means over seeds, comes to the same interval."""
    found = read(made)
    rng = np.random.default_rng(1)
    row = next(r for r in found["rows"] if r["name"] == "plain")
    frames = predictions(made, row)
    names = sorted(frames[0]["dialogue"].unique())
    drawn = []
    for _ in range(300):
        chosen = rng.choice(names, len(names))
        drawn.append(np.mean([score(pd.concat([f[f["dialogue"] == d] for d in chosen]), "accuracy") for f in frames]))
    # three dialogues give few different draws: the quantiles agree to the step between them
    assert row["scores"]["accuracy"]["ci95"] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.03)
    for r in found["rows"]:
        runs = [f.replace({np.nan: None}).to_dict("records") for f in predictions(made, r)]
        for metric in ("accuracy", "weighted_f1"):
            assert r["scores"][metric]["ci95"] == pytest.approx(mean_over_seeds(runs, MELD, metric)["ci95"])


def test_order_and_comparison_with_the_best(made):
    found = read(made)
    means = [r["scores"]["weighted_f1"]["mean"] for r in found["rows"]]
    assert means == sorted(means, reverse=True)
    best, *others = found["rows"]
    assert best["against_best"] is None and found["metric"] == "weighted_f1"
    for row in others:
        pair = [[f.replace({np.nan: None}).to_dict("records") for f in predictions(made, r)] for r in (row, best)]
        told = row["against_best"]
        assert told["difference"] == pytest.approx(row["scores"]["weighted_f1"]["mean"] - means[0])
        assert told["ci95"] == pytest.approx(paired_difference(*pair, MELD, draws=4000)["ci95"])


def test_what_a_report_needs(made):
    found = read(made)
    assert found["matched"]["rows"] == ["plain", "lora"] and found["matched"]["steps"] > 0
    assert found["matched"]["batch_size"] == 4 and "llm" in found["matched"]["llm"]
    plain = next(r for r in found["rows"] if r["name"] == "plain")
    assert len(plain["curves"]["train/loss"]) > 4 and len(plain["curves"]["val/wf1"]) == 2
    assert plain["reachable"] is None and plain["group"] == "ranked" and plain["model"].endswith("CausalLM")
    assert all((made.out / name).stat().st_size > 1000 for name in ("report.html", "report.md"))


def changed(made: Made, out: Path, **rows: dict) -> Path:
    """The benchmark with these of its rows alone, changed."""
    said = yaml.safe_load(made.file.read_text())
    said["rows"] = {name: said["rows"][name] | more for name, more in rows.items()}
    file = out / "bench.yaml"
    file.write_text(yaml.safe_dump(said))
    return file


def test_rows_of_other_samples_are_not_ranked_together(made, tmp_path):
    run = str(made.out / "runs/plain/seed-0/lightning_logs/version_0")
    shorter = {"config": None, "checkpoint": run, "options": {}, "test_options": {"data.limit": 1}}
    file = changed(made, tmp_path, untrained={}, slower=shorter)
    message = refused("bench", "--config", file, "--out", tmp_path / "out")
    assert "untrained and slower cannot be ranked together: their test samples differ" in message


def test_a_matched_view_of_unequal_rows_is_refused(made, tmp_path):
    shorter = {"options": {"trainer.max_epochs": 1}, "matched": True}
    file = changed(made, tmp_path, plain={"seeds": [0]}, slower=shorter)
    message = refused("bench", "--config", file, "--out", tmp_path / "out")
    assert "stand in the matched view, but their steps differ" in message


def test_a_row_that_adapts_stands_apart(made, tmp_path):
    said = yaml.safe_load(made.file.read_text())
    adapted = {"what": "adapted", "config": [str(adapting(made, tmp_path))], "adapt": True}
    said["rows"] = {"untrained": said["rows"]["untrained"], "adapted": adapted}
    file = tmp_path / "bench.yaml"
    file.write_text(yaml.safe_dump(said))
    assert bench("--config", file, "--out", tmp_path / "out") == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    groups = {r["name"]: (r["group"], r["eval_protocol"], r["against_best"]) for r in found["rows"]}
    assert groups["adapted"] == ("transductive", "all_utterances, transductive", None)
    assert groups["untrained"][:2] == ("ranked", "all_utterances")


def adapting(made: Made, folder: Path) -> Path:
    """A config of MERIT at test time on words alone, two steps."""
    file = folder / "ttrl.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "trainer": {
                    "max_steps": 2,
                    "accelerator": "cpu",
                    "val_check_interval": 1,
                    "check_val_every_n_epoch": None,
                },
                "model": {
                    "class_path": "zoo.models.merit.MeritTTRL",
                    "init_args": {
                        "llm": str(made.home / "llm"),
                        "template": "plain",
                        "answers": 2,
                        "max_new_tokens": 2,
                        "lora": {"r": 4},
                        "objective": {"kind": "reinforce_group", "normalize": "sum"},
                        "schedule": "constant",
                    },
                },
                "data": {
                    "class_path": "zoo.data.Adaptation",
                    "init_args": {"corpus": {"class_path": "zoo.data.Synthetic"}, "batch_size": 4},
                },
            }
        )
    )
    return file


def test_the_share_of_the_reachable_is_that_of_the_exact_posterior():
    data = Synthetic(test_dialogues=40, corpus_seed=5)
    right = {}
    for reads in (("text",), ("text", "turns"), ("text", "descriptions"), ("text", "descriptions", "face", "voice")):
        best = data.reachable("test", reads)
        right[reads] = np.mean([best[s.id] == s.target.label for s in data.samples("test")])
    assert 0.6 < right["text",] < right["text", "descriptions"] < right["text", "descriptions", "face", "voice"] < 1
    assert right["text", "turns"] >= right["text",] - 0.02
    most = data.reachable("test", ())  # who sees nothing says the most frequent label
    assert set(most.values()) == {"neutral"}


def test_no_file_that_travels_names_a_folder_of_this_machine(made):
    travelling = [
        p
        for p in made.out.rglob("*")
        if p.name in ("report.html", "report.md", "results.json", "metrics.json", "fit.json", "test.json")
    ]
    assert {p.name for p in travelling} >= {"report.html", "report.md", "results.json", "metrics.json"}
    for path in travelling:
        text = path.read_text(encoding="utf-8")
        assert str(made.home) not in text and not re.search(r'"/(tmp|home|root|work)/', text), path
    assert "…/" in (made.out / "results.json").read_text(encoding="utf-8")  # the corpus' folder, shortened


def test_what_a_row_reads_is_what_its_system_says(made):
    results = json.loads((made.out / "results.json").read_text(encoding="utf-8"))
    reads = {row["name"]: row["reads"] for row in results["rows"]}
    assert reads["plain"] == ["text"] and reads["lora"] == ["text", "descriptions"]

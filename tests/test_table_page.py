"""docs/table.md: three labels of one's own from the table to a published system, by the page's own commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.runs_helper import metrics, rows, zoo
from tests.test_readme import commands
from zoo.checkpoints import listing, system_export

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "table.md"
LABELS = ["annoyed", "calm", "grateful"]

pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")


def test_every_command_of_the_page_runs(tmp_path, monkeypatch, capfd):
    for name in ("configs", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "index.yaml").write_text("")
    for module in (listing, system_export):
        monkeypatch.setattr(module, "INDEX", tmp_path / "checkpoints" / "index.yaml")
    printed: dict[str, list[str]] = {}
    for _, *words in commands(PAGE):
        fast = ["--trainer.accelerator=cpu"] if words[0] in ("fit", "test") else []
        fast += ["--only=[majority,tfidf]"] if words[0] == "bench" else []  # the other row is the fit above
        zoo(*words, *fast)
        printed.setdefault(words[0], []).append(capfd.readouterr().out)
    run, out = Path("runs/calls/lightning_logs/version_0"), Path("runs/calls")
    assert [len(printed[verb]) for verb in ("data", "fit", "test", "label", "bench", "export", "checkpoints")] == [
        *(2, 1, 2, 3, 1, 1, 1)
    ]
    assert all("annoyed, calm, grateful" in shown for shown in printed["data"]) and "emotion:" in printed["data"][0]
    # test: better than saying the most frequent label
    scores = metrics(run)
    assert scores["n"] == 43 and list(scores["per_class"]) == LABELS
    assert scores["accuracy"] > 0.7 > max(scores["support"].values()) / 43
    assert "random 10% dev and 20% test of dialogues, seed 0" in scores["eval_protocol"]
    # label: a line, and the whole table with columns of its own names
    assert json.loads(printed["label"][0])["label"] in LABELS
    answers = [json.loads(line) for line in (out / "labels.jsonl").read_text().splitlines()]
    assert len(answers) == 211 and sum("earlier turns" in a["used"] for a in answers) == 151
    results = json.loads((out / "bench" / "results.json").read_text())
    assert {row["name"] for row in results["rows"]} == {"majority", "tfidf"} and results["labels"] == LABELS
    # the exported system: the same labels, the same answers, without places of this machine
    made = yaml.safe_load(Path("checkpoints/calls/config.yaml").read_text())["data"]["init_args"]
    assert made["labels"] == LABELS and made["text"] == "said" and not {"root", "file", "descriptions"} & set(made)
    again = max(Path("lightning_logs").glob("version_*"))
    assert rows(again) == rows(run) and metrics(again)["eval_protocol"] == scores["eval_protocol"]
    assert json.loads(printed["label"][2])["label"] == "grateful"
    assert yaml.safe_load(printed["checkpoints"][0])["calls"]["files"].keys() >= {"config.yaml", "weights.safetensors"}

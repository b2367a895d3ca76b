"""`zoo compare` prints the numbers of `zoo bench` for two runs, and refuses what cannot be compared."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.runs_helper import refused, zoo
from zoo.benchmark.statistics import against
from zoo.compare import compare
from zoo.metrics import evaluate
from zoo.schema import Labels

LABELS = Labels("calls", ("angry", "calm"))
CONFIG = "model: {{class_path: zoo.models.causal_lm.CausalLM, init_args: {{llm: tiny, lr: {lr}}}}}"


def after_a_test(folder: Path, right: int, lr: float, **facts: object) -> Path:
    """A run folder after a test: 40 utterances of 20 dialogues, the first ``right`` of which were answered rightly."""
    answers = []
    for k in range(40):
        label = LABELS.names[k % 2]
        other = LABELS.names[1 - k % 2]
        predicted = label if k < right else other
        answers.append({"id": f"u{k}", "dialogue": f"d{k // 2}", "label": label, "predicted": predicted})
    folder.mkdir()
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    record = {"split": "test", "corpus": "calls", "eval_protocol": "all_utterances", "model": "zoo.CausalLM", **facts}
    record |= evaluate(answers, LABELS)
    (folder / "metrics.json").write_text(json.dumps(record))
    (folder / "config.yaml").write_text(CONFIG.format(lr=lr))
    return folder


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    return [after_a_test(tmp_path / "one", 22, 0.1), after_a_test(tmp_path / "two", 38, 0.2)]


def test_the_numbers_are_those_of_a_benchmark(runs, capsys):
    zoo("compare", *runs)
    printed = capsys.readouterr().out
    assert "calls test, all_utterances: n = 40 utterances of 20 dialogues" in printed
    answers = {run.name: [[json.loads(line) for line in (run / "predictions.jsonl").open()]] for run in runs}
    expected = against(answers, "one", LABELS, "weighted_f1")["two"]
    assert expected["verdict"] == "better"
    low, high = (f"{100 * end:+.1f}" for end in expected["ci95"])
    assert f"{100 * expected['difference']:+.1f} [{low}, {high}]" in printed
    assert re.search(r"better\s*\n", printed)
    (one,), (two,) = answers["one"], answers["two"]
    f1 = [f"{100 * evaluate(rows, LABELS)['per_class']['angry']:.1f}" for rows in (one, two)]
    assert re.search(rf"angry +20 +{f1[0]} +{f1[1]}", printed)
    assert re.search(r"model\.lr +0\.1 +0\.2", printed) and "model.llm" not in printed


def test_equal_configs_are_said_to_be(tmp_path):
    pair = [after_a_test(tmp_path / name, 30, 0.1) for name in ("a", "b")]
    assert [*compare(pair)][-1] == "their configs are the same"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"split": "dev"}, "their split differ (dev of 40 samples against test of 40)"),
        ({"eval_protocol": "last_utterance"}, "their eval_protocol differ"),
    ],
)
def test_another_split_or_protocol_is_refused(change, told, runs, tmp_path):
    assert told in refused("compare", runs[0], after_a_test(tmp_path / "other", 30, 0.1, **change))


def test_other_samples_are_refused(runs):
    file = runs[1] / "predictions.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-2]))
    assert "their test samples differ" in refused("compare", *runs)


def test_what_is_no_pair_of_tested_runs_is_refused(runs, tmp_path):
    assert "expected two or more runs, each once" in refused("compare", runs[0])
    assert "expected two or more runs, each once" in refused("compare", runs[0], runs[0])
    (tmp_path / "empty").mkdir()
    assert "test it first: zoo test --ckpt_path" in refused("compare", runs[0], tmp_path / "empty")
    (runs[1] / "predictions.jsonl").write_text("{}\n")
    assert "is damaged (line 1: id is None" in refused("compare", *runs)


def test_what_looks_like_markup_is_printed_as_it_is(tmp_path, capsys):
    pair = [after_a_test(tmp_path / f"{name}[red]:bomb:", 30, 0.1) for name in ("a", "b")]
    (pair[1] / "config.yaml").write_text(CONFIG.format(lr="'x[/b][a-z]+'"))
    zoo("compare", *pair)
    printed = "".join(capsys.readouterr().out.split())
    assert "b[red]:bomb:" in printed and "x[/b][a-z]+" in printed


@pytest.mark.parametrize(
    ("record", "told"), [("[1]", "it holds a list"), ('{"support": {"calm": 1}}', "split is None, expected str")]
)
def test_a_record_of_something_else_is_refused(runs, record, told):
    (runs[1] / "metrics.json").write_text(record)
    assert told in refused("compare", *runs)


def test_a_run_without_training_is_compared_by_the_config_of_its_test(runs, capsys):
    (runs[1] / "config.yaml").rename(runs[1] / "config.test.yaml")
    zoo("compare", *runs)
    assert re.search(r"model\.lr +0\.1 +0\.2", capsys.readouterr().out)

"""What metrics.json says about several corpora."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from zoo.schema import Labels
from zoo.training.evaluation import EvaluatedModule

LABELS = {name: Labels(name, ("calm", "cross")) for name in ("calls", "mails")}


class Several(EvaluatedModule):
    data: Any = SimpleNamespace(label_sets=LABELS, protocols=dict.fromkeys(LABELS, "all_utterances"))


def test_a_corpus_without_answers_takes_no_scores_from_the_others(tmp_path):
    """It has no such split, or ``--trainer.limit_test_batches`` ended the test before it."""
    answers = ({"label": word, "predicted": "calm", "dialogue": word} for word in ("calm", "cross"))
    rows = [{"id": f"calls/test/{k}", **answer} for k, answer in enumerate(answers)]
    found = Several().summary(rows, tmp_path)
    assert found["corpora"]["calls"]["accuracy"] == 0.5
    assert found["corpora"]["mails"] == {"eval_protocol": "all_utterances", "n": 0}
    assert found["n"] == 2 and "accuracy" not in found and found["aggregation"].startswith("none: ")

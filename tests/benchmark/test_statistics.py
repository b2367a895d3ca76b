"""The comparisons agree with scipy and statsmodels, rarely call equal systems different, and find a real difference."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from zoo.benchmark.statistics import LEVEL, against, mcnemar_p, median_run
from zoo.metrics import evaluate, paired_difference
from zoo.schema import Labels

MELD = Labels("meld", ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger"))
SHARES = np.array([1256, 281, 50, 208, 402, 68, 345]) / 2610


@pytest.fixture(autouse=True)
def _uncollected(monkeypatch):
    """statsmodels collects garbage at every correction, which takes a second of each beside torch."""
    monkeypatch.setattr("gc.collect", lambda *a: 0)


def truth(rng: np.random.Generator, n: int = 2610, dialogues: int = 280) -> tuple[np.ndarray, np.ndarray]:
    """Labels and dialogues like those of MELD's test split."""
    return rng.choice(7, n, p=SHARES), np.sort(rng.integers(dialogues, size=n))


def answers(
    rng: np.random.Generator, true: np.ndarray, dialogue: np.ndarray, accuracy: float, hard: np.ndarray | None = None
) -> list[dict]:
    """A system that is right with this probability: less on hard utterances (0..1, the same for all systems), and more
    in some dialogues than in others (its own). Wrong answers are any."""
    own = accuracy + 0.05 * rng.standard_normal(dialogue.max() + 1)[dialogue]
    if hard is not None:
        own = own + 1.6 * min(accuracy, 1 - accuracy) * (0.5 - hard)
    wrong = (true + rng.integers(1, 7, len(true))) % 7
    said = np.where(rng.random(len(true)) < np.clip(own, 0, 1), true, wrong)
    return [
        {"id": f"meld/test/{i}", "dialogue": f"meld/test/dia{d}", "label": MELD.names[t], "predicted": MELD.names[s]}
        for i, (t, s, d) in enumerate(zip(true, said, dialogue, strict=True))
    ]


def false_alarms(accuracy: float, pairs: int, n: int, dialogues: int, draws: int) -> dict[str, int]:
    """How often two systems that differ by chance alone are called different, of so many pairs."""
    rng = np.random.default_rng(round(100 * accuracy))
    called = {"bootstrap": 0, "mcnemar": 0, "verdict": 0}
    for _ in range(pairs):
        true, dialogue = truth(rng, n, dialogues)
        hard = rng.random(n)
        pair = {name: [answers(rng, true, dialogue, accuracy, hard)] for name in "ab"}
        found = against(pair, "a", MELD, "weighted_f1", draws=draws)["b"]
        called["bootstrap"] += found["p_bootstrap"] < LEVEL
        called["mcnemar"] += found["p_mcnemar"] < LEVEL
        called["verdict"] += found["verdict"] != "no clear difference"
    return called


def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs():
    rng = np.random.default_rng(0)
    true, dialogue = truth(rng, 300, 30)
    a, b = answers(rng, true, dialogue, 0.6), answers(rng, true, dialogue, 0.7)
    right = np.array([[x["predicted"] == x["label"] for x in rows] for rows in (a, b)])
    first, second = int((right[0] & ~right[1]).sum()), int((~right[0] & right[1]).sum())
    assert min(first, second) > 20
    assert mcnemar_p(a, b) == pytest.approx(binomtest(first, first + second).pvalue, abs=1e-12)
    assert mcnemar_p(a, b[::-1]) == mcnemar_p(a, b)  # rows are matched by id, not by place
    assert mcnemar_p(a, a) == 1.0


def test_a_paired_test_sees_what_two_intervals_do_not():
    """b is a with 60 mistakes mended: their intervals overlap, the difference is certain."""
    rng = np.random.default_rng(1)
    true, dialogue = truth(rng)
    a = answers(rng, true, dialogue, 0.6)
    wrong = [i for i, row in enumerate(a) if row["predicted"] != row["label"]][:60]
    b = [row | ({"predicted": row["label"]} if i in wrong else {}) for i, row in enumerate(a)]
    one, two = (evaluate(rows, MELD)["ci95"]["accuracy"] for rows in (a, b))
    assert one[1] > two[0]
    found = against({"a": [a], "b": [b]}, "b", MELD, "accuracy")["a"]
    assert found["verdict"] == "worse" and found["difference"] == pytest.approx(-60 / 2610)
    assert found["p_bootstrap"] == pytest.approx(2 / 4001) and found["p_mcnemar"] == pytest.approx(2 * 0.5**60)


def test_holm_corrects_over_all_rows_and_a_verdict_needs_both_tests():
    rng = np.random.default_rng(2)
    true, dialogue = truth(rng, 800, 80)
    runs = {
        name: [answers(rng, true, dialogue, p)]
        for name, p in zip("abcdef", (0.7, 0.69, 0.67, 0.64, 0.62, 0.5), strict=True)
    }
    found = against(runs, "a", MELD, "weighted_f1")
    assert set(found) == set("bcdef")
    for kind in ("p_bootstrap", "p_mcnemar"):
        from statsmodels.stats.multitest import multipletests  # here: it takes a second

        corrected = multipletests([f[kind] for f in found.values()], method="holm")[1]
        assert [f[f"{kind}_holm"] for f in found.values()] == pytest.approx(list(corrected))
        assert any(f[f"{kind}_holm"] > f[kind] for f in found.values())
    for f in found.values():
        sure = f["p_bootstrap_holm"] < LEVEL and f["p_mcnemar_holm"] < LEVEL
        assert f["verdict"] == ("worse" if sure else "no clear difference")
    assert {f["verdict"] for f in found.values()} == {"worse", "no clear difference"}


def test_several_seeds_compare_their_means_and_mcnemar_takes_a_typical_one():
    rng = np.random.default_rng(3)
    true, dialogue = truth(rng, 500, 50)
    a = [answers(rng, true, dialogue, p) for p in (0.9, 0.5, 0.7)]
    b = [answers(rng, true, dialogue, p) for p in (0.6, 0.62)]
    assert median_run(a, MELD, "accuracy") == 2 and median_run(b, MELD, "accuracy") == 0
    found = against({"a": a, "b": b}, "a", MELD, "accuracy")["b"]
    assert found["p_mcnemar"] == mcnemar_p(b[0], a[2])
    assert found["difference"] == paired_difference(b, a, MELD, "accuracy")["difference"]


def test_equal_systems_are_rarely_called_different():
    """Twice 400 pairs; tests/benchmarks/false_alarms.py does the same at the size of MELD's test split."""
    called = [false_alarms(accuracy, pairs=400, n=600, dialogues=64, draws=400) for accuracy in (0.6, 0.8)]
    assert max(c["verdict"] for c in called) <= 20  # 5 %
    # and not because nothing is ever called different
    assert min(c[kind] for c in called for kind in ("bootstrap", "mcnemar")) > 4


def test_a_difference_of_five_points_is_found():
    """b is right 5 points more often, and the two disagree on 15 % of 2610 utterances."""
    rng = np.random.default_rng(5)
    for _ in range(10):
        true, dialogue = truth(rng)
        a = answers(rng, true, dialogue, 0.6)
        right = np.array([row["predicted"] == row["label"] for row in a])
        mended = rng.choice(np.flatnonzero(~right), 261, replace=False)
        spoilt = rng.choice(np.flatnonzero(right), 130, replace=False)
        b = [dict(row) for row in a]
        for i in mended:
            b[i]["predicted"] = b[i]["label"]
        for i in spoilt:
            b[i]["predicted"] = MELD.names[(true[i] + 1) % 7]
        found = against({"a": [a], "b": [b]}, "b", MELD, "weighted_f1", draws=1000)["a"]
        assert found["verdict"] == "worse" and found["ci95"][1] < 0

"""The metrics against scikit-learn on random cases, and the bootstrap against a slow loop over the same resamples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score, recall_score

from zoo import metrics
from zoo.metrics import EmotionMetrics, confusion_picture, evaluate, mean_over_seeds, paired_difference
from zoo.metrics.bootstrap import resamples
from zoo.schema import Labels, Prediction

NAMES = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")
MELD = Labels("meld", NAMES)


def random_case(seed: int) -> tuple[Labels, np.ndarray, np.ndarray]:
    """Labels, truth and answers (-1 = unparsed): 1 to 8 classes, some of which never occur."""
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(1, 9))
    n = int(rng.integers(1, 60))
    truth = rng.choice(rng.choice(classes, size=rng.integers(1, classes + 1), replace=False), size=n)
    answer = rng.choice(rng.choice(classes, size=rng.integers(1, classes + 1), replace=False), size=n)
    answer = np.where(rng.random(n) < rng.random(), truth, answer)
    answer = np.where(rng.random(n) < rng.choice([0.0, 0.2, 1.0], p=[0.4, 0.55, 0.05]), -1, answer)
    return Labels("toy", tuple(f"class{c}" for c in range(classes))), truth, answer


def sklearn_scores(classes: int, truth: np.ndarray, answer: np.ndarray) -> dict[str, float]:
    """The reference: scikit-learn sees an unparsed answer as one more label that is never asked about."""
    occurring = sorted({*truth.tolist(), *answer.tolist()} - {-1})
    truly = sorted(set(truth.tolist()))
    every = list(range(classes))
    options = {"zero_division": 0.0}
    result = {
        "accuracy": accuracy_score(truth, answer),
        "weighted_f1": f1_score(truth, answer, labels=every, average="weighted", **options),
        "macro_f1": f1_score(truth, answer, labels=occurring, average="macro", **options),
        "uar": recall_score(truth, answer, labels=truly, average="macro", **options),
        "unparsed": float(np.mean(answer == -1)),
    }
    f1 = f1_score(truth, answer, labels=every, average=None, **options)
    recall = recall_score(truth, answer, labels=every, average=None, **options)
    for c in every:
        result |= {f"f1/class{c}": f1[c], f"recall/class{c}": recall[c]}
    return result


def as_rows(labels: Labels, truth: np.ndarray, answer: np.ndarray, dialogues: np.ndarray | None = None) -> list[dict]:
    dialogues = np.arange(len(truth)) // 5 if dialogues is None else dialogues
    return [
        Prediction(
            id=f"{labels.corpus}/test/utt{i}",
            dialogue=f"{labels.corpus}/test/dia{d}",
            label=labels.names[t],
            predicted=None if a < 0 else labels.names[a],
        ).row()
        for i, (t, a, d) in enumerate(zip(truth, answer, dialogues, strict=True))
    ]


def meld_like(n: int, dialogues: int, seed: int, right: float = 0.6, unparsed: float = 0.02) -> list[dict]:
    """Rows of a system that is right with probability `right`; the truth depends on n and dialogues only."""
    corpus, rng = np.random.default_rng([n, dialogues]), np.random.default_rng(seed)
    truth = corpus.choice(7, size=n, p=[0.48, 0.11, 0.02, 0.08, 0.15, 0.03, 0.13])
    where = corpus.permutation(np.arange(n) % dialogues)
    answer = np.where(rng.random(n) < right, truth, rng.integers(7, size=n))
    return as_rows(MELD, truth, np.where(rng.random(n) < unparsed, -1, answer), where)


# ---- equality with scikit-learn
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true", "ignore:A single label was found")
def test_equals_scikit_learn_on_random_cases():
    seen = {"one class": 0, "absent from truth": 0, "only in answers": 0, "some unparsed": 0, "all unparsed": 0}
    for seed in range(300):
        labels, truth, answer = random_case(seed)
        expected = sklearn_scores(len(labels), truth, answer)
        assert expected["uar"] == pytest.approx(balanced_accuracy_score(truth, answer), abs=1e-12)

        metric = EmotionMetrics(labels)
        metric.update(torch.from_numpy(answer), torch.from_numpy(truth))
        assert metric.compute() == pytest.approx(expected, abs=1e-12), seed

        whole = evaluate(as_rows(labels, truth, answer), labels, draws=1)
        assert {k: whole[k] for k in (*metrics.HEADLINE, "unparsed")} == pytest.approx(
            {k: expected[k] for k in (*metrics.HEADLINE, "unparsed")}, abs=1e-12
        )
        columns = [*range(len(labels)), -1]
        assert whole["confusion"] == confusion_matrix(truth, answer, labels=columns)[:-1].tolist()

        seen["one class"] += len(labels) == 1
        seen["absent from truth"] += len(set(truth)) < len(labels)
        seen["only in answers"] += bool(set(answer) - set(truth) - {-1})
        seen["some unparsed"] += 0 < expected["unparsed"] < 1
        seen["all unparsed"] += expected["unparsed"] == 1
    assert min(seen.values()) >= 10, seen


def test_unparsed_is_wrong_and_never_a_class():
    """Two classes, by hand: truth a a b b, answers a - b a."""
    metric = EmotionMetrics(Labels("toy", ("a", "b")))
    metric.update(torch.tensor([0, -1, 1, 0]), torch.tensor([0, 0, 1, 1]))
    assert metric.compute() == pytest.approx(
        {
            "accuracy": 0.5,
            "weighted_f1": 7 / 12,
            "macro_f1": 7 / 12,
            "uar": 0.5,
            "unparsed": 0.25,
            "f1/a": 0.5,
            "f1/b": 2 / 3,
            "recall/a": 0.5,
            "recall/b": 0.5,
        }
    )


# ---- the epoch metric
@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), cuts=st.lists(st.integers(0, 60), max_size=6))
def test_batches_do_not_matter(seed: int, cuts: list[int]):
    labels, truth, answer = random_case(seed)
    whole, parts = EmotionMetrics(labels), EmotionMetrics(labels)
    whole.update(torch.from_numpy(answer), torch.from_numpy(truth))
    for a, t in zip(np.split(answer, sorted(cuts)), np.split(truth, sorted(cuts)), strict=True):  # empty batches too
        parts.update(torch.from_numpy(a), torch.from_numpy(t))
    assert parts.compute() == whole.compute()


def test_reset_forgets():
    metric = EmotionMetrics(MELD)
    metric.update(torch.tensor([0, 1]), torch.tensor([1, 0]))
    metric.reset()
    metric.update(torch.tensor([2], dtype=torch.int32), torch.tensor([2]))
    assert metric.compute()["accuracy"] == 1.0


def test_processes_are_summed():
    """torchmetrics adds the states of processes up by the same rule as it merges two metrics."""
    a, b, both = EmotionMetrics(MELD), EmotionMetrics(MELD), EmotionMetrics(MELD)
    first, second = (torch.tensor([0, -1, 3]), torch.tensor([0, 2, 4])), (torch.tensor([5]), torch.tensor([5]))
    a.update(*first)
    b.update(*second)
    both.update(*first)
    both.update(*second)
    a.merge_state(b)
    assert a.compute() == both.compute()
    assert not a.state_dict()  # and none of it is saved with the weights


@pytest.mark.parametrize(
    ("predicted", "target", "message"),
    [
        ([0, 1], [0], r"one shape \(B,\), got \(2,\) and \(1,\)"),
        ([[0, 1]], [[0, 1]], r"one shape \(B,\), got \(1, 2\)"),
        ([7], [0], r"predicted must lie in -1..6 for meld, got 7"),
        ([-2], [0], r"predicted must lie in -1..6 for meld, got -2"),
        ([0], [-1], r"target must lie in 0..6 for meld, got -1"),
        ([0], [7], r"target must lie in 0..6 for meld, got 7"),
        ([0.0], [0], r"predicted must hold integer label indices, got torch.float32"),
        ([0], [True], r"target must hold integer label indices, got torch.bool"),
    ],
)
def test_update_refuses(predicted: list, target: list, message: str):
    metric = EmotionMetrics(MELD)
    with pytest.raises(ValueError, match=message):
        metric.update(torch.tensor(predicted), torch.tensor(target))
    assert not metric.confmat.any()


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric EmotionMetrics")
def test_compute_on_nothing_refuses():
    metric = EmotionMetrics(MELD)
    with pytest.raises(ValueError, match="no metrics without samples"):
        metric.compute()
    metric.update(torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long))
    with pytest.raises(ValueError, match="no metrics without samples"):
        metric.compute()


# ---- evaluate
def test_evaluate_reports_everything():
    rows = meld_like(400, 40, seed=0)
    result = evaluate(rows, MELD, draws=200)
    numbers = ["n", "dialogues", "accuracy", "weighted_f1", "macro_f1", "uar", "unparsed"]
    assert list(result) == [*numbers, "per_class", "per_class_recall", "support", "confusion", "ci95"]
    assert result["n"] == sum(result["support"].values()) == np.sum(result["confusion"]) == 400
    assert result["dialogues"] == 40
    assert tuple(result["per_class"]) == tuple(result["per_class_recall"]) == NAMES
    assert np.shape(result["confusion"]) == (7, 8)
    assert sum(row[-1] for row in result["confusion"]) == sum(r["predicted"] is None for r in rows) > 0
    assert tuple(result["ci95"]) == ("accuracy", "weighted_f1", "macro_f1", "uar")


def test_evaluate_depends_on_neither_order_nor_global_seed():
    rows = meld_like(200, 20, seed=0)
    shuffled = [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]
    assert evaluate(rows, MELD, draws=300) == evaluate(shuffled, MELD, draws=300)
    assert evaluate(rows, MELD, draws=300)["ci95"] != evaluate(rows, MELD, draws=300, seed=1)["ci95"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": None}, "1 of 10 rows have no label to score against: first meld/test/utt3"),
        ({"label": "Joy"}, "row meld/test/utt3 holds 'Joy', which is no label of meld; expected one of neutral"),
        ({"predicted": "happy"}, "row meld/test/utt3 holds 'happy', which is no label of meld"),
        ({"id": "meld/test/utt4"}, "1 of 10 rows repeat the id of another row"),
    ],
)
def test_evaluate_refuses(change: dict, message: str):
    rows = meld_like(10, 2, seed=0)
    rows[3] |= change
    with pytest.raises(ValueError, match=message):
        evaluate(rows, MELD)


def test_evaluate_refuses_nothing_and_no_draws():
    with pytest.raises(ValueError, match="no metrics without samples"):
        evaluate([], MELD)
    with pytest.raises(ValueError, match="at least one draw, got 0"):
        evaluate(meld_like(10, 2, seed=0), MELD, draws=0)


# ---- intervals
def test_interval_equals_slow_loop():
    """The same resamples, but every drawn dialogue's rows are copied out and given to scikit-learn."""
    rows = meld_like(60, 8, seed=3)
    names = sorted({row["dialogue"] for row in rows})
    index = {name: i for i, name in enumerate(NAMES)} | {None: -1}
    drawn: dict[str, list[float]] = {metric: [] for metric in metrics.HEADLINE}
    for times in np.concatenate(list(resamples(8, 100, seed=5))):
        assert times.sum() == 8
        picked = [row for name, k in zip(names, times, strict=True) for row in rows * k if row["dialogue"] == name]
        truth, answer = (np.array([index[row[key]] for row in picked]) for key in ("label", "predicted"))
        result = sklearn_scores(7, truth, answer)
        for metric, values in drawn.items():
            values.append(result[metric])
    expected = {metric: np.quantile(values, [0.025, 0.975]).tolist() for metric, values in drawn.items()}
    actual = evaluate(rows, MELD, draws=100, seed=5)["ci95"]
    for metric in metrics.HEADLINE:
        assert actual[metric] == pytest.approx(expected[metric], abs=1e-12), metric
        assert actual[metric][0] < actual[metric][1]


def test_resamples_are_the_same_in_blocks():
    whole = np.concatenate(list(resamples(7, 50, seed=0)))
    assert whole.shape == (50, 7)
    blocks = list(resamples(7, 50, seed=0, block=100))
    assert [len(b) for b in blocks] == [14, 14, 14, 8]
    assert (np.concatenate(blocks) == whole).all()


def test_interval_holds_the_point_and_shrinks():
    small, large = (evaluate(meld_like(n, n // 10, seed=0), MELD) for n in (300, 3000))
    for metric in metrics.HEADLINE:
        for result in (small, large):
            low, high = result["ci95"][metric]
            assert low < result[metric] < high
        width = [np.diff(result["ci95"][metric])[0] for result in (small, large)]
        assert width[1] < 0.6 * width[0], metric


def test_interval_covers():
    """Of 95 % intervals around the accuracy of systems that are right 60 % of the time, about 95 % hold .6."""
    held = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        truth = rng.integers(7, size=400)
        answer = np.where(rng.random(400) < 0.6, truth, (truth + 1) % 7)
        low, high = evaluate(as_rows(MELD, truth, answer), MELD, draws=300, seed=seed)["ci95"]["accuracy"]
        held += low <= 0.6 <= high
    assert 88 <= held <= 100


def test_interval_is_over_dialogues():
    """Utterances that are all right or all wrong together: the dialogue is the unit, so the interval is wide."""
    right = np.arange(40) % 2
    truth = np.zeros(400, dtype=int)
    answer = np.repeat(1 - right, 10)
    together = evaluate(as_rows(MELD, truth, answer, np.repeat(np.arange(40), 10)), MELD)["ci95"]["accuracy"]
    alone = evaluate(as_rows(MELD, truth, answer, np.arange(400)), MELD)["ci95"]["accuracy"]
    assert np.diff(together) > 2.5 * np.diff(alone)


# ---- comparing
@pytest.mark.parametrize("metric", [*metrics.HEADLINE, "unparsed"])
def test_a_system_does_not_differ_from_itself(metric: str):
    rows = meld_like(200, 20, seed=0)
    assert paired_difference([rows], [rows[::-1]], MELD, metric) == {"difference": 0.0, "ci95": [0.0, 0.0], "p": 1.0}


def test_paired_difference():
    better, worse = meld_like(600, 60, seed=1, right=0.8), meld_like(600, 60, seed=2, right=0.5)
    result = paired_difference([better], [worse], MELD)
    points = [evaluate(rows, MELD)["weighted_f1"] for rows in (better, worse)]
    assert result["difference"] == pytest.approx(points[0] - points[1], abs=1e-12)
    assert 0 < result["ci95"][0] < result["difference"] < result["ci95"][1]
    other = paired_difference([worse], [better], MELD)
    assert other["difference"] == -result["difference"]
    assert other["ci95"] == pytest.approx([-v for v in reversed(result["ci95"])], abs=1e-12)


def test_paired_difference_of_several_seeds_compares_their_means():
    a, b = ([meld_like(300, 30, seed=9, right=r) for r in pair] for pair in ((0.7, 0.6), (0.5, 0.4)))
    together = paired_difference(a, b, MELD)["difference"]
    assert together == pytest.approx(mean_over_seeds(a, MELD)["mean"] - mean_over_seeds(b, MELD)["mean"], abs=1e-12)
    assert paired_difference(a, a[::-1], MELD)["difference"] == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="at least one run"):
        paired_difference([], b, MELD)


def test_mean_over_seeds():
    runs = [meld_like(400, 40, seed=s) for s in range(3)]
    result = mean_over_seeds(runs, MELD)
    assert result["values"] == pytest.approx([evaluate(rows, MELD)["weighted_f1"] for rows in runs], abs=1e-12)
    assert result["mean"] == pytest.approx(np.mean(result["values"]), abs=1e-12)
    assert result["ci95"][0] < result["mean"] < result["ci95"][1]
    one = mean_over_seeds(runs[:1], MELD, "uar")
    assert one["ci95"] == evaluate(runs[0], MELD)["ci95"]["uar"]
    assert mean_over_seeds([runs[0]] * 3, MELD, "uar")["ci95"] == pytest.approx(one["ci95"], abs=1e-12)
    with pytest.raises(ValueError, match="at least one run"):
        mean_over_seeds([], MELD)


def test_comparing_refuses_other_samples():
    rows = meld_like(20, 4, seed=0)
    with pytest.raises(ValueError, match="not of the same samples: 3 ids only in 1, 0 only in 2"):
        paired_difference([rows], [rows[3:]], MELD)
    relabelled = [row | {"label": "fear"} if i < 2 else row for i, row in enumerate(rows)]
    differ = sum(row["label"] != "fear" for row in rows[:2])
    with pytest.raises(ValueError, match=rf"predictions 1 and 3 differ in the label of {differ} of 20 samples"):
        mean_over_seeds([rows, rows, relabelled], MELD)
    with pytest.raises(ValueError, match="differ in the dialogue of 20 of 20 samples"):
        paired_difference([rows], [[row | {"dialogue": "meld/test/dia0x"} for row in rows]], MELD)
    with pytest.raises(ValueError, match="unknown metric 'f1'; expected one of accuracy"):
        paired_difference([rows], [rows], MELD, "f1")


# ---- picture
@pytest.mark.parametrize("unparsed", [0.0, 0.1])
def test_picture(tmp_path, unparsed: float):
    from matplotlib.image import imread

    evaluation = evaluate(meld_like(300, 30, seed=0, unparsed=unparsed), MELD, draws=10)
    confusion_picture(evaluation, MELD, tmp_path / "confusion.png", "Toy on MELD test")
    height, width, _ = imread(tmp_path / "confusion.png").shape
    assert height > 600
    assert width > 700
    confusion_picture(evaluation, MELD, tmp_path / "again.png", "Toy on MELD test")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "confusion.png").read_bytes()


def test_picture_refuses_other_labels(tmp_path):
    evaluation = evaluate(meld_like(30, 3, seed=0), MELD, draws=1)
    with pytest.raises(ValueError, match=r"expected a confusion of shape \(2, 3\) for toy, got \(7, 8\)"):
        confusion_picture(evaluation, Labels("toy", ("a", "b")), tmp_path / "confusion.png")


# ------------------------------------------------------------------------------------------- WAR and UAR; free answers
def test_war_is_recall_weighted_by_support():
    rows = [{"id": str(i), "dialogue": str(i), "label": "abc"[i % 3 > 0], "predicted": "a"} for i in range(6)]
    got = evaluate(rows, Labels("x", ("a", "b", "c")), draws=10)
    support, recall = (np.array(list(got[key].values())) for key in ("support", "per_class_recall"))
    assert metrics.war_uar(got) == {"war": got["accuracy"], "uar": got["uar"]} == {"war": 1 / 3, "uar": 1 / 2}
    assert (recall * support).sum() / support.sum() == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("text", "words", "named"),
    [
        ("In the video, he SHOUTS; he shouts!", {"video", "shouts"}, set()),
        ("Don’t stop 2 times", {"don't", "stop", "times"}, set()),
        ("She is angry, her anger and her joy.", {"angry", "anger", "joy"}, {"angry", "joy"}),
        ("not sad", {"sad"}, {"sad"}),  # negation is not understood
        ("saddle", {"saddle"}, set()),
        ("", set(), set()),
    ],
)
def test_words_of_a_free_answer(text, words, named):
    assert (metrics.clues(text), metrics.emotions(text)) == (words, named)


def test_word_lists():
    forms = [word for group in metrics.EMOTION_WORDS.values() for word in group]
    assert len(forms) == len(set(forms)) and not set(forms) & metrics.FUNCTION_WORDS
    assert {"happy", "sad", "neutral", "angry", "surprised", "worried"} <= metrics.EMOTION_WORDS.keys()


@given(st.sets(st.sampled_from("abcdef")), st.sets(st.sampled_from("abcdef")))
@settings(deadline=None)
def test_overlap_is_symmetrical(a, b):
    one, other = metrics.overlap(a, b), metrics.overlap(b, a)
    assert (one["precision"], one["recall"], one["f1"]) == (other["recall"], other["precision"], other["f1"])
    assert (one["f1"] == 1) == (a == b != set())
    p, r = one["precision"], one["recall"]
    assert one["f1"] == pytest.approx(2 * p * r / (p + r) if p + r else 0)


REASONS = {"1": "He shouts, angry and sad.", "2": "She asks where the ladder went."}


class Length:
    """Judges by length, and counts."""

    name = "length"

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, reference: str, answer: str) -> float:
        self.calls += 1
        return len(answer)


class Broken:
    name = "broken"

    def __call__(self, reference: str, answer: str) -> float:
        return float("nan")


def test_reason_overlap_by_hand():
    rows = [{"id": "2", "text": None}, {"id": "1", "text": "He is angry: a man shouts with joy"}]
    got = metrics.reason_overlap(rows, REASONS, [Length()])
    # 1: {shouts, angry, sad} and {angry, man, shouts, joy}; {angry, sad} and {angry, joy}. 2: nothing
    assert got == pytest.approx(
        {
            "n": 2,
            "unanswered": 1,
            "references_without_emotion": 1,
            "clue_overlap/precision": (2 / 4) / 2,
            "clue_overlap/recall": (2 / 3) / 2,
            "clue_overlap/f1": (4 / 7) / 2,
            "label_overlap/precision": 1 / 2,
            "label_overlap/recall": 1 / 2,
            "label_overlap/f1": 1 / 2,
            "judge/length": 34 / 2,
            "unscored/length": 0,
        }
    )
    assert "label_overlap/f1" not in metrics.reason_overlap(rows[:1], {"2": REASONS["2"]})


@pytest.mark.parametrize("ids", [[], ["1"], ["1", "1", "2"], ["1", "2", "3"]])
def test_reason_overlap_wants_one_row_for_each_reference(ids):
    with pytest.raises(ValueError, match="2 references, .* in common; expected one row for each reference"):
        metrics.reason_overlap([{"id": key, "text": "x"} for key in ids], REASONS)


def test_a_judge_is_asked_once_even_by_a_later_run(tmp_path):
    path = tmp_path / "cache" / "judge.jsonl"
    rows = [{"id": key, "text": "so it is"} for key in REASONS]
    judge = Length()
    for asked in (2, 0):
        cached = metrics.CachedJudge(judge, path)
        assert metrics.reason_overlap(rows, REASONS, [cached])["judge/length"] == 8
        assert (cached.asked, judge.calls) == (asked, 2)
    assert cached(REASONS["1"], "so") == 2 and cached("", "so it is") == 8 and judge.calls == 4
    assert "shouts" not in path.read_text() and "so it is" not in path.read_text()  # no text of the corpus
    other = Length()
    other.name = "length, prompt 2"
    assert metrics.CachedJudge(other, path)("He shouts, angry and sad.", "so it is") == 8 and other.calls == 1
    with pytest.raises(ValueError, match="judges need different names"):
        metrics.reason_overlap(rows, REASONS, [judge, judge])


def test_a_judge_s_damaged_cache(tmp_path):
    path, judge = tmp_path / "judge.jsonl", Length()
    metrics.CachedJudge(judge, path)("a", "bb")
    whole = path.read_text()
    path.write_text(whole + whole[:20])  # an interrupted run
    assert metrics.CachedJudge(judge, path)("a", "bb") == 2 and judge.calls == 1 and path.read_text() == whole
    path.write_text("{}\n" + whole)
    with pytest.raises(ValueError, match="judge.jsonl line 1 is no row of this cache"):
        metrics.CachedJudge(judge, path)
    with pytest.raises(ValueError, match="the judge broken gave nan; expected a finite number"):
        metrics.CachedJudge(Broken(), tmp_path / "new.jsonl")("a", "b")
    assert not (tmp_path / "new.jsonl").exists()

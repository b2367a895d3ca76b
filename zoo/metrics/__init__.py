"""The metrics every system is judged by: accuracy, weighted and macro F1, UAR, the unparsed rate, and their intervals.

All of them are functions of one confusion matrix of shape (C, C + 1): rows are the truth, columns the answer, the last
column holds the unparsed answers. An unparsed answer is wrong for every class and is never a class of its own:

- accuracy: share of right answers over all samples.
- weighted_f1: F1 of each class weighted by how often it occurs in the truth.
- macro_f1: plain mean of F1 over the classes that occur in the truth or among the answers (scikit-learn's default set).
- uar: plain mean of recall over the classes that occur in the truth (unweighted average recall, balanced accuracy).
- war ("weighted average recall", as corpora of faces call it) is accuracy, see `war_uar`.
- unparsed: share of samples without a readable answer.

An F1 or recall with nothing to divide by is 0, as scikit-learn's ``zero_division=0``. Everything is in 0..1.

Free answers (EMER) are compared with a reference text by exact words, see `reason_overlap`; answers to general
questions are scored by the rules of their benchmarks, see `general_scores`.

Intervals are 95 % percentile bootstrap intervals over dialogues, not utterances: utterances of one dialogue are not
independent. They hold the trained weights fixed; they say nothing about how another training seed would do.
"""

from zoo.metrics.bootstrap import evaluate, mean_over_seeds, paired_difference
from zoo.metrics.explanations import (
    EMOTION_WORDS,
    FUNCTION_WORDS,
    CachedJudge,
    Judge,
    Unscored,
    clues,
    emotions,
    overlap,
    reason_overlap,
)
from zoo.metrics.general import general_scores
from zoo.metrics.plot import confusion_picture
from zoo.metrics.scores import HEADLINE, EmotionMetrics, Row, scores, war_uar

__all__ = [
    "EMOTION_WORDS",
    "FUNCTION_WORDS",
    "HEADLINE",
    "CachedJudge",
    "EmotionMetrics",
    "Judge",
    "Row",
    "Unscored",
    "clues",
    "confusion_picture",
    "emotions",
    "evaluate",
    "general_scores",
    "mean_over_seeds",
    "overlap",
    "paired_difference",
    "reason_overlap",
    "scores",
    "war_uar",
]

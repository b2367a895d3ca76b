"""Conversations that are read by an index, as `tests/benchmarks/streaming.py` measures them, at 2,000 rows."""

import tracemalloc

import pytest
import yaml

from tests.benchmarks import streaming
from tests.builders import make_llm
from tests.runs_helper import fit, flags
from zoo.backbones.patch_vision import small_patch_vision
from zoo.data import Conversations, row_index
from zoo.data.conversations import ConversationSamples

ROWS = 2000


@pytest.fixture(scope="module", params=["jsonl", "tar"])
def mixture(request, tmp_path_factory):
    return streaming.write(tmp_path_factory.mktemp("streaming"), request.param, ROWS)


def test_order_resume_and_ranks(mixture):
    held = streaming.checks(mixture)
    assert len(held) == 3 and all(held.values()), held


def test_a_start_reads_no_row_and_keeps_little(mixture, monkeypatch):
    Conversations(mixture).samples("train")  # makes the indexes
    monkeypatch.setattr(row_index.IndexedRows, "read", None)
    monkeypatch.setattr(row_index.IndexedRows, "_make", None)
    data = Conversations(mixture)
    tracemalloc.start()
    try:
        made = streaming.batches(data)
        made.indices(0, 0)
        now, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    n = len(made.samples)
    # what does not grow with the rows (the mixture, dev.json, the index's ending) is most of it at this size
    assert n == 2 * ROWS and now < 50 * n + 100_000 and most < 150 * n + 100_000, (now / n, most / n)


def test_a_run_makes_the_samples_that_it_trains_on(tmp_path, monkeypatch, one_threaded):
    """Neither checks nor bucketing nor the order look at every sample."""
    make_llm(tmp_path / "llm")
    sizes = {"depth": 1, "width": 32, "heads": 2, "intermediate_size": 48, "patch": 4, "window": 16}
    small_patch_vision(tmp_path / "vision", **sizes, full_attention=(0,))
    mixture = streaming.write(tmp_path, "tar", ROWS // 4)
    mixture.write_text(yaml.safe_dump({"train": [{"path": "*.tar"}]}))  # a hundredth of it for validation
    made, make = [], ConversationSamples.make
    monkeypatch.setattr(ConversationSamples, "make", lambda self, number: made.append(number) or make(self, number))
    options = {"model__llm": tmp_path / "llm", "model__vision": tmp_path / "vision", "model__template": "plain"}
    fit(
        tmp_path / "run",
        *flags(
            model="EmotionQwen",
            **options,
            model__min_pixels=64,
            model__train=r"['llm\..*']",
            checkpoint__monitor="val/answer",
            data="Conversations",
            data__mixture=mixture,
            data__batch_size=2,
            trainer__max_steps=3,
        ),
    )
    assert 6 <= len(made) < 100  # of 990 to train on; the 10 of validation are made for each of its passes

"""A checkpoint as a model of lmms-eval, asked as lmms-eval 0.7.3 asks (itself: tests/benchmarks/lmms_eval.py)."""

from __future__ import annotations

import importlib
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tests.fake_corpus import FakeCorpus, attach
from zoo.checkpoints import load
from zoo.schema import Labels, Sample, Turn

ROOT = Path(__file__).parents[1]
CHECKPOINT = "emotion-qwen-sitcom"
GREEDY = {"max_new_tokens": 4, "temperature": 0, "num_beams": 1, "do_sample": False}
pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")


@dataclass(frozen=True)
class Manifest:
    model_id: str
    simple_class_path: str | None = None


class Base:
    """What lmms-eval's class of models gives each of them."""

    def __init__(self) -> None:
        self.task_dict, self.kept = {}, []
        self.cache_hook = SimpleNamespace(add_partial=lambda *what: self.kept.append(what))


@pytest.fixture
def wrapper(monkeypatch) -> ModuleType:
    names = ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model", "lmms_eval.models", "lmms_eval.models.registry_v2")
    modules = {name: ModuleType(name) for name in names}
    modules["lmms_eval.api.model"].lmms = Base
    modules["lmms_eval.models.registry_v2"].ModelManifest = Manifest
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "zoo.lmms_eval", raising=False)
    module = importlib.import_module("zoo.lmms_eval")
    yield module
    del sys.modules["zoo.lmms_eval"]


def asked(model, shown: list, settings: dict, context: str = "Which colour is the wall?") -> list:
    """Requests of one task, a document for each list of pictures."""
    model.task_dict["colours"] = {"test": shown}
    args = [(context, settings, lambda pictures: pictures, number, "colours", "test") for number in range(len(shown))]
    return [SimpleNamespace(args=one) for one in args]


def wall(colour: str) -> Image.Image:
    return Image.new("RGB", (96, 96), colour)


def test_answers_are_those_of_the_checkpoint_asked_by_itself(wrapper, tmp_path):
    model = wrapper.ZooCheckpoint(CHECKPOINT, batch_size="2", device="cpu", max_batch_size=None)
    pictures = [[wall("red")], [wall("blue")], [wall("green").convert("P")]]
    said = model.generate_until(asked(model, pictures, GREEDY))
    module = attach(
        load(CHECKPOINT, model={"max_new_tokens": 4}).eval(), FakeCorpus(), state=SimpleNamespace(fn="test")
    )
    expected = []
    for number, (shown,) in enumerate(pictures):
        shown.convert("RGB").save(file := tmp_path / f"{number}.png")
        name = f"x/test/{number}"
        sample = Sample(
            name, name, Labels("x", ()), Turn("x", "", "", video=file), question="Which colour is the wall?", answer="?"
        )
        (prediction,) = module.predict(module.collator(False)([sample], np.random.default_rng(0)))
        expected.append(prediction.text)
    assert said == expected and len(set(said)) > 1 and all(said)
    assert [kept[2] for kept in model.kept] == said


def test_lengths_and_ends_are_the_tasks(wrapper):
    model = wrapper.ZooCheckpoint(CHECKPOINT, device="cpu")
    requests = [
        asked(model, [[wall("blue")]], GREEDY | {"max_new_tokens": n, "until": until})[0]
        for n, until in ((8, ()), (1, ()), (8, ["pl"]), (8, "zzz"))
    ]
    whole, short, cut, uncut = model.generate_until(requests)
    assert 0 < len(short) < len(whole) and whole.startswith(short)
    assert uncut == whole and cut == whole.split("pl")[0].strip() != whole
    first = model.system(4)
    assert model.system(8) is first and model.system(9) is not first  # loaded again for a longer answer alone


def test_options_of_the_model(wrapper):
    model = wrapper.ZooCheckpoint(CHECKPOINT, device="cpu", **{"model.frames": 1})
    assert model.system(2).sampling.frames == 1
    with pytest.raises(
        ValueError, match="--model_args frames: expected checkpoint, and options of the model as model.NA"
    ):
        wrapper.ZooCheckpoint(CHECKPOINT, frames=1)


def test_what_it_cannot_answer_is_refused(wrapper, tmp_path):
    model = wrapper.ZooCheckpoint(CHECKPOINT, device="cpu")
    with pytest.raises(ValueError, match="colours shows 2 pictures with question 0; the zoo takes one"):
        model.generate_until(asked(model, [[wall("red"), wall("blue")]], GREEDY))
    with pytest.raises(ValueError, match="--gen_kwargs do_sample=False,num_beams=1"):
        model.generate_until(asked(model, [[wall("red")]], GREEDY | {"do_sample": True}))
    with pytest.raises(ValueError, match="a task shows a dict; expected a picture"):
        model.generate_until(asked(model, [[{"bytes": b""}]], GREEDY))
    for method in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(NotImplementedError, match="output_type is generate_until"):
            method([])
    with pytest.raises(ValueError, match="farcer-sitcom is a FARCER, which asks for an emotion and takes no question"):
        wrapper.ZooCheckpoint("farcer-sitcom").system(4)


def test_the_entry_point_leads_to_the_class(wrapper):
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["lmms_eval.models"]["zoo"]
    module, _, name = entry.partition(":")
    made = getattr(importlib.import_module(module), name)()
    assert made == Manifest("zoo", "zoo.lmms_eval.ZooCheckpoint") and wrapper.ZooCheckpoint.is_simple is True


def test_no_other_module_needs_lmms_eval():
    found = [
        path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "zoo").rglob("*.py"))
        if "import lmms_eval" in (text := path.read_text("utf-8"))
        or "from lmms_eval" in text
        or "zoo.lmms_eval" in text
    ]
    assert found == ["zoo/lmms_eval.py"]

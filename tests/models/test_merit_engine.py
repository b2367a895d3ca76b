"""MERIT through an engine: prompts with frames and sound go as embeddings, and the answers are those of our own."""

import pytest
import torch

from tests.builders import make_home
from tests.fake_vllm import FakeVLLM, seeded_as_an_engine
from tests.runs_helper import checkpoint, fit, flags, logged, rows, zoo
from zoo.training import grpo

pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return make_home(tmp_path_factory.mktemp("merit_engine"), (2, 1, 1), clips=True)


@pytest.fixture
def server(home):
    fake = FakeVLLM(home / "llm")
    yield fake
    fake.stop()


def options(home, model, **more):
    same = {f"model__{part}": home / part for part in ("llm", "vision", "audio")} | {
        "model__template": "plain",
        "model__frames": 2,
        "model__audio_tokens": 2,
        "model__lora__r": 4,
        "model__max_new_tokens": 3,
        "model__cache": home / "cache",
        "data__batch_size": 4,
        "model__lr": 3e-3,
    }
    return [f"--model={model}", *flags(**same | more)]


def test_test_time_reinforcement_and_greedy_answers(home, server, tmp_path, monkeypatch):
    labelled = {"data": "MELD", "data__root": home / "meld"}
    sft = fit(tmp_path / "sft", *options(home, "Merit", **labelled, trainer__max_epochs=2))
    adaptation = {
        "data": "Adaptation",
        "data__corpus": "MELD",
        "data__corpus__root": home / "meld",
        "model__start_from": sft,
        "model__num_generations": 4,
        "model__temperature": 1.1,
        "model__guard": "null",
        "trainer__max_epochs": 1,
    }
    where = {"model__sampler__kind": "vllm", "model__sampler__url": server.url}
    run = fit(tmp_path / "vllm", *options(home, "MeritTTRL", **adaptation, **where))
    drawn = [body for body in server.completions() if body["temperature"] == 1.1]
    assert len(drawn) > 4 and all(body["prompt_embeds"] for body in drawn)

    real = grpo.roll_out
    monkeypatch.setattr(
        grpo, "roll_out", lambda *a, **how: (seeded_as_an_engine if how["temperature"] else real)(*a, **how)
    )
    own = fit(tmp_path / "own", *options(home, "MeritTTRL", **adaptation))
    assert logged(run, "train/reward") == pytest.approx(logged(own, "train/reward"), abs=1e-6)
    found, expected = checkpoint(run)["state_dict"], checkpoint(own)["state_dict"]
    assert found.keys() == expected.keys() and any(".lora_B." in name for name in found)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=2e-4)

    zoo("test", f"--ckpt_path={sft}", "--model.decode=greedy")
    greedy, asked = rows(sft), len(server.completions())
    zoo("test", f"--ckpt_path={sft}", "--model.decode=greedy", *flags(**where))
    assert rows(sft) == greedy and len(server.completions()) >= asked + len(greedy)
    zoo("test", f"--ckpt_path={sft}", "--model.decode=vote", *flags(**where))
    assert {body["n"] for body in server.completions()} >= {1, 4, 5}  # five votes

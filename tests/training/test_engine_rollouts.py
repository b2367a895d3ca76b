"""GRPO whose answers an engine writes: the same training as with our own, and exactly resumed."""

import itertools

import pytest
import torch

from tests.builders import make_home
from tests.fake_vllm import FakeVLLM, seeded_as_an_engine
from tests.runs_helper import TRACE, checkpoint, fit, flags, in_child, logged, newest, refused, rows, same, trace, zoo
from zoo.training import grpo

pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")
OPTIONS = {
    "model": "GRPO",
    "model__reward_funcs+": "tests.runs_helper.checksum",
    "model__max_new_tokens": 4,
    "model__lora__r": 4,
    "model__lr": 3e-3,
    "model__temperature": 1.2,
    "data": "MELD",
    "data__batch_size": 4,
    "trainer__max_epochs": 1,
    "trainer__accumulate_grad_batches": 2,
    "save_last_every": 1,
}


def mostly_equal(answer):
    """A reward that few answers earn, so that many groups have no variance and are drawn again."""
    return float(sum(map(ord, answer.text)) % 5 == 0)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return make_home(tmp_path_factory.mktemp("engine"), (4, 1, 1))


@pytest.fixture
def server(home):
    fake = FakeVLLM(home / "llm")
    yield fake
    fake.stop()


def options(home, server=None, **more):
    places = {"model__llm": home / "llm", "data__root": home / "meld"}
    engine = {"model__sampler__kind": "vllm", "model__sampler__url": server.url} if server else {}
    return [TRACE, *flags(**OPTIONS | places | engine | more)]


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"model__num_iterations": 2, "model__objective__beta": 0.04, "model__mask_truncated_completions": "true"},
        {"model__objective__kind": "ppo_advantage", "model__objective__normalize": "sum"},
        {"model__num_mini_batches": 2, "model__reward_funcs+": "tests.training.test_engine_rollouts.mostly_equal"}
        | {"model__max_resample_times": 2},
    ],
)
def test_training_is_that_of_our_own_sampler(home, server, tmp_path, monkeypatch, more):
    run = fit(tmp_path / "vllm", *options(home, server, **more))
    # greedy validation is our own in this arm
    monkeypatch.setattr(
        grpo, "roll_out", lambda *a, **how: (seeded_as_an_engine if how["temperature"] else real)(*a, **how)
    )
    own = fit(tmp_path / "own", *options(home, **more))
    for column in ("train/reward", "train/completions/mean_length", "val/reward", "train/completions/clipped_ratio"):
        assert logged(run, column) == pytest.approx(logged(own, column), abs=1e-6), column
    assert logged(run, "train/loss") == pytest.approx(logged(own, "train/loss"), abs=2e-4)
    found, expected = checkpoint(run)["state_dict"], checkpoint(own)["state_dict"]
    moved = [name for name in expected if ".lora_B." in name and expected[name].abs().max() > 1e-3]
    assert moved and found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=2e-4)
    assert 0 < max(logged(run, "train/sampling/sampling_logp_difference/max")) < 1e-3
    assert not any("entropy" in key and value for key, value in logged(run)[0].items())  # an engine does not tell
    assert len(set(server.loads)) > 3  # of the check, and of every step


def test_two_processes_share_an_engine(home, server, tmp_path):
    """Both ask it, under the adapters of the step: those of another step would show in the mismatch."""
    two = {"trainer__devices": 2, "trainer__strategy": "ddp_fork", "data__batch_size": 2}
    run = fit(tmp_path, *options(home, server, **two))
    mismatch = logged(run, "train/sampling/sampling_logp_difference/max")
    assert len(mismatch) > 2 and 0 < max(mismatch) < 1e-3
    kept = {path.name.split("-")[1] for path in (run / "rollouts").iterdir()}
    assert kept == {"0", "1"}
    moved = [t for name, t in checkpoint(run)["state_dict"].items() if ".lora_B." in name and t.abs().max() > 1e-3]
    assert moved and not set(server.loads) - set(server.unloads) - set(server.loads[-3:])


real = grpo.roll_out


def spoilt_logprobs(server, by):
    """The engine says log-probabilities that are off, but for the probe (one greedy and one drawn answer)."""
    right, count = server._reply, itertools.count()

    def off(path, body):
        status, kind, reply = right(path, body)
        if path == "/v1/completions" and body["temperature"] and next(count) > 0:
            for choice in reply["choices"]:
                values = choice["logprobs"]["token_logprobs"]
                values[:] = [value - by for value in values]
        return status, kind, reply

    server._reply = off


def test_the_correction_weighs_the_loss(home, tmp_path):
    """Each ratio is e^0.5: truncated to 1.2 it multiplies the gradient, which AdamW's first step does not show; masked,
    nothing is learnt."""
    weights = {}
    for kind, threshold in (("none", 1.2), ("truncate", 1.2), ("mask", 1.2), ("mask", 2.0)):
        fake = FakeVLLM(home / "llm")
        spoilt_logprobs(fake, 0.5)
        more = {"model__sampler_correction": kind, "model__sampler_threshold": threshold, "trainer__max_steps": 1}
        run = fit(
            tmp_path / f"{kind}{threshold}",
            *options(home, fake, model__objective__normalize="sum", model__objective__kind="reinforce_group", **more),
        )
        weights[kind, threshold] = abs(sum(logged(run, "train/loss")))
        assert logged(run, "train/sampling/sampling_logp_difference/mean") == [pytest.approx(0.5, abs=1e-3)]
        fake.stop()
    plain = weights["none", 1.2]
    assert plain > 1e-3
    assert weights["truncate", 1.2] == pytest.approx(1.2 * plain, rel=1e-3)
    assert weights["mask", 1.2] == 0
    assert weights["mask", 2.0] == pytest.approx(2.718281828**0.5 * plain, rel=1e-3)


# ---- kills
@pytest.mark.parametrize("kill", [("before_step", 0, 3), ("batch_end", 0, 4)])
def test_a_killed_trainer_resumes_exactly(home, tmp_path, kill):
    """Although the engine gives other answers to a question that it heard before."""
    reference, disturbed = (FakeVLLM(home / "llm") for _ in range(2))
    reference.never_twice = disturbed.never_twice = True
    expected = fit(tmp_path / "reference", *options(home, reference))
    root = tmp_path / "killed"
    assert in_child(lambda: fit(root, *options(home, disturbed)), kill) == -9
    asked = len(disturbed.completions())
    disturbed.restart()
    run = newest(root)
    zoo("fit", f"--ckpt_path={run}")
    steps = list({(e["epoch"], e["batch"]): e for e in trace(run)}.values())
    assert steps == trace(expected)
    assert same(checkpoint(run)["state_dict"], checkpoint(expected)["state_dict"])
    assert len(disturbed.completions()) > asked
    kept = [p.name for p in (run / "rollouts").iterdir()]
    assert 0 < len(kept) <= 2  # not those of all steps
    for fake in (reference, disturbed):
        fake.stop()


QUIET = ("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1")


def test_a_restarted_engine_changes_nothing(home, server, tmp_path):
    expected = fit(tmp_path / "reference", *options(home, server))
    other, count = FakeVLLM(home / "llm"), itertools.count()

    def restarts(path, body):
        if path == "/v1/completions" and next(count) == 13:
            other.restart()
            return "hang up"
        return None

    other.fault = restarts
    run = fit(tmp_path / "restarted", *options(home, other))
    assert next(count) > 13 and trace(run) == trace(expected)
    assert same(checkpoint(run)["state_dict"], checkpoint(expected)["state_dict"])
    other.stop()


def test_a_run_without_its_engine_says_so_and_goes_on_later(home, server, tmp_path):
    expected = fit(tmp_path / "reference", *options(home, server))
    half, count = len(server.completions()) // 2, itertools.count()
    server.fault = lambda path, body: (500, None, "no") if path == "/v1/completions" and next(count) > half else None
    root = f"--trainer.default_root_dir={tmp_path}"
    message = refused("fit", *options(home, server, model__sampler__tries=1), root, *QUIET)
    assert "gave no usable answer" in message and "resume the run" in message
    server.fault = lambda path, body: None
    zoo("fit", f"--ckpt_path={newest(tmp_path)}")
    assert same(checkpoint(newest(tmp_path))["state_dict"], checkpoint(expected)["state_dict"])


# ---- evaluation
def test_greedy_answers_of_a_test_are_those_of_our_own(home, server, tmp_path):
    model = {"model": "CausalLM", "model__llm": home / "llm", "model__decode": "greedy", "model__lora__r": 4}
    data = {"data": "MELD", "data__root": home / "meld", "trainer__max_epochs": 1, "model__lr": 3e-3}
    run = fit(tmp_path, *flags(**model | data))
    zoo("test", f"--ckpt_path={run}")
    own = rows(run)
    asked = len(server.completions())
    zoo("test", f"--ckpt_path={run}", "--model.sampler.kind=vllm", f"--model.sampler.url={server.url}")
    assert rows(run) == own and len(server.completions()) >= asked + len(own)
    asked, engine = len(server.completions()), ("--model.sampler.kind=vllm", f"--model.sampler.url={server.url}")
    zoo("predict", f"--ckpt_path={run}", *engine)
    assert rows(run) == own and len(server.completions()) >= asked + len(own)
    said = refused("test", f"--ckpt_path={run}", "--model.sampler.kind=vllm", "--model.decode=score")
    assert "use --model.decode greedy" in said


# ---- refused
def test_options_that_do_not_go_together(home, server, tmp_path):
    whole = [o for o in options(home, server) if "lora" not in o]
    assert "without --model.lora there are none" in refused("fit", *whole, *QUIET)
    said = refused("fit", *options(home, server, model__sampler_threshold=0), *QUIET)
    assert "sampler_threshold 0" in said
    for more in ({"model__top_p": 0.9}, {"model__stop_strings": ["."]}):
        assert "from the whole distribution: leave out top_p" in refused("fit", *options(home, server, **more), *QUIET)
    said = refused("fit", *options(home, server, model__sampler_correction="clip"), *QUIET)
    assert "sampler_correction" in said

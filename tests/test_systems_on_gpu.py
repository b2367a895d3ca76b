"""Every system on the pretended GPU: `fit`, `test` and `predict` say what they say on the CPU, and a device that the
zoo forgets is noticed."""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.pytorch import Callback

from tests.builders import make_home
from tests.models.test_baselines import make_encoder
from tests.models.test_contract import SYSTEMS, System
from tests.pretended_gpu import pretended_gpu
from tests.runs_helper import TRACE, fit, flags, metrics, newest, rows, trace, zoo

CUDA = "cuda:0"
pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")


class Placed(Callback):
    """Where parameters and buffers are while batches are computed."""

    devices: set[str] = set()

    def note(self, trainer, pl_module, *args) -> None:
        self.devices |= {str(t.device) for t in (*pl_module.parameters(), *pl_module.buffers())}
        self.devices.add(str(pl_module.device))

    on_train_batch_end = on_validation_batch_end = on_test_batch_end = on_predict_batch_end = note


MERIT = SYSTEMS["merit"]
REINFORCED = (*(a for a in MERIT.args[1:] if "word_dropout" not in a), "--model.max_new_tokens=3")
SELECTOR = ("--model.template=decision", "--model.window=0", "--model.descriptions=[audio]")
ADAPTED = ("merit_ttrl",)
MORE_SYSTEMS = {
    "instructerc": System(
        (
            "--model=InstructERC",
            "--model.template=short",
            "--model.window=2",
            "--model.impact=0.5",
            "--model.class_weight=0.5",
        )
    ),
    "selector": System(
        (
            "--model=ModalitySelector",
            *SELECTOR,
            "--model.max_new_tokens=6",
            "--model.lora.r=4",
            "--model.objective.beta=0.04",
        ),
        scores=False,
    ),
    "selector_decision": System(
        (
            "--model=ModalitySelector",
            *SELECTOR,
            "--model.reasoning=none",
            "--model.exploration=forced",
            "--model.num_generations=2",
            "--model.objective.kind=reinforce_group",
            "--model.lora.r=4",
        ),
        scores=False,
    ),
    "selector_classifier": System(
        (
            "--model=SelectedClassifier",
            "--model.template=causal_lm/default",
            "--model.window=null",  # prompts that begin alike
            "--model.selection=random",
            "--model.compare=true",  # asks once more, with prompts that it writes itself
        )
    ),
    "merit_ttrl": System(("--model=MeritTTRL", *REINFORCED), others=MERIT.others),
    "merit_rlvr": System(
        ("--model=MeritRLVR", *REINFORCED, "--model.reward_funcs+=tests.runs_helper.checksum"), others=MERIT.others
    ),
    "sentence": System(("--model=SentenceClassifier", "--model.max_length=32"), "encoder"),
}
LIMITS = {"model__lr": 3e-3, "data__batch_size": 4, "trainer__max_epochs": 1}
LIMITS |= {"trainer__limit_train_batches": 2, "trainer__limit_val_batches": 1}
EVALUATED = ("--trainer.limit_test_batches=1", "--trainer.limit_predict_batches=1")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = make_home(tmp_path_factory.mktemp("gpu"), (2, 1, 1), clips=True)
    make_encoder(home / "encoder")
    return home


@pytest.fixture(scope="module")
def commands(home):
    """System -> the options of its `fit`: two steps and a validation."""

    def commands(name: str, **more: object) -> list[str]:
        system = (SYSTEMS | MORE_SYSTEMS)[name]
        options = {f"model__{part}": home / part for part in (system.backbone, *system.others)}
        if name in ADAPTED:
            options |= {"data": "Adaptation", "data__corpus": "MELD", "data__corpus__root": home / "meld"}
        else:
            options |= {"data": "MELD", "data__root": home / "meld"}
        options |= {"data__descriptions": f"[{home / 'meld'}]"} if "audio]" in "".join(system.args) else {}
        return [*system.args, *flags(**options | LIMITS | more)]

    return commands


@pytest.fixture(scope="module")
def supervised(commands, tmp_path_factory) -> Path:
    """A run that MERIT's reinforcement starts from."""
    return fit(tmp_path_factory.mktemp("supervised"), *commands("merit"))


def _said(root: Path, options: list[str], verbs: tuple[str, ...]) -> list[object]:
    """What a system says in training, in validation and with each verb, without times; last, its metrics of `test`."""
    run = fit(root, TRACE, "--trainer.callbacks+=tests.test_systems_on_gpu.Placed", *options)
    said: list[object] = [[step["loss"] for step in trace(run)], [e["rows"] for e in trace(run, "validation")]]
    for verb in verbs:
        zoo(verb, f"--ckpt_path={run}", *EVALUATED)
        (written,) = (path for name in ("predictions", "decisions") if (path := run / f"{name}.jsonl").exists())
        said.append([json.loads(line) for line in written.read_text().splitlines()])
        if verb == "test":
            measured = {k: v for k, v in metrics(run).items() if k not in ("seconds_per_sample", "checkpoint")}
    return [*said, measured]


def _close(found: object, expected: object, within: float = 1e-5) -> bool:
    """Equal, numbers up to rounding."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(_close(found[k], expected[k], within) for k in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(_close(f, e, within) for f, e in zip(found, expected, strict=True))
    return found == (pytest.approx(expected, abs=within, rel=within) if isinstance(expected, float) else expected)


@pytest.mark.parametrize("name", sorted(SYSTEMS.keys() - {"dialoguellm", "causal_lm"} | MORE_SYSTEMS.keys()))
def test_systems_run_on_a_gpu(name, commands, request, tmp_path):
    """The device draws the CPU's random numbers, so that even what is sampled is the same."""
    more = {"model__start_from": request.getfixturevalue("supervised")} if name in ADAPTED else {}
    options = commands(name, **more)
    expected = _said(tmp_path / "cpu", options, ("test",))
    assert Placed.devices == {"cpu"}
    with pretended_gpu() as gpu:
        Placed.devices.clear()
        *found, predicted, measured = _said(tmp_path / "gpu", options, ("test", "predict"))
        assert Placed.devices == {CUDA} and gpu.launches > 500 and gpu.synchronizations > 10
    Placed.devices.clear()
    assert _close([*found, measured], expected), (found, measured, expected)
    assert _close(predicted, expected[2])  # of the same samples
    assert len(expected[0]) == 2 and len(expected[1]) == 1 and len(expected[2]) == 4


def test_few_shot_on_a_gpu(home):
    options = ("--model=CausalLM", "--data=MELD", "--model.shots=7", "--zero_shot=true", "--trainer.accelerator=cpu")
    options += (*EVALUATED, *flags(model__llm=home / "llm", data__root=home / "meld"))

    def said(verb: str) -> list[dict]:
        zoo(verb, *options)
        return rows(newest(Path()))

    expected = [said("test"), said("predict")]
    with pretended_gpu() as gpu:
        assert _close([said("test"), said("predict")], expected)
        assert gpu.launches > 100


# ---- mistakes
def _elsewhere(function: Callable) -> Callable:
    """The same function, whose result is on the CPU."""
    return lambda *args, **options: function(*args, **options).cpu()


ZOO_MISTAKES = {  # system -> what forgets the device in it
    "causal_lm": "zoo.backbones.llm.positions_from_mask",
    "grpo": "zoo.rl.grpo.Objective.advantages",
    "farcer": "zoo.models.farcer.model.FARCER.features",
    "emotion_qwen": "zoo.models.emotion_qwen.model.EmotionQwen.embed",
    "voice": "zoo.backbones.audio.Audio.prepare",
}


@pytest.mark.parametrize("name", ZOO_MISTAKES)
def test_mistakes_in_the_zoo_are_refused(name, commands, tmp_path, monkeypatch, gpu):
    owner, _, attribute = ZOO_MISTAKES[name].rpartition(".")
    found = pkgutil.resolve_name(owner)
    monkeypatch.setattr(found, attribute, _elsewhere(getattr(found, attribute)))
    with pytest.raises(RuntimeError, match="found at least two devices, cuda:0 and cpu!"):
        fit(tmp_path, *commands(name))

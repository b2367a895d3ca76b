"""Foreign files: a folder, a config, a checkpoint or a template that somebody made to do harm, or that was damaged on
the way, ends in one sentence that names it, and nothing of it is executed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.builders import make_home
from tests.runs_helper import checkpoint, fit, flags, refused, zoo
from zoo import cli, imports, weights
from zoo.backbones import LLM
from zoo.backbones.llm import LoRA
from zoo.checkpoints import listing
from zoo.storage import inside
from zoo.templates import bounded

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A language model, a corpus, and a finished run of two steps."""
    home = make_home(tmp_path_factory.mktemp("attacks"), (2, 1, 1))
    model = flags(model__llm=home / "llm", data="MELD", data__root=home / "meld", data__batch_size=7)
    fit(home, "--model=CausalLM", *model, "--trainer.max_steps=2")
    return home


@pytest.fixture
def run(home, tmp_path) -> Path:
    """A copy of the run, to be changed."""
    return shutil.copytree(home / "lightning_logs" / "version_0", tmp_path / "run")


@pytest.fixture
def fresh(monkeypatch):
    """As a new process: nothing was allowed, and no module of a test's folder is loaded."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(imports.imports, "folders", [])
    monkeypatch.setattr(imports.imports, "modules", set())
    for name in (imports.FOLDERS, imports.NAMED):
        monkeypatch.delenv(name, raising=False)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if "attack" in name:
            del sys.modules[name]


def change(run: Path, **sections: Any) -> dict[str, Any]:
    """Writes other sections into a run's config.yaml."""
    content = yaml.safe_load((run / "config.yaml").read_text()) | sections
    (run / "config.yaml").write_text(yaml.safe_dump(content))
    return content


# ------------------------------------------------------------------------------------------------------ imports
EXECUTED = "open('executed', 'w').write('x')\n"
READS = [
    ("test", "--ckpt_path=run"),
    ("validate", "--ckpt_path=run"),
    ("predict", "--ckpt_path=run"),
    ("fit", "--ckpt_path=run"),
    ("label", "--text=hi", "--ckpt_path=run"),
    ("export", "--ckpt_path=run", "--out=out"),
]


@pytest.mark.parametrize("command", READS, ids=lambda c: c[0])
def test_nothing_beside_a_checkpoint_is_imported(command, run, tmp_path, fresh):
    (tmp_path / "attack_mod.py").write_text(EXECUTED + "class Evil: pass\n")
    change(run, model={"class_path": "attack_mod.Evil", "init_args": {}})
    message = refused(*command)
    assert "names attack_mod.Evil" in message and "--import ." in message
    assert not (tmp_path / "executed").exists()


PLACES = ["callbacks", "logger", "plugins", "profiler", "string", "key", "nested", "namespace"]


@pytest.mark.parametrize("place", PLACES)
def test_a_module_is_found_wherever_the_config_names_it(place, run, tmp_path, fresh):
    (tmp_path / "attack_mod.py").write_text(EXECUTED + "class Evil: pass\n")
    (tmp_path / "attack_pkg").mkdir()
    (tmp_path / "attack_pkg" / "inner.py").write_text(EXECUTED)
    config = change(run)
    trainer, model = config["trainer"], config["model"]
    evil = {"class_path": "attack_mod.Evil"}
    if place in ("callbacks", "plugins"):
        trainer[place] = [evil]
    elif place in ("logger", "profiler"):
        trainer[place] = evil
    elif place == "string":
        trainer["callbacks"] = ["attack_mod.Evil"]
    elif place == "key":
        config["trainer.callbacks"] = [{"class_path": "attack_mod.Evil"}]
    elif place == "nested":
        (tmp_path / "more.yaml").write_text("class_path: attack_mod.Evil\n")
        model["init_args"]["lora"] = "more.yaml"
    else:
        model["init_args"]["template"] = "attack_pkg.inner.f"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert "--import ." in refused("test", "--ckpt_path=run")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "subprocess.Popen",
        "builtins.eval",
        "torch.os.system",
        "zoo.cli.os.system",
        "functools.partial",
        "torch.serialization.pickle.loads",
        "runpy.run_path",
        "lightning.pytorch.cli.os.popen",
    ],
)
def test_python_itself_is_no_part_of_a_system(name, run, fresh):
    config = change(run)
    config["model"]["init_args"]["rewards"] = [name]
    change(run, **config)
    assert f"names {name}" in refused("test", "--ckpt_path=run")
    change(run, model={"class_path": name, "init_args": {"args": "touch executed"}})
    assert f"names {name}" in refused("label", "--text=hi", "--ckpt_path=run")
    assert not Path("executed").exists()


def test_what_is_installed_may_be_named(fresh):
    for name in (
        "zoo.models.causal_lm.CausalLM",
        "lightning.pytorch.callbacks.EarlyStopping",
        "torch.nn.Linear",
        "torchmetrics.Accuracy",
        "jinja2.Template",
    ):
        imports.check_imports({"class_path": name}, "config.yaml")
    with pytest.raises(ValueError, match="no module nosuch_thing is installed"):
        imports.check_imports({"class_path": "nosuch_thing.Model"}, "config.yaml")
    imports.check_imports({"a": "face.jpg", "b": "os.pathsep.nothing", "c": "model.layers", "d": "2.5"}, "config.yaml")


def test_the_users_own_module_is_imported_where_he_names_it_and_with_the_flag(home, tmp_path, fresh):
    (tmp_path / "attack_callback.py").write_text("from lightning.pytorch import Callback\nclass Own(Callback): pass\n")
    model = flags(model__llm=home / "llm", data="MELD", data__root=home / "meld", data__batch_size=7)
    run = fit(tmp_path, "--model=CausalLM", *model, "--trainer.max_steps=1", "--trainer.callbacks+=attack_callback.Own")
    imports.imports.modules.clear()
    imports.imports.folders.clear()
    os.environ.pop(imports.NAMED, None)
    sys.modules.pop("attack_callback")
    message = refused("test", f"--ckpt_path={run}")
    assert "names attack_callback.Own" in message and "with --import ." in message
    zoo("test", f"--ckpt_path={run}", "--import", ".")
    with pytest.raises(SystemExit, match="no such folder"):
        zoo("test", f"--ckpt_path={run}", "--import=nosuch")


def test_an_empty_foreign_folder_is_no_place_to_import_from(run, tmp_path):
    """Also for what libraries import by themselves when they find it: the working directory is on no path."""
    for name in ("wandb", "sentencepiece", "yaml", "torch", "tiktoken", "cv2", "flash_attn", "attack"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'a').write({name!r})\n")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    clone = tmp_path / "clone"
    clone.mkdir()
    (clone / "zoo").symlink_to(ROOT / "zoo")
    (clone / "checkpoints").symlink_to(ROOT / "checkpoints")
    script = f"import sys; sys.path.insert(1, {str(ROOT)!r}); from zoo.cli import main; main()"
    start = tmp_path / "bin"
    start.mkdir()
    (start / "zoo").write_text(script)
    done = subprocess.run(
        [sys.executable, str(start / "zoo"), "label", "--ckpt_path=run", "--text=hi"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "executed").exists()
    done = subprocess.run(
        [sys.executable, "-m", "zoo", "label", "--ckpt_path=run", "--text=hi"],
        cwd=tmp_path,
        env=env | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "executed").exists()


# ------------------------------------------------------------------------------------------------------ names in files
@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/../../x",
        "/etc/passwd",
        "..",
        "",
        " ",
        "a\0b",
        "..\\x",
        "C:\\x",
        "C:x",
        "x" * 300,
        "a\nb",
        3,
        None,
        "link/x",
    ],
)
def test_no_name_leads_out_of_its_folder(name, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="index.yaml: entry names"):
        inside(tmp_path / "folder", name, "index.yaml: entry")


@pytest.mark.parametrize("name", ["a", "a/b.txt", "é ü", "..a", "a..b/c"])
def test_ordinary_names_stay(name, tmp_path):
    assert inside(tmp_path, name, "index.yaml") == tmp_path / name


@pytest.mark.parametrize(
    "entry",
    [
        {"files": {"../../written": None}},
        {"files": ["a"]},
        {"files": {"a": 3}},
        {"source": "nosuch"},
        "text",
        {"reported": 5},
        {"reported": [5]},
        {"reported": [{"metric": 1, "value": 2, "corpus": "c", "split": "s"}]},
        {"reported": [{"metric": "m", "value": "2", "corpus": "c", "split": "s"}]},
        {"licence": 5},
        {"what": ["x"]},
        {"gated": "no"},
        {"commercial": 3},
        {"paper": None},
        {"url": 7},
        {"bytes": "many"},
        {"bytes": True},
        {"use": [1]},
    ],
)
def test_an_index_entry_stays_in_its_folder(entry, tmp_path, monkeypatch):
    whole = {
        "what": "x",
        "paper": "x",
        "source": "url",
        "licence": "x",
        "gated": False,
        "commercial": True,
        "reported": [],
        "files": {},
        "url": "https://example.org/x",
    }
    file = tmp_path / "index.yaml"
    file.write_text(yaml.safe_dump({"evil": whole | entry if isinstance(entry, dict) else entry}))
    monkeypatch.setattr(listing, "INDEX", file)
    assert "evil" in refused("checkpoints", "pull", "evil", "--to=evil", "--accept_licence")
    for command in (("show", "evil"), ("list",)):
        message = refused("checkpoints", *command)
        assert str(file) in message and (isinstance(entry, str) or next(iter(entry)) in message or "names" in message)
    assert not (tmp_path.parent / "written").exists()


# ------------------------------------------------------------------------------------------------------ run configs
DAMAGED: dict[str, bytes] = {
    "empty": b"",
    "scalar": b"hello\n",
    "list": b"- a\n- b\n",
    "no model": b"seed_everything: 0\n",
    "binary": bytes(range(256)),
    "tabs": b"model:\n\tclass_path: x\n",
    "model text": b"model: hi\n",
    "model null": b"model: null\n",
    "class a number": b"model: {class_path: 3}\n",
    "options a list": b"model: {class_path: a.B, init_args: [1]}\n",
    "tag": b"model: !!python/object/apply:os.system ['touch executed']\n",
    "twice": b"model: {}\nmodel: {}\n",
    "trainer text": b"model: {class_path: zoo.models.causal_lm.CausalLM}\ntrainer: x\n",
    "deep": b"[" * 5000,
    "aliases": b"a: &a [x,x,x,x,x,x,x,x,x,x]\n"
    + b"".join(
        f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n".encode() for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_run_config_is_refused_by_name(content, run):
    (run / "config.yaml").write_bytes(content)
    for command in (("label", "--text=hi"), ("test",), ("fit",)):
        assert "config.yaml" in refused(*command, "--ckpt_path=run")
    assert not Path("executed").exists()


def test_label_needs_the_data_section(run):
    content = change(run)
    del content["data"]
    (run / "config.yaml").write_text(yaml.safe_dump(content))
    assert "config.yaml has no data" in refused("label", "--text=hi", "--ckpt_path=run")


@pytest.mark.parametrize(
    "text",
    [
        "model: {class_path: zoo.models.causal_lm.CausalLM, init_args: {llm: tiny-llama, lr: 1.0, lr: 2.0}}\n",
        "seed_everything: 1\nseed_everything: 2\n",
    ],
)
def test_a_key_that_stands_twice_is_refused(text, tmp_path, capsys):
    (tmp_path / "twice.yaml").write_text(text)
    (tmp_path / "good.yaml").write_text("seed_everything: 1\n")
    message = refused("fit", "--config=good.yaml", "--config", "twice.yaml", "--model=CausalLM", "--data=Synthetic")
    assert "twice.yaml, line" in message and "stands twice" in message
    (tmp_path / "bench.yaml").write_text("title: t\nrows:\n  a: {what: x}\n  a: {what: y}\n")
    message = refused("bench", "--config=bench.yaml")
    assert "bench.yaml, line 4" in message and "stands twice" in message


@pytest.mark.parametrize("content", [DAMAGED[name] for name in ("binary", "tabs", "tag", "deep", "aliases")])
@pytest.mark.parametrize("verb", ["fit", "bench"])
def test_a_damaged_config_of_the_command_line_is_named(verb, content, tmp_path):
    (tmp_path / "bad.yaml").write_bytes(content)
    assert "bad.yaml" in refused(verb, "--config=bad.yaml")
    assert not Path("executed").exists()


WRONG: dict[str, tuple[str, dict, str]] = {  # section, what changes in it, what is said
    "a number": ("model", {"llm": 5}, "model.llm is 5, expected a text"),
    "a word": ("model", {"lr": "abc"}, "model.lr is abc, expected a number"),
    "unknown": ("model", {"foo": 1}, "model.foo is no option of CausalLM"),
    "one of": ("model", {"dtype": "float8"}, "model.dtype is float8, expected one of 'float32'"),
    "inside": ("model", {"lora": {"r": "x"}}, "model.lora.r is x, expected a whole number"),
    "a key": ("model", {"lora": {5: 6}}, "model.lora is wrong: Key must be a string"),
    "unknown of data": ("data", {"foo": 1}, "data.foo is no option of MELD"),
    "no class": ("data", {"class_path": "zoo.data.Nope"}, "data.class_path is zoo.data.Nope"),
    "another class": ("model", {"class_path": "torch.nn.Linear"}, "torch.nn.Linear does not correspond to a subclass"),
}


@pytest.mark.parametrize(("section", "options", "said"), WRONG.values(), ids=WRONG)
def test_a_wrong_option_of_a_run_config_is_one_sentence(section, options, said, run):
    part = change(run)[section]
    if "class_path" in options:
        change(run, **{section: part | options})
    else:
        change(run, **{section: part | {"init_args": part["init_args"] | options}})
    for command in (("label", "--text=hi"), ("test",), ("fit",)):
        message = refused(*command, "--ckpt_path=run").partition("\n(ZOO")[0].strip().splitlines()
        assert f"run/config.yaml: {said}" in message[-1].replace("model is wrong: Import path ", "")
        assert "usage" not in message[0] and len(message) <= 2 and len(message[-1]) < 400


def test_a_wrong_option_of_the_trainer_is_one_sentence(run):
    trainer = change(run)["trainer"]
    change(run, trainer=trainer | {"max_steps": "x"})
    assert "run/config.yaml: trainer.max_steps is x, expected a whole number" in refused("fit", "--ckpt_path=run")
    change(run, trainer=trainer | {"foo": 1})
    assert "run/config.yaml: trainer.foo is no option of zoo fit" in refused("fit", "--ckpt_path=run")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model.lr", "nan"], "--model.lr is nan, expected a number"),
        (["--model=GRPO", "--model.reward_funcs", "[attack_rewards.notcallable]"], "--model.reward_funcs is"),
        (["--model.lora.r=x"], "--model.lora.r is x, expected a whole number"),
    ],
)
def test_a_wrong_option_of_the_command_line_is_one_sentence(flags, said, run, tmp_path, fresh):
    (tmp_path / "attack_rewards.py").write_text("notcallable = 5\n")
    argv, sys.argv = sys.argv, ["zoo", "fit", *flags]
    message = refused("fit", "--config=run/config.yaml", *flags)
    sys.argv = argv
    assert said in message and "Union" not in message and "init_args" not in message and len(message) < 400


def test_numbers_are_read_as_before(tmp_path, capsys):
    """jsonargparse reads 1e-5 as a number, PyYAML as a text."""
    (tmp_path / "one.yaml").write_text("model: {class_path: CausalLM, init_args: {llm: tiny-llama, lr: 1e-5}}\n")
    with pytest.raises(SystemExit):
        zoo("fit", "--config=one.yaml", "--data=Synthetic", "--model.betas=[0.9, 9e-1]", "--print_config")
    printed = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    assert printed["lr"] == 1e-5 and printed["betas"] == [0.9, 0.9]


# ------------------------------------------------------------------------------------------------------ checkpoints
def _contract(**fields: Any) -> Callable[[dict], dict]:
    return lambda c: c | {"zoo": {k: v for k, v in (c["zoo"] | fields).items() if v is not ...}}


BROKEN: dict[str, Callable[[dict], Any]] = {
    "contract a text": lambda c: c | {"zoo": "hello"},
    "no format": _contract(format=...),
    "no bases": _contract(bases=...),
    "bases a list": _contract(bases=[1]),
    "base a text": _contract(bases={"llm": "x"}),
    "no class": _contract(**{"class": ...}),
    "pristine a number": _contract(pristine=3),
    "adapters a list": _contract(adapters=[1]),
    "start a text": _contract(start="earlier"),
    "start without fingerprint": _contract(start={"path": "earlier"}),
    "adapter of other settings": _contract(adapters={"llm": {"rank": 3}}),
    "state a list": lambda c: c | {"state_dict": [1, 2]},
    "tensor a text": lambda c: c | {"state_dict": {**c["state_dict"], next(iter(c["state_dict"])): "x"}},
    "no state": lambda c: {k: v for k, v in c.items() if k != "state_dict"},
    "step a text": lambda c: c | {"global_step": "x"},
    "step negative": lambda c: c | {"global_step": -1},
    "a list": lambda c: [1],
    "a tensor": lambda c: torch.zeros(2),
    "sparse": lambda c: c | {"state_dict": {k: v.to_sparse() for k, v in c["state_dict"].items()}},
    "meta": lambda c: c | {"state_dict": {k: v.to("meta") for k, v in c["state_dict"].items()}},
    "conjugate": lambda c: c | {"state_dict": {k: torch.complex(v, v).conj() for k, v in c["state_dict"].items()}},
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_broken_contract_is_refused_by_name(broken, run):
    torch.save(broken(checkpoint(run, "best")), run / "checkpoints" / "best.ckpt")
    (run / "checkpoints" / "last.ckpt").unlink()
    for command in (("label", "--text=hi"), ("test",), ("fit",)):
        assert "is not a checkpoint of the zoo" in refused(*command, "--ckpt_path=run")
    begun = refused("fit", "--config=run/config.yaml", "--model.start_from=run")
    assert "is not a checkpoint of the zoo" in begun


@pytest.mark.parametrize("lacks", ["optimizer_states", "pytorch-lightning_version", "loops", "lr_schedulers", "epoch"])
def test_a_run_cannot_go_on_without_its_state(lacks, run):
    content = checkpoint(run, "last")
    del content[lacks]
    torch.save(content, run / "checkpoints" / "last.ckpt")
    message = refused("fit", "--ckpt_path=run", "--trainer.max_steps=3")
    assert "not the whole state of a training run" in message and f"its {lacks} is missing" in message


def _at(*keys: Any, to: Any = ...) -> Callable[[dict], None]:
    """Puts another value at a place of a checkpoint, or takes it away."""

    def put(content: dict) -> None:
        for key in keys[:-1]:
            content = content[next(k for k in content if k.startswith(key)) if isinstance(key, str) else key]
        if to is ...:
            del content[keys[-1]]
        else:
            content[keys[-1]] = to

    return put


EVALUATED = {  # what Lightning reads in every verb: the field as the refusal names it
    "no version": ("its pytorch-lightning_version is missing", _at("pytorch-lightning_version")),
    "version": ("its pytorch-lightning_version is 2.6", _at("pytorch-lightning_version", to=2.6)),
    "version words": ("pytorch-lightning_version is 'new'", _at("pytorch-lightning_version", to="new")),
    "old version": ("pytorch-lightning_version is '0.9.0'", _at("pytorch-lightning_version", to="0.9.0")),
    "callbacks": ("its callbacks is 'x'", _at("callbacks", to="x")),
    "callback": ("the state of LastCheckpoint", _at("callbacks", "LastCheckpoint", to=3)),
    "loops": ("its loops is [1]", _at("loops", to=[1])),
    "test loop": ("the test_loop of its loops is missing", _at("loops", "test_loop")),
    "counts": ("has 'x' as total", _at("loops", "fit_loop", "epoch_loop.batch_progress", "total", to="x")),
    "scaler": ("its MixedPrecision is 3", _at("MixedPrecision", to=3)),
}
RESUMED = {
    "optimizer": ("state and param_groups is in its optimizer_states", _at("optimizer_states", to=[{"a": 1}])),
    "group": ("without params and lr", _at("optimizer_states", 0, "param_groups", to=[{"a": 1}])),
    "moments": ("the state of the parameter 0", _at("optimizer_states", 0, "state", 0, to="x")),
    "schedule": ("a state in its lr_schedulers is 'a'", _at("lr_schedulers", to=["a"])),
    "schedule's step": ("the last_epoch in its lr_schedulers is 'x'", _at("lr_schedulers", 0, "last_epoch", to="x")),
    "lambdas": ("the lr_lambdas in its lr_schedulers is missing", _at("lr_schedulers", 0, "lr_lambdas")),
    "rates": ("the base_lrs in its lr_schedulers", _at("lr_schedulers", 0, "base_lrs", to=["x", "y"])),
    "no progress": ("no epoch_loop.batch_progress", _at("loops", "fit_loop", "epoch_loop.batch_progress")),
    "epoch": ("its epoch is 'x'", _at("epoch", to="x")),
    "scores": ("the metrics of LastCheckpoint", _at("callbacks", "LastCheckpoint", "metrics", to={"val/wf1": "x"})),
    "best": ("the best_k_models of BestCheckpoint", _at("callbacks", "BestCheckpoint", "best_k_models", to=[1])),
    "no data": ("its MELD is missing", _at("MELD")),
    "data": ("its MELD is 'x'", _at("MELD", to="x")),
    "place": ("the batches_done in MELD", _at("MELD", "batches_done", to=-1)),
    "order": ("the seed in MELD", _at("MELD", "seed")),
}


@pytest.mark.parametrize(("said", "damage"), [*EVALUATED.values(), *RESUMED.values()], ids=[*EVALUATED, *RESUMED])
def test_a_damaged_field_of_a_checkpoint_is_named(said, damage, run, request):
    file = run / "checkpoints" / "last.ckpt"
    content = checkpoint(run, "last")
    damage(content)
    torch.save(content, file)
    verbs = ("fit", "test") if request.node.callspec.id in EVALUATED else ("fit",)
    for verb in verbs:
        message = refused(verb, f"--ckpt_path={'run' if verb == 'fit' else file}")
        assert said in message and str(Path("run/checkpoints/last.ckpt")) in message
        assert "zoo fit --config run/config.yaml --model.start_from " in message.replace(f"{run.parent}/", "")


def test_the_advice_for_a_damaged_checkpoint_works(run, tmp_path):
    file = run / "checkpoints" / "last.ckpt"
    content = checkpoint(run, "last")
    del content["pytorch-lightning_version"]
    torch.save(content, file)
    command = refused("fit", "--ckpt_path=run").partition("zoo ")[2].partition("\n")[0].rpartition("zoo ")[2].split()
    begun = fit(tmp_path / "again", *command[1:], "--trainer.max_steps=1")
    assert checkpoint(begun)["global_step"] == 1


def test_changed_bytes_of_a_checkpoint_are_seen(run):
    file = run / "checkpoints" / "best.ckpt"
    content, tensor = bytearray(file.read_bytes()), checkpoint(run, "best")["state_dict"]
    values = max(tensor.values(), key=torch.numel).numpy().tobytes()
    place = content.index(values[:64])
    content[place + 8] ^= 1
    file.write_bytes(content)
    assert "its bytes were changed" in refused("label", "--text=hi", "--ckpt_path=run")
    assert "its bytes were changed" in refused("test", "--ckpt_path=run")
    with pytest.raises(ValueError, match="its bytes were changed"):
        weights.read_checkpoint(file)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_run_does_not_start_from_weights_that_are_not_finite(value, run):
    for name in ("best", "last"):
        content = checkpoint(run, name)
        next(iter(content["state_dict"].values())).view(-1)[0] = value
        torch.save(content, run / "checkpoints" / f"{name}.ckpt")
    message = refused("fit", "--config=run/config.yaml", "--model.start_from=run")
    assert "holds NaN or infinite values" in message


# ------------------------------------------------------------------------------------------------------ model folders
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 600\n"
FOLDERS: dict[str, tuple[str, Any, str]] = {  # file, its content or what changes in its JSON, what is said
    "a list": ("config.json", "[1]", "config.json holds a list"),
    "width a text": ("config.json", {"hidden_size": "big"}, "hidden_size is 'big'"),
    "heads": ("config.json", {"num_attention_heads": 7, "num_key_value_heads": 3}, "no multiple of"),
    "unknown": ("config.json", {"model_type": "nosuch"}, "names the model type 'nosuch'"),
    "own code": ("config.json", {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C"}}, "which is never run"),
    "layers": ("config.json", {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
    "rope": ("config.json", {"rope_parameters": "x"}, "cannot be used as a model folder"),
    "vocabulary": ("config.json", {"vocab_size": 50}, "the two belong to different models"),
    "activation": ("config.json", {"hidden_act": "zz"}, "hidden_act is 'zz', which the installed transformers"),
    "end": ("config.json", {"eos_token_id": 99999}, "eos_token_id is 99999, but the vocabulary has"),
    "ends": ("config.json", {"eos_token_id": [0, 99999]}, "but the vocabulary has"),
    "padding": ("config.json", {"pad_token_id": -5}, "pad_token_id is -5, but the vocabulary has"),
    "beginning": ("config.json", {"bos_token_id": "x"}, "bos_token_id is 'x', expected the number of a token"),
    "end of answers": ("generation_config.json", {"eos_token_id": 99999}, "generation_config.json: eos_token_id is"),
    "no JSON": ("config.json", "{", "config.json is not readable JSON"),
    "deep": ("config.json", "[" * 3000 + "]" * 3000, "config.json is not readable JSON"),
    "pointer config": ("config.json", POINTER, "is a Git LFS pointer"),
    "pointer tokenizer": ("tokenizer.json", POINTER, "is a Git LFS pointer"),
    "pointer weights": ("model.safetensors", POINTER, "is a Git LFS pointer"),
    "tokenizer {}": ("tokenizer.json", "{}", "holds no tokenizer"),
    "tokenizer []": ("tokenizer.json", "[]", "tokenizer.json holds a list"),
    "settings []": ("tokenizer_config.json", "[]", "tokenizer_config.json holds a list"),
    "no tokenizer": ("tokenizer.json", None, "has no tokenizer (tokenizer.json or tokenizer.model)"),
    "no weights": ("model.safetensors", None, "copy the model's weights into it"),
    "index": ("model.safetensors.index.json", '{"weight_map": {"a": "../../x"}}', "leads out of the folder"),
    "index []": ("model.safetensors.index.json", '{"weight_map": []}', "has no weight_map"),
    "cut weights": ("model.safetensors", "x" * 100, "could not be read"),
}


@pytest.mark.parametrize(("file", "content", "expected"), FOLDERS.values(), ids=FOLDERS)
def test_a_damaged_model_folder_is_refused_by_name(file, content, expected, home, tmp_path):
    folder = shutil.copytree(home / "llm", tmp_path / "model")
    if content is None:
        (folder / file).unlink()
    elif isinstance(content, dict):
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | content))
    else:
        (folder / file).write_text(content)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        LLM(str(folder))
    assert expected in str(error.value) and str(folder) in str(error.value)
    assert cli.explained(error.value) == str(error.value)


def test_pickled_weights_are_told_how_to_be_written_anew(home, tmp_path):
    folder = shutil.copytree(home / "llm", tmp_path / "model")
    state = LLM(str(folder)).model.state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="a kind of file that can run code") as error:
        LLM(str(folder))
    command = str(error.value).partition('python -c "')[2].rpartition('"')[0]
    subprocess.run([sys.executable, "-c", command], check=True)
    assert LLM(str(folder)).model.state_dict().keys() == state.keys()


def test_a_model_that_is_not_here_names_no_host():
    with pytest.raises(FileNotFoundError, match="hf download somebody/model") as error:
        LLM("somebody/model")
    assert "http" not in str(error.value) and "huggingface.co" not in str(error.value)


TEMPLATES: dict[str, tuple[str, str]] = {
    "syntax": ("{% for m in messages %}", "TemplateSyntaxError"),
    "refuses": ("{{ raise_exception('no system role') }}", "no system role"),
    "escape": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
    "loops": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% set x = j %}{% endfor %}{% endfor %}",
        "did not end",
    ),
    "one operation": ("{{ 10 ** (10 ** 10) }}", "did not end"),
    "memory": (
        "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
        "of memory",
    ),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself without end"),
}


@pytest.mark.parametrize(("template", "expected"), TEMPLATES.values(), ids=TEMPLATES)
def test_a_chat_template_ends_in_any_case(template, expected, home, tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.templates.SECONDS", 1.0)
    bounded.close()  # the process that renders knows the limit from its birth
    folder = shutil.copytree(home / "llm", tmp_path / "model")
    (folder / "chat_template.jinja").write_text(template)
    tokenizer = LLM(str(folder)).tokenizer
    with pytest.raises(ValueError, match="the chat template of .* cannot be used") as error:
        tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert expected in str(error.value)
    bounded.close()


def test_an_ordinary_chat_template_writes_what_transformers_writes(home, tmp_path):
    folder = shutil.copytree(home / "llm", tmp_path / "model")
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{% endfor %}"
    template += "{% if add_generation_prompt %}>{% endif %}"
    (folder / "chat_template.jinja").write_text(template)
    tokenizer = LLM(str(folder)).tokenizer
    messages = [{"role": "system", "content": " a\u2028é "}, {"role": "user", "content": "b"}]
    options = {"tokenize": False, "add_generation_prompt": True}
    written = tokenizer.apply_chat_template(messages, **options)
    assert written == "<system>a\u2028é<user>b>" == type(tokenizer).apply_chat_template(tokenizer, messages, **options)


def test_a_foreign_prompt_template_ends_in_any_case(home, tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.templates.SECONDS", 1.0)
    bounded.close()
    (tmp_path / "prompt.txt").write_text("{{ target.text }}{{ 10 ** (10 ** 10) }}")
    model = flags(model__llm=home / "llm", data="MELD", data__root=home / "meld")
    model = [*model, f"--model.template={tmp_path / 'prompt.txt'}"]
    assert "did not end" in refused("test", "--model=CausalLM", *model, "--zero_shot=true")
    bounded.close()


# ------------------------------------------------------------------------------------------------------ options, errors
OPTIONS = [
    ("--trainer.accelerator=gpu", "No supported gpu"),
    ("--trainer.strategy=nosuch", "invalid strategy name"),
    ("--trainer.devices=-3", "should be an int > 0"),
    ("--trainer.accumulate_grad_batches=0", "expected at least 1"),
    ("--trainer.limit_train_batches=-1", "invalid value"),
    ("--trainer.logger=CometLogger", "needs the package comet"),
    ("--trainer.precision=transformer-engine", "not met"),
    ("--model.lora.r=0", "expected r of at least 1"),
    ("--model.lora.targets=[", "is no regular expression"),
    ("--model.lora.targets=nothing", "no linear layer's full name"),
    ("--model.train=[(]", "is no regular expression"),
    ("--data.num_workers=-1", "expected at least 0"),
    ("--data.limit=-1", "expected at least 1"),
    ("--save_last_every=-1", "expected at least 0"),
    ("--trainer.default_root_dir=/proc/x", "/proc/x"),
    ("--model.llm=somebody/model", "hf download somebody/model"),
]


@pytest.mark.parametrize(("option", "expected"), OPTIONS, ids=lambda v: v if v.startswith("--") else "")
def test_an_option_that_a_library_refuses_ends_in_one_sentence(option, expected, home, monkeypatch):
    if option.endswith("=gpu") and torch.cuda.is_available():
        option, expected = "--trainer.accelerator=tpu", "torch_xla"
    base = flags(model__llm=home / "llm", data="MELD", data__root=home / "meld", trainer__max_steps=1)
    message = refused("fit", "--model=CausalLM", *base, option)
    assert expected in message and "Traceback" not in message and "huggingface.co" not in message


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (PermissionError(13, "Permission denied", "/x/y"), "/x/y: Permission denied (you may not"),
        (IsADirectoryError(21, "Is a directory", "d"), "d: Is a directory (a file was expected"),
        (OSError(28, "No space left on device"), "No space left on device (the disk is full"),
        (OSError(36, "File name too long", "x" * 9), "File name too long (shorten it)"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible"),
            "--data.num_workers 0",
        ),
        (
            RuntimeError("unable to open shared memory object </torch_1_2> in read-write mode: No space left"),
            "/dev/shm",
        ),
        (
            RuntimeError("[enforce fail at inline_container.cc:8] . PytorchStreamWriter failed writing"),
            "is the disk full?",
        ),
        (ModuleNotFoundError("No module named 'bitsandbytes'"), "pip install bitsandbytes"),
    ],
)
def test_what_the_machine_refuses_is_one_sentence(raised, expected, monkeypatch):
    def fail(verb: str, args: list[str]) -> None:
        raise raised

    monkeypatch.setattr("zoo.lightning_cli.run", fail)
    assert expected in refused("fit")


def test_a_fault_of_ours_shows_its_traceback_and_says_so(monkeypatch, capsys):
    monkeypatch.setattr("zoo.lightning_cli.run", lambda verb, args: {}["nothing"])
    with pytest.raises(KeyError):
        zoo("fit")
    assert "raised an error that the zoo does not know" in capsys.readouterr().err  # of this very file
    assert cli._whose(KeyError()).startswith("this is a fault of the zoo")


def test_a_message_of_python_is_no_message_of_ours():
    from zoo.errors import is_refusal
    from zoo.storage import parse_json

    with pytest.raises(ValueError) as ours:
        parse_json("{", "x.json")
    assert is_refusal(ours.value)
    with pytest.raises(ValueError) as theirs:
        LoRA(r=float("nan")).r.as_integer_ratio()
    assert not is_refusal(theirs.value)


# ------------------------------------------------------------------------------------------------------ help
def test_help_names_the_classes_and_the_nearest_names(home, capsys):
    for section, name in (("model", "DialogueLLM"), ("data", "MELD")):
        with pytest.raises(SystemExit) as leaving:
            zoo("fit", f"--{section}.help")
        printed = capsys.readouterr().out
        assert leaving.value.code == 0 and f"\n  {name} " in printed and "ProbeData" not in printed
        with pytest.raises(SystemExit) as leaving:
            zoo("fit", f"--{section}.help", name)
        assert leaving.value.code == 0 and f"--{section}." in capsys.readouterr().out
    assert "did you mean MELD?" in refused("fit", "--data.help", "Meld")
    base = flags(model__llm=home / "llm", data="MELD", data__root=home / "meld")
    for args, meant in (
        (["--model=CausalLLM", *base], "CausalLM"),
        (["--model=CausalLM", *base, "--model.lrr=1"], "lr"),
        (["--model=CausalLM", *base, "--trainer.max_epoch=1"], "--trainer.max_epochs"),
    ):
        with pytest.raises(SystemExit) as leaving:
            zoo("fit", *args)
        assert leaving.value.code == 2 and f"did you mean {meant}" in capsys.readouterr().err
    assert "did you mean test?" in refused("tset")
    assert "needs trained weights: --ckpt_path" in refused("test")
    assert "needs a system and a corpus" in refused("fit")


def test_zero_shot_needs_no_value(home, tmp_path):
    base = flags(model__llm=home / "llm", data="MELD", data__root=home / "meld", trainer__default_root_dir=tmp_path)
    zoo("test", "--model=CausalLM", "--zero_shot", *base)
    assert list(tmp_path.rglob("metrics.json"))

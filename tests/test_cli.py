"""The front door: usage, typing errors, precedence, which checkpoint is meant."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI

from tests.builders import make_home
from tests.runs_helper import checkpoint, fit, flags, logged, metrics, refused, rows, zoo
from zoo import cli
from zoo.lightning_cli import ZooCLI

WATCHED = ("torch", "lightning", "transformers", "zoo.lightning_cli")


pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A language model, a corpus, and a finished run of one epoch."""
    home = make_home(tmp_path_factory.mktemp("cli"), (2, 1, 1), other=(1, 1, 2))
    fit(home, "--model=CausalLM", *base(home), "--model.lr=0.003", "--trainer.max_epochs=1")
    return home


def base(home: Path) -> list[str]:
    return flags(model__llm=home / "llm", data="MELD", data__root=home / "meld", data__batch_size=7)


@pytest.fixture
def run(home, tmp_path) -> Path:
    """A copy of the run, to be changed."""
    return shutil.copytree(home / "lightning_logs" / "version_0", tmp_path / "lightning_logs" / "version_0")


def written(file: Path) -> dict:
    return yaml.safe_load(file.read_text())


# ---- usage
@pytest.mark.parametrize("args", [["--help"], ["-h"], [], ["--version"]])
def test_usage_answers_at_once(args):
    script = f"import sys; from zoo.cli import main; main({args}); print([m for m in {WATCHED} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"  # nothing heavy was imported
    assert done.stdout.startswith("zoo " if args == ["--version"] else "usage: zoo VERB")


def test_usage_names_every_verb(capsys):
    zoo("--help")
    said = capsys.readouterr().out
    assert all(f"\n  {verb} " in said for verb in (*cli.LIGHTNING_VERBS, "prepare", "memory", "export", "checkpoints"))


def test_unknown_verb():
    assert refused("tset").startswith("zoo: unknown verb 'tset'; expected one of fit, validate, test, predict")


def test_lightning_keeps_to_its_four_verbs(monkeypatch, capsys):
    for name, allowed in (("lightning", False), ("zoo", True)):
        monkeypatch.setattr(sys, "argv", [f"/usr/bin/{name}", "export", "--help"])
        with pytest.raises(SystemExit) as leaving:
            cli.main()
        assert (leaving.value.code == 0) == allowed
    assert "unknown verb 'export'; expected one of fit, validate, test, predict (" in str(
        _leaving(monkeypatch, ["lightning", "export"])
    )


def _leaving(monkeypatch, argv: list[str]) -> object:
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    return leaving.value.code


@pytest.mark.parametrize("option", ["modell", "model.windows", "data.rooot", "trainer.max_epoch", "checkpoint.monitr"])
def test_a_typing_error_names_the_option(option, home):
    said = refused("fit", "--model=CausalLM", *base(home), f"--{option}=2")
    assert option.rsplit(".")[-1] in said
    assert len(said.splitlines()) < 30  # not buried


def test_a_wrong_value_names_the_option(home):
    said = refused("fit", "--model=CausalLM", *base(home), "--model.lr=fast")
    assert "lr" in said and "fast" in said
    assert "window >= 0" in refused("fit", "--model=CausalLM", *base(home), "--model.window=-1")


# ---- precedence: flag > later --config > earlier --config > the run's config; never the checkpoint
def test_precedence(run, home, tmp_path):
    def write(name: str, **values: object) -> Path:
        (tmp_path / name).write_text(yaml.safe_dump({"model": {"init_args": values}}))
        return tmp_path / name

    earlier = write("earlier.yaml", lr=0.1, betas=[0.1, 0.1], weight_decay=0.1)
    later = write("later.yaml", lr=0.2, betas=[0.2, 0.2])
    zoo("test", "--model.lr=0.3", f"--ckpt_path={run}", "--config", earlier, f"--config={later}")  # in any order
    used = written(run / "config.test.yaml")
    assert used["model"]["class_path"].endswith("CausalLM")
    args = used["model"]["init_args"]
    assert (args["lr"], args["betas"], args["weight_decay"]) == (0.3, [0.2, 0.2], 0.1)
    assert used["data"]["init_args"]["batch_size"] == 7  # the run's own
    zoo("test", f"--ckpt_path={run}")
    assert written(run / "config.test.yaml")["model"]["init_args"]["lr"] == 0.003


def test_a_checkpoint_never_sets_a_value(run, tmp_path):
    """Stock Lightning merges `hyper_parameters` of the file over flags and configs, the class included."""
    content = checkpoint(run)
    content["hyper_parameters"] = {"_class_path": "zoo.models.dialoguellm.DialogueLLM", "lr": 0.9, "window": 5}
    for name in ("best", "last"):
        torch.save(content, run / "checkpoints" / f"{name}.ckpt")
    zoo("test", f"--ckpt_path={run}", "--model.lr=0.3")
    zoo("fit", f"--ckpt_path={run}", "--trainer.max_epochs=2", "--model.lr=0.4")
    for file, lr in (("config.test.yaml", 0.3), ("config.resume-1.yaml", 0.4)):
        used = written(run / file)["model"]
        assert used["class_path"].endswith("CausalLM") and used["init_args"]["lr"] == lr
        assert used["init_args"]["window"] == 0
    assert len(logged(run, "train/loss")) == 4  # two steps per epoch


@pytest.mark.parametrize("verb", cli.LIGHTNING_VERBS)
def test_a_command_has_a_parser_for_its_own_verb_alone(verb, home, capsys, monkeypatch):
    """Each command builds its parser anew, and nothing of an earlier one is left in it."""
    parsers = []
    prepare = ZooCLI._prepare_subcommand_parser
    monkeypatch.setattr(
        ZooCLI, "_prepare_subcommand_parser", lambda self, *a, **k: parsers.append(a[1]) or prepare(self, *a, **k)
    )
    printed = []
    for more in ([], ["--model.lr=0.7"], []):
        with pytest.raises(SystemExit) as leaving:
            zoo(verb, "--model=CausalLM", *base(home), *more, "--print_config")
        assert leaving.value.code in (0, None)
        printed.append(yaml.safe_load(capsys.readouterr().out))
    assert parsers == [verb] * 3
    assert [one["model"]["init_args"].pop("lr") == 0.7 for one in printed] == [False, True, False]
    assert printed[0] == printed[1] == printed[2]


def test_the_private_method_that_is_replaced_still_exists():
    """If this fails after an update of Lightning, a checkpoint may set values again; see the test above."""
    assert callable(LightningCLI._parse_ckpt_path)
    assert ZooCLI._parse_ckpt_path is not LightningCLI._parse_ckpt_path


def test_configs_merge_and_print(home, tmp_path, capsys):
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    model = {"class_path": "CausalLM", "init_args": {"llm": str(home / "llm"), "lr": 0.1, "window": 1}}
    data = {"class_path": "MELD", "init_args": {"root": str(home / "meld")}}
    one.write_text(yaml.safe_dump({"model": model, "data": data, "trainer": {"max_epochs": 7}}))
    two.write_text("model: {init_args: {lr: 0.2}}\n")
    with pytest.raises(SystemExit) as leaving:
        zoo("fit", "--config", one, "--config", two, "--print_config")
    assert leaving.value.code in (0, None)
    printed = yaml.safe_load(capsys.readouterr().out)
    args = printed["model"]["init_args"]
    assert (args["lr"], args["window"], printed["trainer"]["max_epochs"]) == (0.2, 1, 7)
    (tmp_path / "printed.yaml").write_text(yaml.safe_dump(printed))
    run = fit(tmp_path, "--config", tmp_path / "printed.yaml", "--trainer.max_steps=1")  # what is printed can be run
    assert written(run / "config.yaml")["model"] == printed["model"]


# ---- which weights
def test_evaluation_needs_weights_or_zero_shot(home, run, tmp_path):
    for verb in ("validate", "test", "predict"):
        assert "needs trained weights: give --ckpt_path" in refused(verb, "--model=CausalLM", *base(home))
    both = refused("test", f"--ckpt_path={run}", "--zero_shot=true")
    assert "--zero_shot evaluates without a checkpoint, but --ckpt_path was given too" in both
    assert not (run / "metrics.json").exists()
    zoo("test", "--model=CausalLM", *base(home), "--zero_shot=true", f"--trainer.default_root_dir={tmp_path / 'zero'}")
    (result,) = tmp_path.glob("zero/lightning_logs/version_*/metrics.json")
    assert metrics(result.parent)["checkpoint"] is None and metrics(result.parent)["n"] == 7


def test_ways_to_name_a_checkpoint(run, tmp_path):
    def tested(*args: object) -> str:
        zoo("test", *args)
        return Path(metrics(run)["checkpoint"]).name

    best = run / "checkpoints" / "best.ckpt"
    assert tested("--ckpt_path", run) == "best.ckpt"
    assert tested(f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}") == "last.ckpt"
    assert tested("--ckpt_path=last", f"--trainer.default_root_dir={tmp_path}") == "last.ckpt"
    assert tested("--ckpt_path=best", f"--config={run / 'config.yaml'}") == "best.ckpt"
    assert tested("--ckpt_path", "best") == "best.ckpt"
    assert tested("--ckpt_path", "lightning_logs/version_0") == "best.ckpt"
    best.unlink()
    assert tested("--ckpt_path", run) == "last.ckpt"


def test_names_that_lead_nowhere(run, tmp_path):
    said = refused("test", "--ckpt_path=nosuch")
    assert "no checkpoint 'nosuch': neither a file, nor a run folder, nor a published name" in said
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    said = refused("test", "--ckpt_path=empty")
    assert "holds no checkpoint" in said and "['notes.txt']" in said
    shutil.rmtree(tmp_path / "lightning_logs")
    assert "--ckpt_path best: no run with a last.ckpt under" in refused("test", "--ckpt_path=best")


# ---- results
def test_a_second_test_keeps_the_first(run):
    zoo("test", f"--ckpt_path={run}")
    first = {name: (run / name).read_bytes() for name in ("metrics.json", "predictions.jsonl", "config.test.yaml")}
    zoo("test", f"--ckpt_path={run}", "--data.eval_batch_size=3")
    assert {name: (run / "previous" / "1" / name).read_bytes() for name in first} == first
    assert (run / "previous" / "1" / "confusion.png").is_file()
    assert written(run / "config.test.yaml")["data"]["init_args"]["eval_batch_size"] == metrics(run)["batch_size"] == 3
    zoo("predict", f"--ckpt_path={run}")
    assert {p.name for p in (run / "previous" / "2").iterdir()} >= set(first)
    assert len(rows(run)) == 7 and not (run / "metrics.json").exists() and (run / "config.predict.yaml").is_file()


def test_a_failed_test_moves_nothing(run):
    zoo("test", f"--ckpt_path={run}")
    before = {p: p.read_bytes() for p in run.glob("*.*") if p.is_file()}
    refused("test", f"--ckpt_path={run}", "--data.root=nosuch")
    refused("test", f"--ckpt_path={run}", "--model.window=1", "--model.descriptions=[video]")
    assert {p: p.read_bytes() for p in run.glob("*.*") if p.is_file()} == before and not (run / "previous").exists()


def test_other_data(run, home):
    zoo("test", f"--ckpt_path={run}", f"--data.root={home / 'other'}")
    assert metrics(run)["n"] == 14
    zoo("test", f"--ckpt_path={run}", *flags(data="Synthetic", data__root="null", data__test_dialogues=3))
    assert metrics(run)["corpus"] == "synthetic" and metrics(run)["n"] == len(rows(run)) > 0


def test_validate_and_its_score(run, capsys):
    zoo("validate", f"--ckpt_path={run}")
    assert "val/wf1" in capsys.readouterr().out
    assert (run / "config.validate.yaml").is_file() and not (run / "metrics.json").exists()


def test_fast_dev_run_of_a_test_writes_nothing(run, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = sorted(run.rglob("*"))
    zoo("test", f"--ckpt_path={run}", "--trainer.fast_dev_run=true")
    assert sorted(run.rglob("*")) == before and list(Path(".").iterdir()) == []


def test_an_unexpected_error_keeps_its_traceback(monkeypatch):
    """Only messages of the zoo itself are shortened to a paragraph."""
    assert "nosuch" in refused("test", "--ckpt_path=nosuch")
    with monkeypatch.context() as patch, pytest.raises(FileNotFoundError, match="nosuch"):
        patch.setenv("ZOO_DEBUG", "1")
        zoo("test", "--ckpt_path=nosuch")
    monkeypatch.setattr("zoo.lightning_cli.run", lambda verb, args: int("x"))
    with pytest.raises(ValueError, match="invalid literal"):
        zoo("fit")


def test_imports_are_not_searched_for_garbage():
    """In a process of its own: there they are the first, and torch is not there yet."""
    code = (
        "import gc, sys; from zoo import cli\n"
        "with cli._imports(): assert not gc.isenabled()\n"
        "kept = gc.get_freeze_count(); assert gc.isenabled() and kept > 0\n"
        "sys.modules['torch'] = sys\n"
        "with cli._imports(): assert gc.isenabled()\n"
        "assert gc.get_freeze_count() == kept; print('done')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "done\n", done.stderr

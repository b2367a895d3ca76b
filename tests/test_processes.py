"""Two processes: every sample trained on and scored once, no process waits for another forever, and weights divided
over processes are the same weights."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.multiprocessing.spawn import ProcessContext, start_processes

from tests import runs_helper
from tests.builders import make_corpus, make_llm, make_patch_vision, untied
from tests.runs_helper import checkpoint, newest
from zoo.checkpoints import load
from zoo.cli import main

SCRIPT = Path(sys.executable).with_name("zoo")
TWO = ("--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.enable_progress_bar=false")


def _rank(rank: int, port: int, processes: int, args: list[str]) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": f"{port}",
        "WORLD_SIZE": f"{processes}",
        "LOCAL_RANK": f"{rank}",
        "NODE_RANK": "0",
    }
    main(args)


def zoo(*args: object, processes: int = 2) -> None:
    """The command in processes that somebody else starts, as torchrun does; these need not import all again."""
    started, end = start(*args, processes=processes), time.monotonic() + 120
    while not started.join(1):
        if time.monotonic() > end:
            for process in started.processes:
                process.kill()
            raise AssertionError(f"the processes of {args} wait for each other")


def start(*args: object, processes: int = 2) -> ProcessContext:
    """The processes, which run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = (port, processes, [str(a) for a in args])
    return start_processes(_rank, given, nprocs=processes, start_method="fork", join=False)


def fit_command(root: Path, *more: str) -> list[object]:
    """The command that trains in two processes in a folder, with its model and its corpus, which it makes."""
    llm, corpus = make_llm(root / "llm"), make_corpus(root / "meld", dialogues=(6, 2, 3))
    system = ["--model=zoo.models.causal_lm.CausalLM", f"--model.llm={llm}"]
    data = ["--data=zoo.data.MELD", f"--data.root={corpus}", "--data.batch_size=4"]
    return [SCRIPT, "fit", *system, *data, *TWO, f"--trainer.default_root_dir={root}", *more]


def test_two_processes_fit_and_score_every_sample_once(tmp_path):
    # Lightning starts the second process with the command of the first
    fit = fit_command(tmp_path, "--trainer.max_epochs=1")
    done = subprocess.run(fit, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "sync_dist" not in done.stderr and done.stdout.count("run folder: ") == 2  # at its beginning and its end
    assert [p.name for p in (tmp_path / "lightning_logs").iterdir()] == ["version_0"]
    folder = tmp_path / "lightning_logs" / "version_0"
    assert (folder / "checkpoints" / "best.ckpt").is_file() and (folder / "config.yaml").is_file()
    rows = []
    for command, devices in ((zoo, 2), (runs_helper.zoo, 1)):
        command("test", f"--ckpt_path={folder}", f"--trainer.devices={devices}", "--trainer.enable_progress_bar=false")
        rows.append([json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()])
        assert json.loads((folder / "metrics.json").read_text())["n"] == 21
    two, one = rows
    assert [r["id"] for r in two] == [r["id"] for r in one]
    assert len({r["id"] for r in two}) == 21
    assert [r["predicted"] for r in two] == [r["predicted"] for r in one]


def test_a_signal_to_the_first_of_two_processes_ends_both_after_the_same_step(tmp_path):
    """Lightning starts the second process, which a scheduler or a user need not know."""
    fit = fit_command(tmp_path, "--trainer.max_epochs=2000", "--save_last_every=1")
    process = subprocess.Popen(fit, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    run = tmp_path / "lightning_logs" / "version_0"
    while not (run / "checkpoints" / "last.ckpt").is_file():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    printed = process.communicate()[0]
    assert process.returncode == 143, printed
    stopped = int(re.search(r"interrupted at step (\d+); go on with: zoo fit --ckpt_path", printed)[1])
    assert printed.count("interrupted at step") == 1 and checkpoint(run)["global_step"] == stopped
    zoo("fit", f"--ckpt_path={run}", "--trainer.max_epochs=-1", f"--trainer.max_steps={stopped + 1}")
    assert checkpoint(run)["global_step"] == stopped + 1


def test_a_run_of_torchrun_of_which_a_process_is_killed_goes_on_to_the_same_end(tmp_path):
    options = ("--trainer.max_epochs=4", "--save_last_every=1")
    fit, root = fit_command(tmp_path, *options), f"--trainer.default_root_dir={tmp_path}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = [SCRIPT.with_name("torchrun"), "--nproc_per_node", "2", "--master_port", f"{port}", "--no-python"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen([*torchrun, *fit], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
    run = tmp_path / "lightning_logs" / "version_0"
    while not (run / "checkpoints" / "last.ckpt").is_file():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    os.kill(int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[-1]), signal.SIGKILL)
    printed = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 1, printed
    assert 0 < checkpoint(run)["global_step"] < 24
    subprocess.run([*torchrun, SCRIPT, "fit", f"--ckpt_path={run}"], check=True, env=environment)
    zoo(*[word for word in fit[1:] if word != root], f"{root}/whole")
    whole = checkpoint(tmp_path / "whole" / "lightning_logs" / "version_0")
    assert checkpoint(run)["global_step"] == whole["global_step"] == 24
    for name, value in whole["state_dict"].items():
        assert torch.equal(checkpoint(run)["state_dict"][name], value), name


DIVIDED = (
    "--trainer.strategy=lightning.pytorch.strategies.ModelParallelStrategy",
    "--trainer.strategy.data_parallel_size=2",
    "--trainer.strategy.tensor_parallel_size=1",
    "--trainer.strategy.save_distributed_checkpoint=false",
)


def test_two_machines_of_torchrun_train_as_the_processes_of_one(tmp_path):
    """Two torchruns on this machine, each with one of the processes that divide the weights."""
    given = [*DIVIDED, "--trainer.max_steps=3", "--trainer.gradient_clip_val=1.0"]
    fit, root = fit_command(tmp_path, *given), f"--trainer.default_root_dir={tmp_path}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = ["--nnodes", "2", "--nproc_per_node", "1", "--master_addr", "127.0.0.1", "--master_port", f"{port}"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    started = []
    for rank in (0, 1):
        torchrun = [SCRIPT.with_name("torchrun"), *nodes, "--node_rank", f"{rank}", "--no-python"]
        command = [*torchrun, *fit, "--trainer.num_nodes=2", "--trainer.devices=1"]
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    for process in started:
        printed = process.communicate(timeout=120)[0].decode()
        assert process.returncode == 0, printed
    zoo(*[word for word in fit[1:] if word != root], f"{root}/one")
    one, two = (checkpoint(newest(folder)) for folder in (tmp_path / "one", tmp_path))
    assert one["global_step"] == two["global_step"] == 3
    for name, value in one["state_dict"].items():
        assert torch.equal(two["state_dict"][name], value), name


def qwen(home: Path, train: str) -> list[str]:
    """Options of an Emotion-Qwen on two processes, with its models and its corpus, which are made if they are not."""
    if not (home / "meld").exists():
        make_llm(home / "tied")
        untied(home / "tied", home / "llm")
        make_patch_vision(home / "vision")
        make_corpus(home / "meld", (2, 1, 1), clips=True)
    return [
        "--model=EmotionQwen",
        f"--model.llm={home / 'llm'}",
        f"--model.vision={home / 'vision'}",
        "--model.template=plain",
        "--model.min_pixels=64",
        "--model.video_max_pixels=256",
        "--model.frames=1",
        f"--model.train={train}",
        "--model.lr=1e-3",
        "--model.schedule=constant",
        "--model.warmup=0",
        "--data=MELD",
        f"--data.root={home / 'meld'}",
        "--data.batch_size=2",
        "--trainer.gradient_clip_val=1.0",
        *TWO,
    ]


def divided_and_whole(root: Path, options: list[str]) -> tuple[Path, Path]:
    """The runs of two epochs: with divided weights, the second of them in a resumed run; and with whole ones."""
    zoo("fit", *options, *DIVIDED, "--trainer.max_epochs=1", f"--trainer.default_root_dir={root / 'a'}")
    zoo("fit", f"--ckpt_path={newest(root / 'a')}", "--trainer.max_epochs=2")
    zoo("fit", *options, "--trainer.max_epochs=2", f"--trainer.default_root_dir={root / 'b'}")
    a, b = (checkpoint(newest(root / name)) for name in "ab")
    assert a["global_step"] == b["global_step"] > 4 and a["epoch"] == b["epoch"]
    assert a["state_dict"].keys() == b["state_dict"].keys()
    for name, value in b["state_dict"].items():
        assert torch.allclose(a["state_dict"][name], value, atol=1e-5), name
    assert len(a["optimizer_states"][0]["state"]) == len(b["optimizer_states"][0]["state"])
    return newest(root / "a"), newest(root / "b")


def test_divided_weights_train_and_resume_as_whole_ones(tmp_path):
    """FSDP2: an epoch, and another in a resumed run, equal two epochs of processes that hold everything each. The
    language model is frozen, so the checkpoints lack it. So for a run that starts from such a one and trains less:
    its checkpoints lack what they have from there, and the resumed processes have it from there again."""
    first, _ = divided_and_whole(tmp_path / "1", qwen(tmp_path, r"['vision\..*', 'compressor\..*']"))
    before = checkpoint(first)["state_dict"]
    assert not any(k.startswith("llm.") for k in before) and any(k.startswith("vision.") for k in before)
    start = f"--model.start_from={first / 'checkpoints' / 'last.ckpt'}"
    second, _ = divided_and_whole(tmp_path / "2", [*qwen(tmp_path, r"['compressor\..*']"), start])
    content = checkpoint(second)
    assert "start" in content["zoo"] and all(k.startswith("compressor.") for k in content["state_dict"])
    whole = load(str(second / "checkpoints" / "last.ckpt")).state_dict()
    for name, value in (before | content["state_dict"]).items():
        assert torch.equal(whole[name], value), name

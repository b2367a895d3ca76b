"""Two processes: every sample trained on and scored once, and no process waits for another forever."""

import json
import subprocess
import sys

from tests.runs_helper import make_corpus, make_llm


def zoo(*args: object) -> str:
    done = subprocess.run([sys.executable, "-m", "zoo", *map(str, args)], capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_two_processes_fit_and_score_every_sample_once(tmp_path):
    llm, corpus = make_llm(tmp_path / "llm"), make_corpus(tmp_path / "meld", dialogues=(6, 2, 3))
    zoo("fit", "--model=zoo.models.causal_lm.CausalLM", f"--model.llm={llm}", "--trainer.accelerator=cpu",
        "--data=zoo.data.MELD", f"--data.root={corpus}", "--data.batch_size=4", "--trainer.devices=2",
        "--trainer.strategy=ddp_fork", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false",
        f"--trainer.default_root_dir={tmp_path}")  # fmt: skip
    run = tmp_path / "lightning_logs" / "version_0"
    assert (run / "checkpoints" / "best.ckpt").is_file() and (run / "config.yaml").is_file()
    rows = []
    for devices in (2, 1):
        zoo("test", f"--ckpt_path={run}", f"--trainer.devices={devices}", "--trainer.enable_progress_bar=false")
        rows.append([json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()])
        assert json.loads((run / "metrics.json").read_text())["n"] == 21
    two, one = rows
    assert [r["id"] for r in two] == [r["id"] for r in one]
    assert len({r["id"] for r in two}) == 21
    assert [r["predicted"] for r in two] == [r["predicted"] for r in one]

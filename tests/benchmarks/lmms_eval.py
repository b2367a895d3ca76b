"""lmms-eval itself asks a checkpoint two questions about made-up pictures, without a network, and scores the answers.

    python tests/benchmarks/lmms_eval.py --python PYTHON [--ckpt_path emotion-qwen-sitcom] [--out runs/lmms_eval]

PYTHON is that of an environment with lmms-eval and this package (`pip install lmms-eval`, `pip install .`). The task is
written there: a YAML with a JSONL of two rows, as a task of your own would be. Ends with an error unless lmms-eval
found the zoo by its entry point and both questions were answered.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

TASK = """\
task: zoo_two_questions
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: generate_until
doc_to_visual: !function shown.pictures
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 8, do_sample: false, until: ["\\n"]}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true, ignore_punctuation: true}}
"""
SHOWN = """\
from PIL import Image


def pictures(doc):
    return [Image.open(doc["picture"]).convert("RGB")]
"""
QUESTIONS = {"red": "Which colour is the wall?", "blue": "Which colour is the wall?"}


def write_task(folder: Path) -> None:
    """Write the task, its data and its pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for colour, question in QUESTIONS.items():
        picture = folder / f"{colour}.png"
        Image.new("RGB", (96, 96), colour).save(picture)
        rows.append({"picture": str(picture), "question": question, "answer": colour})
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "zoo_two_questions.yaml").write_text(TASK.format(data=data), encoding="utf-8")
    (folder / "shown.py").write_text(SHOWN, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="Python of the environment with lmms-eval")
    parser.add_argument("--ckpt_path", default="emotion-qwen-sitcom")
    parser.add_argument("--out", type=Path, default=Path("runs/lmms_eval"))
    args = parser.parse_args()
    out = args.out.resolve()
    write_task(out / "task")
    command = [args.python, "-m", "lmms_eval", "--model", "zoo", "--model_args", f"checkpoint={args.ckpt_path}"]
    command += ["--tasks", "zoo_two_questions", "--include_path", str(out / "task"), "--batch_size", "2"]
    command += ["--device", "cpu", "--output_path", str(out / "results"), "--log_samples"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(out / "cache")}
    ended = subprocess.run(command, env=os.environ | offline, check=False)
    if ended.returncode:
        raise SystemExit(f"lmms-eval ended with {ended.returncode}: {' '.join(command)}")
    logs = sorted((out / "results").rglob("*samples_zoo_two_questions.jsonl"), key=lambda path: path.stat().st_mtime)
    answers = [json.loads(line) for line in logs[-1].read_text(encoding="utf-8").splitlines()] if logs else []
    if len(answers) != len(QUESTIONS):
        raise SystemExit(f"expected {len(QUESTIONS)} answers in {out / 'results'}, got {len(answers)}")
    for answer in answers:
        print(json.dumps({key: answer.get(key) for key in ("doc_id", "target", "filtered_resps", "exact_match")}))


if __name__ == "__main__":
    main()

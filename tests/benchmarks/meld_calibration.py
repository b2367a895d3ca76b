"""Which calibration of SmolLM2's scores to take, on MELD's validation split: 1109 utterances, words alone.

    zoo checkpoints pull smollm2-135m
    python -m tests.benchmarks.meld_calibration --data-root DIR --precision bf16-mixed

Asked without examples and with seven, as configs/causal_lm/laptop.yaml asks, the model scores every label word about
every utterance once; the answers of ``--model.calibration`` none, content_free and batch follow from these scores. The
test split is not read. About 3 CPU minutes; scores that lie in ``--out`` are not computed again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from lightning import Trainer, seed_everything
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.benchmarks.meld_laptop import three
from tests.benchmarks.result_files import write
from zoo.checkpoints.loading import build_module
from zoo.data import MELD
from zoo.metrics import evaluate
from zoo.models.causal_lm import CausalLM
from zoo.training.calibration import batch_preference, content_free_preference, without_content, without_label

CONFIG = Path(__file__).parents[2] / "configs" / "causal_lm" / "laptop.yaml"
FORMS = ("none", "content_free", "batch")


def dev_scores(shots: int, options: argparse.Namespace) -> dict[str, Tensor]:
    """Scores of the label words about the texts without content (3, 7) and about the validation texts (1109, 7)."""
    file: Path = options.out / f"scores-{shots}.safetensors"
    if not file.is_file():
        seed_everything(0)
        system = build_module(CONFIG, {"shots": shots, "dtype": options.dtype})
        assert isinstance(system, CausalLM)
        trainer = Trainer(
            accelerator="cpu", precision=options.precision, logger=False, enable_checkpointing=False, fast_dev_run=1
        )
        data = MELD(root=options.data_root, eval_batch_size=32)
        trainer.validate(system, data)  # one batch: afterwards the model stands ready
        system.eval()
        texts = data.samples("dev")
        scores = {"content_free": system.label_scores(without_content(texts[0]))}
        scores["dev"] = system.label_scores([without_label(s) for s in texts])
        options.out.mkdir(parents=True, exist_ok=True)
        save_file(scores, file)
    return load_file(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="MELD's folder")
    parser.add_argument("--out", type=Path, default=Path("runs/meld_calibration"))
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], default="32-true")
    options = parser.parse_args()
    options.dtype = "bfloat16" if options.precision == "bf16-mixed" else "float32"
    torch.set_num_threads(1)
    data = MELD(root=options.data_root)
    data.setup("validate")
    texts, names = data.samples("dev"), MELD.labels.names
    header = ["solved examples", "calibration", "dev weighted F1", "macro F1", "accuracy", "most frequent answer"]
    rows = []
    for shots in (0, 7):
        scores = dev_scores(shots, options)
        taken_out = {
            "none": torch.zeros(len(names), dtype=torch.float64),
            "content_free": torch.tensor(content_free_preference(scores["content_free"]).logprobs),
            "batch": torch.tensor(batch_preference(scores["dev"]).logprobs),
        }
        for form in FORMS:
            answers = (scores["dev"] - taken_out[form]).argmax(1).tolist()
            predictions = [
                {"id": s.id, "dialogue": s.dialogue, "label": s.target.label, "predicted": names[answer]}
                for s, answer in zip(texts, answers, strict=True)
            ]
            score = evaluate(predictions, data.labels, draws=1)
            counts = np.bincount(answers, minlength=len(names))
            often = f"{names[int(counts.argmax())]}, {100 * counts.max() / len(texts):.0f} %"
            measured = (three(score[k]) for k in ("weighted_f1", "macro_f1", "accuracy"))
            rows.append([str(shots), form, *measured, often])
    print("\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)))
    command = f"python -m tests.benchmarks.meld_calibration --data-root DIR --precision {options.precision}"
    write("results/dialoguellm.json#calibration", header, rows, command=command, n=len(texts), split="dev", seeds=[0])


if __name__ == "__main__":
    main()

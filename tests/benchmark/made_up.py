"""Results and utterances of a bench that never ran, to write reports from: the systems are dice with known skill."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from zoo.metrics import scores

LABELS = ("neutral", "joy", "surprise", "anger", "sadness", "disgust", "fear")
SHARES = (0.47, 0.16, 0.11, 0.12, 0.08, 0.03, 0.03)
# name, what, class, reads, share of right answers, parameters, seconds per utterance
SYSTEMS = (
    ("majority", "Majority", None, ["text"], 0.0, 0, 2e-6),
    ("tfidf", "TF-IDF + logistic regression", None, ["text"], 0.45, 48_000, 4e-5),
    ("few-shot", "Plain LLM, 7 shots", "zoo.models.causal_lm.model.CausalLM", ["text"], 0.20, 2_310_000, 0.062),
    ("text-llm", "Plain LLM, tuned on text", "zoo.models.causal_lm.model.CausalLM", ["text"], 0.56, 2_350_000, 0.021),
    ("vit", "Face alone (ViT)", "zoo.models.unimodal.model.FaceClassifier", ["face"], 0.52, 870_000, 0.006),
    ("hubert", "Voice alone (HuBERT)", "zoo.models.unimodal.model.VoiceClassifier", ["voice"], 0.44, 910_000, 0.008),
    (
        "dialoguellm",
        "DialogueLLM",
        "zoo.models.dialoguellm.model.DialogueLLM",
        ["text", "descriptions"],
        0.68,
        2_400_000,
        0.024,
    ),
    ("farcer", "FARCER", "zoo.models.farcer.model.FARCER", ["text", "face"], 0.705, 3_150_000, 0.031),
    (
        "selector",
        "GRPO modality selector",
        "zoo.models.selector.model.SelectedClassifier",
        ["text", "descriptions"],
        0.70,
        4_700_000,
        0.140,
    ),
    ("merit", "MERIT", "zoo.models.merit.model.Merit", ["text", "face", "voice"], 0.72, 3_420_000, 0.035),
    (
        "merit-ttrl",
        "MERIT, adapted at test time",
        "zoo.models.merit.model.MeritTTRL",
        ["text", "face", "voice"],
        0.74,
        3_420_000,
        0.035,
    ),
    (
        "emotion-qwen",
        "Emotion-Qwen",
        "zoo.models.emotion_qwen.model.EmotionQwen",
        ["text", "face"],
        0.66,
        3_900_000,
        0.055,
    ),
)


def made_up(n: int = 1200, dialogues: int = 120, seeds: int = 3, shown: int = 120, seed: int = 0) -> tuple[dict, list]:
    """Results as the bench hands them over, and utterances to show.

    Args:
        n, dialogues: size of the made-up test split.
        seeds: runs of each system.
        shown: how many utterances.
        seed: of the dice.

    Returns:
        results and utterances, see `zoo.benchmark.report.write_report`.
    """
    dice = np.random.default_rng(seed)
    truth = dice.choice(len(LABELS), n, p=SHARES)
    dialogue = np.sort(dice.integers(0, dialogues, n))
    ease = dice.normal(0, 0.6, n)  # what is hard for one system is hard for all
    said: dict[str, np.ndarray] = {}  # name: (seeds, n), len(LABELS) = unparsed
    rows = []
    for name, what, model, reads, skill, parameters, duration in SYSTEMS:
        answers = np.empty((seeds, n), dtype=int)
        for k in range(seeds):
            knows = dice.random(n) < 1 / (1 + np.exp(-np.log((skill + 1e-6) / (1 - skill)) - ease))
            guess = np.where(dice.random(n) < 0.5, 0, dice.choice(len(LABELS), n, p=SHARES))
            answers[k] = np.where(knows, truth, guess if skill else 0)
            if name in ("few-shot", "selector", "emotion-qwen"):
                answers[k][dice.random(n) < 0.03] = len(LABELS)
        said[name] = answers
        rows.append(row(name, what, model, reads, parameters, duration, answers, truth, dialogue, dice))
    best = max((r for r in rows if r["group"] == "ranked"), key=lambda r: r["scores"]["weighted_f1"]["mean"])
    for r in rows:
        if r is best or r["group"] == "transductive":
            continue
        difference = r["scores"]["weighted_f1"]["mean"] - best["scores"]["weighted_f1"]["mean"]
        p = float(np.exp(-abs(difference) * 90))
        r["against_best"] = {
            "difference": difference,
            "ci95": [difference - 0.021, difference + 0.02],
            "p_bootstrap": p / 9,
            "p_mcnemar": p / 7,
            "p_bootstrap_holm": p,
            "p_mcnemar_holm": min(1.0, 1.3 * p),
            "verdict": "worse" if 1.3 * p < 0.05 else "no clear difference",
        }
    results = {
        "title": "Systems and their baselines on the embedded sitcom",
        "corpus": "synthetic",
        "labels": list(LABELS),
        "metric": "weighted_f1",
        "split": "test",
        "eval_protocol": "all_utterances",
        "n": n,
        "dialogues": dialogues,
        "seeds_note": "three seeds of every trained row",
        "command": "zoo bench --config configs/bench/made_up.yaml",
        "git": "0123abc",
        "versions": {"python": "3.11", "torch": "2.11.0", "zoo": "0.1.0"},
        "data": {"class_path": "Synthetic", "init_args": {"root": "runs/sitcom", "seed": 0, "dialogues": dialogues}},
        "rows": rows,
        "failed": [
            {
                "row": "emotion-qwen",
                "seed": 2,
                "reason": "ValueError: loss is nan at step 40",
                "log": "runs/emotion-qwen/seed-2/log.txt",
            }
        ],
        "matched": {
            "rows": ["text-llm", "dialoguellm", "farcer", "merit"],
            "llm": "tiny-llama",
            "data": "synthetic, seed 0",
            "steps": 600,
            "batch_size": 16,
        },
        "notes": ["Made up, to look at a report."],
    }
    return results, [utterance(i, truth, dialogue, said, dice) for i in dice.permutation(n)[:shown]]


def row(
    name: str,
    what: str,
    model: str | None,
    reads: list[str],
    parameters: int,
    duration: float,
    answers: np.ndarray,
    truth: np.ndarray,
    dialogue: np.ndarray,
    dice: np.random.Generator,
) -> dict[str, Any]:
    """One row; its scores and intervals are computed from its answers."""
    C = len(LABELS)
    groups = int(dialogue.max()) + 1
    cells = np.zeros((len(answers), groups, C, C + 1), dtype=int)
    for k, answer in enumerate(answers):
        np.add.at(cells[k], (dialogue, truth, answer), 1)
    values = scores(cells.sum(1))
    draws = dice.multinomial(groups, np.full(groups, 1 / groups), 200)  # (200, groups)
    samples = scores(np.einsum("bg,kgij->bkij", draws, cells))
    trained = parameters > 100_000 and name != "few-shot"
    return {
        "name": name,
        "what": what,
        "model": model,
        "group": "transductive" if name == "merit-ttrl" else "ranked",
        "eval_protocol": "all_utterances",
        "size": "small",
        "published": None,
        "reads": reads,
        "source": {"config": [f"configs/{name}/sitcom.yaml"], "options": {"model.lr": 0.001}}
        if trained
        else {"checkpoint": f"tiny-{name}-sitcom"},
        "seeds": list(range(len(answers))),
        "scores": {
            m: {
                "mean": float(values[m].mean()),
                "values": [float(v) for v in values[m]],
                "ci95": [float(v) for v in np.quantile(samples[m].mean(1), (0.025, 0.975))],
            }
            for m in ("accuracy", "weighted_f1", "macro_f1", "uar", "unparsed")
        },
        "per_class": {label: float(v) for label, v in zip(LABELS, values["f1"].mean(0), strict=True)},
        "confusion": cells.sum((0, 1)).tolist(),
        "cost": {
            "parameters": parameters,
            "trainable_parameters": parameters // 9,
            "train_seconds": 6000 * duration or None,
            "train_peak_mib": 410.0 if trained else None,
            "test_seconds_per_sample": duration,
            "test_peak_mib": 288.5,
            "tokens_per_sample": 148.2 if model else None,
            "interrupted": int(name == "farcer"),
        },
        "reachable": {"accuracy": 0.874, "share": float(values["accuracy"].mean()) / 0.874} if parameters else None,
        "against_best": None,
        "curves": curves(name, dice) if trained else {},
        "runs": [
            {"seed": k, "predictions": f"runs/{name}/seed-{k}/test/predictions.jsonl"} for k in range(len(answers))
        ],
    }


def curves(name: str, dice: np.random.Generator) -> dict[str, list]:
    steps = np.arange(0, 1200, 2)
    loss = 1.9 * np.exp(-steps / 260) + 0.45 + dice.normal(0, 0.06, len(steps))
    result = {
        "train/loss": [[int(s), float(v)] for s, v in zip(steps, loss, strict=True)],
        "val/wf1": [[100 * k, float(0.72 - 0.5 * np.exp(-k / 3) + dice.normal(0, 0.008))] for k in range(1, 13)],
    }
    if name in ("selector", "merit-ttrl"):
        reward = 1.6 - 1.9 * np.exp(-steps / 400) + dice.normal(0, 0.12, len(steps))
        result["train/reward"] = [[int(s), float(v)] for s, v in zip(steps, reward, strict=True)]
        result["train/reward"][50][1] = None
    return result


WORDS = ["you", "never", "said", "that", "we", "would", "meet", "him", "again"] + [
    "after",
    "the",
    "wedding",
    "but",
    "I",
    "kept",
    "the",
    "letter",
    "on",
    "the",
    "kitchen",
    "table",
]


def utterance(i: int, truth: np.ndarray, dialogue: np.ndarray, said: dict, dice: np.random.Generator) -> dict[str, Any]:
    def words(least: int, most: int) -> str:
        return " ".join(dice.choice(WORDS, dice.integers(least, most))).capitalize() + "."

    def name(index: int) -> str | None:
        return LABELS[index] if index < len(LABELS) else None

    label = LABELS[truth[i]]
    envelope = np.abs(np.sin(np.linspace(0, 9 + 4 * dice.random(), 120))) * dice.random(120) ** 0.5
    systems = {}
    for system, answers in said.items():
        answer = name(answers[0, i])
        selector = system == "selector"
        systems[system] = {
            "predicted": answer,
            "score": None if answer is None or system == "majority" else float(0.3 + 0.7 * dice.random()),
            "said": answer if answer else "I would say it is joy or anger",
            "decision": ("keep", "discard")[int(dice.integers(2))] if selector else None,
            "why": "The words alone could be meant kindly or not: the face decides." if selector else None,
        }
    return {
        "id": f"synthetic/test/dia{dialogue[i]}_utt{i}",
        "dialogue": f"synthetic/test/dia{dialogue[i]}",
        "speaker": str(dice.choice(["Mia", "Noah", "Lena", "Tom"])),
        "text": words(4, 16),
        "history": [[str(dice.choice(["Mia", "Tom"])), words(3, 10)] for _ in range(int(dice.integers(0, 4)))],
        "label": label,
        "face": face(label) if i % 7 else None,
        "voice": [float(v) for v in envelope] if i % 5 else None,
        "descriptions": {"audio": "a raised, quick voice", "video": "she looks down and frowns"} if i % 3 else {},
        "systems": systems,
    }


def face(label: str) -> str:
    """A drawn face as the report embeds it."""
    picture = Image.new("RGB", (96, 96), (203, 213, 225))
    pen = ImageDraw.Draw(picture)
    pen.ellipse((14, 8, 82, 90), fill=(241, 200, 160), outline=(120, 80, 50), width=2)
    for x in (34, 62):
        pen.ellipse((x - 5, 36, x + 5, 46), fill=(40, 40, 50))
    start, end = {"joy": (20, 160), "sadness": (200, 340), "anger": (200, 340)}.get(label, (80, 100))
    pen.arc((32, 50, 64, 76), start, end, fill=(150, 40, 40), width=4)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=70)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


BAD = (
    '</script><img src=x onerror="window.pwned=1;alert(1)"><!-- \u2028\u2029 \'"` {{ 7*7 }} 你好 | *a* _b_ '
    + "long" * 60
)


def hostile() -> tuple[dict, list]:
    """A small bench in which every free text tries to break out of where it is put."""
    results, utterances = made_up(n=200, dialogues=20, seeds=2, shown=30)
    for key in ("title", "seeds_note", "command", "git", "eval_protocol"):
        results[key] = BAD
    results |= {"versions": {BAD: BAD}, "data": {BAD: [BAD]}, "notes": [BAD]}
    results["failed"] = [{"row": BAD, "seed": 0, "reason": BAD, "log": BAD}]
    results["matched"] |= {"llm": BAD, "data": BAD}
    for i, r in enumerate(results["rows"][:6]):
        old, r["name"], r["what"] = r["name"], f"{i}{BAD}", f"{i}{BAD}"
        results["matched"]["rows"] = [r["name"] if n == old else n for n in results["matched"]["rows"]]
        r |= {"size": BAD, "reads": [BAD], "eval_protocol": BAD, "source": {"config": [BAD], "options": {BAD: BAD}}}
        r["curves"] = {BAD: [[0, 1.0], [1, None], [2, 0.5]]}
        r["runs"] = [{"seed": 0, "predictions": BAD}]
        for one in utterances:
            one["systems"][r["name"]] = one["systems"].pop(old) | {"said": BAD, "why": BAD}
    for one in utterances:
        one |= {"id": one["id"] + BAD, "speaker": BAD, "text": BAD, "history": [[BAD, BAD]], "descriptions": {BAD: BAD}}
    return results, utterances

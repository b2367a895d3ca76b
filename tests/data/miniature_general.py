"""The released layouts of the general benchmarks, made up and small: pictures of one colour, questions about them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

COLOURS = ("red", "green", "blue", "white", "black", "yellow")


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(buffer, "png")
    return buffer.getvalue()


def picture(path: Path, colour: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = path.suffix.lower().strip(".")
    Image.new("RGB", (40, 32), colour).save(path, "png" if suffix == "png" else "jpeg")
    return path


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_mme(root: Path) -> Path:
    """Two pictures of `color`, in the plain layout, and two of `landmark`, in the one with two folders."""
    for n, colour in enumerate(COLOURS[:2]):
        lines = f"Is it {colour}? Please answer yes or no.\tYes\nIs it pink? Please answer yes or no.\tNo\n"
        picture(root / "color" / f"{n:04}.jpg", colour)
        (root / "color" / f"{n:04}.txt").write_text(lines)
        picture(root / "landmark/images" / f"{n:04}.png", colour)
        (folder := root / "landmark/questions_answers_YN").mkdir(parents=True, exist_ok=True)
        (folder / f"{n:04}.txt").write_text(lines)
    return root


def write_pope(root: Path) -> Path:
    """Two subsets of four questions about two pictures."""
    for colour in COLOURS[:2]:
        picture(root / "val2014" / f"COCO_val2014_{colour}.jpg", colour)
    for subset in ("random", "adversarial"):
        rows = [
            {
                "question_id": n,
                "image": f"COCO_val2014_{COLOURS[n // 2]}.jpg",
                "text": f"Is there a {subset} dog in the image?",
                "label": "yes" if n % 2 else "no",
            }
            for n in range(4)
        ]
        (root / f"coco_pope_{subset}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


MMBENCH = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "l2-category", "image")


def write_mmbench(root: Path, rows: Sequence[Mapping[str, str]] | None = None) -> Path:
    """Two questions, the first with its rotation, whose picture is that of the first."""
    first = {
        "index": "3",
        "question": "Which colour?",
        "hint": 'It is "plain".',
        "A": "red",
        "B": "green",
        "C": "",
        "D": "",
    }
    first |= {
        "answer": "A",
        "category": "colour",
        "l2-category": "seeing",
        "image": base64.b64encode(png("red")).decode(),
    }
    rotated = first | {"index": "1000003", "A": "green", "B": "red", "answer": "B", "image": "3"}
    second = first | {"index": "4", "A": "blue", "C": "None", "D": "white", "hint": "", "l2-category": "knowing"}
    second |= {"image": base64.b64encode(png("blue")).decode()}
    root.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(MMBENCH)]
    for row in (first, rotated, second) if rows is None else rows:
        lines.append("\t".join('"' + row[name].replace('"', '""') + '"' for name in MMBENCH))
    (root / "mmbench_dev_en_20231003.tsv").write_text("\n".join(lines) + "\n")
    return root


def write_scienceqa(root: Path) -> Path:
    """Two questions of the test split with a picture, one without, and one of the training split."""
    problem = {
        "question": "Which is larger?",
        "choices": ["a cat", "an ox"],
        "answer": 1,
        "hint": "",
        "subject": "nature",
    }
    problems = {
        "1": problem | {"image": "image.png"},
        "2": problem | {"image": "image.png", "hint": "Both stand.", "choices": ["ox", "cat", "flea"], "answer": 0},
        "3": problem | {"image": None},
        "4": problem | {"image": "image.png"},
    }
    write_json(root / "problems.json", problems)
    write_json(root / "pid_splits.json", {"train": ["4"], "val": [], "test": ["1", "2", "3"]})
    for key in ("1", "2"):
        picture(root / "images/test" / key / "image.png", COLOURS[int(key)])
    return root


def write_seedbench(root: Path) -> Path:
    """Two dimensions with a question each, one about a video; pictures have no ending, as in the release."""
    question = {"question": "Where is it?", "data_type": "image", "answer": "B", "question_type_id": 1}
    question |= {"choice_a": "A farm", "choice_b": "A road", "choice_c": "A bus", "choice_d": "A boat"}
    questions = [
        question | {"question_id": "7", "data_id": "12_34"},
        question | {"question_id": "8", "data_id": "56_78", "question_type_id": 5, "answer": "D"},
        question | {"question_id": "9", "data_id": "clip.mp4", "data_type": "video", "question_type_id": 10},
    ]
    kinds = {"Scene Understanding": 1, "Instances Counting": 5, "Action Recognition": 10}
    write_json(root / "SEED-Bench.json", {"questions": questions, "question_type": kinds})
    for name, colour in (("12_34", "red"), ("56_78", "blue")):
        picture(root / "SEED-Bench-image" / name, colour)
    return root


def write_textvqa(root: Path) -> Path:
    rows = [
        {"question_id": n, "image_id": f"p{n}", "question": "what does it say?", "answers": ["stop"] * 9 + ["go"]}
        for n in (1, 2)
    ]
    write_json(root / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": rows})
    for n in (1, 2):
        picture(root / "train_images" / f"p{n}.jpg", COLOURS[n])
    return root


def write_vqav2(root: Path) -> Path:
    questions = [{"question_id": 10 * n, "image_id": n, "question": "Is it big?"} for n in (1, 2)]
    answers = [{"answer": "yes", "answer_id": i} for i in range(10)]
    rows = [{"question_id": 10 * n, "image_id": n, "answer_type": "yes/no", "answers": answers} for n in (1, 2)]
    write_json(root / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
    write_json(root / "v2_mscoco_val2014_annotations.json", {"annotations": rows})
    for n in (1, 2):
        picture(root / "val2014" / f"COCO_val2014_{n:012}.jpg", COLOURS[n])
    return root


WRITERS = {
    "mme": write_mme,
    "mmbench": write_mmbench,
    "pope": write_pope,
    "scienceqa": write_scienceqa,
    "seedbench": write_seedbench,
    "textvqa": write_textvqa,
    "vqav2": write_vqav2,
}

"""General questions about pictures: MME, MMBench, POPE, ScienceQA, SEED-Bench, TextVQA and VQAv2, as released.

Not corpora of emotions: what a system still sees beside them (Emotion-Qwen, Table 3).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd

from zoo.data.base import EmotionData, Reading
from zoo.data.text import find_file, one_of, read_text
from zoo.schema import Labels, Sample, ScoredQuestion, Split, Turn
from zoo.storage import inside, parse_json, split_lines, write_whole

Benchmark = Literal["mme", "mmbench", "pope", "scienceqa", "seedbench", "textvqa", "vqav2"]
LETTERS = "ABCDEFGHIJ"
LETTER = "Answer with the option's letter from the given choices directly."
SHORT = "Answer the question using a single word or phrase."
PICTURES = (".jpg", ".jpeg", ".png")
ROTATION = 1_000_000  # what MMBench adds to the number of a question for each of its rotations
LONGEST_NUMBER = 64  # characters; a longer cell of MMBench's column image is a picture
ADVICE = "python -m pydoc zoo.data.General shows what the folder of each benchmark must look like"


@dataclass(frozen=True)
class Asked:
    """A question as it stands in a file.

    Attributes:
        key: name of the question.
        picture: file of the picture, or None if it is not there.
        text: what is asked, with options and in which form to answer.
        gold, group, options: as in `zoo.schema.ScoredQuestion`.
        together: questions of one name count as right together; None: this one alone.
        shows: name of the picture, of all questions about it.
    """

    key: str
    picture: Path | None
    text: str
    gold: tuple[str, ...]
    group: str
    shows: str
    options: tuple[str, ...] = ()
    together: str | None = None


class General(EmotionData):
    """The questions of one general benchmark about pictures, each with the benchmark's own score.

    ``zoo test --ckpt_path RUN --data General --data.benchmark pope --data.root DIR``: the answers are written,
    greedily, and metrics.json holds the benchmark's scores (`zoo.metrics.general`) with 95 % intervals over pictures.
    There is a test split alone. ``root`` is the folder of the release; its rows are like these (made up):

    - ``mme``: a folder per category, ``count/0007.txt`` of two lines beside ``count/0007.jpg``, or in
      ``questions_answers_YN`` beside ``images``::

        Are there two dogs in this image? Please answer yes or no.<TAB>Yes

    - ``mmbench``: one ``.tsv`` with answers (the dev set), pictures inside it, rotations of a question numbered 1000000
      apart; ``image`` of a rotation may be the number of the question that has the picture::

        index  question          hint  A    B    C   D   answer  category    l2-category  image
        12     What is on top?         cat  dog  ox  hen B       object_loc  perception   /9j/4AAQ...

    - ``pope``: ``coco_pope_random.json``, ``..._popular.json``, ``..._adversarial.json`` of JSON lines (also below
      ``coco``), and the pictures in ``val2014``; a file of another source, ``gqa_pope_random.json``, is a subset, too::

        {"question_id": 1, "image": "COCO_val2014_000000000007.jpg", "text": "Is there a dog in the image?",
         "label": "yes"}

    - ``scienceqa``: ``problems.json``, ``pid_splits.json`` and ``images/test/7/image.png`` (or ``test/7/image.png``).
      Only the questions of the test split with a picture::

        {"7": {"question": "Which is larger?", "choices": ["cat", "ox"], "answer": 1, "hint": "", "image": "image.png",
               "subject": "natural science"}}

    - ``seedbench``: ``SEED-Bench.json`` and the pictures in ``SEED-Bench-image``. Only questions about one picture::

        {"questions": [{"question_id": "7", "question_type_id": 1, "data_type": "image", "data_id": "12_34",
                        "answer": "B", "question": "Where is it?", "choice_a": "A farm", "choice_b": "A road",
                        "choice_c": "A bus", "choice_d": "A boat"}], "question_type": {"Scene Understanding": 1}}

    - ``textvqa``: ``TextVQA_0.5.1_val.json`` and ``train_images/abc.jpg``::

        {"data": [{"question_id": 7, "image_id": "abc", "question": "what does it say?", "answers": ["stop", ...]}]}

    - ``vqav2``: ``v2_OpenEnded_mscoco_val2014_questions.json``, ``v2_mscoco_val2014_annotations.json``, the pictures in
      ``val2014``::

        {"questions": [{"question_id": 70, "image_id": 7, "question": "What animal is it?"}]}
        {"annotations": [{"question_id": 70, "answer_type": "other", "answers": [{"answer": "dog"}, ...]}]}

    The form of the answer is asked for in the words of LLaVA-1.5, which many papers use: a letter, or a word or phrase;
    MME's questions say it themselves.

    Licence: the owners' of each benchmark, mostly research only; pictures of COCO, OpenImages and others.

    Args:
        benchmark: ``mme``, ``mmbench``, ``pope``, ``scienceqa``, ``seedbench``, ``textvqa`` or ``vqav2``.
        pictures: folder into which the pictures of ``mmbench`` are written; None: ``pictures`` beside its file.
    """

    licence = "of each benchmark's owners, mostly research only"
    material = "questions about photographs and drawings"
    protocol = "benchmark_rule"
    unpublished_options = (*EmotionData.unpublished_options, "pictures")

    def __init__(self, benchmark: Benchmark, pictures: Path | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        one_of("--data.benchmark", benchmark, get_args(Benchmark))
        self.benchmark, self.pictures = benchmark, pictures
        self.labels = Labels(benchmark, ())
        self._scored: dict[str, ScoredQuestion] = {}

    def splits(self) -> tuple[Split, ...]:
        return ("test",)

    def scored_questions(self, split: Split) -> Mapping[str, ScoredQuestion]:
        """Return how each answer is scored, by sample id."""
        self.reading(split)
        return self._scored

    def read(self, split: Split) -> Reading:
        if split != "test":
            raise ValueError(f"the benchmark {self.benchmark} is tested on; it has no {split} split to be learnt from")
        readers: dict[str, Callable[[Counter[str]], Iterator[Asked]]] = {
            "mme": self._read_mme,
            "mmbench": self._read_mmbench,
            "pope": self._read_pope,
            "scienceqa": self._read_scienceqa,
            "seedbench": self._read_seedbench,
            "textvqa": self._read_textvqa,
            "vqav2": self._read_vqav2,
        }
        notes: Counter[str] = Counter()
        samples: list[Sample] = []
        excluded: dict[str, str] = {}
        where = f"{self.benchmark}/{split}"
        for one in readers[self.benchmark](notes):
            if one.picture is None:
                excluded[one.key] = f"its picture {one.shows} is not there"
                continue
            turn = Turn(one.key, "", "", video=one.picture)
            answer = Counter(one.gold).most_common(1)[0][0]
            sample = Sample(
                f"{where}/{one.key}", f"{where}/{one.shows}", self.labels, turn, question=one.text, answer=answer
            )
            samples.append(sample)
            together = one.key if one.together is None else one.together
            self._scored[sample.id] = ScoredQuestion(self.benchmark, one.gold, one.group, together, one.options)
        return Reading(samples, None, excluded, dict(notes), without_file=set(excluded))

    # ---- yes or no
    def _read_mme(self, notes: Counter[str]) -> Iterator[Asked]:
        categories = (
            sorted(folder for folder in self.folder.iterdir() if folder.is_dir()) if self.folder.is_dir() else []
        )
        files = [
            (category.name, file)
            for category in categories
            for home in (category, category / "questions_answers_YN")
            for file in sorted(home.glob("*.txt"))
        ]
        if not files:
            raise FileNotFoundError(
                f"no questions of MME in {self.folder}: expected folders like existence with 0001.txt, or with "
                f"questions_answers_YN/0001.txt. {ADVICE}"
            )
        for category, file in files:
            lines = [line for line in split_lines(read_text(file, self.read_as)[0]) if line.strip()]
            home = file.parent.parent / "images" if file.parent.name == "questions_answers_YN" else file.parent
            picture = _first_file(home / (file.stem + suffix) for suffix in PICTURES)
            for number, line in enumerate(lines, 1):
                question, _, answer = line.rpartition("\t")
                gold = answer.strip().lower().rstrip(".")
                if gold not in ("yes", "no") or not question.strip() or len(lines) != 2:
                    raise ValueError(
                        f"{file} has {len(lines)} lines, line {number} is {line[:120]!r}; expected two lines, each a "
                        "question, a tab, and Yes or No. Use the released file"
                    )
                name = f"{category}_{file.stem}"
                yield Asked(f"{name}_{number}", picture, question.strip(), (gold,), category, name, together=name)

    def _read_pope(self, notes: Counter[str]) -> Iterator[Asked]:
        files = sorted([*self.folder.glob("*pope_*.json"), *self.folder.glob("*/*pope_*.json")])
        if not files:
            raise FileNotFoundError(
                f"no coco_pope_random.json, coco_pope_popular.json or coco_pope_adversarial.json in {self.folder} or a "
                f"folder of it. {ADVICE}"
            )
        for file in files:
            subset = file.stem.replace("_pope_", "_").removeprefix("coco_")
            for number, line in enumerate(split_lines(read_text(file, self.read_as)[0]), 1):
                if not line.strip():
                    continue
                where = f"{file} line {number}"
                row = _fields(parse_json(line, where), where, question_id=(int, str), image=str, text=str, label=str)
                gold = row["label"].strip().lower()
                if gold not in ("yes", "no"):
                    raise ValueError(
                        f"{where}: the label is {row['label']!r}; expected yes or no. Use the released file"
                    )
                shows = Path(row["image"]).stem
                picture = self._picture(row["image"], where, "val2014", "images")
                text = f"{row['text'].strip()}\n{SHORT}"
                yield Asked(f"{subset}_{row['question_id']}", picture, text, (gold,), subset, shows)

    # ---- options
    def _read_mmbench(self, notes: Counter[str]) -> Iterator[Asked]:
        files = sorted(self.folder.glob("*.tsv"))
        if len(files) != 1:
            got = ", ".join(file.name for file in files) or "none"
            raise FileNotFoundError(f"expected one .tsv of MMBench in {self.folder}, got {got}. {ADVICE}")
        file = files[0]
        folder = self.pictures or file.parent / "pictures"
        rows = _read_rows(file, ("index", "question", "A", "B", "answer", "image"))
        pictures = {row["index"]: row["image"] for row in rows if len(row["image"]) > LONGEST_NUMBER}
        for number, row in enumerate(rows, 2):
            where = f"{file} row {number}"
            if not row["index"].isdecimal():
                raise ValueError(
                    f"{where}: the index is {row['index'][:40]!r}; expected a number. Use the released file"
                )
            options = _options([row.get(letter, "") for letter in LETTERS[:5]])
            question = int(row["index"]) % ROTATION
            encoded = pictures.get(row["index"]) or pictures.get(row["image"])
            picture = None if encoded is None else _write_picture(encoded, folder, where)
            text = _with_options(row["question"], options, row.get("hint", ""))
            yield Asked(
                row["index"],
                picture,
                text,
                (_letter(row["answer"], options, where),),
                row.get("l2-category") or row.get("category") or "all",
                str(question) if picture is None else picture.stem,
                options,
                together=str(question),
            )

    def _read_scienceqa(self, notes: Counter[str]) -> Iterator[Asked]:
        problems_file = find_file(self.folder, ["problems.json"], "ScienceQA", ADVICE)
        splits_file = find_file(self.folder, ["pid_splits.json"], "ScienceQA", ADVICE)
        problems, splits = self._json(problems_file, dict), self._json(splits_file, dict)
        for key in splits.get("test", ()):
            where = f"{problems_file} problem {key}"
            row = _fields(problems.get(key), where, question=str, choices=list, answer=int)
            if not row.get("image"):
                notes["questions without a picture, not asked"] += 1
                continue
            options = _options(row["choices"])
            if not 0 <= row["answer"] < len(options):
                raise ValueError(f"{where}: answer {row['answer']} of {len(options)} choices. Use the released file")
            picture = self._picture(f"test/{key}/{row['image']}", where, "images", ".")
            text = _with_options(row["question"], options, row.get("hint") or "")
            gold = LETTERS[row["answer"]]
            yield Asked(key, picture, text, (gold,), row.get("subject") or "all", key, options)

    def _read_seedbench(self, notes: Counter[str]) -> Iterator[Asked]:
        file = find_file(self.folder, ["SEED-Bench.json"], "SEED-Bench", ADVICE)
        content = _fields(self._json(file, dict), file, questions=list, question_type=dict)
        dimension = {number: name for name, number in content["question_type"].items()}
        for number, entry in enumerate(content["questions"], 1):
            where = f"{file} question {number}"
            row = _fields(entry, where, question_id=(int, str), question=str, answer=str, question_type_id=int)
            if row.get("data_type") != "image" or not isinstance(row.get("data_id"), str):
                notes["questions about videos or several pictures, not asked"] += 1
                continue
            options = _options([str(row.get(f"choice_{letter}") or "") for letter in "abcd"])
            group = dimension.get(row["question_type_id"], f"dimension {row['question_type_id']}")
            picture = self._picture(row["data_id"], where, "SEED-Bench-image")
            text, gold = _with_options(row["question"], options), _letter(row["answer"], options, where)
            yield Asked(str(row["question_id"]), picture, text, (gold,), group, row["data_id"], options)

    # ---- free answers
    def _read_textvqa(self, notes: Counter[str]) -> Iterator[Asked]:
        file = find_file(self.folder, ["TextVQA_0.5.1_val.json"], "TextVQA", ADVICE)
        for number, entry in enumerate(_fields(self._json(file, dict), file, data=list)["data"], 1):
            where = f"{file} question {number}"
            row = _fields(entry, where, question_id=(int, str), image_id=str, question=str, answers=list)
            picture = self._picture(f"{row['image_id']}.jpg", where, "train_images")
            text, gold = f"{row['question'].strip()}\n{SHORT}", _annotations(row["answers"], where)
            yield Asked(str(row["question_id"]), picture, text, gold, "all", row["image_id"])

    def _read_vqav2(self, notes: Counter[str]) -> Iterator[Asked]:
        names = ("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json")
        questions, annotations = (find_file(self.folder, [name], "VQAv2", ADVICE) for name in names)
        answers = {
            row.get("question_id"): row
            for row in _fields(self._json(annotations, dict), annotations, annotations=list)["annotations"]
            if isinstance(row, dict)
        }
        for number, entry in enumerate(_fields(self._json(questions, dict), questions, questions=list)["questions"], 1):
            where = f"{questions} question {number}"
            row = _fields(entry, where, question_id=int, image_id=int, question=str)
            where = f"{annotations}, question {row['question_id']}"
            scored = _fields(answers.get(row["question_id"]), where, answers=list, answer_type=str)
            written = [one.get("answer") if isinstance(one, dict) else None for one in scored["answers"]]
            shows = f"COCO_val2014_{row['image_id']:012d}"
            picture = self._picture(f"{shows}.jpg", where, "val2014")
            text, gold = f"{row['question'].strip()}\n{SHORT}", _annotations(written, where)
            yield Asked(str(row["question_id"]), picture, text, gold, scored["answer_type"], shows)

    # ---- files
    def _json(self, file: Path, kind: type) -> Any:
        content = parse_json(read_text(file, self.read_as)[0], file)
        if not isinstance(content, kind):
            raise ValueError(
                f"{file} holds a {type(content).__name__}; expected a {kind.__name__}. Use the released file"
            )
        return content

    def _picture(self, name: str, where: str, *folders: str) -> Path | None:
        """Return the picture of that name in the first of some folders that has it; None without one.

        SEED-Bench's names have no ending.
        """
        return _first_file(inside(self.folder / folder, name, where) for folder in folders)


def _first_file(paths: Iterator[Path]) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _fields(row: Any, where: object, **kinds: type | tuple[type, ...]) -> dict[str, Any]:
    """Return a row of a JSON file that has these fields; ValueError naming the first that it has not, or otherwise."""
    fields = row if isinstance(row, dict) else {}
    for name, kind in kinds.items():
        if not isinstance(fields.get(name), kind) or isinstance(fields[name], bool):
            expected = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            got = repr(fields.get(name, row))[:120]
            raise ValueError(f"{where}: expected {name} ({expected}), got {got}. Use the released file")
    return fields


def _read_rows(file: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows of a table of tabs, whose cells may stand in quotes and hold line ends."""
    try:
        table = pd.read_csv(file, sep="\t", dtype=str, keep_default_na=False, encoding="utf-8")
    except ValueError as error:  # not UTF-8, or no table
        raise ValueError(f"{file} is no table of tabs ({error}); expected MMBench's. Download it again") from None
    if missing := [name for name in columns if name not in table.columns]:
        raise ValueError(f"{file} has no column {', '.join(missing)}; use a release with answers, e.g. the dev set")
    rows: list[dict[str, str]] = table.to_dict("records")
    return rows


def _options(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the options that are there: those before the first empty one."""
    options = [str(text).strip() for text in texts]
    return tuple(options[: options.index("")] if "" in options else options)


def _letter(answer: str, options: Sequence[str], where: str) -> str:
    letter = answer.strip().upper()
    if len(letter) != 1 or letter not in LETTERS[: len(options)]:
        raise ValueError(
            f"{where}: the answer is {answer[:40]!r}; expected one of {', '.join(LETTERS[: len(options)])}. Test sets "
            "whose answers are kept back are scored by their owners alone"
        )
    return letter


def _with_options(question: str, options: Sequence[str], hint: str = "") -> str:
    """Return a question with what is known beforehand in front of it, its options, and how to answer."""
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS[: len(options)], options, strict=True)]
    return "\n".join([*([hint.strip()] if hint.strip() else []), question.strip(), *lines, LETTER])


def _annotations(answers: Sequence[Any], where: str) -> tuple[str, ...]:
    """Return what the annotators wrote."""
    if len(answers) < 2 or not all(isinstance(answer, str) for answer in answers):
        raise ValueError(
            f"{where} has the answers {str(answers)[:120]}; expected those of ten annotators. Test sets whose answers "
            "are kept back are scored by their owners alone"
        )
    return tuple(answers)


def _write_picture(encoded: str, folder: Path, where: str) -> Path:
    """Write a picture that stands in a table under the name of its content, once; return the file."""
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{where}: the picture is no base64 ({error}). Download the file again") from None
    suffix = ".png" if content.startswith(b"\x89PNG") else ".jpg"
    path = folder / (hashlib.sha256(content).hexdigest()[:20] + suffix)
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    return path


__all__ = ["General"]

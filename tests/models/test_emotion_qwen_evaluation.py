"""How Emotion-Qwen is evaluated: several sets at once, explanations and their judge, the authors' rules."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from sklearn.metrics import accuracy_score, f1_score

from tests.builders import make_llm, make_patch_vision
from tests.data.miniature_clips import clip, write_dfew, write_emer, write_mer2024
from tests.fake_corpus import attach
from tests.media_files import write_clip
from tests.runs_helper import fit, flags, metrics, newest, refused, rows, zoo
from zoo import data as zoo_data
from zoo.data import MER2024
from zoo.media import Media
from zoo.media.frames import PixelBudget
from zoo.metrics import Unscored
from zoo.models.emotion_qwen import EmotionQwen, faces
from zoo.models.emotion_qwen.sampling import FrameSampling
from zoo.models.emotion_qwen.scores import last_in_answer
from zoo.schema import Turn
from zoo.training.judge import read_rating

CONFIGS = Path(__file__).parents[2] / "configs" / "emotion_qwen"
pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("evaluation")
    make_llm(home / "llm")
    make_patch_vision(home / "vision")
    write_mer2024(home / "mer", (12, 6, 6), clips=12)
    write_dfew(home / "dfew", train=14, test=7)
    return home


def model_options(home: Path, **more: object) -> list[str]:
    base = {
        "model": "EmotionQwen",
        "model__llm": home / "llm",
        "model__vision": home / "vision",
        "model__template": "plain",
        "model__min_pixels": 64,
        "model__video_max_pixels": 256,
        "model__frames": 1,
        "model__cache": home / "cache",
    }
    return [*flags(**base | more)]


def joint(home: Path, folder: Path) -> str:
    parts = [
        {"class_path": "zoo.data.MER2024", "init_args": {"root": str(home / "mer")}},
        {"class_path": "zoo.data.DFEW", "init_args": {"root": str(home / "dfew")}},
    ]
    path = folder / "joint.yaml"
    path.write_text(yaml.safe_dump({"data": {"class_path": "zoo.data.Joint", "init_args": {"parts": parts}}}))
    return f"--config={path}"


# ---- several sets, each with a protocol of its own
def test_one_lora_over_sets_of_different_protocols(home, tmp_path, capsys):
    learning = flags(model__lora__r=2, model__lr=0.01, data__batch_size=4, trainer__max_steps=3)
    run = fit(tmp_path, joint(home, tmp_path), *model_options(home), *learning)
    zoo("test", f"--ckpt_path={run}")
    said = metrics(run)
    parts = {corpus: (part["eval_protocol"], part["n"]) for corpus, part in said["corpora"].items()}
    assert parts == {"mer2024": ("mer2024_semi", 6), "dfew": ("fold_1_of_5", 7)} and said["n"] == 13
    assert said["eval_protocol"] == "mer2024: mer2024_semi, dfew: fold_1_of_5"
    assert said["aggregation"] == "none: the protocols of the corpora differ" and "weighted_f1" not in said
    printed = capsys.readouterr().out
    assert "mer2024: 6 utterances of 6 dialogues, mer2024 semi" in printed
    assert "dfew: 7 utterances of 7 dialogues, fold 1 of 5" in printed
    for corpus, data, root in (("mer2024", "MER2024", "mer"), ("dfew", "DFEW", "dfew")):
        zoo("test", f"--ckpt_path={run}", f"--data={data}", f"--data.root={home / root}")
        alone = metrics(newest(tmp_path))
        assert alone["weighted_f1"] == said["corpora"][corpus]["weighted_f1"] and alone["corpus"] == corpus


def test_adapters_over_sets_of_different_protocols(home, tmp_path):
    start = fit(
        tmp_path / "start",
        *model_options(home, data="MER2024", data__root=home / "mer", trainer__max_steps=1),
        r"--model.train=['compressor\..*']",
    )
    runs = {}
    for corpus, data, root in (("mer2024", "MER2024", "mer"), ("dfew", "DFEW", "dfew")):
        own = flags(data=data, data__root=home / root, model__lora__r=2, model__lr=0.1, trainer__max_steps=2)
        runs[corpus] = str(fit(tmp_path / corpus, *model_options(home, model__start_from=start), *own))
        zoo("test", f"--ckpt_path={runs[corpus]}", "--data.eval_batch_size=1")
    switched = model_options(home, model="EmotionQwenAdapters", model__adapters=json.dumps(runs))
    zoo("test", "--zero_shot=true", joint(home, tmp_path), *switched, "--data.eval_batch_size=1")
    run = newest(tmp_path)
    assert rows(run) == rows(Path(runs["mer2024"])) + rows(Path(runs["dfew"]))
    assert {c: p["eval_protocol"] for c, p in metrics(run)["corpora"].items()} == {
        "mer2024": "mer2024_semi",
        "dfew": "fold_1_of_5",
    }


@pytest.mark.parametrize("config", ["adapters.yaml", "ablations/tune_lora_all_sets.yaml"])
def test_the_configs_over_several_sets_can_be_built(config):
    init_args = yaml.safe_load((CONFIGS / config).read_text())["data"]["init_args"]
    parts = [getattr(zoo_data, p["class_path"].rpartition(".")[2])(**p["init_args"]) for p in init_args["parts"]]
    protocols = zoo_data.Joint(parts).protocols
    assert protocols.items() >= {"mer2024": "mer2024_semi", "dfew": "fold_1_of_5"}.items()
    assert len(protocols) == len(parts)


# ---- explanations, and who rates them
class JudgeServer:
    """An OpenAI-style endpoint that answers by what the prompt says. ``answers_as``: the model it says it is."""

    def __init__(self) -> None:
        self.bodies: list[dict] = []
        self.answers_as: str | None = None
        self.status, self.text = 200, "7"
        judge = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                judge.bodies.append(body)
                prompt = body["messages"][0]["content"]
                text = "calm, 4 or 5" if "kitchen" in prompt or "calm" in prompt else judge.text
                reply = {"model": judge.answers_as or body["model"], "choices": [{"message": {"content": text}}]}
                self.send_response(judge.status)
                self.end_headers()
                self.wfile.write(json.dumps(reply).encode())

            def log_message(self, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def judge_server() -> Iterator[JudgeServer]:
    judge = JudgeServer()
    yield judge
    judge.server.shutdown()
    judge.server.server_close()


@pytest.fixture(scope="module")
def tuned(home, tmp_path_factory) -> Path:
    own = flags(data="MER2024", data__root=home / "mer", model__lora__r=2, trainer__max_steps=1)
    return fit(tmp_path_factory.mktemp("tuned"), *model_options(home), *own)


def explained(run: Path, emer: Path, *more: str) -> list[str]:
    own = flags(data="EMER", data__root=emer, data__task="explain", model__max_new_tokens=4)
    return ["test", f"--ckpt_path={run}", *own, *more]


def judged(model: str, **options: object) -> list[str]:
    return [*flags(**{f"model__judge__{key}": value for key, value in ({"model": model} | options).items()})]


def emer_with_clips(folder: Path) -> Path:
    for i, name in enumerate(("00000001", "00000002", "00000100", "00000101")):
        clip(folder / f"video/sample_{name}.mp4", i)
    return write_emer(folder)


def test_clips_of_emer_are_scored_by_their_explanations(tuned, tmp_path, judge_server):
    """Those without a label, too; by exact words and by a judge, whose scores are kept."""
    emer = emer_with_clips(tmp_path / "emer")
    judge = judged("rater-0613", send_to=judge_server.url, cache=tmp_path / "scores.jsonl")
    zoo(*explained(tuned, emer, *judge))
    said = metrics(tuned)
    assert (said["n"], said["eval_protocol"], said["population"]["n_official"]) == (4, "emer_v2_explanations", 332)
    assert [row["label"] for row in rows(tuned)] == [None] * 4 and all(row["text"] for row in rows(tuned))
    reasons = said["reasons"]
    assert reasons["n"] == 4 and 0 <= reasons["clue_overlap/f1"] <= 1
    ratings = {k: v for k, v in reasons.items() if "rater-0613" in k}
    names = [k.removeprefix("judge/") for k in ratings if k.startswith("judge/")]
    assert [name.rpartition("/")[0] for name in names] == ["clue_overlap/rater-0613", "label_overlap/rater-0613"]
    assert ratings == {f"judge/{n}": 7 for n in names} | {f"unscored/{n}": 2 for n in names}  # "4 or 5" is no score
    prompts = [body["messages"][0]["content"] for body in judge_server.bodies]
    assert len(prompts) == 4 + 3 * 4 and all(body["temperature"] == 0 for body in judge_server.bodies)
    for row in rows(tuned):
        assert sum(f"Candidate: {row['text']}\n" in prompt for prompt in prompts) >= 1  # of the clues
        assert sum(f"Description: {row['text']}" in prompt for prompt in prompts) >= 1  # summed up
    assert sum("a man shouts about a ladder" in prompt for prompt in prompts) == 2
    assert sum("Reference: 7\n\nCandidate: 7" in prompt for prompt in prompts) == 2  # the summaries
    zoo(*explained(tuned, emer, *judge))
    assert (
        metrics(tuned)["reasons"] == reasons and len(judge_server.bodies) == 16 + 2 + 6
    )  # the unscored are asked again
    own = tmp_path / "mine.txt"
    own.write_text("Rate {{ candidate }} by {{ reference }}.")
    zoo(*explained(tuned, emer, *judge, f"--model.judge.clue_prompt={own}"))
    other = [k for k in metrics(tuned)["reasons"] if k.startswith("judge/")]
    assert other[0] not in reasons and other[1] in reasons  # another prompt is another metric


def test_a_judge_that_cannot_be_one_is_refused(tuned, tmp_path, judge_server):
    emer = emer_with_clips(tmp_path / "emer")
    judge = judged("rater", send_to=judge_server.url, cache=tmp_path / "scores.jsonl")
    judge_server.answers_as = "rater-0613"
    assert "asked for rater and answered as rater-0613" in refused(*explained(tuned, emer, *judge))
    assert not (tmp_path / "scores.jsonl").exists()
    judge_server.answers_as, judge_server.status = None, 400
    message = refused(*explained(tuned, emer, *judge, "--model.judge.max_failures=1"))
    assert "left 2 questions unanswered" in message and "predictions.jsonl" in message
    zoo(*explained(tuned, emer, *judge))
    said = metrics(tuned)["reasons"]
    assert [v for k, v in said.items() if k.startswith("unscored/")] == [4, 4]
    assert not [k for k in said if k.startswith("judge/")]
    before = len(judge_server.bodies)
    assert "ABSENT_KEY is not set" in refused(*explained(tuned, emer, *judge, "--model.judge.key_env=ABSENT_KEY"))
    assert "has no address" in refused(*explained(tuned, emer, *judged("rater")))
    assert "has an address" in refused(*explained(tuned, emer, *judged("local:x", send_to=judge_server.url)))
    assert len(judge_server.bodies) == before


def test_a_language_model_of_this_machine_is_a_judge(home, tuned, tmp_path):
    emer = emer_with_clips(tmp_path / "emer")
    zoo(*explained(tuned, emer, *judged(f"local:{home / 'llm'}", cache=tmp_path / "scores.jsonl", max_tokens=2)))
    said = metrics(tuned)["reasons"]
    assert {k.rpartition("/")[0].partition(":")[0] for k in said if k.startswith("unscored/")} == {
        "unscored/clue_overlap/local",
        "unscored/label_overlap/local",
    }


@pytest.mark.parametrize(
    ("text", "rating"),
    [("7", 7), ("7.5", 7.5), ("Score: 7/10", 7), ("7 out of 10.", 7), ("10", 10), ("0", 0)]
    + [(text, None) for text in ("", "none", "11", "6 or 7", "7/20", "-3", "0.5.5", "7th")],
)
def test_a_rating_is_one_number(text, rating):
    if rating is None:
        with pytest.raises(Unscored, match="expected one number from 0 to 10"):
            read_rating(text)
    else:
        assert read_rating(text) == rating


# ---- the authors' rules
def numbers_of_theirs(total: int, rate: float, fps: float) -> list[int]:
    """The numbers of the frames, written out from the rule of their code."""
    n = min(max(total / rate * fps, 4), min(768, total) // 2 * 2, total)
    return [round(i * (total - 1) / (n // 2 * 2 - 1)) for i in range(int(n // 2 * 2))]


@pytest.mark.parametrize(
    ("total", "rate", "fps"), [(30, 10, 2.0), (5, 10, 2.0), (3, 10, 2.0), (25, 25, 3.0), (60, 10, 3.0), (33, 10, 3.0)]
)
def test_the_authors_frames(tmp_path, total, rate, fps):
    """Each frame's shade is its number, so that it says which one was taken."""
    path = tmp_path / "clip.mp4"
    frames = [np.full((32, 32, 3), 4 * i, np.uint8) for i in range(total)]
    write_clip(path, frames, None, fps=rate)
    turn = Turn("a", "", "", video=path)
    pixels, seconds = FrameSampling(fps=fps, max_frames=1, rule="authors").read(Media(), turn)
    expected = numbers_of_theirs(total, rate, fps)
    assert [round(float(frame.mean()) / 4) for frame in pixels] == expected
    assert len(expected) % 2 == 0 and (len(expected) >= 4 or total < 4)
    assert seconds == pytest.approx(total / rate / len(expected))
    ours, _ = FrameSampling(fps=fps).read(Media(), turn)
    assert len(ours) == max(1, round(total / rate * fps))


def test_the_authors_pixels(home, tmp_path):
    """A clip of 224 x 224 has 144 tokens per step with their floor, 64 with ours; many frames share a budget."""
    path = tmp_path / "clip.mp4"
    write_clip(path, [np.full((224, 224, 3), 90, np.uint8)] * 8, None, fps=8)
    sizes = {"patch": 14, "merge": 2, "min_pixels": 56 * 56, "video_max_pixels": 448 * 448}
    model = EmotionQwen(llm=str(home / "llm"), vision=str(home / "vision"), template="plain", fps=4.0)
    attach(model, SimpleNamespace(run_seed=0), state=SimpleNamespace(fn="test"))
    model.configure_model()
    tokens = {}
    for rule in ("ours", "authors"):
        collator = replace(model.collator(False), sampling=FrameSampling(fps=4.0, rule=rule), **sizes)
        clip, _ = collator.read_clip(Turn("a", "", "", video=path), "a", faces=False)
        tokens[rule] = clip.tokens / clip.grid[0, 0].item()
    assert tokens == {"ours": 64, "authors": 144}
    theirs, given = FrameSampling(rule="authors"), PixelBudget(28, 56 * 56, 10**7)
    assert theirs.budget(given, 4) == PixelBudget(28, 128 * 28 * 28, 768 * 28 * 28)
    assert theirs.budget(given, 768) == PixelBudget(28, 128 * 28 * 28, int(128_000 * 28 * 28 * 0.9 / 768 * 2))
    assert theirs.budget(PixelBudget(28, 56 * 56, 448 * 448), 768).most == 448 * 448
    assert FrameSampling().budget(given, 768) == given


def test_the_authors_scorer_of_mer2024():
    texts = {"happy": "Happy.", "sad": "not sad but worried", "angry": "no idea", "neutral": "I am unhappy"}
    texts |= {"worried": ""}
    answered = [
        {"id": f"mer2024/test/{label}", "dialogue": label, "label": label, "text": text, "predicted": None}
        for label, text in texts.items()
    ]
    assert [max((w in t.lower(), w) for w in MER2024.labels.names)[1] for t in texts.values()] == [
        "happy",
        "worried",
        "worried",
        "happy",
        "worried",
    ]
    said = last_in_answer([*answered, answered[0] | {"id": "x", "label": None}], MER2024.labels, None)
    true, taken = list(texts), ["happy", "worried", "worried", "happy", "worried"]
    assert said == {
        "accuracy_last_in_answer": pytest.approx(accuracy_score(true, taken)),
        "weighted_f1_last_in_answer": pytest.approx(f1_score(true, taken, average="weighted")),
    }
    assert last_in_answer([answered[0] | {"label": None}], MER2024.labels, None) == {}


def test_the_authors_scores_stand_beside_ours(tuned, home):
    options = flags(model__decode="greedy", model__last_in_answer="true", model__gold_in_answer="true")
    zoo("test", f"--ckpt_path={tuned}", *options, "--model.max_new_tokens=2", "--model.frame_rule=authors")
    said = metrics(tuned)
    assert {
        "accuracy",
        "accuracy_gold_in_answer",
        "accuracy_last_in_answer",
        "weighted_f1_last_in_answer",
    } <= said.keys()
    worried = [row["label"] == "worried" for row in rows(tuned)]
    named = [any(word in row["text"].lower() for word in MER2024.labels.names) for row in rows(tuned)]
    if not any(named):
        assert said["accuracy_last_in_answer"] == pytest.approx(sum(worried) / len(worried))


# ---- the paper's setting is the config's, and ablations see the same data
def test_face_capture_is_on_from_stage_2_on():
    def of(name: str) -> object:
        return yaml.safe_load((CONFIGS / name).read_text())["model"]["init_args"].get("face_capture")

    on = [of(f"{name}.yaml") for name in ("stage2", "stage3", "tune_full", "tune_lora", "adapters")]
    assert on[0]["class_path"].endswith("FaceCapture") and on == [on[0]] * 5
    assert of("ablations/stage1_mlp.yaml") == on[0]  # its first stage holds the data of stage 2
    assert of("stage1.yaml") is None and of("ablations/no_face_capture.yaml") is None
    for overlay in ("stage1_fusion", "stage2_fusion", "stage3_fusion", "stage3_mlp"):  # as the hybrid's stage
        assert "face_capture" not in (CONFIGS / "ablations" / f"{overlay}.yaml").read_text()


def test_the_projectors_learn_from_the_data_of_the_hybrid():
    """The MLP's first stage mixes what stages 1 and 2 have; the fusion projector goes through the three stages."""

    def files(name: str) -> list[dict]:
        return yaml.safe_load((CONFIGS / "mixtures" / f"{name}.yaml").read_text())["train"]

    assert files("stages_1_and_2") == files("stage1") + files("stage2")
    bench = yaml.safe_load((CONFIGS.parent / "bench" / "emotion_qwen.yaml").read_text())["rows"]
    mixtures = {
        name: row["train_data"]["init_args"].get("mixture") for name, row in bench.items() if "train_data" in row
    }
    of = {name: f"configs/emotion_qwen/mixtures/{m}.yaml" for name, m in (("a", "stages_1_and_2"), ("b", "stage2"))}
    assert mixtures["stage1_mlp"] == of["a"] and mixtures["stage2_fusion"] == mixtures["stage2"] == of["b"]
    assert mixtures["stage3_other"] == mixtures["stage3"]
    assert bench["stage2_fusion"]["options"] == {"model.start_from": "run:stage1.fusion"}
    later = bench["stage3_other"]["grid"]["projector"]
    starts = {name: value["model.start_from"] for name, value in later.items()}
    assert starts == {"mlp": "run:stage1_mlp", "fusion": "run:stage2_fusion"}


def test_a_size_is_asked_without_the_detector_of_faces(home, monkeypatch, capsys):
    """`zoo memory` needs neither dlib nor the weights that face capture would load."""
    monkeypatch.setattr(faces, "import_optional", lambda *args: pytest.fail("dlib was asked for"))
    capture = "zoo.models.emotion_qwen.faces.FaceCapture"
    options = flags(model__train=r"['compressor\..*']", model__face_capture=capture, data="MER2024")
    analyzer = flags(
        model__face_capture__analyzer="zoo.models.emotion_qwen.faces.DlibFaces",
        model__face_capture__analyzer__expression="nowhere",
        data__root=home / "mer",
    )
    zoo("memory", *model_options(home), *options, *analyzer)
    assert "MiB" in (out := capsys.readouterr().out) or "GiB" in out

import csv
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger

from zoo import runs
from zoo.runs import (
    ResumingCSVLogger,
    find_checkpoint,
    given_checkpoint,
    make_run_folder,
    newest_run,
    portable,
    problems_of_fit,
    published,
    run_of,
    set_aside_results,
)


def write(path: Path, content: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """An empty repository; the working directory lies elsewhere."""
    root, elsewhere = tmp_path / "repository", tmp_path / "elsewhere"
    root.mkdir()
    elsewhere.mkdir()
    monkeypatch.setattr(runs, "SHIPPED", root)
    monkeypatch.chdir(elsewhere)
    return root


pytestmark = pytest.mark.filterwarnings("ignore:Experiment logs directory")  # Lightning empties it; ours does not

ORDER = [  # what is found first in a folder that holds all of them
    "checkpoints/best.ckpt",
    "checkpoints/last.ckpt",
    "best.ckpt",
    "last.ckpt",
    "weights.safetensors",
    "model.safetensors",
]


@pytest.mark.parametrize("prefer", ["best", "last"])
def test_precedence_inside_a_run(tmp_path, prefer):
    order = ORDER if prefer == "best" else [ORDER[i] for i in (1, 0, 3, 2, 4, 5)]
    run = tmp_path / "run"
    for name in [*ORDER, "checkpoints/epoch3.ckpt", "other.ckpt"]:
        write(run / name)
    for name in order:
        assert find_checkpoint(run, prefer) == find_checkpoint(str(run), prefer) == run / name
        (run / name).unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no checkpoint .* it holds \['checkpoints', 'other.ckpt'\]"):
        find_checkpoint(run, prefer)


def test_best_is_preferred_unless_asked(tmp_path):
    best, last = write(tmp_path / "checkpoints/best.ckpt"), write(tmp_path / "checkpoints/last.ckpt")
    assert find_checkpoint(tmp_path) == best and find_checkpoint(tmp_path, "last") == last


def test_a_file_is_taken_as_it_is(tmp_path):
    run = tmp_path / "run"
    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "checkpoints/odd name.ckpt"):
        write(run / name)
    assert find_checkpoint(run / "checkpoints/odd name.ckpt") == run / "checkpoints/odd name.ckpt"
    assert find_checkpoint(run / "checkpoints/last.ckpt", "best") == run / "checkpoints/last.ckpt"


def test_a_folder_of_the_working_directory_comes_before_a_published_name(repository):
    published_file = write(repository / "checkpoints/small/weights.safetensors")
    write(repository / "checkpoints/small/config.yaml")
    assert published("small") == repository / "checkpoints/small"
    assert find_checkpoint("small") == published_file
    own = write(Path.cwd() / "small/checkpoints/best.ckpt")
    assert find_checkpoint("small").resolve() == own.resolve()


def test_what_is_not_published(repository):
    write(repository / "checkpoints/raw/weights.safetensors")  # no config.yaml
    assert published("raw") is None and published("nothing") is None
    for name in ("raw", "nothing", "no/where"):
        with pytest.raises(FileNotFoundError, match=re.escape(f"no checkpoint {name!r}: neither a file, nor a run")):
            find_checkpoint(name)


def test_an_empty_folder_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"it holds \[\]"):
        find_checkpoint(tmp_path)


# ---- newest_run, make_run_folder, run_of
def test_best_and_last_are_of_the_newest_run_and_other_names_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"--ckpt_path best: no run with a last.ckpt under lightning_logs"):
        given_checkpoint("best")
    for name in (
        "version_0/checkpoints/last.ckpt",
        "version_1/checkpoints/best.ckpt",
        "version_1/checkpoints/last.ckpt",
    ):
        write(tmp_path / "lightning_logs" / name)
    assert given_checkpoint("best") == "lightning_logs/version_1/checkpoints/best.ckpt"
    assert given_checkpoint("last") == "lightning_logs/version_1/checkpoints/last.ckpt"
    assert given_checkpoint("dialoguellm-sitcom") == "dialoguellm-sitcom"


def test_newest_run_counts_and_needs_something_to_resume_from(tmp_path):
    assert newest_run(tmp_path) is None and newest_run(tmp_path / "nowhere") is None
    logs = tmp_path / "lightning_logs"
    for version in ("version_2", "version_9", "version_10"):
        write(logs / version / "checkpoints/last.ckpt")
    write(logs / "version_11/checkpoints/best.ckpt")  # nothing to resume from
    for name in ("version_12b", "version_x", "version_", "other_99", "version_99_old"):
        write(logs / name / "checkpoints/last.ckpt")
    assert newest_run(tmp_path) == logs / "version_10"  # as numbers: text would take version_9
    (logs / "version_10/checkpoints/last.ckpt").unlink()
    assert newest_run(tmp_path) == logs / "version_9"


def test_make_run_folder_never_repeats_one(tmp_path):
    logs = tmp_path / "lightning_logs"
    assert make_run_folder(tmp_path) == logs / "version_0"
    assert make_run_folder(tmp_path) == logs / "version_1"
    for name in ("version_9", "version_10", "version_3", "version_77b"):
        (logs / name).mkdir()
    # after the largest, not in the first gap, and whatever a run holds
    assert make_run_folder(tmp_path) == logs / "version_11" and (logs / "version_11").is_dir()


def test_run_folders_made_at_the_same_moment_differ(tmp_path):
    ready = threading.Barrier(16)

    def make(_: int) -> Path:
        ready.wait()
        return make_run_folder(tmp_path)

    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(make, range(16)))) == 16


def test_run_of(tmp_path, monkeypatch):
    run = tmp_path / "lightning_logs/version_0"
    file = write(run / "checkpoints/best.ckpt")
    assert run_of(file) is None  # no config.yaml yet
    write(run / "config.yaml")
    assert run_of(file) == run
    monkeypatch.chdir(run / "checkpoints")
    assert run_of(Path("best.ckpt")) == run  # relative
    assert run_of(write(run / "best.ckpt")) is None
    assert run_of(write(run / "checkpoints/deeper/best.ckpt")) is None
    assert run_of(write(tmp_path / "best.ckpt")) is None


# ---- results are never lost
@pytest.mark.parametrize(
    ("text", "shortened"),
    [
        ("HERE/runs/a/best.ckpt is damaged", "runs/a/best.ckpt is damaged"),
        ("zoo bench --data.root=/data/corpora/MELD --out runs/x", "zoo bench --data.root=…/corpora/MELD --out runs/x"),
        ("['/data/corpora/MELD', 3]", "['…/corpora/MELD', 3]"),
        ("https://example.org/data/corpora/x and synthetic/test/dia0_utt0, either/or, 3 / 4", None),
    ],
)
def test_a_file_that_travels_names_no_folder_of_the_machine(text, shortened, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = text.replace("HERE", str(tmp_path))
    expected = text if shortened is None else shortened
    assert runs.portable({"a": [text, 1, None]}) == {"a": [expected, 1, None]}


def test_results_of_an_earlier_test_are_set_aside(tmp_path):
    assert set_aside_results(tmp_path) is None and not (tmp_path / "previous").exists()
    kept = {"config.yaml": "run", "metrics.csv": "log", "checkpoints/best.ckpt": "w", "notes.txt": "mine"}
    for name, content in kept.items():
        write(tmp_path / name, content)
    assert set_aside_results(tmp_path) is None  # what belongs to the run stays
    everything = dict(kept)
    for k in range(1, 12):  # more than nine: as text, 10 would come before 9 and be overwritten
        results = {
            name: f"{name} of test {k}"
            for name in ("metrics.json", "predictions.jsonl", "confusion.png", "confusion_meld.png", "config.test.yaml")
        }
        for name, content in results.items():
            write(tmp_path / name, content)
        assert set_aside_results(tmp_path) == tmp_path / "previous" / str(k)
        everything |= {f"previous/{k}/{name}": content for name, content in results.items()}
        assert contents(tmp_path) == everything
    assert set_aside_results(tmp_path) is None


def test_what_the_training_could_not_read_stays_listed(tmp_path):
    of_fit = {"problems": {"train": {"lost": 1}, "dev": {"lost": 2}}}
    write(tmp_path / "metrics.json", json.dumps(of_fit))
    assert set_aside_results(tmp_path) is None and problems_of_fit(tmp_path) == of_fit["problems"]
    tested = {"n": 7, "problems": of_fit["problems"] | {"test": {"lost": 3}}}
    write(tmp_path / "metrics.json", json.dumps(tested))
    assert set_aside_results(tmp_path) == tmp_path / "previous" / "1"
    assert json.loads((tmp_path / "previous/1/metrics.json").read_text()) == tested
    assert json.loads((tmp_path / "metrics.json").read_text()) == of_fit


def test_some_of_the_results_and_folders_of_other_names(tmp_path):
    write(tmp_path / "previous/3/metrics.json", "old")
    write(tmp_path / "previous/notes/mine.txt", "mine")
    write(tmp_path / "predictions.jsonl", "new")
    assert set_aside_results(tmp_path) == tmp_path / "previous/4"
    assert contents(tmp_path) == {
        "previous/3/metrics.json": "old",
        "previous/notes/mine.txt": "mine",
        "previous/4/predictions.jsonl": "new",
    }


# ---- metrics.csv
def rows_of(file):
    with Path(file).open(newline="") as f:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(f)]


def log(logger, steps, offset=0.0):
    """One row per step, and a validation row with other columns at every third."""
    for step in steps:
        logger.log_metrics({"train/loss": step + offset, "epoch": step // 3}, step)
        if step % 3 == 2:
            logger.log_metrics({"val/wf1": step / 10, "epoch": step // 3}, step)
    logger.save()


def expected(steps, offset=0.0):
    rows = []
    for step in steps:
        rows.append({"epoch": str(step // 3), "step": str(step), "train/loss": str(step + offset)})
        if step % 3 == 2:
            rows.append({"epoch": str(step // 3), "step": str(step), "val/wf1": str(step / 10)})
    return rows


@pytest.mark.parametrize("at", [0, 1, 3, 4, 7, 99])
def test_a_resumed_run_keeps_the_rows_below_its_step(tmp_path, at):
    """Killed after step 6, resumed from a checkpoint of step ``at``: rows from there on are written again."""
    log(ResumingCSVLogger(str(tmp_path), "lightning_logs", 0), range(7))
    file = tmp_path / "lightning_logs/version_0/metrics.csv"
    assert rows_of(file) == expected(range(7))
    resumed = ResumingCSVLogger(str(tmp_path), "lightning_logs", 0, resume_step=at)
    assert rows_of(file) == expected(range(7))  # nothing is touched before the first number
    log(resumed, range(at, at + 3), offset=0.5)
    assert rows_of(file) == expected(range(min(at, 7))) + expected(range(at, at + 3), 0.5)


def test_rows_stand_on_disk_before_the_first_new_one_is_saved(tmp_path):
    log(ResumingCSVLogger(str(tmp_path), "lightning_logs", 0), range(7))
    resumed = ResumingCSVLogger(str(tmp_path), "lightning_logs", 0, resume_step=4)
    resumed.log_metrics({"train/loss": 9.0}, 4)  # not saved yet: a kill here must not cost the kept rows
    assert rows_of(resumed.log_dir + "/metrics.csv") == expected(range(4))


def test_a_resumed_run_may_log_new_columns_and_be_resumed_again(tmp_path):
    log(ResumingCSVLogger(str(tmp_path), "lightning_logs", 0), range(4))
    for at in (2, 3):
        resumed = ResumingCSVLogger(str(tmp_path), "lightning_logs", 0, resume_step=at)
        resumed.log_metrics({"extra": 1.5}, at)
        resumed.save()
    rows = rows_of(resumed.log_dir + "/metrics.csv")
    assert rows == [*expected(range(2)), {"step": "2", "extra": "1.5"}, {"step": "3", "extra": "1.5"}]


@pytest.mark.parametrize("tail", ["2", "2,6", ',,"', "x,y"])
def test_a_last_row_cut_by_a_kill_is_left_out(tmp_path, tail):
    log(ResumingCSVLogger(str(tmp_path), "lightning_logs", 0), range(7))
    file = tmp_path / "lightning_logs/version_0/metrics.csv"
    assert file.read_text().startswith("epoch,step,train/loss,val/wf1")
    file.write_text(file.read_text() + tail)
    resumed = ResumingCSVLogger(str(tmp_path), "lightning_logs", 0, resume_step=6)
    log(resumed, [6])
    assert rows_of(file) == expected(range(7))


def test_a_new_run_starts_empty_and_lightnings_own_logger_would_lose_the_rows(tmp_path):
    for logger in (ResumingCSVLogger(str(tmp_path), "a", 0), CSVLogger(str(tmp_path), "b", 0)):
        log(logger, range(7))
    assert rows_of(tmp_path / "a/version_0/metrics.csv") == rows_of(tmp_path / "b/version_0/metrics.csv")
    log(CSVLogger(str(tmp_path), "b", 0), [7])
    assert rows_of(tmp_path / "b/version_0/metrics.csv") == expected([7])
    log(ResumingCSVLogger(str(tmp_path), "c", 0, resume_step=5), [5])  # the file was deleted
    assert rows_of(tmp_path / "c/version_0/metrics.csv") == expected([5])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("in /tmp/ and x", "in …/tmp and x"),
        ("/a/b/c/d.csv", "…/c/d.csv"),
        ("meta-llama/Llama", "meta-llama/Llama"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("no path", "no path"),
    ],
)
def test_texts_that_travel_hold_no_absolute_path(text, expected):
    assert portable({"a": [text]}) == {"a": [expected]}

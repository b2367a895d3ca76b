"""`zoo doctor` finds what is there, names what is missing with what to do, and its exit code says if something is."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections import namedtuple

import huggingface_hub
import pytest

from tests.data.miniature import write_goemotions
from tests.runs_helper import zoo
from zoo import doctor
from zoo.checkpoints import listing

pytestmark = pytest.mark.usefixtures("elsewhere")
Usage = namedtuple("Usage", "total used free")


def lines(capsys: pytest.CaptureFixture, *args: object) -> list[list[str]]:
    """(state, what, text) of each line."""
    zoo("doctor", *args)
    return [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]


def test_a_machine_that_runs_the_suite_is_fine(capsys, tmp_path):
    found = lines(capsys)
    assert {state for state, _, _ in found} <= {"ok", "note"}
    assert {"zoo", "packages", "disk", "CPU", "decoder", "published", "hub"} <= {what for _, what, _ in found}
    text = {what: text for _, what, text in found}
    assert "2 frames of an example clip" in text["decoder"] and " come with the zoo" in text["published"]
    assert any(what == "model" and "zoo checkpoints pull emotion-qwen" in text for _, what, text in found)


def test_another_version_is_a_fault(capsys, monkeypatch):
    installed = importlib.metadata.version
    monkeypatch.setattr(doctor, "version", lambda name: "0.1" if name == "peft" else installed(name))
    with pytest.raises(SystemExit) as leaving:
        zoo("doctor")
    assert leaving.value.code == 1
    assert "peft is 0.1, expected <0.22,>=0.21. Install the zoo again" in capsys.readouterr().out


def test_a_missing_extra_is_named_by_its_package(monkeypatch):
    monkeypatch.setattr(doctor, "EXTRAS", {"serve": ("no_such_module", "zoo serve")})
    (finding,) = doctor._extras()
    assert finding == doctor.Finding("note", "extra", "none for zoo serve: pip install 'aiohttp<4,>=3.14'")


def test_a_full_disk_and_small_shared_memory(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(1, 1, 0.5 * doctor.GIB))
    assert [finding.state for finding in doctor._disks()][:2] == ["fault", "fault"]


def test_a_damaged_install_is_a_fault(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "SHIPPED", tmp_path)
    assert doctor._decoder().state == "fault"
    monkeypatch.setattr(listing, "folder_of", lambda name: tmp_path / name)
    first = next(doctor._models())
    assert first.state == "fault" and "missing: tiny-llama/" in first.text


def test_corpora_are_recognised(capsys, tmp_path):
    write_goemotions(tmp_path / "sentences")
    zoo("prepare", "synthetic", "--dialogues", 3, "--shares", 0.34, 0.33, 0.33, "--out", tmp_path / "sitcom")
    (tmp_path / "empty").mkdir()
    capsys.readouterr()
    found = [
        text
        for _, what, text in lines(capsys, *(tmp_path / n for n in ("sentences", "sitcom", "empty")))
        if what == "corpus"
    ]
    assert "--data GoEmotions" in found[0] and "licence: Apache-2.0" in found[0]
    assert "--data MELD" in found[1] or "--data Synthetic" in found[1]
    assert "suits no reader as it is" in found[2]
    assert doctor._corpus(tmp_path / "none").state == "fault"


def test_a_folder_with_the_name_of_an_extra_is_none(monkeypatch, tmp_path):
    (tmp_path / "logs_of_a_logger").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(doctor, "EXTRAS", {"wandb": ("logs_of_a_logger", "logs")})
    assert next(doctor._extras()).state == "note"


@pytest.mark.parametrize("name", ["get_token", "scan_cache_dir"])
def test_a_hub_folder_that_cannot_be_read_is_a_fault(monkeypatch, name):
    def refuse() -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(huggingface_hub, name, refuse)
    found = doctor._hub()
    assert found.state == "fault" and "Permission denied; set HF_HOME to a folder of yours" in found.text

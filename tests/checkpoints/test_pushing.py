"""`zoo checkpoints push`: what may travel, and what a hub is asked. One that records takes the place of a real one."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

from tests.runs_helper import REPOSITORY, refused, zoo

FOLDER = REPOSITORY / "checkpoints" / "farcer-sitcom"
GOAL = ("--to", "me/faces", "--licence", "apache-2.0")


class Hub:
    """Records what it is asked; refuses where ``refuses`` is set."""

    asked: list[tuple[str, dict]] = []
    refuses = False

    def create_repo(self, name, **options):
        if Hub.refuses:
            request = httpx.Request("POST", "https://hub.invalid")
            raise HfHubHTTPError("401 Unauthorized", response=httpx.Response(401, request=request))
        Hub.asked.append(("create", {"name": name, **options}))

    def upload_folder(self, **options):
        Hub.asked.append(("folder", options))

    def upload_file(self, **options):
        Hub.asked.append(("card", options))
        return SimpleNamespace(oid="0" * 40)


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    Hub.asked, Hub.refuses = [], False
    return Hub


def test_a_dry_run_asks_nobody(hub, capsys):
    zoo("checkpoints", "push", FOLDER, *GOAL, "--dry_run")
    printed = capsys.readouterr().out
    assert "weights.safetensors" in printed and "would go to me/faces" in printed and not hub.asked


def test_files_go_with_a_card_that_names_the_licence(hub, capsys):
    zoo("checkpoints", "push", FOLDER, *GOAL)
    (_, made), (_, sent), (_, card) = hub.asked
    assert made == {"name": "me/faces", "private": True, "exist_ok": True}
    assert sorted(sent["allow_patterns"]) == sorted(p.name for p in FOLDER.iterdir() if p.name != "README.md")
    text = card["path_or_fileobj"].decode()
    assert text.startswith("---\nlicense: apache-2.0\n") and text.endswith((FOLDER / "README.md").read_text())
    assert "https://huggingface.co/me/faces, commit 000" in capsys.readouterr().out
    zoo("checkpoints", "push", FOLDER, *GOAL, "--public")
    assert hub.asked[3][1]["private"] is False


def test_nothing_that_executes_travels(hub, tmp_path):
    folder = tmp_path / "system"
    shutil.copytree(FOLDER, folder)
    (folder / "last.ckpt").write_bytes(b"")
    (folder / "modeling.py").write_text("")
    assert "holds last.ckpt, modeling.py; expected files that end in" in refused("checkpoints", "push", folder, *GOAL)
    assert "is no exported folder" in refused("checkpoints", "push", tmp_path, *GOAL)
    assert "expected OWNER/NAME" in refused("checkpoints", "push", FOLDER, "--to", "faces", "--licence", "mit")
    assert "as the hub spells it" in refused("checkpoints", "push", FOLDER, "--to", "a/b", "--licence", "Apache 2")
    assert not hub.asked and Path(folder / "last.ckpt").is_file()


def test_a_hub_that_refuses_is_named(hub):
    hub.refuses = True
    assert "the hub refused me/faces: 401 Unauthorized" in refused("checkpoints", "push", FOLDER, *GOAL)


@pytest.mark.parametrize(
    "error", [OfflineModeIsEnabled("offline mode is enabled"), HTTPError("connection refused")], ids=["offline", "down"]
)
def test_a_hub_that_is_not_reached(hub, monkeypatch, error):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Hub, "create_repo", fail)
    message = refused("checkpoints", "push", FOLDER, *GOAL)
    assert f"me/faces was not reached: {error}. Give the command again" in message

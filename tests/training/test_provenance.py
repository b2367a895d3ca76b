"""What a result says of the commit it was made with."""

from __future__ import annotations

from pathlib import Path

import pytest

from zoo.training.provenance import provenance


def test_a_machine_without_git_has_no_commit(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = provenance()
    assert found["git"] is None and "torch" in found["versions"]


def test_the_variables_of_a_hook_name_no_other_repository(monkeypatch, tmp_path):
    before = provenance()["git"]
    if before is None:
        pytest.fail("the tests run in a clone")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / Path("nowhere")))
    assert provenance()["git"] == before

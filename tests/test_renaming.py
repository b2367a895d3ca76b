"""Old names of options are read for one release."""

from __future__ import annotations

import logging
from typing import ClassVar

import pytest

from zoo import renaming
from zoo.renaming import Renamed, rename_flag, rename_options, renamed_options_of, underscore_flags


class Base:
    renamed_options: ClassVar = {"answers": "num_generations", "objective.clip_low": "objective.epsilon"}


class Derived(Base):
    renamed_options: ClassVar = {"rollout": Renamed("teacher_forcing", {"free": False, "teacher": True})}


@pytest.fixture(autouse=True)
def _forget(monkeypatch):
    monkeypatch.setattr(renaming, "_NOTED", set())


def test_a_class_reads_the_old_names_of_its_bases_too():
    assert set(renamed_options_of(Derived)) == {"answers", "objective.clip_low", "rollout"}


def test_options_of_a_file_get_their_new_names_and_keep_their_order(caplog):
    old = {"lr": 1, "answers": 4, "objective": {"clip_low": 0.1, "beta": 0}, "rollout": "teacher"}
    with caplog.at_level(logging.WARNING):
        new = rename_options(old, Derived)
    assert new == {"lr": 1, "num_generations": 4, "objective": {"epsilon": 0.1, "beta": 0}, "teacher_forcing": True}
    assert list(new) == ["lr", "num_generations", "objective", "teacher_forcing"]
    assert old["objective"] == {"clip_low": 0.1, "beta": 0}
    lines = [r.getMessage() for r in caplog.records]
    assert "the option answers of Derived is now num_generations; the old name is read in this release only" in lines
    assert len(lines) == 3
    rename_options(old, Derived)
    assert len(caplog.records) == 3  # once per process


def test_both_names_at_once_are_refused():
    with pytest.raises(ValueError, match="answers is the old name of the option num_generations of Derived"):
        rename_options({"answers": 4, "num_generations": 4}, Derived)


@pytest.mark.parametrize(
    ("flag", "new"),
    [
        ("--answers=4", "--num_generations=4"),
        ("--answers+=4", "--num_generations+=4"),
        ("--objective.clip_low=.1", "--objective.epsilon=.1"),
        ("--rollout=free", "--teacher_forcing=false"),
        ("--lr=1", "--lr=1"),
        ("--answers_of=1", "--answers_of=1"),
    ],
)
def test_flags_get_their_new_names(flag, new):
    assert rename_flag(flag, Derived) == new


def test_hyphens_in_flags_are_read_as_underscores(caplog):
    old = ["captions", "--send-to", "http://a-b", "--max-words=3", "--model.x-y=--no-flag", "-x-y", "--", "--as-it-is"]
    with caplog.at_level(logging.WARNING):
        new = underscore_flags(old)
        assert underscore_flags(["--send-to=a-b", "--key_env", "--in"]) == ["--send_to=a-b", "--key_env", "--in"]
    assert new == ["captions", "--send_to", "http://a-b", "--max_words=3", *old[4:]]
    said = [record.getMessage() for record in caplog.records]
    assert [line.partition(" is now ")[0] for line in said] == ["--send-to", "--max-words"]
    assert said[0] == "--send-to is now --send_to; the hyphens are read in this release only"

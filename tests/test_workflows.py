"""The workflows, issue forms and the citation are well formed; no action runs under a name that can be moved."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.runs_helper import REPOSITORY

GITHUB = REPOSITORY / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = [file for file in sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yml")) if file.stem != "config"]


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).parent / str(words[0])), *map(str, words[1:])], capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("vendor.github-workflows", WORKFLOWS),
        ("vendor.github-issue-forms", FORMS),
        ("vendor.citation-file-format", [REPOSITORY / "CITATION.cff"]),
    ],
)
def test_well_formed(schema, files):
    assert files
    done = run("check-jsonschema", "--builtin-schema", schema, *files)
    assert done.returncode == 0, done.stdout


def test_nothing_unsafe_is_found():
    done = run("zizmor", "--offline", "--no-progress", GITHUB)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_unsafe_workflow_is_found(tmp_path):
    text = WORKFLOWS[0].read_text()
    (tmp_path / "bad.yml").write_text(re.sub(r"checkout@\w+ .*", "checkout@v5", text))
    assert run("zizmor", "--offline", "--no-progress", tmp_path / "bad.yml").returncode != 0


def test_what_the_workflows_run_exists():
    """Targets of make, files of tests and modules."""
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    commands = [
        step["run"]
        for file in WORKFLOWS
        for job in yaml.safe_load(file.read_text())["jobs"].values()
        for step in job["steps"]
        if "run" in step
    ]
    assert len(commands) >= 8
    for command in commands:
        for target in re.findall(r"\bmake ([a-z]+)", command):
            assert target in targets, command
        for path in re.findall(r"\btests/[\w/.]+", command):
            assert (REPOSITORY / path).exists(), command
        for module in re.findall(r"-m (tests\.[\w.]+)", command):
            assert (REPOSITORY / f"{module.replace('.', '/')}.py").is_file(), command


def test_forms_of_faults_ask_for_the_doctor():
    for name in ("fault", "result"):
        assert "zoo doctor" in (GITHUB / "ISSUE_TEMPLATE" / f"{name}.yml").read_text()

"""The site builds without a warning, and the check of its links notices one that leads nowhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs_helper import REPOSITORY


def build(folder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=folder,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(REPOSITORY, folder)
    warnings = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("INFO")]
    assert done.returncode == 0 and not warnings, done.stdout + done.stderr
    return folder


def test_every_page_is_there(site):
    for page in ("index", "troubleshooting", "cards/farcer", "cards/farcer-sitcom", "reference/zoo.rl.grpo", "table"):
        assert (site / f"{page}.html").is_file()
    assert "group_advantages" in (site / "reference/zoo.rl.grpo.html").read_text()
    assert "<math" in (site / "reinforcement.html").read_text()


def test_every_link_of_every_page_leads_to_a_file(site):
    """Beyond what the builder checks: links in HTML as it was written, pictures, scripts and styles."""
    checked = 0
    for page in site.rglob("*.html"):
        if page.name == "404.html":
            continue
        for target in re.findall(r"""(?:href|src)="([^"]+)\"""", page.read_text()):
            if re.match(r"[a-z]+:|#", target):
                continue
            file = (page.parent / target.split("#")[0].split("?")[0]).resolve()
            assert file.exists(), f"{page.relative_to(site)} links to {target}"
            checked += 1
    assert checked > 1000


def test_no_page_asks_anybody_for_anything(site):
    """Fonts, scripts and styles come from the site itself."""
    for page in site.rglob("*.html"):
        loaded = re.findall(r"""<(?:script|link|img|iframe)[^>]+(?:src|href)="(https?:[^"]+)\"""", page.read_text())
        assert not loaded, f"{page.relative_to(site)} loads {loaded}"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[gone](nowhere.md)", "nowhere.md"),
        ("[gone](../zoo/nowhere.py)", "nowhere.py"),
        ("[gone](runs.md#no-such-place)", "no-such-place"),
    ],
)
def test_a_link_that_leads_nowhere_fails(text, told, tmp_path):
    for name in ("docs", "mkdocs.yml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "CITATION.cff"):
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copyfile
        copy(REPOSITORY / name, tmp_path / name)
    for name in ("zoo", "configs", "checkpoints", "notebooks", "results", "tests"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    config = (tmp_path / "mkdocs.yml").read_text()
    (tmp_path / "mkdocs.yml").write_text(re.sub(r"      - REFERENCE\n", "      - runs.md\n", config))  # saves time
    site_code = (tmp_path / "docs" / "site.py").read_text()
    (tmp_path / "docs" / "site.py").write_text(site_code.replace("for module in MODULES:", "for module in ():"))
    page = tmp_path / "docs" / "sitcom.md"
    page.write_text(page.read_text() + f"\n{text}\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0 and told in done.stdout + done.stderr


def test_the_messages_of_the_page_on_troubleshooting_are_those_of_the_code():
    page = (REPOSITORY / "docs" / "troubleshooting.md").read_text()
    code = "\n".join(file.read_text() for file in (REPOSITORY / "zoo").rglob("*.py"))
    code = re.sub(r"\"\s*\n\s*f?\"", "", code)  # a sentence over several lines
    messages = re.findall(r"^\| `([^`]+)`", page.partition("## Results")[0], re.MULTILINE)
    assert len(messages) >= 18
    missing = [part for message in messages for part in message.split("...") if part.strip(" '") not in code]
    assert not missing

"""What the site adds to the pages of docs/: README as its first page, cards, a page per module, and linked files.

mkdocs calls the functions below by their names (``hooks`` in mkdocs.yml).
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"index.md": "README.md", **{name: name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")}}
CARDS = {
    f"cards/{file.parent.name}.md": file.relative_to(ROOT).as_posix()
    for file in (*sorted(ROOT.glob("zoo/models/*/README.md")), *sorted(ROOT.glob("checkpoints/*/README.md")))
}
MOVED = PAGES | CARDS  # page of the site -> file of the repository
PLACES = {file: page for page, file in MOVED.items()} | {
    file.relative_to(ROOT).as_posix(): file.name for file in (ROOT / "docs").glob("*.md")
}
SHOWN = "files"  # folder of the site for files that pages link to
# the modules that a user's own code touches, in the order of the layers
MODULES = (
    *("zoo.schema", "zoo.data", "zoo.prompts", "zoo.templates", "zoo.media", "zoo.backbones", "zoo.rl", "zoo.rl.grpo"),
    *("zoo.rl.rewards", "zoo.metrics", "zoo.training.module", "zoo.training.language_model", "zoo.training.sft"),
    *("zoo.training.rewarded", "zoo.training.grpo", "zoo.training.collator", "zoo.runs", "zoo.checkpoints"),
    *("zoo.benchmark.plan", "zoo.benchmark.grids"),
    *sorted(f"zoo.models.{folder.parent.name}" for folder in (ROOT / "zoo" / "models").glob("*/__init__.py")),
)
LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^()\s]+)\)")  # text, target
AS_THEY_ARE = (".png", ".svg", ".csv", ".md")


def on_config(config: Any) -> Any:
    """Fill the places in the navigation that stand for many pages."""
    for section in config["nav"]:
        for title, entries in section.items() if isinstance(section, dict) else ():
            if "CARDS" in entries:
                entries[entries.index("CARDS")] = {"Cards": list(CARDS)}
            if "REFERENCE" in entries:
                section[title] = [{module: f"reference/{module}.md"} for module in MODULES]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie elsewhere in the repository, the reference, and the files that pages link to."""
    for page, file in MOVED.items():
        files.append(File.generated(config, page, content=(ROOT / file).read_text(encoding="utf-8")))
    for file in [file for file in files if file.src_uri.endswith(".md")]:
        for path in linked_files(file.content_string, file.src_uri):
            if (content := shown_content(ROOT / path)) is not None and files.get_file_from_path(place_of(path)) is None:
                files.append(File.generated(config, place_of(path), content=content))
    for module in MODULES:
        files.append(File.generated(config, f"reference/{module}.md", content=f"# {module}\n\n::: {module}\n"))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let links lead to pages of the site, or to its copy of a file; write formulas as MathML."""
    uri = page.file.src_uri
    if uri.startswith("reference/"):
        return markdown

    def moved(match: re.Match[str]) -> str:
        target = match[2]
        path = linked_file(target, uri)
        if path is None:
            return match[0]
        anchor = target.partition("#")[1:]
        return f"{match[1]}({posixpath.relpath(place_of(path), posixpath.dirname(uri) or '.')}{''.join(anchor)})"

    blocks = re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(_formula(block) if block.startswith("```") else LINK.sub(moved, block) for block in blocks)


def _formula(block: str) -> str:
    match = re.fullmatch(r"```math\n(.*)\n```", block, re.DOTALL)
    return block if match is None else f"<div style='overflow-x: auto'>{convert(match[1], display='block')}</div>"


def linked_files(markdown: str, uri: str) -> list[str]:
    """Return the files of the repository that a page links to, as paths from its root."""
    paths = (linked_file(match[2], uri) for match in LINK.finditer(re.sub(r"(?ms)^```.*?^```$", "", markdown)))
    return [path for path in dict.fromkeys(paths) if path is not None]


def linked_file(target: str, uri: str) -> str | None:
    """Return the file of the repository that a link of a page means; None for an address, or a place in the page."""
    if re.match(r"[a-z]+:|#", target):
        return None
    home = posixpath.dirname(MOVED.get(uri, f"docs/{uri}"))
    return posixpath.normpath(posixpath.join(home, target.partition("#")[0]))


def place_of(path: str) -> str:
    """Return where the site has a file or folder of the repository."""
    page = PLACES.get(path) or PLACES.get(f"{path}/README.md")
    if page or path.startswith("docs/"):
        return page or path.removeprefix("docs/")
    if (ROOT / path).is_dir():
        return f"{SHOWN}/{path}/index.md"
    return f"{SHOWN}/{path}" + ("" if path.endswith(AS_THEY_ARE) else ".txt")  # a browser shows a text


def shown_content(source: Path) -> str | bytes | None:
    """Return what the site shows of a file that is no page of its own: itself, or the names in a folder; None if it has
    a place already, or is not there."""
    path = source.relative_to(ROOT).as_posix()
    if not place_of(path).startswith(f"{SHOWN}/") or not source.exists():
        return None
    if source.is_file():
        return source.read_bytes()
    names = sorted(p.name + "/" * p.is_dir() for p in source.iterdir() if not p.name.startswith(("_", ".")))
    return "\n".join([f"# {path}", "", *(f"- `{name}`" for name in names), ""])

"""Prompts of `zoo prepare`: Jinja files, ours in templates/ or the user's own."""

from __future__ import annotations

import hashlib
from pathlib import Path

from jinja2 import TemplateError

from zoo.prompts import PromptTemplate, load_template

TEMPLATES = Path(__file__).parent / "templates"


def load_prompt(path: Path | None, name: str, language: str) -> tuple[PromptTemplate, str]:
    """Load a prompt, the user's own file or ours of this language; return it with the beginning of its sha256.

    Raises:
        FileNotFoundError, ValueError: no such file, no template.
    """
    path = path if path is not None else TEMPLATES / f"{name}_{language}.txt"
    if not path.is_file():
        raise FileNotFoundError(f"no prompt template {path}; give a text file, or leave it out to use our own")
    return load_template(str(path), TEMPLATES), hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def fill_prompt(prompt: PromptTemplate, **values: object) -> str:
    """Render a prompt. ValueError naming what the template asks for and is not there."""
    try:
        return prompt.render(**values).strip()
    except TemplateError as error:
        raise ValueError(f"the prompt template cannot be filled: {error}; it may use {', '.join(values)}") from None

"""``zoo checkpoints push FOLDER --to OWNER/NAME``: an exported folder onto the model hub, only when asked."""

from __future__ import annotations

import re
from pathlib import Path

TRAVELS = (".safetensors", ".json", ".yaml", ".md", ".txt", ".jinja", ".model", ".mp4", ".png", ".wav")
NEEDED = "README.md"


def push(folder: Path, to: str, licence: str, public: bool = False, dry_run: bool = False) -> None:
    """Upload what ``zoo export`` wrote, and print what went where.

    Args:
        folder: an exported system, model or adapter.
        to: ``owner/name`` on the hub; made if it is not there.
        licence: of the weights, as the hub spells it, e.g. ``apache-2.0``.
        public: anyone may read it; else only its owner.
        dry_run: print what would go, and contact nobody.

    Raises:
        FileNotFoundError: no exported folder.
        ValueError: a name of another form, or files that no export writes, e.g. pickles, folders or links.
        PermissionError: the hub refused the token, or there is none.
        ConnectionError: the hub was not reached.
    """
    files = _files(folder)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", to):
        raise ValueError(f"--to {to!r}: expected OWNER/NAME, as in https://huggingface.co/OWNER/NAME")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence):
        raise ValueError(f"--licence {licence!r}: expected a name as the hub spells it, e.g. apache-2.0, or other")
    for file in files:
        print(f"{file.stat().st_size:>14,}  {file.name}")
    seen_by = "anyone may read it" if public else "only you may read it (--public: anyone)"
    print(f"{'would go' if dry_run else 'going'} to {to}, licence {licence}; {seen_by}")
    if not dry_run:
        _upload(folder, [file.name for file in files], to, licence, public)


def _files(folder: Path) -> list[Path]:
    """Return the files of an exported folder."""
    if not (folder / NEEDED).is_file() or not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(
            f"{folder} is no exported folder: expected {NEEDED} and safetensors in it; make one with "
            "zoo export --ckpt_path RUN --system --out FOLDER"
        )
    others = sorted(p.name for p in folder.iterdir() if p.is_symlink() or p.is_dir() or p.suffix not in TRAVELS)
    if others:
        raise ValueError(
            f"{folder} holds {', '.join(others[:5])}; expected files that end in {' '.join(TRAVELS)} alone, since "
            "whoever loads the folder should execute nothing. Take the others out"
        )
    return sorted(folder.iterdir())


def _upload(folder: Path, names: list[str], to: str, licence: str, public: bool) -> None:
    from httpx2 import HTTPError
    from huggingface_hub import HfApi, ModelCard, ModelCardData
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    data = ModelCardData(license=licence, tags=["emotion-recognition"])
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{(folder / NEEDED).read_text(encoding='utf-8')}")
    hub = HfApi()
    try:
        hub.create_repo(to, private=not public, exist_ok=True)
        hub.upload_folder(repo_id=to, folder_path=folder, allow_patterns=[n for n in names if n != NEEDED])
        done = hub.upload_file(path_or_fileobj=str(card).encode(), path_in_repo=NEEDED, repo_id=to)
    except (LocalTokenNotFoundError, HfHubHTTPError) as error:
        reason = " ".join(str(error).split())[:300]
        raise PermissionError(
            f"the hub refused {to}: {reason}. Log in with a token that may write: hf auth login"
        ) from error
    except (OSError, HTTPError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of a file here
            raise
        reason = " ".join(str(error).split())[:300]
        raise ConnectionError(
            f"{to} was not reached: {reason}. Give the command again where there is a network"
        ) from error
    print(f"https://huggingface.co/{to}, commit {done.oid}")

"""``zoo checkpoints pull``: files of others, fetched once, compared with their sha256, whole or not at all."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import GatedRepoError, HTTPError  # type: ignore[attr-defined]  # its client's

from zoo.checkpoints.listing import differences, entry_of, folder_of, terms
from zoo.checkpoints.probes import compare_encoder

BLOCK = 1 << 20
PLACE = Path("runs") / "weights"  # where pulled files lie if --to does not say


def pull(name: str, to: Path | None, revision: str | None, accepted: bool) -> None:
    """Fetch an entry's files into a folder, after saying under which terms.

    Nothing is there under its final name before every file is whole and has the recorded sha256.

    Raises:
        ValueError: terms that were not accepted, no revision, offline, a wrong sha256, a wrong output, or an entry
            that has to be fetched by hand.
        FileExistsError: the folder holds something else.
    """
    entry = entry_of(name)
    print(terms(name, entry), flush=True)
    if entry["source"] == "shipped":
        print(f"nothing to fetch: it came with the repository, in {folder_of(name)}")
        return
    if entry["source"] == "hand":
        raise ValueError(f"{name} is fetched by hand: {entry['hand']}")
    folder = to or PLACE / name
    if folder.is_dir() and not differences(name, folder, entry["files"]):
        print(f"nothing to fetch: {folder} holds it")
        return
    wanted = revision or entry.get("revision")
    _check_request(name, entry, folder, wanted, accepted)
    part = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        origin = _from_hub(entry, part, wanted) if entry["source"] == "hub" else _from_url(entry, part)
        problems = differences(name, part / "files", entry["files"])
        if problems:
            raise ValueError(f"{'; '.join(problems)}. Nothing was kept; another file lies there now, or it was damaged")
        check_output(name, entry, part / "files")
        if folder.exists():
            folder.rmdir()
        (part / "files").rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    print(f"{origin}\nwrote {folder}" + (f"; use it as {entry['use'].format(folder=folder)}" if "use" in entry else ""))


def _check_request(name: str, entry: dict[str, Any], folder: Path, revision: str | None, accepted: bool) -> None:
    """Raise unless the files of an entry may be fetched into a folder; see `pull`."""
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty and does not hold {name}; choose another folder with --to")
    if (entry["gated"] or entry["commercial"] is False) and not accepted:
        raise ValueError(
            f"{name} is {'gated' if entry['gated'] else 'not for commercial use'} ({entry['licence']}); read its "
            "licence, then repeat the command with --accept_licence. Nothing was fetched"
        )
    if entry["source"] == "hub" and revision is None:
        raise ValueError(
            f"no revision of {entry['hub']} is recorded, so what would come is not known; look at its commits and give "
            "one with --revision (40 hexadecimal digits, or a branch: the commit that came is printed)"
        )
    if huggingface_hub.constants.is_offline_mode():
        place = f"{entry['hub']} at revision {revision}" if entry["source"] == "hub" else entry["url"]
        raise ValueError(
            f"offline (HF_HUB_OFFLINE=1): copy {', '.join(entry['files'])} of {place} to {folder} yourself, then check "
            f"them with: zoo checkpoints verify {name} --at {folder}"
        )


def check_output(name: str, entry: dict[str, Any], folder: Path) -> None:
    """Raise ValueError if an encoder of others does not answer the stored picture as it did here."""
    if "probe" in entry:
        (file,) = (f for f in entry["files"] if f == "config.json" or f.endswith((".hdf5", ".h5")))
        compare_encoder(name, str(folder if file == "config.json" else folder / file), entry["probe"])


def _from_hub(entry: dict[str, Any], part: Path, revision: str | None) -> str:
    """Fetch all files of one commit; return what came, in words."""
    target, commit = part / "files", revision
    target.mkdir()
    for file in entry["files"]:
        try:
            got = Path(huggingface_hub.hf_hub_download(entry["hub"], file, revision=commit, cache_dir=part / "cache"))
        except GatedRepoError as error:
            raise ValueError(
                f"{entry['hub']} is gated for this account: accept its licence on its page and log in (hf auth login)"
            ) from error
        except (HTTPError, OSError) as error:  # what its client and what it raises by itself
            cause = f"{type(error).__name__}: {error}"
            raise ValueError(f"{file} of {entry['hub']} could not be fetched ({cause}); try again") from error
        match = re.search(r"/snapshots/([0-9a-f]{40})/", got.as_posix())
        commit = match[1] if match else revision  # the rest comes from the same commit
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(os.path.realpath(got), target / file)
    return f"fetched {entry['hub']} at commit {commit}"


def _from_url(entry: dict[str, Any], part: Path) -> str:
    """Fetch the one file behind an address. ValueError if it cannot be had, ends early or has another sha256."""
    ((name, wanted),) = entry["files"].items()
    target = part / "files"
    target.mkdir()
    digest, size = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(entry["url"], timeout=60) as answer, (target / name).open("wb") as file:
            length = answer.headers.get("Content-Length")
            while block := answer.read(BLOCK):
                file.write(block)
                digest.update(block)
                size += len(block)
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise ValueError(f"{entry['url']} could not be fetched ({type(error).__name__}: {error}); try again") from error
    if length is not None and size != int(length):
        raise ValueError(f"{entry['url']} ended after {size} of {length} bytes; nothing was kept, try again")
    compared = "" if wanted else "; none is recorded to compare with"
    return f"fetched {size} bytes, sha256 {digest.hexdigest()}{compared}"

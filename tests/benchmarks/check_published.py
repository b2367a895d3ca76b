"""Scores every published checkpoint on the data its card names and compares with the reported numbers, to four digits.

python tests/benchmarks/check_published.py --data-root ../shared/data
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from zoo.checkpoints import index, verify

# A reported score of the embedded corpus says in `prepare` how its clips are made, or in `options` which it is.


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="folder that holds goemotions/")
    root = parser.parse_args().data_root
    failed = 0
    for name, entry in index().items():
        if entry["source"] != "shipped":
            continue
        problems = verify(name)
        for score in entry["reported"]:
            with tempfile.TemporaryDirectory() as out:
                zoo = [sys.executable, "-m", "zoo"]
                data = [f"--data.root={root / score['corpus']}"] if score["corpus"] != "synthetic" else []
                if "prepare" in score:  # clips of the embedded corpus
                    made = Path(out) / "sitcom"
                    subprocess.run(
                        [*zoo, "prepare", "synthetic", *score["prepare"], f"--out={made}"],
                        check=True,
                        capture_output=True,
                    )
                    data = [f"--data.root={made}"]
                command = [
                    *zoo,
                    "test",
                    f"--ckpt_path={name}",
                    *data,
                    *score.get("options", ()),
                    f"--trainer.default_root_dir={out}",
                    "--trainer.enable_progress_bar=false",
                ]
                subprocess.run(command, check=True, capture_output=True)
                measured = json.loads((Path(out) / "lightning_logs/version_0/metrics.json").read_text())
            for key, got, said in (
                ("n", measured["n"], score["n"]),
                (score["metric"], round(measured[score["metric"]], 4), score["value"]),
            ):
                print(f"{name} {score['corpus']} {score['split']} {key}: measured {got}, reported {said}")
                if got != said:
                    problems.append(f"{key} differs")
        failed += bool(problems)
        print(f"{name}: {'; '.join(problems) or 'as published'}")
    sys.exit(failed)


if __name__ == "__main__":
    main()

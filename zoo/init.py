"""``zoo init FOLDER``: a project that runs at once and is made one's own by replacing its table.

It holds what docs/table.md explains: a table of lines with labels, the config of a small language model on it, and the
commands in their order.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
from pathlib import Path

from zoo.shipped import SHIPPED

CONFIG = "configs/causal_lm/table.yaml"
TABLE = "docs/table/calls.csv"
README = """# {name}

Emotion recognition with `zoo` {version}. `calls.csv` is made up: 211 turns of 60 calls, with the labels annoyed, calm
and grateful. Put your own table in its place, and say in `train.yaml` what its columns are called.

```
zoo data show --config train.yaml                                  # the corpus, as the system will see it
zoo fit --config train.yaml                                        # half a minute of one core
zoo test --ckpt_path best                                          # scores with 95 % intervals, in the run's folder
zoo label --text "Why does nobody call me back?" --ckpt_path best
```

`--config train.yaml --model.llm smollm2-135m` trains a pretrained model, after `zoo checkpoints pull smollm2-135m`;
`zoo fit --model.help CausalLM` lists what else can be set, and `zoo --help` what else there is.
"""


def main(args: list[str]) -> None:
    """Run ``zoo init``.

    Raises:
        FileExistsError: the folder holds something.
    """
    parser = argparse.ArgumentParser("zoo init", description="Write a project to begin with into a new folder.")
    parser.add_argument("folder", type=Path, help="a folder that does not exist yet, or is empty")
    write_project(parser.parse_args(args).folder)


def write_project(folder: Path) -> None:
    """Write config, table and README into ``folder``, and print what to do next.

    Raises:
        FileExistsError: the folder holds something.
    """
    from zoo import __version__

    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; give a folder that is new or empty")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(SHIPPED / TABLE, folder / "calls.csv")
    config = (SHIPPED / CONFIG).read_text(encoding="utf-8").split("\n", 3)[3]  # without the head, which is about here
    (folder / "train.yaml").write_text(config.replace(str(Path(TABLE).parent), "."), encoding="utf-8")
    readme = README.format(name=folder.resolve().name, version=__version__)
    (folder / "README.md").write_text(readme, encoding="utf-8")
    print(f"{folder} holds train.yaml, calls.csv and README.md; begin with")
    print(f"\n  cd {shlex.quote(str(folder))}\n  zoo fit --config train.yaml")

import os
import sys
from pathlib import Path

# `python -m` puts the working directory before everything that is installed: there a stranger's yaml.py would take the
# place of PyYAML. A clone that is not installed is still found by the processes that this one starts.
_home = str(Path(__file__).resolve().parents[1])
if sys.path and os.path.realpath(sys.path[0] or ".") == os.getcwd():
    del sys.path[0]
    if _home == os.getcwd():
        sys.path.append(_home)

from zoo.cli import main  # noqa: E402

if __name__ == "__main__":
    main()

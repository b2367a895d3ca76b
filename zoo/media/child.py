"""The program of the decoding process: ``python -P zoo/media/child.py``.

It makes the packages `zoo` and `zoo.media` known by their folders instead of importing them, so that their
``__init__`` files, and with them torch and the rest of the zoo, are not loaded, and so that it works wherever the zoo
is: in a clone, installed, from any working directory.
"""

import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).resolve().parent

for name, folder in (("zoo", FOLDER.parent), ("zoo.media", FOLDER)):
    package = ModuleType(name)
    package.__path__ = [str(folder)]
    sys.modules[name] = package

if __name__ == "__main__":
    from zoo.media.worker import serve

    serve()

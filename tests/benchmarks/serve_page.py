"""`zoo serve` in a real browser: upload, recording, conversation, comparison, errors, two users; and the time.

    zoo checkpoints pull smollm2-135m
    python -m venv PW && PW/bin/pip install playwright
    python -m tests.benchmarks.serve_page --data-root DIR --playwright_python PW/bin/python --chromium /usr/bin/chromium

DIR as of ``label_parts``: the uploaded film is of real faces and real voices. Playwright has an environment of its own;
``browser_steps.py`` is what runs there. Exit code 1 if a step fails, the console shows an error, or a request leaves
this machine. Screenshots of 1400 and 420 pixels, dark and light, lie in ``--out``: look at them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from tests.benchmarks.label_parts import make_film, make_home


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--playwright_python", required=True)
    parser.add_argument("--chromium", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/serve_page"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        make_home(options.data_root.resolve(), home)
        make_film(options.data_root.resolve(), home, 3)
        (home / "notes.mp4").write_text("no film")
        line = [sys.executable, "-m", "zoo", "serve", "--port", "0", "--max_megabytes", "20"]
        server = subprocess.Popen(line, cwd=home, env=environment, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            started = time.perf_counter()
            address = server.stdout.readline().split()[0]
            urllib.request.urlopen(line_of_words(address), timeout=300).read()  # waits until all is loaded
            print(f"ready, everything loaded and a line answered, after {time.perf_counter() - started:.1f} s")
            steps = Path(__file__).with_name("browser_steps.py")
            command = [options.playwright_python, str(steps), address, options.chromium, str(home), str(options.out)]
            code = subprocess.run(command, check=False).returncode
        finally:
            server.terminate()
            server.wait()
        left = [path.name for path in Path(tempfile.gettempdir()).glob("zoo-serve-*")]
    print(f"uploads left behind: {left or 'none'}")
    sys.exit(code or bool(left))


def line_of_words(address: str) -> urllib.request.Request:
    """Return a question about one line."""
    question = json.dumps({"systems": ["parts"], "parts": ["text"], "lines": [["", "Oh!"]], "segments": False})
    body = f'--edge\r\nContent-Disposition: form-data; name="question"\r\n\r\n{question}\r\n--edge--\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=edge"}
    return urllib.request.Request(f"{address}/api/label", body.encode(), kind)


if __name__ == "__main__":
    main()

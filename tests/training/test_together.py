"""Tests of `EndTogether` with a store that answers as torch's does; tests/test_divided.py has real processes."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys, threading, time
from types import SimpleNamespace
from zoo.training import together

class Store:
    def check(self, keys):
        return noted.is_set()

    def get(self, key):
        return b"0"

    def compare_set(self, key, expected, desired):
        if sys.argv[1] == "store gone":
            raise RuntimeError("Broken pipe")
        return b"0"

    def add(self, key, amount):
        return 1

noted = threading.Event()
together.SECONDS_BETWEEN_LOOKS, together.SECONDS_TO_SPEAK, together.SECONDS_TO_LEAVE = 0.05, 0.5, 2
callback = together.EndTogether()
callback._store = Store()
threading.Thread(target=callback._watch, args=(callback._store,), daemon=True).start()
if sys.argv[2] == "noticed":
    noted.set()
    time.sleep(0.3)
callback.on_exception(SimpleNamespace(global_rank=1, world_size=2), None, RuntimeError("Connection closed\\nby peer"))
print("went on")
"""


@pytest.mark.parametrize("when", ["noticed", "not noticed"])
@pytest.mark.parametrize("store", ["store there", "store gone"])
def test_a_connection_that_another_process_closed_is_no_error_of_this_one(store, when):
    done = subprocess.run([sys.executable, "-c", SCRIPT, store, when], capture_output=True, text=True, check=False)
    gone = "another process is gone (RuntimeError), which here led to: RuntimeError: Connection closed by peer"
    failed = "process 0 failed, its message is above or below"
    why = gone if (store, when) == ("store gone", "not noticed") else failed
    assert done.stderr == f"zoo: {why}; this process ends, too\n"
    assert done.returncode == 1 and not done.stdout

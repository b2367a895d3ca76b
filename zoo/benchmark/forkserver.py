"""Keep the server that forks the processes of the jobs alive until they have saved.

The server imports this before it serves. A scheduler sends SIGTERM, or SIGUSR1, to every process of a benchmark; if the
server ended by it, the jobs would be killed with it.
"""

import signal

signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGUSR1, signal.SIG_IGN)

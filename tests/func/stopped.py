# SPDX-License-Identifier: BSD-3-Clause
"""A process that stands still."""

import glob
import os
import signal
import time


def state(stat):
    try:
        with open(stat, encoding='ascii', errors='replace') as f:
            return f.read().rpartition(')')[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return 'X'


def stop(pid):
    """Until no thread runs: kill() comes back before, and while one thread
    waits for storage others may go on for long."""
    os.kill(pid, signal.SIGSTOP)
    for _ in range(3000):
        if all(state(s) in 'TtXZ' for s in glob.glob(f'/proc/{pid}/task/*/stat')):
            return
        time.sleep(0.01)
    raise AssertionError(f'process {pid} runs for 30 s after SIGSTOP')

# SPDX-License-Identifier: BSD-3-Clause
"""Waiting for a server that has just been started."""

import os
import socket
import time


def listens(path):
    """A socket's file is there before its server listens: only a connection
    tells."""
    with socket.socket(socket.AF_UNIX) as s:
        try:
            s.connect(os.path.relpath(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True


def wait(path, process):
    """Until the process listens at path.  False: it has ended."""
    for _ in range(1500):
        if listens(path):
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.02)
    raise AssertionError(f'nobody listens at {path} after 30 s')

# SPDX-License-Identifier: BSD-3-Clause
"""A client of any QMP monitor."""
import json
import socket
import time


class Refused(Exception):
    pass


class Qmp:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.file = self.socket.makefile('rw')
        self.file.readline()
        self('qmp_capabilities')

    def __call__(self, command, **arguments):
        """Underscores of names of arguments stand for dashes."""
        self.file.write(json.dumps({
            'execute': command,
            'arguments': {k.replace('_', '-'): v
                          for k, v in arguments.items()}}) + '\n')
        self.file.flush()
        while True:
            line = self.file.readline()
            if not line:
                raise Refused(f'{command}: the monitor has gone')
            answer = json.loads(line)
            if 'error' in answer:
                raise Refused(f"{command}: {answer['error']['desc']}")
            if 'return' in answer:
                return answer['return']

    def until_no_job(self):
        while True:
            jobs = self('query-jobs')
            for job in jobs:
                if job.get('error'):
                    raise Refused(job['error'])
            if not jobs:
                return
            time.sleep(0.005)

    def close(self):
        self.file.close()
        self.socket.close()

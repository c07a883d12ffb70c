# SPDX-License-Identifier: BSD-3-Clause
"""Builds of two revisions, as the candidates nbdelta@A and nbdelta@B."""
from contextlib import contextmanager
import os
import shutil
import subprocess
import tempfile

SETTINGS = 'config.mak'


def build(source, revision, directory):
    """A worktree at @revision, and in it `build`.  The load generator is that
    of this tree: the revision may not have one."""
    def run(*words):
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True,
                              stderr=subprocess.STDOUT, check=False)
        if done.returncode != 0:
            raise SystemExit(f'bench: {" ".join(words)}:\n'
                             f'{done.stdout[-2000:]}')
    run('git', '-C', source, 'worktree', 'add', '--detach', directory, revision)
    if os.path.exists(f'{source}/{SETTINGS}'):
        shutil.copy(f'{source}/{SETTINGS}', directory)
    run('make', '-C', directory, f'-j{os.cpu_count()}', 'O=build', 'all')


@contextmanager
def builds(source, a, b):
    if not a or not b:
        raise SystemExit('bench: which revisions? A=REVISION B=REVISION')
    top = tempfile.mkdtemp(prefix='nbdelta-bench.')
    tools = os.path.join(os.environ.get('BUILD', source + '/build'),
                         'tests/bench')
    names = {'A': a, 'B': b}
    try:
        for name, revision in names.items():
            print(f'{name} is {revision}', flush=True)
            build(source, revision, f'{top}/{name}')
            target = f'{top}/{name}/build/tests/bench'
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(tools, target)
        yield {name: f'{top}/{name}/build' for name in names}
    finally:
        for name in names:
            subprocess.run(['git', '-C', source, 'worktree', 'remove',
                            '--force', f'{top}/{name}'], check=False,
                           stderr=subprocess.DEVNULL)
        shutil.rmtree(top, ignore_errors=True)
        subprocess.run(['git', '-C', source, 'worktree', 'prune'], check=False)

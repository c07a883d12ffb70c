# SPDX-License-Identifier: BSD-3-Clause
"""What the rows of make bench in Python share: seconds, less is better."""
import os
import random
import statistics
import subprocess
import time

CHUNK = 65536


def quiet(*words):
    done = subprocess.run(words, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, check=False)
    assert done.returncode == 0, (words, done.stdout)


def seconds(fn, *args):
    os.sync()
    begin = time.monotonic()
    fn(*args)
    return time.monotonic() - begin


def row(title, results):
    """@results: {who: [seconds]}; the first one is ours."""
    medians = {who: statistics.median(s) for who, s in results.items()}
    print(f'{title:34}' + ''.join(
        f' {who} {medians[who]:.2f} ({min(s):.2f}-{max(s):.2f})'
        for who, s in results.items()))
    ours = next(iter(medians))
    print(f'  {ours} / each'.ljust(34) + ''.join(
        f' {who} {medians[ours] / m:.2f}' for who, m in medians.items()
        if who != ours), flush=True)


def fill(raw, size):
    """Bytes that no format makes smaller."""
    with open(raw, 'wb') as f:
        for _ in range(size >> 20):
            f.write(os.urandom(1 << 20))


def writes(size, share, seed):
    """Commands of qemu-io for so much of a disk, in pieces of CHUNK bytes, a
    hundred at a time."""
    rng = random.Random(seed)
    count = max(1, int(size * share / CHUNK))
    pieces = rng.sample(range(size // CHUNK), count)
    for i in range(0, count, 100):
        yield [f'write -q -P {rng.randrange(1, 256)} {p * CHUNK} {CHUNK}'
               for p in pieces[i:i + 100]] + ['flush']

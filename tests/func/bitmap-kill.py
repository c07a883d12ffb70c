# SPDX-License-Identifier: BSD-3-Clause
"""Random requests to a server until it is gone.

bitmap-kill.py URI SIZE SEED
"""
import random
import sys

import nbd

uri, size, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
random.seed(seed)
h = nbd.NBD()
h.connect_uri(uri)
try:
    while True:
        # Near the start, and anywhere.
        top = size if random.random() < 0.5 else size // 16
        length = random.choice([512, 4096, 70000, 1 << 20])
        offset = random.randrange(0, top - length) // 512 * 512
        length = length // 512 * 512
        what = random.random()
        if what < 0.7:
            h.pwrite(random.randbytes(16) * (length // 16), offset)
        elif what < 0.8:
            h.zero(length, offset)
        elif what < 0.9:
            h.trim(length, offset)
        else:
            h.flush()
except nbd.Error:
    pass

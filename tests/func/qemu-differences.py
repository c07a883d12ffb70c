# What query-qmp-schema says, held against QEMU 10's: each difference stands in
# nbdelta-qmp-ref(7), and each that stands there is one.  argv: nbdelta, the
# page, qemu-10-schema.json.
import json
import sys

from qemu_schema import Comparison, Types, follow, listed
from qmp_schema import schema_of

# How managers ask what an emulator or a daemon can do, and what we answer.
ASKED = {
    'block-commit/arg-type/*top': True,
    'block-commit/arg-type/nonsense': False,
    'block-export-add/arg-type/+nbd/bitmaps': True,
    'block-export-add/arg-type/type/^fuse': False,
    'block-export-add/arg-type/type/^nbd': True,
    'blockdev-add/arg-type/+file/aio/^io_uring': True,
    'blockdev-add/arg-type/+file/locking': True,
    'blockdev-add/arg-type/+nbd/reconnect-delay': True,
    'blockdev-add/arg-type/+nbd/tls-hostname': True,
    'blockdev-add/arg-type/+nvme': False,
    'blockdev-add/arg-type/+qcow2/backing/+qcow2/encrypt': True,
    'blockdev-add/arg-type/+qcow2/encrypt/format/^luks': True,
    'blockdev-add/arg-type/+qcow2/file/+nbd/server/+unix/path': True,
    'blockdev-add/arg-type/+rbd/encrypt': True,
    'blockdev-add/arg-type/detect-zeroes': True,
    'blockdev-add/arg-type/discard': True,
    'blockdev-add/arg-type/driver/^host_device': True,
    'blockdev-backup': True,
    'blockdev-reopen/arg-type/options/+qcow2/backing': True,
    'drive-backup/$deprecated': True,
    'nbd-server-add/arg-type/bitmap': True,
    'nbd-server-start/arg-type/tls-creds': True,
    'object-add/arg-type/qom-type/^secret': True,
    'object-add/arg-type/+iothread/thread-pool-max': True,
    'query-named-block-nodes/arg-type/flat': True,
    'query-qmp-schema/ret-type/+enum/values': True,
    'transaction/arg-type/actions/+blockdev-backup/data/*bitmap': True,
    'BLOCK_JOB_COMPLETED/arg-type/error': True,
    'x-debug-query-block-graph/$unstable': True,
}

nbdelta, page, reference = sys.argv[1:]
ours = Types(schema_of(nbdelta).entries)
with open(reference, encoding='utf-8') as f:
    theirs = Types(json.load(f))
found = Comparison(ours, theirs).found
told, bare = listed(page)
problems = [f'no reason for {b}' for b in bare]
problems += [f'not in DIFFERENCES of the page: {d}'
             for d in found if d not in told]
problems += [f'in DIFFERENCES of the page, and no difference (any more): {d}'
             for d in told if d not in found]
problems += [f'listed twice: {d}' for d in set(told) if told.count(d) > 1]
problems += [f'{query} is answered with {not answer}'
             for query, answer in ASKED.items()
             if follow(ours, query) != answer]
assert len(theirs.users) > 90 and len(theirs.types) > 200, 'too little of QEMU'
print('\n'.join(problems))
sys.exit(bool(problems))

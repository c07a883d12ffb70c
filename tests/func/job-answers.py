# SPDX-License-Identifier: BSD-3-Clause
"""Jobs of each kind, ended in each way, and at once a command that relies on
that end.  Each pair many times, because it is threads that race."""
import subprocess
import sys

from qmp_daemon import Daemon, QmpError

ROUNDS = 25
SLOW = 65536


def node(name, **more):
    return {'driver': 'qcow2', 'node-name': name,
            'file': {'driver': 'file', 'filename': name + '.img'}, **more}


def backup(sync, **more):
    def start(d):
        d.ask('blockdev-add', **node('t'))
        d.ask('blockdev-backup', device='disk', target='t', sync=sync,
              **{'job-id': 'j'}, **more)
        return ['t']
    return start


def commit(ready=False, **more):
    def start(d):
        d.ask('blockdev-add', **node('base', **{'read-only': True}))
        d.ask('blockdev-add', **node('mid', backing='base',
                                     **{'read-only': True}))
        d.ask('blockdev-add', **node('top', backing='mid'))
        d.ask('block-commit', device='top', **{'job-id': 'j'}, **more)
        if ready:
            d.event('BLOCK_JOB_READY')
        return ['top', 'mid', 'base']
    return start


ACTIVE = {'base-node': 'mid', 'top-node': 'top'}
BELOW = {'base-node': 'base', 'top-node': 'mid'}

STARTS = {
    'backup, sync=none': backup('none'),
    'backup, slow': backup('full', speed=SLOW),
    'backup, slow, to be dismissed': backup('full', speed=SLOW,
                                            **{'auto-dismiss': False}),
    'backup, fast': backup('full'),
    'commit below, slow': commit(speed=SLOW, **BELOW),
    'commit below': commit(**BELOW),
    'commit, active': commit(**ACTIVE),
    'commit, active, ready': commit(True, **ACTIVE),
}


def statuses(d):
    return {j['id']: j['status'] for j in d.ask('query-jobs')}


def close(d, nodes):
    """Each, at once; a commit has dropped what is merged."""
    there = {n['node-name'] for n in d.ask('query-named-block-nodes')}
    for name in nodes:
        if name in there:
            d.ask('blockdev-del', **{'node-name': name})


def verb(d, name, **arguments):
    """False: the job has been faster."""
    try:
        d.ask(name, **arguments)
    except QmpError:    # not found, or in another state
        return False
    return True


def cancel(d, **more):
    return verb(d, 'block-job-cancel', device='j', **more)


def force(d):
    return cancel(d, force=True)


def pause_then_force(d):
    if verb(d, 'job-pause', id='j'):
        now = statuses(d).get('j', 'null')
        assert now in ('paused', 'standby', 'concluded', 'null'), now
    return force(d)


def complete(d):
    return verb(d, 'job-complete', id='j')


ENDS = {'cancel': cancel, 'force': force, 'pause': pause_then_force,
        'complete': complete}


def one(d, start, end):
    nodes = start(d)
    if not end(d):
        # It has ended by itself, or is not one that this can be asked of.
        while statuses(d).get('j') not in (None, 'concluded'):
            cancel(d, force=True)
    now = statuses(d)
    assert now in ({}, {'j': 'concluded'}), now
    # An event is told when its effect is there, too.
    close(d, nodes)
    if now:
        d.ask('job-dismiss', id='j')
    d.events.clear()


def main():
    for name in ('disk', 't', 'base', 'mid', 'top'):
        subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2',
                        name + '.img', '4M'], check=True)
    subprocess.run(['qemu-io', '-c', 'write -P 1 0 2M', 'disk.img'],
                   check=True, stdout=subprocess.DEVNULL)
    for name in ('mid', 'top'):
        subprocess.run(['qemu-io', '-c', 'write -P 2 1M 1M', name + '.img'],
                       check=True, stdout=subprocess.DEVNULL)
    with Daemon(sys.argv[1], '--blockdev',
                'qcow2,node-name=disk,file.driver=file,'
                'file.filename=disk.img') as d:
        for what, start in STARTS.items():
            for how, end in ENDS.items():
                for i in range(ROUNDS):
                    try:
                        one(d, start, end)
                    except Exception:
                        print(f'{what}, {how}, round {i}')
                        raise


main()

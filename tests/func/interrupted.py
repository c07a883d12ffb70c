# SPDX-License-Identifier: BSD-3-Clause
"""Commands that wait at the daemon, and what ends that."""
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time

import nbd

from qmp_daemon import Daemon

NBDELTA = sys.argv[1]
HERE = os.getcwd()
M = 1 << 20
INTERRUPTED, UNKNOWN, FULL = 7, 8, 3


def qemu(*words):
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def image(path, size='16M', *more):
    if os.path.exists(path):
        os.unlink(path)
    qemu('qemu-img', 'create', '-q', '-f', 'qcow2', *more, path, size)


def start(*words, ignore=()):
    """Start a command that signals end, except for signals in @ignore,
    whatever this process has inherited."""
    def begin():
        for sig in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:
            signal.signal(sig, signal.SIG_IGN if sig in ignore
                          else signal.SIG_DFL)
    return subprocess.Popen([NBDELTA, *words], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True,
                            preexec_fn=begin)


def end(p, status):
    out, err = p.communicate(timeout=120)
    assert p.returncode == status, (p.args, p.returncode, out, err)
    return out, err


def run(*words, status=0):
    return end(start(*words), status)


def until(what, condition):
    for _ in range(1200):
        if condition():
            return
        time.sleep(.05)
    raise AssertionError('not after a minute: ' + what)


def client(name):
    h = nbd.NBD()
    h.connect_uri(f'nbd+unix:///{name}?socket={HERE}/nbd.sock')
    return h


def minds(p):
    """It has blocked the signals, so it waits at the daemon."""
    def blocked():
        for line in open(f'/proc/{p.pid}/status'):
            if line.startswith('SigBlk:'):
                return int(line.split()[1], 16) & 1 << signal.SIGINT - 1
        return False
    until('it minds signals', blocked)


def sleeps(p):
    """It waits, and not for us to read."""
    until('it waits', lambda: open(f'/proc/{p.pid}/stat').read()
          .rsplit(')', 1)[1].split()[0] == 'S')


class Held:
    """Between a command and the daemon: no answer comes through, from that to
    the command on, before the end of the block."""

    def __enter__(self):
        self.go = threading.Event()
        self.commands = threading.Semaphore(0)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind('held.sock')
        self.listener.listen(1)
        threading.Thread(target=self.accept, daemon=True).start()
        return self

    def accept(self):
        client = self.listener.accept()[0]
        daemon = socket.socket(socket.AF_UNIX)
        daemon.connect('qmp.sock')
        threading.Thread(target=self.back, args=(client, daemon),
                         daemon=True).start()
        for line in client.makefile('rb'):
            daemon.sendall(line)
            self.commands.release()
        daemon.close()

    def back(self, client, daemon):
        for i, line in enumerate(daemon.makefile('rb')):
            if i >= 2:          # the greeting, and qmp_capabilities
                self.go.wait()
            try:
                client.sendall(line)
            except OSError:
                break

    def wait(self):
        """Until the command is at the daemon, behind qmp_capabilities."""
        for _ in range(2):
            assert self.commands.acquire(timeout=60)

    def __exit__(self, *_):
        self.go.set()
        self.listener.close()
        os.unlink('held.sock')


def jobs(d):
    return {j['id']: j for j in d.ask('query-jobs')}


def dirty(d):
    for n in d.ask('query-named-block-nodes'):
        if n['node-name'] == 'vda':
            return [b['count'] for b in n['dirty-bitmaps']
                    if b['name'] == 'b0'][0]
    raise AssertionError


def backup(target, *more, at='qmp.sock'):
    return ['qmp', at, 'drive-backup', 'device=vda', 'format=qcow2',
            f'target={HERE}/{target}', *more]


def incremental(*more, at='qmp.sock'):
    image('inc.qcow2', '16M', '-b', 'full.qcow2', '-F', 'qcow2')
    return backup('inc.qcow2', 'sync=incremental', 'bitmap=b0',
                  'mode=existing', *more, at=at)


def signals(d):
    """The job is cancelled, and the same job again has everything."""
    data = random.Random(1)
    h = client('vda')
    h.pwrite(data.randbytes(4 * M), 0)
    d.ask('block-dirty-bitmap-add', node='vda', name='b0', persistent=True)
    run(*backup('full.qcow2', 'sync=full', '--wait'))
    h.pwrite(data.randbytes(8 * M), M)
    had = dirty(d)
    for sig in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:
        p = start(*incremental('speed=1M', '--wait'))
        until('it runs', lambda: 'vda' in jobs(d))
        minds(p)
        p.send_signal(sig)
        out, err = end(p, INTERRUPTED)
        assert 'BLOCK_JOB_CANCELLED' in out, out
        assert "job 'vda': cancelled" in err, err
        assert not jobs(d) and dirty(d) == had
    # Before the daemon has answered.
    with Held() as held:
        p = start(*incremental('speed=1M', '--wait', at='held.sock'))
        held.wait()
        p.send_signal(signal.SIGINT)
        assert 'is cancelled' in p.stderr.readline()
    end(p, INTERRUPTED)
    assert not jobs(d) and dirty(d) == had
    # A second one: it ends at once, and says what it does not know.
    with Held() as held:
        p = start(*incremental('speed=1M', '--wait', at='held.sock'))
        held.wait()
        p.send_signal(signal.SIGINT)
        assert 'is cancelled' in p.stderr.readline()
        until('it runs', lambda: 'vda' in jobs(d))
        p.send_signal(signal.SIGTERM)
        assert 'is not known' in end(p, UNKNOWN)[1]
    assert 'vda' in jobs(d)
    d.ask('job-cancel', id='vda')
    until('the job has been cancelled', lambda: not jobs(d))
    assert dirty(d) == had
    # Left alone, if that is asked for; somebody else may join.
    p = start(*incremental('speed=1M', '--wait', '--detach-on-signal'))
    until('it runs', lambda: 'vda' in jobs(d))
    minds(p)
    p.send_signal(signal.SIGTERM)
    assert "job 'vda' goes on" in end(p, UNKNOWN)[1]
    d.ask('block-job-set-speed', device='vda', speed=M)
    p = start('qmp', 'qmp.sock', '--wait-job', 'vda')
    minds(p)
    sleeps(p)
    d.ask('job-cancel', id='vda')
    end(p, 1)
    assert not jobs(d) and dirty(d) == had
    with Held() as held:
        p = start(*incremental('speed=1M', '--wait', '--detach-on-signal',
                               at='held.sock'))
        held.wait()
        p.send_signal(signal.SIGINT)
    assert "job 'vda' goes on" in end(p, UNKNOWN)[1]
    d.ask('job-cancel', id='vda')
    until('the job has been cancelled', lambda: not jobs(d))
    # What is ignored stays ignored.
    p = start(*incremental('speed=4M', '--wait'), ignore=[signal.SIGHUP])
    until('it runs', lambda: 'vda' in jobs(d))
    minds(p)
    p.send_signal(signal.SIGHUP)
    assert 'BLOCK_JOB_COMPLETED' in end(p, 0)[0]
    h.flush()
    h.shutdown()


def several(d):
    """All jobs of a transaction, and no other."""
    for name in 't1', 't2', 't3':
        image(name)

    def action(job, device):
        return {'type': 'drive-backup', 'data':
                {'job-id': job, 'device': device, 'sync': 'full', 'speed': M,
                 'format': 'qcow2', 'mode': 'existing',
                 'target': f'{HERE}/{job}'}}
    d.ask('drive-backup', **action('t3', 'vdc')['data'])
    both = json.dumps({'actions': [action('t1', 'vda'), action('t2', 'vdb')]})
    p = start('qmp', 'qmp.sock', 'transaction', both, '--wait')
    until('both run', lambda: {'t1', 't2'} <= set(jobs(d)))
    minds(p)
    p.send_signal(signal.SIGINT)
    out = end(p, INTERRUPTED)[0]
    assert out.count('BLOCK_JOB_CANCELLED') == 2, out
    assert set(jobs(d)) == {'t3'}

    # One that fails fails the command.
    image('t1', '1M')
    out = run('qmp', 'qmp.sock', 'transaction',
              both.replace('1048576', '0'), '--wait', status=1)
    # A command that only watches a job leaves it alone, and says so.
    p = start('qmp', 'qmp.sock', '--wait-job', 't3')
    minds(p)
    p.send_signal(signal.SIGINT)
    assert "job 't3' goes on" in end(p, UNKNOWN)[1]
    p = start('qmp', 'qmp.sock', 'job-pause', 'id=t3', '--wait')
    minds(p)
    until('it is paused', lambda: jobs(d)['t3']['status'] == 'paused')
    p.send_signal(signal.SIGINT)
    assert "job 't3' goes on" in end(p, UNKNOWN)[1]
    run('qmp', 'qmp.sock', 'block-job-set-speed', 'device=t3', 'speed=0')
    assert 'BLOCK_JOB_COMPLETED' in run(
        'qmp', 'qmp.sock', 'job-resume', 'id=t3', '--wait')[0]
    run('qmp', 'qmp.sock', '--wait-job', 't3', status=6)
    run('qmp', 'qmp.sock', 'query-jobs', '--wait', status=1)


def waits_for_somebody(d):
    """Ready, pending, concluded: nothing else comes by itself."""
    d.ask('blockdev-snapshot-sync', device='vdb',
          snapshot_file=HERE + '/o.qcow2')
    h = client('vdb')
    h.pwrite(b'x' * M, 0)
    out, err = run('qmp', 'qmp.sock', 'block-commit', 'job-id=c', 'device=vdb',
                   'base-node=vdb', '--wait')
    assert 'BLOCK_JOB_READY' in out and "'c' is ready and goes on" in err
    assert 'ready' in run('qmp', 'qmp.sock', '--wait-job', 'c')[0]
    # To the end, if that is meant, or asked for.
    p = start('qmp', 'qmp.sock', '--wait-job', 'c', '--wait=end')
    minds(p)
    sleeps(p)
    assert 'BLOCK_JOB_COMPLETED' in run(
        'qmp', 'qmp.sock', 'job-complete', 'id=c', '--wait')[0]
    assert 'BLOCK_JOB_COMPLETED' in end(p, 0)[0]
    h.shutdown()

    out, err = run(*backup('p.qcow2', 'sync=full', 'job-id=p',
                           'auto-finalize=false', 'auto-dismiss=false',
                           '--wait'))
    assert 'BLOCK_JOB_PENDING' in out and "'p' is pending" in err, (out, err)
    assert 'BLOCK_JOB_COMPLETED' in run(
        'qmp', 'qmp.sock', 'job-finalize', 'id=p', '--wait')[0]
    assert '"concluded"' in run('qmp', 'qmp.sock', '--wait-job', 'p')[0]
    d.ask('job-dismiss', id='p')
    run('qmp', 'qmp.sock', 'job-dismiss', 'id=p', '--wait=never', status=2)


def checkpoints(d):
    return {c['name'] for c in d.ask('checkpoint-list')}


def pulled(d):
    """Nobody would know the id of what has begun."""
    begin = ('backup-begin', 'held.sock', '--disk', 'vda', '--checkpoint', 'k')
    with Held() as held:
        p = start(*begin)
        held.wait()
        p.send_signal(signal.SIGINT)
        assert 'ended again' in p.stderr.readline()
    assert 'was ended as failed' in end(p, INTERRUPTED)[1]
    assert d.ask('query-backups') == [] and 'k' not in checkpoints(d)
    with Held() as held:
        p = start(*begin)
        held.wait()
        p.send_signal(signal.SIGINT)
        assert 'ended again' in p.stderr.readline()
        p.send_signal(signal.SIGINT)
        assert 'query-backups' in end(p, UNKNOWN)[1]
    until('it has begun', lambda: d.ask('query-backups'))
    b = d.ask('query-backups')[0]['id']
    with Held() as held:
        p = start('backup-end', 'held.sock', b)
        held.wait()
        p.send_signal(signal.SIGTERM)
        assert 'query-backups' in end(p, UNKNOWN)[1]
    until('it has ended', lambda: d.ask('query-backups') == [])
    assert 'k' in checkpoints(d)
    with Held() as held:
        p = start('qmp', 'held.sock', 'block-dirty-bitmap-add', 'node=vda',
                  'name=late')
        held.wait()
        p.send_signal(signal.SIGINT)
        assert 'not known' in end(p, UNKNOWN)[1]


def full_instead(d):
    """Not what was asked for is not success."""
    begin = ('backup-begin', 'qmp.sock')
    out, err = run(*begin, '--disk', 'vda,since=kk', status=FULL)
    assert "since 'kk': no-checkpoint" in err and \
        sorted(err.split('Checkpoints: ')[1].strip().split(', ')) == \
        ['b0', 'k'], err
    run('backup-end', 'qmp.sock', out.split(':')[0])
    out, err = run(*begin, '--disk', 'vda,since=k', '--disk', 'vdc,since=k',
                   '--output', 'json', status=FULL)
    assert "'vdc'" in err and "'vda'" not in err, err
    out = json.loads(out)
    assert [x['mode'] for x in out['disks']] == ['incremental', 'full']
    run('backup-end', 'qmp.sock', out['id'])
    for disks in (['vda,since=k'], ['vda,since=k', 'vdc']):
        words = [w for x in disks for w in ('--disk', x)]
        run('backup-end', 'qmp.sock', run(*begin, *words)[0].split(':')[0])
    # Or it is refused, with nothing left.
    for disks, why in ((['vda,since=kk'], "no-checkpoint (its checkpoints: '"),
                       (['vda,since=k', 'vdc,since=k'], 'checkpoints: none'),
                       (['vda,since=k', 'vdc'], "'vdc' has no 'since'")):
        words = [w for x in disks for w in ('--disk', x)]
        err = run(*begin, *words, '--require-incremental', status=1)[1]
        assert why in err, err
        assert d.ask('query-backups') == []
    run('backup-end', 'qmp.sock', run(
        *begin, '--disk', 'vda,since=k', '--require-incremental')[0]
        .split(':')[0])


def lost(d):
    """The daemon is killed: nobody knows."""
    h = client('vda')
    h.pwrite(bytes(8 * M), 0)
    p = start(*incremental('speed=1M', '--wait'))
    until('it runs', lambda: 'vda' in jobs(d))
    minds(p)
    q = start('qmp', 'qmp.sock', '--wait-job', 'vda')
    minds(q)
    sleeps(q)
    d.process.kill()
    assert "job 'vda' may go on: its end is not known" in end(p, UNKNOWN)[1]
    end(q, UNKNOWN)
    d.process.wait()


def main():
    for name in 'vda', 'vdb', 'vdc':
        image(name + '.qcow2')
    with Daemon(NBDELTA, 'vda=vda.qcow2', 'vdb=vdb.qcow2',
                'vdc=vdc.qcow2') as d:
        signals(d)
        several(d)
        waits_for_somebody(d)
        pulled(d)
        full_instead(d)
    qemu('qemu-img', 'compare', 'inc.qcow2', 'vda.qcow2')
    for name in 'nbd.sock', 'qmp.sock':
        assert not os.path.exists(name), name
    with Daemon(NBDELTA, 'vda=vda.qcow2') as d:
        lost(d)


main()

# SPDX-License-Identifier: BSD-3-Clause
# The scenarios of export-leave.sh.  argv: nbdelta.  Works in the current
# directory.
import socket
import sys

from nbd_raw import DISC, FLUSH, READ, WRITE, Client
from qmp_daemon import Daemon


def add(daemon, node='n', **arguments):
    daemon.ask('block-export-add', type='nbd', id='e', name='e',
               node_name=node, writable=True, **arguments)


def closes(c):
    c.close()


def says_so(c):
    c.send(DISC)


def says_so_and_closes(c):
    c.send(DISC)
    c.close()


def says_so_behind_requests(c):
    c.s.sendall(b''.join(c.request(READ, 0, 65536) for _ in range(20)) +
                c.request(FLUSH) + c.request(DISC))


def sees_the_end(c):
    c.send(DISC)
    assert c.ended()


def shuts_one_half(c):
    c.s.shutdown(socket.SHUT_WR)


def closes_with_replies_unread(c):
    c.s.sendall(b''.join(c.request(READ, 0, 1 << 20) for _ in range(8)))
    c.close()


def dies_in_a_write(c):
    c.s.sendall(c.request(WRITE, 0, 1 << 20, data=bytes(1 << 20))[:-1])
    c.close()


WAYS = (closes, says_so, says_so_and_closes, says_so_behind_requests,
        sees_the_end, shuts_one_half, closes_with_replies_unread,
        dies_in_a_write)


def leave_and_delete(daemon, leave, name):
    add(daemon, bitmaps=['b'])
    c = Client('nbd.sock').go(name)
    assert c.alive()
    leave(c)
    daemon.ask('block-export-del', id='e')
    # Its node is free, too, and its name.
    assert daemon.ask('query-block-exports') == []
    c.close()


with Daemon(sys.argv[1], '--object',
            'throttle-group,id=tg,limits.iops-total=1',
            '--blockdev', 'null-co,node-name=n,read-zeroes=on,size=8M',
            '--blockdev', 'throttle,node-name=slow,throttle-group=tg,file=n'
            ) as d:
    d.ask('block-dirty-bitmap-add', node='n', name='b')
    for _ in range(25):
        for way in WAYS:
            leave_and_delete(d, way, 'e')
            leave_and_delete(d, way, 'e@dirty=b')

    # One that is here does, whatever others do and whatever it has said.
    for way in WAYS:
        add(d)
        c, other = Client('nbd.sock').go('e'), Client('nbd.sock').go('e')
        way(other)
        d.refuses('block-export-del', id='e')
        assert c.alive()
        says_so(c)
        d.ask('block-export-del', id='e')
        c.close()
        other.close()

    # A request that has begun ends first.
    for _ in range(2):
        add(d, 'slow')
        c = Client('nbd.sock').go('e')
        assert c.error(WRITE, 0, 512, data=bytes(512)) == 0
        c.send(WRITE, 0, 512, data=bytes(512))
        c.close()
        d.ask('block-export-del', id='e')
        assert d.ask('query-block-exports') == []
    d.ask('blockdev-del', node_name='slow')
    d.ask('blockdev-del', node_name='n')

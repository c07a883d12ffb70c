# SPDX-License-Identifier: BSD-3-Clause
"""nbdelta's commands with names that steer terminals."""
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.parse

NBDELTA = sys.argv[1]
EVIL = 'e\x1b[31m\u009b31m\u202egpj\u2066\x07\x7f'
EVIL_C0 = 'e\u009b31m\u202egpj\u2066'     # where C0 is refused anyway
CONTROLS = re.compile('[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f'
                      '\u2028-\u202e\u2060-\u206f\ufeff]')
HERE = os.getcwd()


def check(what, data):
    text = data.decode()        # it is UTF-8
    found = CONTROLS.findall(text)
    assert not found, f'{what}: {found} in {text[:400]!r}'
    return text


def run(*words, status=0):
    p = subprocess.run([NBDELTA, *words], stdout=subprocess.PIPE,
                       stderr=subprocess.PIPE, timeout=120, check=False)
    check(f'{words}: errors', p.stderr)
    out = check(f'{words}', p.stdout)
    if status is not None:
        assert (p.returncode != 0) == bool(status), (words, p)
    return out


def with_backing(path, name):
    """An image that names such a backing file."""
    subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2', '-u', '-b',
                    'x' * len(name), '-F', 'raw', path, '1M'], check=True)
    with open(path, 'r+b') as f:
        f.seek(struct.unpack('>Q', f.read(16)[8:16])[0])
        f.write(name)


def offline():
    # UTF-8, Latin-1, and characters that are cut off or too long.
    for name in (EVIL.encode() + b'\n', b'\x9b31m', b'a\xe2\x80', b'\xc0\x9b'):
        with_backing('v.qcow2', name)
        for words in (['info'], ['info', '--output', 'json'], ['map'],
                      ['map', '--output', 'json'],
                      ['bitmap', 'list'], ['create', '-b', 'v.qcow2', '-F',
                                           'qcow2', 'new.qcow2'],
                      ['serve', '-U', 's', '--pidfile', '/nonexistent/p']):
            place = words[-1:] if words[0] == 'create' else []
            run(*(words[:-1] if place else words),
                *(place or ['v.qcow2']), status=None)
    # QEMU takes such names of bitmaps.
    run('create', 'b.qcow2', '1M')
    subprocess.run(['qemu-img', 'bitmap', '--add', 'b.qcow2', EVIL],
                   check=True)
    run('bitmap', 'list', 'b.qcow2')
    listed = json.loads(run('bitmap', 'list', '--output', 'json', 'b.qcow2'))
    assert listed[0]['name'] == EVIL, listed
    run('info', 'b.qcow2')
    said = json.loads(run('info', '--output', 'json', 'b.qcow2'))
    assert said['format-specific']['data']['bitmaps'][0]['name'] == EVIL, said
    run('bitmap', 'add', 'b.qcow2', EVIL, status=1)
    run('bitmap', 'remove', 'b.qcow2', EVIL + 'x', status=1)
    # What the command line itself has.
    run(EVIL, status=1)
    run('info', EVIL, status=1)
    run('info', '--' + EVIL, status=1)
    run('create', '-f', EVIL, 'x', '1M', status=1)


def online():
    with open('raw', 'wb') as f:
        f.truncate(1 << 20)
    with open('log', 'w+b') as log, open('out', 'w+b') as out, daemon(
            log, out) as d:
        try:
            talk()
        except BaseException:
            d.kill()
            raise
        d.send_signal(signal.SIGTERM)
        assert d.wait(60) == 0
        for f in (log, out):
            f.seek(0)
            check('the daemon', f.read())


def daemon(log, out):
    d = subprocess.Popen(
        [NBDELTA, 'serve', '-U', HERE + '/nbd', '--qmp', 'qmp', '--pidfile',
         'pid', '--print-uri',
         '--blockdev', 'driver=file,filename=raw,node-name=n',
         '--export', f'type=nbd,id=x,node-name=n,name={EVIL},'
         f'description={EVIL}', 'b=b.qcow2'], stdout=out, stderr=log)
    while not os.path.exists('pid'):
        assert d.poll() is None
        time.sleep(.02)
    return d


def talk():
    def qmp(*words, status=0):
        text = run('qmp', 'qmp', *words, status=status)
        return json.loads(text) if not status else None
    exports = qmp('query-block-exports')
    assert len(exports) == 2, exports
    nodes = qmp('query-named-block-nodes')
    assert EVIL in [b['name'] for n in nodes
                    for b in n.get('dirty-bitmaps', [])], nodes
    qmp('blockdev-del', 'node-name=' + EVIL_C0, status=1)
    qmp(EVIL_C0, status=1)
    run('qmp', EVIL, 'query-status', status=1)
    qmp('block-job-cancel', 'device=' + EVIL, status=1)
    uri = 'nbd+unix:///' + urllib.parse.quote(EVIL) + '?socket=' + HERE + '/nbd'
    for output in ('human', 'json'):
        run('info', '--output', output, uri)
        run('map', '--output', output, uri)
        run('info', '--output', output,
            'nbd+unix:///b?socket=' + HERE + '/nbd')
    run('info', uri.replace('nbd+unix:///', 'nbd+unix:///no'), status=1)
    for output in ('human', 'json'):
        text = run('backup-begin', 'qmp', '--disk', 'b,export=2' + EVIL,
                   '--output', output)
        ident = json.loads(text)['id'] if output == 'json' else \
            text.split(':')[0]
        run('backup-end', 'qmp', ident)
    run('backup-begin', 'qmp', '--disk', EVIL + 'no', status=1)
    run('backup-end', 'qmp', EVIL, status=1)


def monitor(answer):
    """A socket where a monitor answers so."""
    s = socket.socket(socket.AF_UNIX)
    if os.path.exists('fake'):
        os.unlink('fake')
    s.bind('fake')
    s.listen(1)

    def serve():
        c = s.accept()[0]
        f = c.makefile('rb')
        c.sendall(b'{"QMP": {"version": {}, "capabilities": []}}\n')
        f.readline()
        c.sendall(b'{"return": {}}\n')
        f.readline()
        c.sendall(answer + b'\n')
        f.readline()
        c.close()
    threading.Thread(target=serve, daemon=True).start()


def foreign():
    """Another program is at the socket."""
    for answer in ({'return': {'x': EVIL, EVIL: [EVIL]}},
                   {'error': {'class': EVIL, 'desc': EVIL}}):
        text = json.dumps(answer, ensure_ascii=False).replace('\x1b', '\\u001b')
        text = text.replace('\x07', '\\u0007').encode()
        monitor(text)
        got = run('qmp', 'fake', 'x', status='error' in answer)
        if 'return' in answer:
            assert json.loads(got) == answer['return'], got
        monitor(text)
        run('backup-begin', 'fake', status='error' in answer)


offline()
online()
foreign()

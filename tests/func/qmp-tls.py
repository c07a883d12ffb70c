"""QMP over TLS: a daemon that listens, and one that connects to us.  argv: the
program, a directory with certificates, another one with those of a CA that the
daemon does not know."""
import json
import os
import random
import socket
import ssl
import subprocess
import sys
import time

from nbd_tls import TlsSocket, context

nbdelta, pki, other = sys.argv[1:4]
CREDS = f"tls-creds-x509,id=t,dir={pki},endpoint="


def check(ok, *what):
    if not ok:
        raise AssertionError(what)


class Qmp:
    def __init__(self, sock):
        self.sock, self.data = sock, b""

    def recv(self):
        while b"\n" not in self.data:
            part = self.sock.recv(65536)
            if not part:
                return None
            self.data += part
        line, _, self.data = self.data.partition(b"\n")
        return json.loads(line)

    def send(self, *messages):
        self.sock.sendall("".join(map(json.dumps, messages)).encode())

    def ask(self, command, **arguments):
        self.send({"execute": command, "arguments": arguments})
        while "event" in (reply := self.recv()):
            pass
        return reply

    def greeted(self):
        check("QMP" in self.recv())
        check(self.ask("qmp_capabilities") == {"return": {}})
        return self


daemons = []


def daemon(*options):
    d = subprocess.Popen([nbdelta, "serve", *options], stderr=subprocess.PIPE,
                         text=True)
    daemons.append(d)
    return d


def listening(*more, chardev=""):
    """A daemon that listens, and its port."""
    for _ in range(20):
        port = random.randrange(20000, 32000)
        if os.path.exists("pid"):
            os.unlink("pid")
        d = daemon(*more, "--pidfile", "pid", "--object", CREDS + "server",
                   "--chardev", f"socket,id=c,host=127.0.0.1,port={port},"
                   f"server=on,wait=off,tls-creds=t{chardev}", "--monitor", "c")
        while d.poll() is None:
            if os.path.exists("pid") and os.path.getsize("pid"):
                return d, port
            time.sleep(0.05)
        why = d.stderr.read()
        check("in use" in why, why)
    raise AssertionError("no free port")


def tcp(port):
    s = socket.create_connection(("127.0.0.1", port))
    s.settimeout(60)
    return s


def connect(port, ctx):
    s = TlsSocket(tcp(port), ctx)
    s.handshake()
    return Qmp(s)


def refused(port, ctx):
    try:
        check(connect(port, ctx).recv() is None, "it was let in")
    except (ssl.SSLError, ConnectionResetError):
        pass


def test_a_monitor_that_listens():
    d, port = listening("--object", "authz-simple,id=z,identity=CN=alice",
                        chardev=",tls-authz=z")
    refused(port, context(pki, None))
    refused(port, context(pki, "bob"))  # is not allowed
    refused(port, stranger())
    s = tcp(port)  # no TLS at all
    s.sendall(b'{"execute": "qmp_capabilities"}' * 100)
    try:
        while part := s.recv(1000):
            check(b"QMP" not in part, part)
    except ConnectionResetError:
        pass
    silent = tcp(port)
    died = tcp(port)
    died.sendall(b"\x16\x03\x01")
    died.close()
    a, b = (connect(port, context(pki)).greeted() for _ in range(2))
    check(a.ask("query-block-jobs") == {"return": []})
    # Many requests in one record, and a reply of many records.
    a.send(*[{"execute": "query-version", "id": i} for i in range(500)])
    check([a.recv()["id"] for _ in range(500)] == list(range(500)))
    check(len(json.dumps(a.ask("query-qmp-schema"))) > 20000)
    # Byte by byte.
    for c in b'{"execute": "query-version"}':
        b.sock.sendall(bytes([c]))  # a record each
    check("return" in b.recv())
    # One that leaves in the middle is missed by nobody.
    connect(port, context(pki)).sock.sock.close()
    check(a.ask("quit") == {"return": {}})
    check(d.wait(60) == 0)
    check(silent.recv(1) == b"")


def stranger():
    """A client whose certificate is of another CA."""
    ctx = context(other)
    ctx.load_verify_locations(os.path.join(pki, "ca-cert.pem"))
    return ctx


def server_context(where):
    ctx = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ctx.load_cert_chain(os.path.join(where, "server-cert.pem"),
                        os.path.join(where, "server-key.pem"))
    ctx.load_verify_locations(os.path.join(pki, "ca-cert.pem"))
    ctx.verify_mode = ssl.CERT_REQUIRED
    return ctx


def test_a_monitor_that_does_not_know_where_it_connects_to():
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(60)
    d = daemon("--object", CREDS + "client", "--chardev",
               f"socket,id=c,port={listener.getsockname()[1]},ipv4=on,"
               "reconnect=1,tls-creds=t", "--monitor", "c")
    s, _ = listener.accept()
    try:
        s = server_context(pki).wrap_socket(s, server_side=True)
        check(s.recv(1) == b"")
    except (ssl.SSLError, ConnectionResetError):
        pass
    d.terminate()
    check(d.wait(60) == 0)
    check("No hostname for certificate validation" in d.stderr.read())


def test_a_monitor_that_connects():
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(60)
    port = listener.getsockname()[1]
    d = daemon("--object", CREDS + "client", "--chardev",
               f"socket,id=c,host=127.0.0.1,port={port},reconnect=1,"
               "tls-creds=t", "--monitor", "c")
    # The first has no certificate that it trusts.
    s, _ = listener.accept()
    try:
        s = server_context(other).wrap_socket(s, server_side=True)
        check(s.recv(1) == b"")
    except (ssl.SSLError, ConnectionResetError):
        pass
    s.close()
    s, _ = listener.accept()
    s.settimeout(60)
    q = Qmp(server_context(pki).wrap_socket(s, server_side=True))
    check(dict(q.sock.getpeercert()["subject"][0])["commonName"] == "alice")
    q.greeted()
    check(q.ask("query-named-block-nodes") == {"return": []})
    check(q.ask("quit") == {"return": {}})
    check(d.wait(60) == 0)
    said = d.stderr.read()
    check("a monitor's other side is turned away: TLS handshake failed" in said,
          said)


for name, fn in list(globals().items()):
    if name.startswith("test_"):
        try:
            fn()
        except BaseException:
            print(f"{name}:", flush=True)
            for d in daemons:
                d.kill()
            raise

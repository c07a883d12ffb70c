# SPDX-License-Identifier: BSD-3-Clause
"""A QMP monitor that says what it is told to.

fake_monitor.py SOCKET ANSWERS: ANSWERS is a JSON object; a command's member is
what it returns, {"error": ...} a refusal; other commands are not there.  The
member "after" is text that is sent once the client has negotiated, "endless" is
sent then again and again; or the connection is closed if there is "close".  The
member "ignore" lists commands that are not answered."""
import json
import socket
import sys


def reply(answers, command, ident):
    value = answers.get(command, {'error': {
        'class': 'CommandNotFound',
        'desc': f'The command {command} has not been found'}})
    if command == 'qmp_capabilities':
        value = {}
    key = 'error' if isinstance(value, dict) and 'error' in value else 'return'
    return json.dumps({key: value['error'] if key == 'error' else value,
                       'id': ident}).encode() + b'\n'


def serve(client, answers):
    client.sendall(b'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 0, '
                   b'"major": 1}, "package": ""}, "capabilities": []}}\n')
    for line in client.makefile('rb'):
        request = json.loads(line)
        if request['execute'] in answers.get('ignore', []):
            continue
        client.sendall(reply(answers, request['execute'], request['id']))
        if request['execute'] == 'qmp_capabilities':
            client.sendall(answers.get('after', '').encode())
            while 'endless' in answers:
                client.sendall(answers['endless'].encode())
            if 'close' in answers:
                return


def main(path, answers):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    while True:
        client, _ = listener.accept()
        with client:
            try:
                with open(answers, encoding='utf-8') as f:
                    serve(client, json.load(f))
            except OSError:
                pass


if __name__ == '__main__':
    main(*sys.argv[1:])

#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""shell_tab.py SHELL SETUP LINE...: what becomes of command lines at Tab.

Starts SHELL (bash or zsh) on a terminal, has it read the file SETUP, types each
LINE and the Tab key, and prints the command line that the shell has then, with
its end marked by "|".  Nothing is carried out.
"""
import os
import pty
import select
import sys
import time

DUMP = {
    # Control-X Control-P writes the line to a file and empties it.
    "bash": r"""bind -x '"\C-x\C-p": printf "%s|\n" "$READLINE_LINE" >line.new;
                mv line.new line; READLINE_LINE='; bind 'set bell-style none'
                bind 'set keyseq-timeout 1'""",
    "zsh": r"""dump() { print -r -- "$BUFFER|" >line.new; mv line.new line;
                BUFFER= }; zle -N dump; bindkey '^X^P' dump; KEYTIMEOUT=1""",
}
START = {"bash": ["--norc", "--noprofile", "-i"], "zsh": ["-f", "-i"]}
PROMPT = b"<prompt>"
PATIENCE = 30


class Shell:
    def __init__(self, name, setup):
        with open("rc", "w") as f:
            f.write(f"{DUMP[name]}\n. {setup}\nPS1='{PROMPT.decode()}'\n")
        pid, self.fd = pty.fork()
        if pid == 0:
            os.environ.update(TERM="dumb", PS1="", HISTFILE="")
            os.execvp(name, [name] + START[name])
        self.shown = b""
        self.enter(". ./rc")

    def type(self, text):
        os.write(self.fd, os.fsencode(text))

    def wait(self, done):
        end = time.monotonic() + PATIENCE
        while not done():
            if time.monotonic() > end:
                sys.exit(f"the shell does not answer: {self.shown}")
            if select.select([self.fd], [], [], 0.01)[0]:
                self.shown += os.read(self.fd, 65536)

    def enter(self, line):
        """Type it, and wait until the shell wants the next one."""
        count = self.shown.count(PROMPT)
        self.type(line + "\r")
        self.wait(lambda: self.shown.count(PROMPT) > count)

    def complete(self, line):
        self.type(line + "\t\x18\x10")
        self.wait(lambda: os.path.exists("line"))
        with open("line", errors="surrogateescape") as f:
            result = f.read()
        os.unlink("line")
        self.enter("")
        return result


def main():
    shell = Shell(sys.argv[1], sys.argv[2])
    for line in sys.argv[3:]:
        sys.stdout.write(shell.complete(line))
        sys.stdout.flush()


main()

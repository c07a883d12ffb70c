# SPDX-License-Identifier: BSD-3-Clause
"""The machine: what it is, the CPU that others took, what is in memory."""
import ctypes
import mmap
import os
import platform
import subprocess
import time

TICKS = os.sysconf('SC_CLK_TCK')
PAGE = mmap.PAGESIZE
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int,
                      ctypes.c_int, ctypes.c_int, ctypes.c_long]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
LIBC.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
PART = 1 << 30


def stat_fields(pid):
    """The fields of /proc/PID/stat from the state on, or none."""
    try:
        with open(f'/proc/{pid}/stat', encoding='ascii',
                  errors='replace') as f:
            return f.read().rpartition(')')[2].split()
    except OSError:
        return []


def process_cpu(pid):
    """Seconds of CPU that a process has had, with threads that have ended: its
    clock, as clock_getcpuclockid(3) has it, because ticks are too coarse."""
    try:
        return time.clock_gettime(~pid << 3 | 2)
    except OSError:
        return 0.0


class Cpu:
    """Seconds of CPU since boot: of all, of kernel threads, and of this process
    and its descendants.  What remains is others'.  Kernel threads write back
    what a row has written, so they are not others."""

    def __init__(self):
        with open('/proc/stat', encoding='ascii') as f:
            n = [int(v) for v in f.readline().split()[1:]]
        self.all = (sum(n[:3]) + sum(n[5:8])) / TICKS
        processes = {int(p): stat_fields(p) for p in os.listdir('/proc')
                     if p.isdigit()}
        processes = {p: f for p, f in processes.items() if f}
        parents = {p: int(f[1]) for p, f in processes.items()}
        self.kernel = self.ours = 0.0
        for pid, fields in processes.items():
            if parents[pid] == 2:
                self.kernel += sum(map(int, fields[11:13])) / TICKS
            elif self.is_ours(pid, parents):
                self.ours += sum(map(int, fields[11:15])) / TICKS

    @staticmethod
    def is_ours(pid, parents):
        while pid > 1:
            if pid == os.getpid():
                return True
            pid = parents.get(pid, 0)
        return False

    def others_since(self, before):
        return max(0.0, (self.all - before.all) - (self.ours - before.ours) -
                   (self.kernel - before.kernel))


def resident(path):
    """The share of a file's data that is in the page cache."""
    fd = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        there = pages = at = 0
        while at < size:
            try:
                begin = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(fd, begin, os.SEEK_HOLE)
            begin -= begin % PAGE
            for part in range(begin, end, PART):
                n = min(PART, end - part)
                there += _resident_pages(fd, part, n)
                pages += -(-n // PAGE)
            at = end
        return there / pages if pages else 1.0
    finally:
        os.close(fd)


def _resident_pages(fd, offset, length):
    at = LIBC.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, fd, offset)
    if at == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), 'mmap')
    vector = ctypes.create_string_buffer(-(-length // PAGE))
    LIBC.mincore(at, length, vector)
    LIBC.munmap(at, length)
    raw = vector.raw
    return len(raw) - raw.count(0)


def read_in(path):
    """All data of a file, into the page cache."""
    fd = os.open(path, os.O_RDONLY)
    try:
        at, size = 0, os.fstat(fd).st_size
        while at < size:
            try:
                begin = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(fd, begin, os.SEEK_HOLE)
            for part in range(begin, at, 1 << 20):
                os.pread(fd, min(1 << 20, at - part), part)
    finally:
        os.close(fd)


def throw_out(path):
    """All of a file leaves the page cache."""
    fd = os.open(path, os.O_RDWR)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def make_resident(path):
    if resident(path) < 0.995:
        read_in(path)
        return False
    return True


def cpu_model():
    with open('/proc/cpuinfo', encoding='utf-8') as f:
        for line in f:
            if line.startswith(('model name', 'Model', 'cpu model')):
                return line.partition(':')[2].strip()
    return platform.machine()


def output(*words):
    """The first line, or nothing."""
    try:
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True,
                              stderr=subprocess.STDOUT, check=False)
    except OSError:
        return ''
    return done.stdout.partition('\n')[0] if done.returncode == 0 else ''


def describe(directory, source):
    """For a result: what it was measured on."""
    memory = os.sysconf('SC_PHYS_PAGES') * PAGE >> 20
    return {
        'kernel': platform.release(), 'cpu': cpu_model(),
        'cpus': len(os.sched_getaffinity(0)), 'memory_mib': memory,
        'file_system': output('stat', '-f', '-c', '%T', directory),
        'load': os.getloadavg()[0],
        'commit': output('git', '-C', source, 'rev-parse', 'HEAD'),
        'changed': bool(output('git', '-C', source, 'status', '--porcelain',
                               '--untracked-files=no'))}

#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The work of recipes-libvirt.sh."""
import glob
import json
import os
import subprocess
import sys

from libvirt_backup import MIB, image, same, with_libvirt

HERE = os.path.dirname(os.path.abspath(__file__))
CHECKPOINT = ('<domaincheckpoint><name>virtnbdbackup.%d</name>'
              '</domaincheckpoint>')


def paste(v, section):
    """Run a recipe in a directory of its own, and return that."""
    script = subprocess.run(
        ['awk', '-v', 'section=' + section, '-f', HERE + '/recipe.awk',
         HERE + '/../../man/nbdelta-recipes.7'], check=True, text=True,
        stdout=subprocess.PIPE).stdout
    assert script.count('nbdelta ') > 2, script
    where = section.split()[0]
    os.mkdir(where)
    env = dict(os.environ, LIBVIRT_DEFAULT_URI=v.uri,
               PATH=os.environ['BUILD'] + ':' + os.environ['PATH'])
    done = subprocess.run(['bash', '-eu'], input=script, cwd=where, env=env,
                          text=True, stdout=subprocess.PIPE, check=False,
                          stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    return where


def kinds(where):
    points = sorted(glob.glob(where + '/web/*Z.json'))
    return [json.load(open(p, encoding='utf-8'))['disks'][0]['kind']
            for p in points]


def recipes(v):
    disk = image('disk', 8 * MIB)
    v.define('web', [('vda', disk, 'qcow2', '')])
    v.io('web', 0, 'write -P 1 0 1M', 'flush')
    where = paste(v, 'A DOMAIN OF LIBVIRT')
    assert kinds(where) == ['full', 'increment']
    same(where + '/web-vda.qcow2', disk, 'qcow2')
    assert v.virsh('checkpoint-list', 'web', '--name').split() == []

    for k in range(2):
        with open('checkpoint.xml', 'w', encoding='utf-8') as f:
            f.write(CHECKPOINT % k)
        v.virsh('checkpoint-create', 'web', 'checkpoint.xml')
    where = paste(v, 'FROM VIRTNBDBACKUP TO NBDELTA')
    assert kinds(where) == ['full', 'increment']
    left = v.virsh('checkpoint-list', 'web', '--name').split()
    assert len(left) == 1 and left[0].startswith('nbdelta-'), left


sys.exit(with_libvirt(recipes))

# SPDX-License-Identifier: BSD-3-Clause
"""Prometheus' text format, read as strictly as it is defined."""
import re

SAMPLE = re.compile(r'([a-z_:][a-z0-9_:]*)\{((?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*"'
                    r',?)*)\} ([0-9.e+-]+|\+Inf)')
ENDS = ('_bucket', '_sum', '_count')


def labels_of(text):
    return {k: re.sub(r'\\(.)', lambda e: {'n': '\n'}.get(e[1], e[1]), v)
            for k, v in re.findall(r'([a-z_]+)="((?:[^"\\]|\\.)*)"', text)}


def check_histogram(samples):
    """Buckets grow, the last one is all, and there are a sum and a count."""
    series = {}
    for name, labels, value in samples:
        rest = {k: v for k, v in labels.items() if k != 'le'}
        one = series.setdefault(tuple(sorted(rest.items())),
                                {'_bucket': [], '_sum': [], '_count': []})
        end = next(e for e in ENDS if name.endswith(e))
        one[end].append((float(labels.get('le', 0)), value))
    for one in series.values():
        buckets = one['_bucket']
        assert buckets == sorted(buckets), buckets
        assert len({le for le, _ in buckets}) == len(buckets) > 1, buckets
        assert buckets[-1][0] == float('inf'), buckets
        assert len(one['_sum']) == len(one['_count']) == 1, one
        assert one['_count'][0][1] == buckets[-1][1], one


def parse(path):
    """[(name, labels, value)...] of a file that is right."""
    with open(path, encoding='utf-8', newline='') as f:
        text = f.read()
    assert text.endswith('\n')
    assert not re.search('[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]', text)
    families, family, help_of, found, seen = {}, None, None, [], set()
    for line in text[:-1].split('\n'):
        m = re.fullmatch(r'# HELP ([a-z_:][a-z0-9_:]*) ([^\\]+)', line)
        if m:
            help_of = m[1]
            continue
        m = re.fullmatch(r'# TYPE (\S+) (gauge|counter|histogram)', line)
        if m:
            family = m[1]
            assert family == help_of and family not in families, line
            assert (m[2] == 'counter') == family.endswith('_total'), line
            families[family] = m[2], []
            continue
        m = SAMPLE.fullmatch(line)
        assert m, line
        histogram = families[family][0] == 'histogram'
        assert m[1] in ([family + e for e in ENDS] if histogram else [family]), \
            line
        assert line.rsplit(' ', 1)[0] not in seen, line
        seen.add(line.rsplit(' ', 1)[0])
        sample = m[1], labels_of(m[2]), float(m[3])
        families[family][1].append(sample)
        found.append(sample)
    for kind, samples in families.values():
        if kind == 'histogram':
            check_histogram(samples)
    return found


def values(path, prefix, common):
    """{(name without prefix, frozenset of labels): value}, where all have the
    label that is the pair @common."""
    result = {}
    for name, labels, value in parse(path):
        assert labels.pop(common[0]) == common[1], labels
        result[name.removeprefix(prefix), frozenset(labels.items())] = value
    return result

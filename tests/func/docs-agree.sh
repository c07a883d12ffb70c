#!/bin/bash
# --help, the man pages and the completion have the same sub-commands, each with
# the same options.  The pages have their sections in one order, and name pages
# that are there.
set -eu -o pipefail

PATH=$BUILD:$PATH
failed=

differs() {
    echo "differs: $*"
    failed=yes
}

# Long options, and short ones that --help puts beside them.
help_options() {
    nbdelta "$1" --help |
        sed -n -e 's/^ *-\([[:alnum:]]\), *--\([a-z-]*\).*/-\1 --\2/p' \
            -e 's/^ *--\([a-z-]*\).*/--\1/p' | sort
}

# The same from the tags of a page's OPTIONS section.
man_options() {
    awk '/^\.SH / { on = $0 == ".SH OPTIONS" } on' "$1" |
        grep -A1 '^\.TP' | sed -e 's/\\-/-/g' -e 's/\\f.//g' |
        sed -n -e 's/^\.BR* -\([[:alnum:]]\) "*, "* *--\([a-z-]*\).*/-\1 --\2/p' \
            -e 's/^\.B[RI]* --\([a-z-]*\).*/--\1/p' | sort
}

# What the completion offers after "nbdelta $1" for "--".
offered() {
    nbdelta --complete ${1:+"$1"} -- | cut -f1 | sort
}

compare() {
    local command=$1 page=$2 help
    help=$(help_options "$command")
    [ -n "$help" ] || differs "nbdelta $command --help lists no options"
    nbdelta "$command" --help | grep -E '^ +-' | grep -E '\[[^]]*$' &&
        differs "nbdelta $command --help leaves out a part of these lines"
    [ -f "$page" ] || { differs "there is no $page"; return; }
    diff <(echo "$help") <(man_options "$page") ||
        differs "options of nbdelta $command: --help <, man page >"
    diff <(grep -o -e '--.*' <<<"$help" | sort) <(offered "$command") ||
        differs "options of nbdelta $command: --help <, completion >"
}

# nbdelta itself has just these.
for option in '-h --help' '-V --version' --dump-config --complete; do
    for form in $option; do
        nbdelta "$form" "$form" >/dev/null
    done
    man_options "$SRCDIR/man/nbdelta.1" | grep -qx -e "$option" ||
        differs "nbdelta.1 does not describe $option"
    offered '' | grep -qx -e "${option##* }" ||
        differs "the completion does not offer $option"
done
diff <(offered '') <(nbdelta --help | grep -o -e '--[a-z-]*' | sort -u) ||
    differs "options of nbdelta: --help >, completion <"
diff <(nbdelta --complete '' | cut -f1 | grep -v -e ^- -e '^help$') \
    <(nbdelta --help | sed -n 's/^  \([a-z-]\{2,\}\)  *[^ ].*/\1/p') ||
    differs "commands: --help >, completion <"
[ "$(nbdelta -V)" = "$(nbdelta --version)" ] || differs "-V and --version"

commands=$(nbdelta --help | sed -n 's/^  \([a-z-]\{2,\}\)  *[^ ].*/\1/p')
[ -n "$commands" ] || differs "nbdelta --help lists no commands"
for command in $commands; do
    compare "$command" "$SRCDIR/man/nbdelta-$command.1"
    grep -qF "nbdelta ${command//-/\\-}\"" "$SRCDIR/man/nbdelta.1" ||
        differs "nbdelta.1 does not tell about '$command'"
done

# And no page of a command that is not there.
for page in "$SRCDIR"/man/nbdelta-*.1; do
    command=${page##*/nbdelta-}
    grep -qx "${command%.1}" <<<"$commands" ||
        differs "$page: --help does not list this command"
done

# README and nbdelta(1) lead to each page; no page leads to one that is not
# there.
pages=$(for page in "$SRCDIR"/man/*.[157]; do
    page=${page##*/}
    echo "${page%.*}(${page##*.})"
done | sort)
awk '{ gsub(/\\-/, "-"); sub(/^\.BR "?/, ""); sub(/"? \(/, "(") }
    { while (match($0, /(nbdelta|nbdkit-nbd)[a-z-]*\([157]\)/)) {
        print FILENAME, substr($0, RSTART, RLENGTH)
        $0 = substr($0, RSTART + RLENGTH)
    } }' "$SRCDIR"/man/*.[157] "$SRCDIR/README.md" >named
cut -d' ' -f2 named | sort -u >all
comm -23 all <(echo "$pages") >lost
[ ! -s lost ] || differs "there is no such page: $(grep -Ff lost named)"
for guide in README.md man/nbdelta.1; do
    sed -n "s|^$SRCDIR/$guide ||p" named | sort -u >all
    comm -13 all <(echo "$pages") | grep -vxF 'nbdelta(1)' >lost || true
    [ ! -s lost ] || differs "$guide does not name $(cat lost)"
done

# The order of libguestfs' pages: what one looks for first comes first.
awk '/^\.SH / { all[FILENAME] = all[FILENAME] substr($0, 5) ";" }
    END { for (page in all) print page ":" all[page] }' \
    "$SRCDIR"/man/*.[157] >sections
[ "$(wc -l <sections)" = "$(wc -l <<<"$pages")" ] || differs "sections"
while IFS=: read -r page titles; do
    [[ $titles =~ ^NAME\;(SYNOPSIS\;)?DESCRIPTION\; &&
        $titles =~ \;SEE\ ALSO\;AUTHORS\;LICENSE\;$ ]] ||
        differs "$page: sections $titles"
    [[ $titles != *';EXAMPLES;'* ||
        $titles =~ \;DESCRIPTION\;(COMMANDS\;)?EXAMPLES\; ]] ||
        differs "$page: EXAMPLES come late in $titles"
done <sections
[ -z "$failed" ]

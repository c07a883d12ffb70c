# SPDX-License-Identifier: BSD-3-Clause
# fish completion for nbdelta.  The program says what can stand there ("nbdelta
# --complete", nbdelta(1)); fish completes files.

function __nbdelta_complete
    set -l words (commandline -opc)
    set -l typed (commandline -ct)
    # A quote that is open makes this fail.
    set -l word (string unescape -- $typed 2>/dev/null
        or string trim -l -c '\'"' -- $typed)
    set -l files # a function, and how the word begins before the file
    for line in ($words[1] --complete $words[2..] "$word" 2>/dev/null)
        set -l part (string split -m 2 \t -- $line)
        switch $line
            case \t'files'\t'*'
                set files __fish_complete_path "$part[3]"
            case \t'directories'\t'*'
                set -q files[1]
                or set files __fish_complete_directories "$part[3]"
            case '*'
                printf '%s\n' $line
        end
    end
    if set -q files[1]
        set -l head "$files[2]"
        set -l start (math 1 + (string length -- "$head"))
        for line in ($files[1] (string sub -s $start -- "$word"))
            printf '%s%s\n' "$head" $line
        end
    end
end

complete -c nbdelta -f -a '(__nbdelta_complete)'

# SPDX-License-Identifier: BSD-3-Clause
# fish completion for nbdelta.  The program says what can stand there ("nbdelta
# --complete", nbdelta(1)); fish completes files.

function __nbdelta_complete
    set -l words (commandline -opc)
    set -l typed (commandline -ct)
    # An open quote makes fish refuse; then it is taken as it is.
    set -l word (string unescape -- $typed 2>/dev/null; or string trim -l -c '\'"' -- $typed)
    set -l files
    for line in ($words[1] --complete $words[2..] "$word" 2>/dev/null)
        switch $line
            case \t'files'\t'*'
                set files __fish_complete_path (string split -m 2 -f 3 \t -- $line)
            case \t'directories'\t'*'
                set -q files[1]; or set files __fish_complete_directories (string split -m 2 -f 3 \t -- $line)
            case '*'
                printf '%s\n' $line
        end
    end
    if set -q files[1]
        set -l rest (string sub -s (math 1 + (string length -- "$files[2]")) -- "$word")
        for line in ($files[1] "$rest")
            printf '%s%s\n' "$files[2]" $line
        end
    end
end

complete -c nbdelta -f -a '(__nbdelta_complete)'

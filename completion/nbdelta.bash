# SPDX-License-Identifier: BSD-3-Clause
# bash completion for nbdelta.  The program says what can stand there, in quotes
# as they are needed ("nbdelta --complete", nbdelta(1)); bash completes files.

_nbdelta()
{
    local line files='' kind=-d name

    COMPREPLY=()
    while IFS= read -r line; do
        case $line in
        $'\tfiles'*) files=default kind=-f ;;
        $'\tdirectories'*) files=${files:-dirnames} ;;
        *) COMPREPLY+=("$line") ;;
        esac
    done < <("$1" --complete=bash "${COMP_LINE:0:COMP_POINT}" \
        "$COMP_WORDBREAKS" 2>/dev/null)
    if [ ${#COMPREPLY[@]} -eq 0 ]; then
        [ -z "$files" ] || compopt -o "$files"
        return
    fi
    [ -z "$files" ] || while IFS= read -r name; do
        printf -v line %q "$name"
        [ ! -d "$name" ] || line+=/
        COMPREPLY+=("$line")
    done < <(compgen "$kind" -- "$2" 2>/dev/null)
    [[ ${#COMPREPLY[@]} -gt 1 || ${COMPREPLY[0]} != *[=/,:@.] ]] ||
        compopt -o nospace
}

complete -F _nbdelta nbdelta

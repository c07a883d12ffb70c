# SPDX-License-Identifier: BSD-3-Clause
# awk -v section=NAME -f recipe.awk PAGE: the examples of a section of a man
# page, as they are printed.
/^\.SH / { on = $0 == ".SH " section; next }
/^\.E[XE]$/ { example = $0 == ".EX"; next }
on && example {
    gsub(/\\-/, "-")
    gsub(/\\e/, "\\")
    gsub(/\\\(aq/, "'")
    print
}

#!/bin/sh
# The tree keeps the include law and the style; and the two checkers do find what they are for.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# $1 checker, $2 expected text in its output for the broken tree
expect() {
    if "$root/scripts/$1" "$work" >"$work/out" 2>&1; then
        echo "$1 accepts a broken tree" >&2
        exit 1
    fi
    if ! grep -q -- "$2" "$work/out"; then
        echo "$1 does not report: $2" >&2
        cat "$work/out" >&2
        exit 1
    fi
}

mkdir -p "$work/core" "$work/model" "$work/rewards"
cat >"$work/core/a.h" <<'EOF'
/* A header. */
struct thing {
    int x;
};

/* Documented. */
int a_one(int x);
int a_two(int (*f)(int, int), int x); /* shares the comment above */

int a_three(void);
EOF
{
    echo '/* Sources. */'
    echo '#include "model/b.h"'
    echo '#include "a.h"'
    echo '#include <mpi.h>'
    echo '/* #include "rewards/none.h" is only a comment; so is strcpy(a, b) */'
    echo 'static const char *text = "strcat(a, b)";'
    echo 'int a_six(int a, int b, int c, int d, int e, int f, int g)'
    echo '{'
    echo '    strcpy(x, y);'
    i=0
    while [ $i -lt 70 ]; do
        echo '    a++;'
        i=$((i + 1))
    done
    echo '}'
} >"$work/core/a.c"
printf '/* Same base name. */\nint b;\n' >"$work/model/a.h"
printf '/* Header. */\nint\tb;\n' >"$work/model/b.h"

expect check_layers 'core/a.c:2: core/ may not include model/b.h'
expect check_layers 'core/a.c:3: include "a.h" by its folder'
expect check_layers 'core/a.c:4: <mpi.h> may be seen by'
expect check_layers '3 violations'
expect check_style 'core/a.c:7: a_six: 74 lines'
expect check_style 'core/a.c:7: a_six: 7 parameters'
expect check_style 'core/a.c:9: strcpy() is banned'
expect check_style 'core/a.h:10: a_three: prototype without a comment'
expect check_style 'model/a.h:1: the base name is taken by core/a'
expect check_style 'model/b.h:2: tab'
expect check_style '6 violations'

"$root/scripts/check_layers" "$root"
"$root/scripts/check_style" "$root"

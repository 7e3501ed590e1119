#!/bin/sh
# The generated pages of docs/ say what the program says.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
sh "$root/scripts/gen_docs" --check "$1"

#!/bin/bash
# scripts/bench_peers: a peer played by a script gives a row and a page; peers that are not there and
# names that mean nothing are said in one line.
set -u
foresight=$1
source_dir=$(cd -- "$(dirname -- "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

fail() {
    echo "FAIL: $*"
    failed=1
}

peers() {
    "$source_dir/scripts/bench_peers" --foresight "$foresight" --work "$work" --threads 1 \
        --rounds 1 --steps 1 "$@" >"$work/out" 2>"$work/err"
}

# llm.c's program and the header of a model of 4 layers of width 128.
python3 - "$work" <<'PY'
import struct, sys
with open(sys.argv[1] + "/gpt2_124M.bin", "wb") as file:
    file.write(struct.pack("<256i", 20240326, 3, 64, 512, 4, 4, 128, 512, *[0] * 248))
PY
cat >"$work/train_gpt2" <<'SH'
#!/bin/sh
for step in 0 1 2 3 4; do echo "step $step: train loss 5.3 (took 100.0 ms)"; done
SH
chmod +x "$work/train_gpt2"

peers llmc --llmc "$work/train_gpt2" --docs "$work/page.md" || fail "llmc: $(cat "$work/err")"
python3 - "$work" <<'PY' || fail "results"
import json, sys
(row,) = json.load(open(sys.argv[1] + "/results.json"))
assert row["model"] == "m1" and row["peer"] == "llm.c" and row["rounds"] == 1, row
count = (64 + 512) * 128 + 4 * (12 * 128 * 128 + 13 * 128) + 2 * 128
assert abs(row["theirs"] - 256 / 0.1 * count * 1e-6) < 1e-6 * row["theirs"], row
assert abs(row["ratio"] - row["ours"] / row["theirs"]) < 1e-9 * row["ratio"], row
page = open(sys.argv[1] + "/page.md").read()
assert "## Training" in page and "| m100 | 12 | 768 |" in page and "llm.c" in page, page
PY
peers llmc --llmc "$work/train_gpt2" || fail "again: $(cat "$work/err")"
[ "$(grep -c '"peer"' "$work/results.json")" = 1 ] || fail "the same case stands there twice"

peers alone --models m1 --dtypes bf16 --batch 2 --docs "$work/page.md" || fail "alone: $(cat "$work/err")"
grep -q "^| m1 | bf16 | batch 2 | .* of " "$work/page.md" || fail "no own row: $(cat "$work/page.md")"

peers llama llmc --llama "$work/none" --llmc "$work/none/train_gpt2"
[ $? -eq 1 ] || fail "no peer at all, exit code"
grep -q "llama left out: llama-batched-bench is not there" "$work/err" || fail "llama: $(cat "$work/err")"
grep -q "llmc left out: llm.c: .*No such file" "$work/err" || fail "llmc: $(cat "$work/err")"
printf '#!/bin/sh\nexit 1\n' >"$work/python"
chmod +x "$work/python"
peers pytorch trl tokenizers --python "$work/python" && fail "a Python without peers"
[ "$(grep -c 'left out: .*pip install' "$work/err")" = 3 ] || fail "$(cat "$work/err")"
peers lama && fail "unknown peer"
grep -q "lama: peers are alone, llama, pytorch" "$work/err" || fail "unknown: $(cat "$work/err")"
peers llmc --foresight "$work/none" && fail "no program"
grep -q "build it, or give --foresight" "$work/err" || fail "program: $(cat "$work/err")"
exit $failed

#!/bin/bash
# The program from outside: help, exit codes, doctor, inspect and report on sound and unsound input.
set -u
foresight=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

# expect CODE PATTERN COMMAND...: exit code and a pattern in what it prints (both streams)
expect() {
    local code=$1 pattern=$2
    shift 2
    local output status
    output=$("$@" 2>&1)
    status=$?
    if [ $status -ne "$code" ] || ! grep -Eq -- "$pattern" <<<"$output"; then
        echo "FAIL: $* -> $status (expected $code, /$pattern/)"
        echo "$output" | tail -5
        failed=1
    fi
}
is_json() { tail -n 1 | python3 -c 'import json,sys; json.loads(sys.stdin.read())'; }

# --- help and usage
expect 0 'usage: foresight COMMAND' "$foresight" --help
expect 2 'usage: foresight COMMAND' "$foresight"
expect 0 '^foresight [0-9]+\.[0-9]+' "$foresight" --version
expect 2 "did you mean 'train'" "$foresight" trian
expect 2 'no command' "$foresight" xyzzy-nothing
expect 0 'prompts_per_step' "$foresight" help config rollout
for command in train sft distill eval compare generate check export doctor bench simulate task inspect tokenize score report; do
    expect 0 "usage: foresight $command" "$foresight" $command --help
done
"$foresight" help markdown config | grep -q learning_rate || { echo "FAIL: markdown"; failed=1; }

# --- a closed or full standard output is an error, not a success
"$foresight" help config >/dev/full 2>/dev/null && { echo "FAIL: full disk unseen"; failed=1; }

# --- doctor: one JSON object on the last line that agrees with the exit code
"$foresight" doctor --json >"$work/doctor" 2>"$work/doctor.err"
status=$?
python3 - "$work/doctor" $status <<'PY' || { cat "$work/doctor"; failed=1; }
import json, sys
found = json.loads(open(sys.argv[1]).read().splitlines()[-1])
checks = {c["check"]: c for c in found["checks"]}
assert found["sound"] == (int(sys.argv[2]) == 0), "exit code"
assert found["sound"] == all(c["level"] != "FAIL" for c in found["checks"])
for name in ("processor", "kernels", "gpu", "memory", "mpirun", "two ranks", "storage"):
    assert name in checks, name
assert checks["storage"]["level"] == "OK", checks["storage"]
PY
expect 2 'usage' "$foresight" doctor nonsense

# --- gpu_check: one line where there is no GPU; a bundle that starts without the machine's libraries
gpu_check=$(dirname "$0")/../scripts/gpu_check
"$foresight" doctor >"$work/doctor"
if grep -Eq 'gpu +none' "$work/doctor"; then
    expect 1 '^gpu_check: no GPU to check: none' "$gpu_check" "$(dirname "$foresight")"
    expect 0 'MiB; copy it' "$gpu_check" --bundle "$work/bundle" "$(dirname "$foresight")"
    expect 1 '^gpu_check: no GPU to check: none' env -i PATH="$PATH" "$work/bundle/gpu_check"
fi

# --- inspect: safetensors made here, whole and broken
python3 - "$work" <<'PY'
import json, struct, sys
def write(name, header, data, size=None):
    text = json.dumps(header).encode()
    with open(f"{sys.argv[1]}/{name}", "wb") as out:
        out.write(struct.pack("<Q", len(text) if size is None else size) + text + data)
tensor = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
write("good.safetensors", {"a.weight": tensor}, bytes(24))
write("short.safetensors", {"a.weight": tensor}, bytes(20))
write("huge.safetensors", {"a.weight": tensor}, bytes(24), 1 << 60)
write("shape.safetensors", {"a.weight": dict(tensor, shape=[2, 4])}, bytes(24))
PY
expect 0 'a\.weight.*F32.*\[2, 3\]' "$foresight" inspect "$work/good.safetensors"
expect 0 '"sound": ?true' "$foresight" inspect "$work/good.safetensors" --json
for name in short huge shape; do
    expect 1 'sound +no' "$foresight" inspect "$work/$name.safetensors"
    "$foresight" inspect "$work/$name.safetensors" --json 2>/dev/null | is_json || failed=1
done
printf 'not hdf5' >"$work/seg_000001.h5"
expect 1 'reason' "$foresight" inspect "$work/seg_000001.h5"
printf 'plain text' >"$work/notes.txt"
expect 1 'not a safetensors file' "$foresight" inspect "$work/notes.txt"
expect 1 'No such file' "$foresight" inspect "$work/absent"
mkdir "$work/empty"
expect 1 'neither a checkpoint' "$foresight" inspect "$work/empty"
mkfifo "$work/pipe"
expect 1 'neither a file nor a folder' timeout 60 "$foresight" inspect "$work/pipe"

# --- report and inspect of a run folder
mkdir "$work/run"
for step in 1 2 3; do
    echo "{\"step\": $step, \"reward\": 0.$step, \"accuracy\": 0.$step}"
done >"$work/run/metrics.jsonl"
expect 0 '3 steps' "$foresight" report "$work/run" --curve "$work/curve.svg"
[ -s "$work/run/report.html" ] && [ -s "$work/curve.svg" ] || { echo "FAIL: no page"; failed=1; }
"$foresight" report "$work/run" --json | is_json || { echo "FAIL: report --json"; failed=1; }
expect 0 'last_step +3' "$foresight" inspect "$work/run"
printf '{"step": 4, "rew' >>"$work/run/metrics.jsonl"
expect 0 'cut off' "$foresight" report "$work/run"
printf '\n{"step": 5}\n' >>"$work/run/metrics.jsonl"
expect 1 'line 4' "$foresight" report "$work/run"
expect 1 'line 4' "$foresight" inspect "$work/run"
mkdir -p "$work/run2/checkpoints/step_000001"
echo '{}' >"$work/run2/checkpoints/step_000001/MANIFEST.json"
expect 1 'sound no' "$foresight" inspect "$work/run2"
expect 2 'needs a value' "$foresight" report "$work/run" --output
expect 2 'usage' "$foresight" report

[ $failed -eq 0 ] && echo "script_cli: all as expected"
exit $failed

# Shared by the tests of sweeps, on top of train_support.sh: small sweeps in $work/sweeps.
. "$(dirname -- "${BASH_SOURCE[0]}")/train_support.sh"

# write_sweep NAME YAML: trials in one process, evaluated at two temperatures
write_sweep() {
    mkdir -p "$work/sweeps"
    cat >"$work/$1.yaml" <<YAML
sweep: {name: $1, dir: $work/sweeps, command: train, config: $work/config.yaml}
options:
  run: {steps: 4}
  async: {enabled: false}
  data: {eval: $work/task/eval.jsonl}
  checkpoint: {every: 2}
eval: {samples: 2, temperatures: [0.5, 1.0]}
$2
YAML
}

# sweep NAME [ARGUMENT...]: to the end; its status. What it prints is in $work/NAME.log
sweep() {
    local name=$1
    shift
    timeout 600 "$foresight" sweep "$work/$name.yaml" "$@" >>"$work/$name.log" 2>&1
}

# start_sweep RANKS NAME [ARGUMENT...]: in the background, as a group of processes of its own
start_sweep() {
    local ranks=$1 name=$2 launcher=()
    shift 2
    [ "$ranks" -eq 1 ] || launcher=(mpirun -n "$ranks" ${mpirun_flags-})
    setsid "${launcher[@]}" "$foresight" sweep "$work/$name.yaml" "$@" >>"$work/$name.log" 2>&1 &
    pid=$!
    wait_for 120 has_become_program # until then a signal is the shell's
}
has_become_program() {
    ! sweep_is_there || grep -qv -e '^bash$' -e '^setsid$' "/proc/$pid/comm"
}

sweep_is_there() { kill -0 "$pid" 2>/dev/null; }

# The sweep and its ranks at once, without a word; trials must die by themselves
kill_sweep() {
    # shellcheck disable=SC2046 # several words
    kill -KILL "$pid" $(ranks_of) 2>/dev/null
    wait "$pid" 2>/dev/null
}

finished_trials() { ls "$work/sweeps/$1"/trials/*/result.json 2>/dev/null | wc -l; }

# Everything of a sweep that does not depend on time, a name a line
lasting_files() {
    (cd "$work/sweeps/$1" && find . -name result.json -o -path '*/eval/*.h5' -o -name config.yaml \
        -path ./config.yaml | sort)
}

# same_sweep A B: the same files, with the same bytes
same_sweep() {
    local file
    [ "$(lasting_files "$1")" = "$(lasting_files "$2")" ] || fail "$1 and $2: other files"
    for file in $(lasting_files "$1"); do
        cmp -s "$work/sweeps/$1/$file" "$work/sweeps/$2/$file" || fail "$1 and $2 differ in $file"
    done
}

# result SWEEP TRIAL PYTHON-EXPRESSION: over the trial's result `r`
result() {
    python3 - "$work/sweeps/$1/trials/$2/result.json" "$3" <<'PY' || fail "$1/$2: not $3"
import json, sys
r = json.load(open(sys.argv[1]))
if not eval(sys.argv[2]):
    sys.exit(f"{sys.argv[2]} is false of {r}")
PY
}

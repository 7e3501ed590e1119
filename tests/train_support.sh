# Shared by the whole-program training tests: a tiny model and task in $work/base and $work/task, a
# configuration, and helpers. The caller sets $foresight; every path below $work goes away at exit.
set -u
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_odls_base_sigkill_timeout=3
export OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_hwloc_base_binding_policy=none

fail() {
    echo "FAIL: $*"
    failed=1
}

# A base model that knows a little, so that rewards differ within groups.
make_base() {
    mkdir -p "$work/init"
    cat >"$work/init/config.json" <<'JSON'
{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 32,
 "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
 "num_key_value_heads": 2, "head_dim": 8, "hidden_act": "silu", "max_position_embeddings": 128,
 "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "tie_word_embeddings": true,
 "attention_bias": false, "initializer_range": 0.02, "eos_token_id": 0, "pad_token_id": 1}
JSON
    "$foresight" task chain "$work/task" --train 300 --eval 20 --sft 12000 --operands-max 4 \
        >"$work/task.log" 2>&1 &&
        cp "$work"/task/tokenizer*.json "$work/init/" &&
        "$foresight" sft run.threads=2 run.name=sft run.dir="$work" model.path="$work/init" \
            data.max_prompt_length=16 rollout.max_completion_length=24 \
            sft.data="$work/task/sft.jsonl" sft.epochs=2 sft.batch_tokens=2048 sft.output="$work/base" \
            optimizer.learning_rate=3e-3 >"$work/sft.log" 2>&1 ||
        { cat "$work/task.log" "$work/sft.log"; echo "FAIL: no base model"; exit 1; }
    cat >"$work/config.yaml" <<YAML
run: {dir: $work/runs, steps: 6, seed: 3}
model: {path: $work/base}
data: {train: $work/task/train.jsonl, max_prompt_length: 16}
rollout: {prompts_per_step: 6, samples_per_prompt: 4, max_completion_length: 24, max_running: 16}
rewards: {functions: numeric}
async: {max_staleness: 2, heartbeat_ms: 100, dead_after_ms: 30000, wait_timeout_ms: 200000}
optimizer: {learning_rate: 1e-3, updates_per_step: 2, max_tokens_per_microbatch: 256}
checkpoint: {every: 2}
YAML
}

# train NAME [KEY=VALUE...]: one process, to the end
train() {
    local name=$1
    shift
    timeout 600 "$foresight" train "$work/config.yaml" async.enabled=false run.name="$name" "$@" \
        >>"$work/$name.log" 2>&1 || { fail "train $name"; tail -5 "$work/$name.log"; }
}

# train_ranks N NAME [KEY=VALUE...]: under mpirun, to the end
train_ranks() {
    local ranks=$1 name=$2
    shift 2
    timeout 600 mpirun -n "$ranks" "$foresight" train "$work/config.yaml" run.name="$name" "$@" \
        >>"$work/$name.log" 2>&1 || { fail "train $name on $ranks ranks"; tail -5 "$work/$name.log"; }
}

# The newest checkpoint folder of a run
last_checkpoint() { ls -d "$work/runs/$1"/checkpoints/step_* | tail -n 1; }

# The program that compares what runs left behind
run_files() { "$(dirname -- "$foresight")/check_run_files" "$@"; }

# same_bits A B: weights, moments and counters of the last checkpoints of two runs are equal
same_bits() {
    run_files state "$(last_checkpoint "$1")" "$(last_checkpoint "$2")" >/dev/null ||
        fail "the last checkpoints of $1 and $2 differ"
}

# summary NAME PYTHON-EXPRESSION: over the run's summary `s`
summary() {
    python3 - "$work/runs/$1/summary.json" "$2" <<'PY' || fail "$1: not $2"
import json, sys
s = json.load(open(sys.argv[1]))
if not eval(sys.argv[2]):
    sys.exit(f"{sys.argv[2]} is false of {s}")
PY
}

# every_step NAME N: metrics.jsonl has the steps 1 .. N once each, in order
every_step() {
    python3 - "$work/runs/$1/metrics.jsonl" "$2" <<'PY' || fail "$1: metrics.jsonl"
import json, sys
steps = [json.loads(line)["step"] for line in open(sys.argv[1])]
if steps != list(range(1, int(sys.argv[2]) + 1)):
    sys.exit(f"steps {steps}")
PY
}

# wait_for SECONDS COMMAND...: until it succeeds
wait_for() {
    local limit=$(($(date +%s) + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$(date +%s)" -lt $limit ] || return 1
        sleep 0.02
    done
}

# start_ranks N NAME [KEY=VALUE...]: in the background; mpirun's process id in $pid
start_ranks() {
    local ranks=$1 name=$2
    shift 2
    mpirun -n "$ranks" ${mpirun_flags-} "$foresight" train "$work/config.yaml" run.name="$name" \
        "$@" >>"$work/$name.log" 2>&1 &
    pid=$!
}

# Process ids of mpirun's ranks; of rank $1 if given
ranks_of() {
    local process rank=${1-}
    for process in $(cat "/proc/$pid/task/$pid/children" 2>/dev/null); do
        if [ -z "$rank" ] ||
            tr '\0' '\n' <"/proc/$process/environ" 2>/dev/null | grep -qx "OMPI_COMM_WORLD_RANK=$rank"; then
            echo "$process"
        fi
    done
}

# SIGKILL to all of the job at once: mpirun is held first, so that it starts nobody meanwhile
kill_job() {
    kill -STOP "$pid" 2>/dev/null
    kill -KILL $(ranks_of) "$pid" 2>/dev/null
    wait "$pid" 2>/dev/null
}

# hold PROCESS: SIGSTOP; it does nothing any more when this returns
hold() {
    kill -STOP "$1"
    wait_for 60 is_held "$1" || fail "process $1 cannot be held"
}
is_held() { ! cat "/proc/$1"/task/*/status | grep -q '^State:.[RSD]'; }

# stop_soon NAME LEARNER SIGNAL: the signal to a run in the background; what it had written by then
# in $before. Held meanwhile, so that the run makes no steps between the look and the signal.
stop_soon() {
    hold "$2"
    before=$(lines "$1")
    kill "-$3" "$2"
    kill -CONT "$2"
}

lines() { wc -l <"$work/runs/$1/metrics.jsonl"; }
has_lines() { [ "$(lines "$1")" -ge "$2" ]; }

# give_up NAME: the job in the background is no use any more, and what comes needs it
give_up() {
    tail -n 5 "$work/$1.log"
    kill_job
    exit 1
}

# first_steps NAME COUNT: the run in the background gets so far
first_steps() {
    wait_for 120 has_lines "$1" "$2" || { fail "$1: no $2 steps were made"; give_up "$1"; }
}

# sound NAME ETA STEPS: what holds of every run that finished
sound() {
    summary "$1" 's["completed"] and s["logprob_mismatch"]["max"] == 0'
    summary "$1" 's["logprob_mismatch"]["tokens"] > 0'
    summary "$1" "s['staleness']['max'] <= $2"
    summary "$1" 'sum(i * n for i, n in enumerate(s["staleness"]["histogram"])) == round(
        s["staleness"]["mean"] * sum(s["staleness"]["histogram"]))'
    summary "$1" 's["tickets"]["created"] == s["tickets"]["trained"] + sum(s["tickets"]["dropped"].values())'
    summary "$1" "s['tickets']['live'] == 0 and s['tickets']['trained'] == 6 * $3"
    summary "$1" 's["tickets"]["dropped"]["rejected"] == 0 and s["tickets"]["dropped"]["unscorable"] == 0'
    every_step "$1" "$3"
    [ "$(run_files once "$work/runs/$1")" = $((6 * $3)) ] || fail "$1: groups in segments"
}

# Process ids of the rollout processes: mpirun's, and those that learner 0 started in their place
rollouts() {
    local process learner
    learner=$(ranks_of 0)
    for process in $(ranks_of) $(cat /proc/"$learner"/task/*/children 2>/dev/null); do
        [ "$process" = "$learner" ] || ! grep -qx foresight "/proc/$process/comm" 2>/dev/null ||
            grep -q '^State:.Z' "/proc/$process/status" 2>/dev/null || echo "$process"
    done
}

# Seconds since the epoch, and the difference of two such times
now() { date +%s.%N; }
since() { awk -v now="$(now)" -v then="$1" 'BEGIN { printf "%.2f", now - then }'; }

# Processes of $work that are still there
left_over() { pgrep -fa -- "$work/"; }
none_left() { [ -z "$(left_over)" ]; }

# stale_weights PROCESS...: shared weights that these, dead now, have left
stale_weights() {
    local process file
    for process in "$@"; do
        for file in "/dev/shm/foresight-$process"-*; do
            [ ! -e "$file" ] || echo "$file"
        done
    done
}

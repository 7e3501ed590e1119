#!/bin/bash
# Record and replay from outside: asynchronous runs computed again in one process with equal hashes at
# every step, resumed and killed ones too; groups looked into; damaged records refused.
foresight=$1
. "$(dirname -- "$0")/train_support.sh"
command -v mpirun >/dev/null || { echo "FAIL: no mpirun"; exit 1; }
make_base
sed -i -e 's/prompts_per_step: 6/prompts_per_step: 2/' -e 's/max_running: 16/max_running: 2/' \
    -e 's/max_completion_length: 24/max_completion_length: 60, temperature: 3/' "$work/config.yaml"

# replay NAME [OPTION...]: JSON of the replay in $work/replay.json
replay() {
    local name=$1
    shift
    "$foresight" replay "$work/runs/$name" --json "$@" >"$work/replay.json" 2>"$work/replay.log"
}

# says PYTHON-EXPRESSION: over the last replay's JSON `r`
says() {
    python3 -c "import json,sys; r = json.load(open('$work/replay.json')); sys.exit(not ($1))" 2>>"$work/replay.log" ||
        { fail "not $1"; cat "$work/replay.json" "$work/replay.log"; }
}

# equal NAME STEPS [PROMPTS]: replayed whole, sampled again, equal
equal() {
    replay "$1" || { fail "replay $1"; cat "$work/replay.json" "$work/replay.log"; }
    says "r['equal'] and r['last_step'] == $2 and r['steps'] == $2 and r['groups_recorded'] == 0 and
        r['groups_sampled'] == ${3-2} * $2"
    grep -q '"samples_switched":[1-9]' "$work/replay.json" && switched=$((switched + 1))
}

# refused WORDS NAME [OPTION...]: exit code 1 and the reason
refused() {
    local words=$1
    shift
    if replay "$@"; then fail "replay $* was not refused"; fi
    grep -q -- "$words" "$work/replay.log" || { fail "replay $*: no \"$words\""; cat "$work/replay.log"; }
}

# tickets NAME STEP: what the step was trained on; the message names them
tickets() {
    "$foresight" replay "$work/runs/$1" --step "$2" --ticket 999999 2>&1 |
        sed -n '/was not trained on/ {s/.*but on//; s/\[.*//; p}'
}

# --- both ways with the cache, by a model whose samples take long: where the worker has the samples of
# all 20 steps to make from the start, new weights come in the middle of samples
mkdir "$work/wide_init"
sed -e 's/"hidden_size": 32/"hidden_size": 256/; s/"intermediate_size": 64/"intermediate_size": 768/' \
    -e 's/"num_hidden_layers": 2/"num_hidden_layers": 4/; s/"head_dim": 8/"head_dim": 64/' \
    "$work/init/config.json" >"$work/wide_init/config.json"
cp "$work"/init/tokenizer* "$work/wide_init/"
"$foresight" export "$work/wide_init" "$work/wide" --random 5 >/dev/null || fail "export"
switched=0
wide=(model.path="$work/wide" rollout.max_running=1 rollout.max_completion_length=24
    rollout.temperature=1 loss.mask_truncated_completions=true loss.entropy_coef=0.01
    optimizer.updates_per_step=1 optimizer.learning_rate=1e-4 checkpoint.every=9)
train_ranks 2 keep run.steps=20 "${wide[@]}" async.record=deltas
equal keep 20
for cache in keep recompute; do
    switched=0
    train_ranks 2 far_$cache run.steps=20 "${wide[@]}" rollout.kv_on_update=$cache async.max_staleness=20
    equal far_$cache 20
    [ $switched -gt 0 ] || fail "far_$cache: no sample of several versions"
done

# --- every order
train_ranks 4 ready run.steps=30 checkpoint.every=9 loss.beta=0.01
equal ready 30
train_ranks 3 ticket run.steps=20 async.order=ticket optimizer.updates_per_step=1 run.threads=2 \
    kernels.weights=bf16
equal ticket 20
train_ranks 4 fixed run.steps=16 async.order=fixed_lag loss.dynamic_sampling=true \
    loss.dynamic_sampling_rounds=1000
equal fixed 16
train sync run.steps=10
equal sync 10

# --- parts of a run
replay ready --until 7 && says "r['equal'] and r['last_step'] == 7 and r['steps'] == 7" || fail until
replay ready --from 27 && says "r['equal'] and r['last_step'] == 30 and r['steps'] == 3" || fail from
replay ready --recorded && says "r['equal'] and r['groups_sampled'] == 0" || fail recorded
refused 'there is no step 31' ready --until 31

# --- groups: the recorded log-probs, bit for bit
deltas=0
for name in keep far_recompute; do
    for step in 2 7 11 12 16 20; do
        for ticket in $(tickets $name $step); do
            replay $name --step $step --ticket "$ticket" ||
                { fail "$name: step $step, ticket $ticket"; cat "$work/replay.log"; continue; }
            says "r['different'] == 0 and r['max_abs_difference'] == 0 and r['tokens'] > 0 and
                r['ticket'] == $ticket and r['versions'][1] < $step and
                (r['deltas'] == 0 or '$name' == 'keep')"
            grep -q '"deltas":[1-9]' "$work/replay.json" && deltas=$((deltas + 1))
        done
    done
done

[ $deltas -gt 0 ] || fail "no version was read from deltas.bin"
python3 - "$work/runs/keep/deltas.bin" <<'PY'
import sys
data = bytearray(open(sys.argv[1], "rb").read())
data[len(data) // 8] ^= 1
open(sys.argv[1], "wb").write(data)
PY
refused 'deltas.bin: record at byte' keep --step 8 --ticket "$(tickets keep 8 | awk '{print $1}')"

# --- killed, replayed as far as it is written, resumed with more steps, replayed as one run
start_ranks 4 killed run.steps=1000000 checkpoint.every=4
first_steps killed 14
kill_job
refused 'it has no end' killed
replay killed --until 8 && says "r['equal'] and r['last_step'] == 8" || fail "killed --until 8"
steps=$(($(lines killed) + 6))
train_ranks 3 killed run.steps=$steps checkpoint.every=4 optimizer.learning_rate=5e-4 \
    async.record=deltas
equal killed $steps
kill_after=$((steps + 5))
train_ranks 4 killed run.steps=$kill_after checkpoint.every=4
equal killed $kill_after

# --- a run whose weights blew up, and that went back to sound ones
train wild run.steps=120 optimizer.max_grad_norm=0 optimizer.updates_per_step=1 \
    optimizer.learning_rate=0.35 optimizer.weight_decay=10 rollout.prompts_per_step=6 \
    rollout.max_running=16 rollout.max_completion_length=24 rollout.temperature=1
grep -q 'rolled back to' "$work/wild.log" || fail "wild: no rollback"
equal wild 120 6

# --- refused: flipped, cut, exchanged bytes; another model; several learners
events=$work/runs/ready/events.bin
cp "$events" "$work/sound.bin"
size=$(stat -c %s "$events")
for at in 0 9 $((size / 3)) $((size / 2)) $((size - 30)); do
    python3 - "$work/sound.bin" "$events" "$at" <<'PY'
import sys
data = bytearray(open(sys.argv[1], "rb").read())
data[int(sys.argv[3])] ^= 16
open(sys.argv[2], "wb").write(data)
PY
    refused 'events.bin.*byte [0-9]*: ' ready
done
replay ready --until 10 && says "r['equal'] and r['last_step'] == 10" || fail "damaged behind step 10"
head -c $((size - 7)) "$work/sound.bin" >"$events"
refused 'the file ends inside it' ready
cp "$work/sound.bin" "$events"
mv "$work/base/model.safetensors" "$work/model.kept"
cp "$(last_checkpoint ready)/model.safetensors" "$work/base/model.safetensors"
refused 'are not those that the run began with' ready
mv "$work/model.kept" "$work/base/model.safetensors"
train_ranks 4 pair run.steps=3 cluster.learners=2
refused 'only runs with one learner' pair
equal ready 30

# --- named: the first thing that differs
python3 - "$work/task/train.jsonl" <<'PY'
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
for row in rows:
    row["answer"] = "77"
open(sys.argv[1], "w").writelines(json.dumps(row) + "\n" for row in rows)
PY
if replay ready; then fail "other answers were not noticed"; fi
says "not r['equal'] and r['step'] >= 1 and 'recorded reward' in r['difference']"

[ $failed -eq 0 ] && echo "script_train_replay: all as expected"
exit $failed

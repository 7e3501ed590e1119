#!/bin/bash
# Weights that travel by messages (transport.force_remote: every rollout rank as a node of its own):
# the same bits as without, every image verified, no more bytes than whole images would take.
foresight=$1
. "$(dirname -- "$0")/train_support.sh"
command -v mpirun >/dev/null || { echo "FAIL: no mpirun"; exit 1; }
make_base

# sent NAME: who got weights got a whole image to begin with, and nothing was refused
sent() {
    summary "$1" 's["weights"]["refused"] == 0 and s["weights"]["full_sends"] > 0'
    summary "$1" 's["weights"]["published"] > 0'
    summary "$1" 's["weights"]["bytes"] <= s["weights"]["sends"] * s["weights"]["full_image_bytes"]'
}

# --- staleness 0: the very bits of the synchronous run
train sync run.steps=15 checkpoint.every=9
train_ranks 4 remote_0 run.steps=15 checkpoint.every=9 async.max_staleness=0 \
    transport.force_remote=true
sound remote_0 0 15
same_bits sync remote_0
sent remote_0
[ "$(run_files samples "$work/runs/sync" "$work/runs/remote_0")" = 360 ] ||
    fail "remote_0: other samples"

# --- fixed_lag: every version goes to every node in its turn, and the bits are those of a run whose
# ranks share the learner's arena; a run may go on with its ranks elsewhere
fixed=(async.order=fixed_lag async.max_staleness=3 checkpoint.every=7)
train_ranks 2 lag_local run.steps=25 "${fixed[@]}"
train_ranks 4 lag_remote run.steps=25 "${fixed[@]}" transport.force_remote=true
for steps in 9 17 25; do
    train_ranks 3 lag_moving run.steps=$steps "${fixed[@]}" \
        transport.force_remote=$([ $steps = 17 ] && echo false || echo true)
done
for name in lag_remote lag_moving; do
    sound $name 3 25
    same_bits lag_local $name
    summary $name 's["weights"]["refused"] == 0 and s["weights"]["sends"] > s["weights"]["full_sends"]'
    [ "$(run_files samples "$work/runs/lag_local" "$work/runs/$name")" = 600 ] ||
        fail "$name: other samples"
done
summary lag_local 's["weights"]["sends"] == 0'
sent lag_remote

# --- bounded staleness, bf16 weights of which less changes
train_ranks 4 remote_bf16 run.steps=40 kernels.weights=bf16 optimizer.learning_rate=1e-5 \
    transport.force_remote=true
sound remote_bf16 2 40
sent remote_bf16
# At staleness 0 every version is awaited, so that none has to be sent whole again.
train_ranks 4 remote_deltas run.steps=20 kernels.weights=bf16 optimizer.learning_rate=1e-5 \
    async.max_staleness=0 transport.force_remote=true
sound remote_deltas 0 20
sent remote_deltas
summary remote_deltas 's["weights"]["bytes"] < 0.7 * s["weights"]["sends"] * s["weights"]["full_image_bytes"]'
python3 - "$work/runs/remote_deltas/metrics.jsonl" <<'PY' || fail "remote_deltas: metrics"
import json, sys
lines = [json.loads(line) for line in open(sys.argv[1])]
assert all(0 < line["weights/changed_fraction"] < 1 for line in lines)
last = [line for line in lines if "weights/bytes_per_update" in line][-1]
assert 0 < last["weights/bytes_per_update"] <= last["weights/full_image_bytes"], last
assert last["weights/full_sends"] > 0 and last["weights/refused"] == 0, last
assert last["time/weight_encode"] >= 0, last
PY

# --- two learners, and a run that goes on
train_ranks 4 remote_pair run.steps=8 checkpoint.every=4 cluster.learners=2 \
    transport.force_remote=true
train_ranks 4 remote_pair run.steps=14 checkpoint.every=4 cluster.learners=2 \
    transport.force_remote=true run.resume=must
sound remote_pair 2 14
sent remote_pair

[ $failed -eq 0 ] && echo "script_train_nodes: all as expected"
exit $failed

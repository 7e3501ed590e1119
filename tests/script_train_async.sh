#!/bin/bash
# Asynchronous training from outside, under mpirun: exact log-probs, bounded staleness, every ticket
# accounted for; the same samples whoever makes them; several learners.
foresight=$1
. "$(dirname -- "$0")/train_support.sh"
command -v mpirun >/dev/null || { echo "FAIL: no mpirun"; exit 1; }
make_base

# --- two and four ranks, without and with a bound on staleness
for ranks in 2 4; do
    train_ranks $ranks ranks_$ranks run.steps=60 checkpoint.every=9
    sound ranks_$ranks 2 60
done
summary ranks_4 's["rollout"]["pass_us_p50"] > 0'
train_ranks 3 recompute run.steps=30 rollout.kv_on_update=recompute loss.dynamic_sampling=true
summary recompute 's["completed"] and s["logprob_mismatch"]["max"] == 0 and s["tickets"]["live"] == 0'

# --- batches in the order of the tickets, and a bound on staleness that finds itself
train_ranks 4 ticket run.steps=60 async.order=ticket loss.dynamic_sampling=true
summary ticket 's["completed"] and s["logprob_mismatch"]["max"] == 0 and s["tickets"]["live"] == 0'
summary ticket 's["staleness"]["max"] <= 2 and s["tickets"]["trained"] == 360'
train_ranks 3 auto run.steps=60 async.max_staleness=auto
sound auto 16 60
python3 - "$work/runs/auto/metrics.jsonl" <<'PY' || fail "auto: async/max_staleness"
import json, sys
bounds = [json.loads(line)["async/max_staleness"] for line in open(sys.argv[1])]
if bounds[0] != 1 or max(abs(a - b) for a, b in zip(bounds, bounds[1:])) > 1:
    sys.exit(f"bounds {bounds}")
PY

# --- staleness 0: the very bits of the synchronous run, for any number of rollout ranks
train sync run.steps=40 checkpoint.every=9
for ranks in 2 4; do
    train_ranks $ranks eta_0_$ranks run.steps=40 checkpoint.every=9 async.max_staleness=0
    sound eta_0_$ranks 0 40
    same_bits sync eta_0_$ranks
    [ "$(run_files samples "$work/runs/sync" "$work/runs/eta_0_$ranks")" = 960 ] ||
        fail "eta_0_$ranks: other samples"
done

# --- the same samples from one and from three rollout ranks at fixed weights: all of them where the
# tickets' order says which are trained on, otherwise those that both happened to take
for order in ready ticket; do
    for ranks in 2 4; do
        train_ranks $ranks ${order}_$ranks run.steps=20 optimizer.learning_rate=0 async.order=$order
    done
    common=$(run_files samples "$work/runs/${order}_2" "$work/runs/${order}_4") ||
        fail "1 and 3 rollout ranks, $order: other samples"
done
[ "$common" = 480 ] || fail "1 and 3 rollout ranks in the order of tickets: $common samples in common"
# The first tickets are dealt to the ranks by turns, and in this order none is done without.
[ "$(run_files spread "$work/runs/ticket_4")" = 3 ] || fail "not every rollout rank took part"

# --- two learners: deterministic at staleness 0
for name in pair pair_again; do
    train_ranks 3 $name run.steps=20 cluster.learners=2 async.max_staleness=0
    sound $name 0 20
done
same_bits pair pair_again

# --- moments shared out between learners: the same bits, also of a run that goes on with a share less,
# or with no shares
train_ranks 3 pair_zero run.steps=12 cluster.learners=2 async.max_staleness=0 optimizer.zero_stage=1
sound pair_zero 0 12
train_ranks 3 pair_zero run.steps=20 cluster.learners=2 async.max_staleness=0 optimizer.zero_stage=0
sound pair_zero 0 20
same_bits pair pair_zero
train_ranks 4 pair_async run.steps=20 cluster.learners=2 loss.beta=0.01
sound pair_async 2 20

[ $failed -eq 0 ] && echo "script_train_async: all as expected"
exit $failed

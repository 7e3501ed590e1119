#!/bin/bash
# Every objective and every correction trains: two steps each from outside, and one asynchronous run
# with each way to get old log-probs. At staleness 0 no correction may change a bit.
foresight=$1
. "$(dirname -- "$0")/train_support.sh"
make_base

# choices OPTION: the choices of an option of loss, one a line, from the program's own table
choices() {
    "$foresight" help markdown config | sed -n "s/^| \`$1\` | \([^ ]*\) |.*/\1/p" | head -1 |
        sed 's/\\|/\n/g'
}

short=(run.steps=2 checkpoint.every=0 rollout.prompts_per_step=4 rollout.max_completion_length=16)
exact='s["completed"] and s["logprob_mismatch"]["max"] == 0'

# --- objectives
count=0
for loss in $(choices loss_type); do
    train "loss_$loss" "${short[@]}" loss.loss_type="$loss"
    summary "loss_$loss" "$exact"
    count=$((count + 1))
done
[ $count -ge 11 ] || fail "only $count objectives were found"

# --- advantages
count=0
for advantage in $(choices advantage); do
    old=behaviour
    [ "$advantage" = vtrace ] && old=recompute
    train "a_$advantage" "${short[@]}" loss.advantage="$advantage" loss.old_logprob=$old
    summary "a_$advantage" "$exact"
    count=$((count + 1))
done
[ $count -ge 8 ] || fail "only $count advantages were found"
train a_kl "${short[@]}" loss.advantage=reinforce_plus_plus loss.gamma=0.9 loss.beta=0.05 \
    loss.kl_in=reward

# --- corrections: one update a step, so that all three policies agree and every weight is 1
one=("${short[@]}" optimizer.updates_per_step=1)
train plain "${one[@]}"
count=0
for correction in $(choices correction); do
    train "c_$correction" "${one[@]}" loss.old_logprob=recompute loss.correction="$correction"
    same_bits plain "c_$correction"
    count=$((count + 1))
done
[ $count -ge 11 ] || fail "only $count corrections were found"
train everything "${one[@]}" loss.old_logprob=recompute loss.correction=mis \
    loss.correction_normalize=true loss.veto_threshold=1e-4 loss.opsm_delta=0.01 \
    loss.m2po_threshold=0.04
same_bits plain everything
train loglinear "${one[@]}" loss.old_logprob=loglinear
same_bits plain loglinear
train no_std "${one[@]}" loss.advantage=group_no_std
train vtrace "${one[@]}" loss.advantage=vtrace loss.old_logprob=recompute
same_bits no_std vtrace

# --- old tokens: weights are measured, and are not 1
lag=(run.steps=4 async.order=fixed_lag) # tokens of step 4 are two versions old, whoever is fast
train_ranks 3 async_vtrace run.steps=4 loss.advantage=vtrace loss.old_logprob=recompute
sound async_vtrace 2 4
for old in recompute loglinear; do
    train_ranks 3 "async_$old" "${lag[@]}" loss.old_logprob=$old loss.veto_threshold=1e-4 \
        loss.opsm_delta=0.01
    sound "async_$old" 2 4
done
train_ranks 4 async_learners "${lag[@]}" cluster.learners=2 loss.old_logprob=recompute \
    loss.advantage=reinforce_plus_plus loss.beta=0.05 loss.kl_in=reward \
    loss.m2po_threshold=1e-6 loss.correction_normalize=true
sound async_learners 2 4
python3 - "$work/runs" <<'PY' || fail "metrics of corrections"
import json, sys
for name in ("async_recompute", "async_loglinear", "async_learners"):
    lines = [json.loads(line) for line in open(f"{sys.argv[1]}/{name}/metrics.jsonl")]
    for line in lines:
        shares = [v for k, v in line.items() if k.startswith("staleness/hist_")]
        assert abs(sum(shares) - 1) < 1e-9, (name, shares)
        assert line["correction/weight_max"] <= 5 or name == "async_learners", (name, line)
    assert any(line["correction/rho_max"] != 1 for line in lines), (name, "nothing was stale")
PY

# --- combinations without sense are refused by name
"$foresight" train "$work/config.yaml" --dry-run loss.correction=tis >"$work/refused.log" 2>&1 &&
    fail "a correction of ratios against the sampler was accepted"
grep -q 'loss.old_logprob' "$work/refused.log" || fail "loss.old_logprob is not named"

[ $failed -eq 0 ] && echo "script_train_objectives: all as expected"
exit $failed

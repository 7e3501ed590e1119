#!/bin/bash
# On-policy distillation as a whole: every loss with every kind of teacher, in one process and under
# mpirun; a teacher that is told nothing more changes no bit; samples that lack what the teacher is
# to be told; a moving average survives a resume; a run with one can be replayed.
foresight=$1
. "$(dirname -- "$0")/train_support.sh"
make_base

short=(run.steps=2 checkpoint.every=0 rollout.prompts_per_step=4 rollout.max_completion_length=16
    async.max_staleness=0)
told='teacher.template={reference}{prompt}'
exact='s["completed"] and s["logprob_mismatch"]["max"] == 0'

# metrics NAME PYTHON-EXPRESSION: over every step's line `m`
metrics() {
    python3 - "$work/runs/$1/metrics.jsonl" "$2" <<'PY' || fail "$1: not $2"
import json, math, sys
for line in open(sys.argv[1]):
    m = json.loads(line)
    if not eval(sys.argv[2]):
        sys.exit(f"{sys.argv[2]} is false of {m}")
PY
}

# --- every loss, every teacher
for weights in live ema initial; do
    for loss in rlsd sdpo opd sdar; do
        name=t_${loss}_$weights
        train "$name" "${short[@]}" teacher.loss=$loss teacher.policy=$weights "$told"
        summary "$name" "$exact"
        metrics "$name" 'm["self_distillation/reprompt_sample_fraction"] == 1'
        metrics "$name" 'math.isfinite(m["self_distillation/teacher_gap_mean"])'
        metrics "$name" 'm["self_distillation/teacher_gap_mean"] != 0'
    done
done
metrics t_rlsd_live 'm["rlsd_lambda"] == 0.5'
metrics t_sdar_live '0 < m["sdar/gate_mean"] < 1'
metrics t_sdpo_live 'm["self_distillation/policy_loss"] == 0'

# --- whole distributions
for alpha in 0 0.5 1; do
    for logits in full top_k; do
        name=l_${logits}_$alpha
        train "$name" "${short[@]}" teacher.loss=sdpo teacher.logits=$logits teacher.support=4 \
            teacher.alpha=$alpha "$told"
        summary "$name" "$exact"
        metrics "$name" 'm["self_distillation/distillation_loss"] > 0'
    done
done
train l_renormalised "${short[@]}" teacher.loss=sdpo teacher.logits=top_k teacher.support=4 \
    teacher.tail=false teacher.weight=0.5 "$told"
metrics l_renormalised 'm["self_distillation/distillation_loss"] > 0'

# --- a teacher that is told nothing more: the same network, the same prompt, so the same bits, and
# with one update a step the very same weights
same=("${short[@]}" optimizer.updates_per_step=1 teacher.template='{prompt}')
train plain "${short[@]}" optimizer.updates_per_step=1
for loss in rlsd opd; do
    train "same_$loss" "${same[@]}" teacher.loss=$loss
    metrics "same_$loss" 'm["self_distillation/teacher_gap_mean"] == 0'
    same_bits plain "same_$loss"
done
train same_sdpo "${same[@]}" teacher.loss=sdpo teacher.logits=full
metrics same_sdpo 'abs(m["self_distillation/distillation_loss"]) < 1e-9'

# --- what a sample has not got: no sibling is right, so nobody has a teacher and nothing is learnt
python3 - "$work/task/train.jsonl" "$work/unsolvable.jsonl" "$work/bare.jsonl" <<'PY'
import json, sys
with open(sys.argv[2], "w") as wrong, open(sys.argv[3], "w") as bare:
    for line in open(sys.argv[1]):
        row = json.loads(line)
        bare.write(json.dumps({"prompt": row["prompt"]}) + "\n")
        row["answer"] = "123456789"
        wrong.write(json.dumps(row) + "\n")
PY
train no_sibling "${short[@]}" teacher.loss=sdpo teacher.template='{sibling}{prompt}' \
    data.train="$work/unsolvable.jsonl"
metrics no_sibling 'm["self_distillation/reprompt_sample_fraction"] == 0'
metrics no_sibling 'm["self_distillation/success_group_fraction"] == 0 and m["loss"] == 0'
train no_reference "${short[@]}" teacher.loss=opd "$told" data.train="$work/bare.jsonl" \
    rewards.functions=format rewards.format_pattern=1
metrics no_reference 'm["self_distillation/reprompt_sample_fraction"] == 0'
train too_long "${short[@]}" teacher.loss=opd "$told" teacher.prompt_limit=2
metrics too_long 'm["self_distillation/reprompt_sample_fraction"] == 0'
train siblings run.steps=4 teacher.loss=sdpo teacher.template='{sibling}{prompt}'
metrics siblings 'm["self_distillation/reprompt_sample_fraction"] <= m["self_distillation/success_group_fraction"]'
train feedback "${short[@]}" teacher.loss=sdpo teacher.template='{prompt}{feedback}'

# --- ranks: several learners, old tokens
train_ranks 3 ranks run.steps=4 teacher.loss=rlsd teacher.lambda_warmup_steps=2 \
    teacher.lambda_decay_steps=4 "$told"
sound ranks 2 4
metrics ranks 'abs(m["rlsd_lambda"] - min(m["step"] / 4, 0.5 - (m["step"] - 2) / 8)) < 1e-9'
train_ranks 4 learners run.steps=4 cluster.learners=2 teacher.loss=sdpo teacher.policy=ema \
    teacher.logits=top_k teacher.support=8 teacher.alpha=0.5 "$told"
sound learners 2 4

# --- a moving average that goes on after a resume as if nothing had been, alone and with learners
average=(teacher.loss=sdpo teacher.policy=ema teacher.ema_rate=0.3 "$told")
train whole run.steps=4 "${average[@]}"
train parts run.steps=2 "${average[@]}"
train parts run.steps=4 "${average[@]}"
same_bits whole parts
"$foresight" replay "$work/runs/whole" >"$work/replay.log" 2>&1 ||
    { fail "replay with a moving average"; tail -5 "$work/replay.log"; }
"$foresight" replay "$work/runs/parts" >"$work/replay.log" 2>&1 ||
    { fail "replay of a resumed run with a moving average"; tail -5 "$work/replay.log"; }
lag=(cluster.learners=2 async.order=fixed_lag async.max_staleness=1 "${average[@]}")
train_ranks 3 lag_whole run.steps=4 "${lag[@]}"
train_ranks 3 lag_parts run.steps=2 "${lag[@]}"
train_ranks 3 lag_parts run.steps=4 "${lag[@]}"
same_bits lag_whole lag_parts

# --- refused by name
train none run.steps=2
refused() {
    local what=$1
    shift
    "$foresight" train "$work/config.yaml" "$@" >"$work/refused.log" 2>&1 &&
        fail "accepted: $*"
    grep -q "$what" "$work/refused.log" || { fail "$what is not named"; tail -3 "$work/refused.log"; }
}
refused teacher.template --dry-run teacher.loss=opd teacher.template='{reference}'
refused teacher.weight --dry-run teacher.loss=sdpo teacher.weight=2
refused 'teacher.policy ema' async.enabled=false run.name=none run.steps=4 "${average[@]}"

[ $failed -eq 0 ] && echo "script_train_teacher: all as expected"
exit $failed

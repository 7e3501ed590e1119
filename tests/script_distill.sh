#!/bin/bash
# Self-distillation from outside: the same corpus from one rank and from three, shared by runs and
# made once; a run that is killed again and again ends with the bits of one that was not; every
# setting runs; what cannot work is refused with a reason and nothing is lost.
foresight=$1
. "$(dirname -- "$0")/train_support.sh"
make_base

# distill NAME [KEY=VALUE...]
distill() {
    local name=$1
    shift
    timeout 120 $launch "$foresight" distill "$work/config.yaml" run.name="$name" \
        sft.batch_tokens=256 checkpoint.every=2 checkpoint.keep_last=100 distill.samples=4 "$@" \
        >>"$work/$name.log" 2>&1
}
must() {
    distill "$@" || { fail "distill $1"; tail -5 "$work/$1.log"; }
}
refused() { # NAME PATTERN [KEY=VALUE...]
    local name=$1 pattern=$2
    shift 2
    distill "$name" "$@" && fail "distill $name was not refused"
    grep -q -- "$pattern" "$work/$name.log" || { fail "distill $name: no '$pattern'"; tail -3 "$work/$name.log"; }
}
# same_run A B: every checkpoint of B is A's, byte for byte, and so is the rest that has no times
same_run() {
    local folder file
    [ "$(ls "$work/runs/$1/checkpoints")" = "$(ls "$work/runs/$2/checkpoints")" ] ||
        fail "$1 and $2 have other checkpoints"
    for folder in "$work/runs/$1"/checkpoints/step_*; do
        for file in model.safetensors state.h5; do
            cmp -s "$folder/$file" "$work/runs/$2/checkpoints/${folder##*/}/$file" ||
                fail "$1 and $2: ${folder##*/}/$file differs"
        done
    done
    python3 - "$work/runs/$1" "$work/runs/$2" <<'PY' || fail "$1 and $2: other figures"
import json, sys
def figures(run):
    summary = json.load(open(f"{run}/summary.json"))
    for key in ("wall_seconds", "cpu_seconds", "rates", "corpus"):
        del summary[key]
    lines = [json.loads(line) for line in open(f"{run}/metrics.jsonl")]
    timed = ("time", "second", "wait/")
    return summary, [{k: v for k, v in line.items() if not any(t in k for t in timed)} for line in lines]
a, b = figures(sys.argv[1]), figures(sys.argv[2])
if a != b:
    sys.exit(f"{a}\n{b}")
PY
}
launch=

# Two rounds, undisturbed; a second run of the same is served from the first one's corpora.
rounds="distill.rounds=2 distill.select=correct distill.dedupe=text"
must whole $rounds
must served $rounds
same_run whole served
summary whole 's["completed"] and len(s["rounds"]) == 2 and s["corpus"]["generated"] == s["corpus"]["samples"] == 2400'
summary served 's["corpus"]["generated"] == 0 and s["corpus"]["served"] == 2400'
summary whole 'all(r["kept"] + sum(r["dropped"].values()) == r["samples"] == 1200 for r in s["rounds"])'
summary whole 's["rounds"][0]["corpus"] != s["rounds"][1]["corpus"] and s["updates"] == sum(r["updates"] for r in s["rounds"])'
last=$(last_checkpoint whole)
"$foresight" inspect "$last" >"$work/inspect.log" 2>&1 || fail "inspect: $(tail -1 "$work/inspect.log")"

# The same command again: nothing is done twice. One round more: it goes on.
must whole $rounds
same_run whole served
must served distill.rounds=3 distill.select=correct distill.dedupe=text
summary served 'len(s["rounds"]) == 3 and s["updates"] == sum(r["updates"] for r in s["rounds"])'

# Killed at random moments, in sampling, selecting and training, it ends the same.
RANDOM=7
for try in 1 2 3 4 5 6 7 8; do
    "$foresight" distill "$work/config.yaml" run.name=killed sft.batch_tokens=256 \
        checkpoint.every=2 checkpoint.keep_last=100 distill.samples=4 $rounds \
        distill.corpora="$work/killed_corpora" >>"$work/killed.log" 2>&1 &
    process=$!
    sleep "0.$(printf %03d $((RANDOM % 400)))"
    kill -KILL $process 2>/dev/null
    wait $process 2>/dev/null
done
must killed $rounds distill.corpora="$work/killed_corpora"
same_run whole killed

# Parts that are gone are sampled anew, with the same bytes; three ranks fill the same corpus.
cp -r "$work/runs/corpora" "$work/kept"
key=$(python3 -c 'import json,sys; print(json.load(open(sys.argv[1]))["rounds"][0]["corpus"])' "$work/runs/whole/summary.json")
rm "$work/runs/corpora/$key"/part_00000[258].h5
must refilled $rounds
same_run whole refilled
summary refilled 's["corpus"]["generated"] == 3 * 32 * 4'
launch="mpirun -n 3"
must ranks $rounds distill.rounds=1 distill.corpora="$work/rank_corpora"
launch=
for part in "$work/kept/$key"/part_*.h5; do
    for folder in "$work/runs/corpora" "$work/rank_corpora" "$work/killed_corpora"; do
        cmp -s "$part" "$folder/$key/${part##*/}" || fail "${part##*/} of $folder is not the same"
    done
done
# Three ranks that are stopped and go on have the bits of three that were not, and those that share
# the moments out the bits of those that do not.
launch="mpirun -n 3"
must ranks2 $rounds distill.rounds=1 distill.corpora="$work/rank_corpora" optimizer.zero_stage=1
rm -rf "$(last_checkpoint ranks2)"
must ranks2 $rounds distill.rounds=1 distill.corpora="$work/rank_corpora" optimizer.zero_stage=1
same_run ranks ranks2
# A rank that dies while it samples ends the job; the same command goes on and ends the same.
parts_there() { [ "$(ls "$work/lost_corpora/$key" 2>/dev/null | grep -c 'part_.*h5$')" -ge "$1" ]; }
for parts in 1 6; do
    mpirun -n 3 "$foresight" distill "$work/config.yaml" run.name=lost sft.batch_tokens=256 \
        checkpoint.every=2 checkpoint.keep_last=100 distill.samples=4 $rounds distill.rounds=1 \
        distill.corpora="$work/lost_corpora" >>"$work/lost.log" 2>&1 &
    pid=$!
    wait_for 60 parts_there $parts || fail "three ranks and no $parts parts"
    kill -KILL $(ranks_of 1) 2>/dev/null # gone already on a fast machine: all the better
    wait $pid 2>/dev/null
done
must lost $rounds distill.rounds=1 distill.corpora="$work/lost_corpora"
same_run ranks lost
launch=
for part in "$work/kept/$key"/part_*.h5; do
    cmp -s "$part" "$work/lost_corpora/$key/${part##*/}" || fail "${part##*/} after a rank's death differs"
done

# The benchmark has all figures, of the same tokens, and leaves nothing behind.
"$foresight" bench distill "$work/config.yaml" --repeats 1 --prompts 40 --json sft.batch_tokens=256 \
    run.dir="$work/bench" >"$work/bench.json" 2>"$work/bench.log" || fail "bench: $(tail -1 "$work/bench.log")"
python3 - "$work/bench.json" <<'PY' || fail "bench distill"
import json, sys
figures = json.loads(open(sys.argv[1]).readlines()[-1])
for part in (figures["sampling"], figures["training"]):
    assert part["tokens"] == part["base_tokens"] > 0, part
    assert part["ratio"] > 0 and part["cpu_ratio"] > 0, part
PY
[ -z "$(ls "$work/bench")" ] || fail "bench distill left files"

# Concurrent runs of the same key sample it once between them.
corpora="distill.corpora=$work/shared distill.corpus_samples=8"
distill first $corpora &
one=$!
distill second $corpora run.seed=4 &
two=$!
wait $one || fail "the first of two runs"
wait $two || fail "the second of two runs"
python3 - "$work/runs" <<'PY' || fail "concurrent runs"
import json, sys
a, b = (json.load(open(f"{sys.argv[1]}/{name}/summary.json")) for name in ("first", "second"))
assert a["corpus"]["key"] == b["corpus"]["key"], "other keys"
assert a["corpus"]["generated"] + b["corpus"]["generated"] == 2400, (a["corpus"], b["corpus"])
assert a["rounds"][0]["pass_at_1"] != b["rounds"][0]["pass_at_1"], "run.seed picks other samples"
PY

# Every mask and weight on one corpus.
for setting in "select=none" "select=best_of_n" "select=not_all_wrong weight=reward" \
    "select=mixed_only weight=advantage" "select=correct weight=importance" \
    "select=correct max_per_prompt=1 drop_shortest=0.2 restart=continue rounds=2" \
    "dedupe=pattern dedupe_pattern=[0-9]+ drop_truncated=true"; do
    name=$(echo "$setting" | tr -c 'a-z_0-9\n' _)
    must "$name" $(printf 'distill.%s ' $setting)
    summary "$name" 's["completed"] and s["rounds"][0]["kept"] > 0'
done
summary select_best_of_n 's["rounds"][0]["kept"] <= 300'

# STaR: the failed prompts again with a hint, and the hint is not in what is trained on.
must star distill.select=correct distill.hint_retry=true "distill.hint_template={prompt}{answer}"
summary star '0 < s["rounds"][0]["retry"]["solved"] < s["rounds"][0]["retry"]["prompts"]'
summary star 's["rounds"][0]["kept"] > round(s["rounds"][0]["pass_at_1"] * 1200) - 20'

# What cannot work.
refused none 'nothing was kept.*wrong' distill.select=correct rewards.functions=format \
    "rewards.format_pattern=^never$"
refused few 'corpus_samples (2) is below' distill.corpus_samples=2
refused pattern 'dedupe_pattern' distill.dedupe=pattern
refused broken 'at offset' distill.dedupe=pattern 'distill.dedupe_pattern=('
refused option "distill.selekt.*select" distill.selekt=none
refused seed 'run.seed is 9' $rounds run.seed=9 run.name=whole
corpus=$work/runs/corpora/$key
cp "$corpus/part_000003.h5" "$work/part"
head -c 3000 "$work/part" >"$corpus/part_000003.h5"
refused damaged 'part_000003.h5 is damaged.*remove it' $rounds
other=$(ls -d "$work"/runs/corpora/* | grep -v "$key" | head -n 1)
cp "$other/part_000003.h5" "$corpus/part_000003.h5"
refused foreign 'a part of corpus' $rounds
cp "$work/part" "$corpus/part_000003.h5"
sed -i 's/"model": "[0-9a-f]*"/"model": "0000000000000001"/' "$corpus/corpus.json"
refused model 'a corpus of something else: its model is "0000000000000001"' $rounds
[ $failed -eq 0 ] && echo "distill: all as expected"
exit $failed

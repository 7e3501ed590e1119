#!/bin/bash
# Sweeps whose folder, inputs or machine are not what they should be: each is told with the name of the
# file or option, nothing that was done is lost, the status is not 0, and the sweep goes on once the
# cause is gone, to the bytes of one that had no trouble.
foresight=$1
. "$(dirname -- "$0")/sweep_support.sh"
make_base
write_sweep study "$(cat <<'YAML'
axes:
  - {rollout.temperature: [0.8, 1.2, 1.2], distill.select: [none, none, best_of_n], name: [low, high, best]}
YAML
)"
study() { sweep study sweep.command=distill sweep.retries=0 sweep.parallel=2 distill.samples=2 "$@"; }
# stopped_by WORDS: the study cannot go on, and says why
stopped_by() {
    : >"$work/study.log"
    study && fail "status 0 in spite of: $1"
    grep -q -- "$1" "$work/study.log" || { fail "no word of: $1"; tail -n 3 "$work/study.log"; }
}
# recovers [ARGUMENT...]: it goes on, and nothing tells what happened to it
recovers() {
    study "$@" || { fail "the study does not go on"; tail -n 3 "$work/study.log"; }
    same_sweep study sound
}
study || { fail "study"; tail -n 3 "$work/study.log"; exit 1; }
cp -r "$work/sweeps/study" "$work/sweeps/sound"
trials=$work/sweeps/study/trials

# What trials have left is damaged, or of another plan: refused before anything runs.
echo '{"state": "do' >"$trials/low/result.json"
stopped_by 'low/result.json is damaged: .*remove it'
rm "$trials/low/result.json"
recovers
echo '{"state": "dome"}' >"$trials/high/result.json"
stopped_by 'high/result.json is damaged: no state'
rm "$trials/high/result.json"
recovers
for owner in "$work/sweeps/study/base" "$trials/best"; do
    counts=$(ls "$owner"/eval/step_*.h5)
    head -c 1000 "$counts" >"$work/part" && cp "$work/part" "$counts"
    stopped_by "${counts#"$work/sweeps/"} cannot be used; remove it"
    rm "$counts"
    recovers
done
sed -i 's/0.8, 1.2, 1.2/0.9, 1.2, 1.2/' "$work/study.yaml"
stopped_by 'sweep.json is of another plan: line .*0.8.* there and .*0.9.* now'
sed -i 's/0.9, 1.2, 1.2/0.8, 1.2, 1.2/' "$work/study.yaml"
recovers

# The corpus of two trials is damaged, or is of another model: they fail and name it, the third is
# as it was.
corpus=$work/sweeps/study/corpora/$(python3 -c 'import json, sys
print(json.load(open(sys.argv[1]))["rounds"][0]["corpus"])' "$trials/high/summary.json")
both_fail() {
    local trial
    rm -r "$trials/high" "$trials/best"
    : >"$work/study.log"
    study && fail "status 0 in spite of: $1"
    for trial in high best; do
        result study "$trial" "r['state'] == 'failed' and '$1' in r['reason']"
        grep -q "^failed: $trial: .*$1" "$work/study.log" || fail "$trial is not among what failed"
    done
    cmp -s "$trials/low/result.json" "$work/sweeps/sound/trials/low/result.json" || fail "low is lost"
}
head -c 1000 "$corpus/part_000001.h5" >"$work/part" && cp "$work/part" "$corpus/part_000001.h5"
both_fail 'part_000001.h5 is damaged'
rm "$corpus/part_000001.h5"
recovers --retry-failed
sed -i 's/"model": "[0-9a-f]*"/"model": "0000000000000001"/' "$corpus/corpus.json"
both_fail 'its model is "0000000000000001"'
rm -r "$corpus"
recovers --retry-failed

# A model too large for the memory of a trial: it fails by itself, the other ends well. The network
# is made from its config.json, so that no weights lie on the disk.
cp -r "$work/init" "$work/large"
sed -i 's/"intermediate_size": 64/"intermediate_size": 1048576/
    s/"num_hidden_layers": 2/"num_hidden_layers": 64/' "$work/large/config.json"
write_sweep large "$(cat <<YAML
axes:
  - {model.path: [$work/base, $work/large], name: [fits, large]}
YAML
)"
sweep large sweep.memory_mib=8192 sweep.retries=0 && fail "25 GB in 8, and status 0"
result large fits 'r["state"] == "done"'
result large large 'r["state"] == "failed" and "memory" in r["reason"]'

# A full disk, which then grows; where a file system can be mounted.
on_small_disk() {
    mkdir -p "$work/disk" && mount -t tmpfs -o size=512k none "$work/disk" || exit 77
    study sweep.dir="$work/disk" && exit 1
    grep -q 'No space left' "$work/study.log" || exit 2
    mount -o remount,size=64m "$work/disk" || exit 77
    study sweep.dir="$work/disk" --retry-failed || exit 3
    cp -r "$work/disk/study" "$work/sweeps/disk"
}
export -f on_small_disk study sweep
export work foresight
: >"$work/study.log"
if unshare -m true 2>/dev/null; then
    unshare -m bash -c on_small_disk
else
    unshare -rm bash -c on_small_disk
fi >"$work/disk.log" 2>&1
status=$?
if [ -e "$work/sweeps/disk" ]; then
    [ "$(finished_trials disk)" -eq 3 ] || fail "full disk: not all trials"
    for counts in base/eval trials/{low,high,best}/eval; do # the attempts differ
        diff -r "$work/sweeps/disk/$counts" "$work/sweeps/sound/$counts" || fail "full disk: $counts"
    done
elif [ $status -ne 77 ] && ! grep -q unshare "$work/disk.log"; then
    fail "full disk: $status"
    tail -n 5 "$work/study.log"
else
    echo "no file system can be mounted here: the full disk is left out"
fi
[ $failed -eq 0 ] && echo "script_sweep_damage: ok"
exit $failed

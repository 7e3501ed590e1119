#!/bin/bash
# What people get wrong, from outside: broken configurations, data, tokenizers, models, checkpoints
# and disks. Every refusal must exit with 1 or 2 (no signal, no hang) and name the file or the key.
set -u
foresight=$1
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
mounted=""
trap '[ -n "$mounted" ] && umount "$mounted"; rm -rf "$work"' EXIT
cd "$work" || exit 1
failed=0
cases=0

complain() {
    echo "FAIL: $1 (exit $status)"
    tail -n 8 output
    failed=1
}
# refuses WHAT PATTERN COMMAND...: exit code 1 or 2 and the pattern in what it prints
refuses() {
    local what=$1 pattern=$2
    shift 2
    cases=$((cases + 1))
    timeout 100 "$@" >output 2>&1
    status=$?
    if [ $status -ne 1 ] && [ $status -ne 2 ]; then
        complain "$what: must exit with 1 or 2"
    elif ! grep -Eq -- "$pattern" output; then
        complain "$what: /$pattern/ is not in the output"
    elif grep -Eq 'Sanitizer|runtime error' output; then
        complain "$what: sanitizer report"
    fi
}
# accepts WHAT PATTERN COMMAND...: exit code 0 and the pattern
accepts() {
    local what=$1 pattern=$2
    shift 2
    cases=$((cases + 1))
    timeout 100 "$@" >output 2>&1
    status=$?
    if [ $status -ne 0 ] || ! grep -Eq -- "$pattern" output; then
        complain "$what: must pass, with /$pattern/"
    fi
}
# python CODE ARGUMENTS...: an assertion about files
holds() {
    local what=$1
    shift
    cases=$((cases + 1))
    python3 - "$@" >output 2>&1 || { status=$?; complain "$what"; }
}

# --- a sound small run to break: one layer, 32 tokens
"$foresight" task chain task --seed 1 --train 64 --eval 16 --sft 64 >/dev/null || exit 1
mkdir init
cp task/tokenizer*.json init/
cat >init/config.json <<'JSON'
{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 32,
 "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
 "num_key_value_heads": 1, "head_dim": 16, "hidden_act": "silu", "max_position_embeddings": 128,
 "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "tie_word_embeddings": true,
 "attention_bias": false, "initializer_range": 0.02, "eos_token_id": 0, "pad_token_id": 1,
 "torch_dtype": "float32"}
JSON
cat >run.yaml <<'YAML'
run:
  name: a
  steps: 2
model:
  path: base
data:
  train: task/train.jsonl
  max_prompt_length: 32
rollout:
  prompts_per_step: 4
  samples_per_prompt: 4
  max_completion_length: 8
  max_running: 16
rewards:
  functions: numeric
optimizer:
  learning_rate: 1e-2
checkpoint:
  every: 1
sft:
  data: task/sft.jsonl
  output: base
YAML
accepts "fine-tuning the base model" 'sft: ' "$foresight" sft run.yaml run.name=s model.path=init
accepts "a sound run" '2/2' "$foresight" train run.yaml

# --- configuration
yaml() { printf '%b' "$1" >bad.yaml; }
config() { # WHAT PATTERN TEXT
    yaml "$3"
    refuses "$1" "$2" "$foresight" train bad.yaml
}
config "unknown key" 'bad\.yaml:2.*lerning_rate.*learning_rate' 'optimizer:\n  lerning_rate: 1\n'
config "unknown section" 'bad\.yaml:1.*optimiser.*optimizer' 'optimiser:\n  learning_rate: 1\n'
config "wrong type" 'bad\.yaml:2.*steps' 'run:\n  steps: many\n'
config "real for a whole number" 'bad\.yaml:2.*steps' 'run:\n  steps: 1.5\n'
config "number beyond 64 bits" 'bad\.yaml:2.*steps' 'run:\n  steps: 99999999999999999999\n'
config "not a number" 'learning_rate' 'optimizer:\n  learning_rate: .nan\n'
config "out of range" 'temperature' 'rollout:\n  temperature: -1\n'
config "unknown choice" 'bad\.yaml:2.*loss_type.*fipo' 'loss:\n  loss_type: fippo\n'
config "alias" 'bad\.yaml:.*(alias|anchor)' 'run: &a\n  steps: 2\nloss: *a\n'
config "duplicate key" 'bad\.yaml:3.*steps' 'run:\n  steps: 1\n  steps: 2\n'
config "nested too deep" 'bad\.yaml:' 'run:\n  steps:\n    more: 1\n'
config "no YAML" 'bad\.yaml:' 'run: [\n'
config "tab" 'bad\.yaml:' 'run:\n\tsteps: 1\n'
config "no UTF-8" 'bad\.yaml' 'run:\n  name: \xff\xfe\n'
config "empty file" '(bad\.yaml|model\.path)' ''
refuses "no configuration file" 'nothing\.yaml' "$foresight" train nothing.yaml
refuses "a folder as configuration" 'task' "$foresight" train task
refuses "override of an unknown key" 'optimizer\.learning_rate' \
    "$foresight" train run.yaml optimizer.learning_rat=1
refuses "override without a value" 'steps' "$foresight" train run.yaml run.steps
refuses "override of the wrong type" 'run\.steps' "$foresight" train run.yaml run.steps=x

# --- data
data() { # WHAT PATTERN TEXT: the second line is bad
    printf '{"prompt": "1+1=", "answer": "2"}\n%b' "$3" >bad.jsonl
    refuses "$1" "$2" "$foresight" train run.yaml run.name=d data.train=bad.jsonl
}
data "no JSON" 'bad\.jsonl:2' '{"prompt": "1+1=", "answer"\n'
data "trailing garbage" 'bad\.jsonl:2' '{"prompt": "1", "answer": "2"} x\n'
data "bad UTF-8" 'bad\.jsonl:2' '{"prompt": "1\xff", "answer": "2"}\n'
data "no prompt" 'bad\.jsonl:2.*prompt' '{"question_text": "1+1=", "answer": "2"}\n'
data "prompt of the wrong type" 'bad\.jsonl:2.*prompt' '{"prompt": 5, "answer": "2"}\n'
data "a list" 'bad\.jsonl:2' '[1, 2]\n'
data "message without a role" 'bad\.jsonl:2.*role' '{"prompt": [{"content": "1"}], "answer": "2"}\n'
python3 -c 'print("[" * 100000)' >deep
data "nested deeply" 'bad\.jsonl:2' "{\"prompt\": $(cat deep)\n"
: >empty.jsonl
refuses "empty data set" 'empty\.jsonl' "$foresight" train run.yaml data.train=empty.jsonl
refuses "no data set" 'absent\.jsonl' "$foresight" train run.yaml data.train=absent.jsonl
refuses "data set not given" 'data\.train' "$foresight" train run.yaml data.train=
refuses "a folder as data set" 'task' "$foresight" train run.yaml data.train=task
refuses "all prompts too long" 'max_prompt_length' "$foresight" train run.yaml \
    run.name=long data.max_prompt_length=1
printf '{"prompt": "1+1=", "answer": "2"}\n{"prompt": "1+2+3+4+5+6=", "answer": "1"}\n' >two.jsonl
accepts "a prompt over the limit is dropped and counted" '1 .*(dropped|left out|longer|over)' \
    "$foresight" train run.yaml run.name=two run.steps=1 data.train=two.jsonl data.max_prompt_length=5
printf '{"prompt": "1+1=", "answer": "2"}\nnonsense\n' >skip.jsonl
accepts "bad rows are skipped on request" '1 .*(skipped|left out|dropped)' \
    "$foresight" train run.yaml run.name=skip run.steps=1 data.train=skip.jsonl data.bad_rows=skip
refuses "sft without its data" 'absent\.jsonl' "$foresight" sft run.yaml run.name=s2 sft.data=absent.jsonl
refuses "unknown reward" 'rewards\.functions.*numerik' \
    "$foresight" train run.yaml run.name=r rewards.functions=numerik
refuses "broken reward pattern" 'format_pattern' \
    "$foresight" train run.yaml run.name=r rewards.functions=format 'rewards.format_pattern=('

# --- model folder: config.json
model() { # WHAT PATTERN PYTHON: python edits the parsed config `c`
    rm -rf broken
    cp -r base broken
    python3 -c "import json
c = json.load(open('init/config.json'))
$3
json.dump(c, open('broken/config.json', 'w'))" || exit 1
    refuses "$1" "$2" "$foresight" train run.yaml run.name=m model.path=broken
}
model "unknown architecture" 'config\.json.*MambaForCausalLM' 'c["architectures"] = ["MambaForCausalLM"]'
model "missing field" 'config\.json.*hidden_size' 'del c["hidden_size"]'
model "field of the wrong type" 'config\.json.*num_hidden_layers' 'c["num_hidden_layers"] = "two"'
model "heads that do not divide" 'config\.json.*num_(attention|key_value)_heads' \
    'c["num_attention_heads"], c["num_key_value_heads"] = 3, 2'
model "heads too wide for the kernels" 'config\.json.*head_dim.*256' 'c["head_dim"] = 258'
model "odd head" 'config\.json.*head_dim' 'c["head_dim"] = 15'
model "negative width" 'config\.json.*hidden_size' 'c["hidden_size"] = -32'
model "huge vocabulary" 'config\.json.*vocab_size' 'c["vocab_size"] = 1 << 40'
model "unknown activation" 'config\.json.*hidden_act' 'c["hidden_act"] = "relu6"'
model "unknown rope" 'config\.json.*rope' 'c["rope_scaling"] = {"rope_type": "spiral", "factor": 2.0}'
model "weights of another shape" 'embed_tokens|\.weight' 'c["hidden_size"] = 64'
model "more layers than weights" 'layers\.1\.' 'c["num_hidden_layers"] = 2'
model "tokenizer larger than the model" 'vocabulary' 'c["vocab_size"] = 8'
printf '{"architectures": [' >broken/config.json
refuses "config.json cut off" 'config\.json' "$foresight" train run.yaml model.path=broken
rm broken/config.json
refuses "no config.json" 'broken/config\.json' "$foresight" train run.yaml model.path=broken
refuses "no model folder" 'nowhere' "$foresight" train run.yaml model.path=nowhere
refuses "model.path not given" 'model\.path' "$foresight" train run.yaml model.path=
refuses "a file as model folder" 'run\.yaml' "$foresight" train run.yaml model.path=run.yaml

# --- model folder: tokenizer
tokenizer() { # WHAT PATTERN PYTHON: python makes the text `t` from the parsed file `c`
    rm -rf broken
    cp -r base broken
    python3 -c "import json
text = open('base/tokenizer.json').read()
c = json.loads(text)
t = None
$3
open('broken/tokenizer.json', 'wb').write(t if t is not None else json.dumps(c).encode())" || exit 1
    refuses "$1" "$2" "$foresight" train run.yaml run.name=t model.path=broken
}
tokenizer "tokenizer cut off" 'tokenizer\.json' 't = text[:len(text) // 2].encode()'
tokenizer "empty tokenizer" 'tokenizer\.json' 't = b""'
tokenizer "tokenizer is no object" 'tokenizer\.json' 't = b"[]"'
tokenizer "no model in the tokenizer" 'tokenizer\.json.*model' 'del c["model"]'
tokenizer "tokenizer of another kind" 'tokenizer\.json.*Unigram' 'c["model"]["type"] = "Unigram"'
tokenizer "no vocabulary" 'tokenizer\.json.*vocab' 'del c["model"]["vocab"]'
tokenizer "vocabulary of the wrong type" 'tokenizer\.json.*vocab' 'c["model"]["vocab"] = 5'
tokenizer "id of the wrong type" 'tokenizer\.json.*vocab' \
    'c["model"]["vocab"] = {k: str(v) for k, v in c["model"]["vocab"].items()}'
tokenizer "huge id" 'tokenizer\.json.*vocab' 'c["model"]["vocab"]["0"] = 1 << 40'
tokenizer "negative id" 'tokenizer\.json.*vocab' 'c["model"]["vocab"]["0"] = -1'
tokenizer "merge of unknown tokens" 'tokenizer\.json.*merge' 'c["model"]["merges"] = [["q", "zz"]]'
tokenizer "broken regular expression" 'tokenizer\.json.*pre_tokenizer' \
    'c["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}'
tokenizer "unknown normalizer" 'tokenizer\.json.*normalizer' 'c["normalizer"] = {"type": "Rot13"}'
rm broken/tokenizer.json
refuses "no tokenizer" 'broken/tokenizer\.json' "$foresight" train run.yaml model.path=broken

# --- model folder: weights
weights() { # WHAT PATTERN PYTHON: python turns the parsed header `h` and data `d` into bytes `t`
    rm -rf broken
    cp -r base broken
    python3 -c "import json, struct
raw = open('base/model.safetensors', 'rb').read()
n = struct.unpack('<Q', raw[:8])[0]
h, d = json.loads(raw[8:8 + n]), raw[8 + n:]
names = [k for k in h if k != '__metadata__']
first = min(names, key=lambda k: h[k]['data_offsets'])
t = None
$3
if t is None:
    text = json.dumps(h).encode()
    t = struct.pack('<Q', len(text)) + text + d
open('broken/model.safetensors', 'wb').write(t)" || exit 1
    refuses "$1" "$2" "$foresight" train run.yaml run.name=w model.path=broken
}
weights "empty weights" 'model\.safetensors' 't = b""'
weights "weights cut off" 'model\.safetensors' 't = raw[:-5]'
weights "trailing bytes" 'model\.safetensors' 't = raw + b"x"'
weights "header beyond the file" 'model\.safetensors' 't = struct.pack("<Q", 1 << 62) + raw[8:]'
weights "header is no JSON" 'model\.safetensors' 't = raw[:8] + b"x" * n + d'
weights "overlapping tensors" 'model\.safetensors' 'h[names[1]]["data_offsets"] = h[names[0]]["data_offsets"]'
weights "shape against offsets" 'model\.safetensors' 'h[first]["shape"][0] += 1'
weights "negative shape" 'model\.safetensors' 'h[first]["shape"] = [-1, -1]'
weights "unknown dtype" 'model\.safetensors.*F33' 'h[first]["dtype"] = "F33"'
weights "dtype we cannot train" 'I32' 'h[first]["dtype"] = "I32"'
weights "missing tensor" 'model\.norm\.weight' 'h["model.norm.other"] = h.pop("model.norm.weight")'
malformed=$here/../shared/data/safetensors
if [ -f "$malformed/manifest.json" ]; then
    for file in "$malformed"/malformed/*.safetensors; do
        name=$(basename "$file")
        cases=$((cases + 1))
        timeout 60 "$foresight" inspect "$file" >output 2>&1
        status=$?
        python3 - "$malformed/manifest.json" "$name" $status <<'PY' || complain "$name"
import json, sys
found = json.load(open(sys.argv[1]))
text = json.dumps(found)
status = int(sys.argv[3])
def entries(node):
    if isinstance(node, dict):
        for key, value in node.items():
            if sys.argv[2] in key and isinstance(value, dict):
                yield value
            yield from entries(value)
        if any(isinstance(v, str) and v.endswith(sys.argv[2]) for v in node.values()):
            yield node
    elif isinstance(node, list):
        for value in node:
            yield from entries(value)
rules = list(entries(found))
assert rules, "not in the manifest"
assert status in (0, 1), status
either = any(v is None for v in rules[0].values())
assert either or status == 1, "accepted"
PY
    done
fi

# --- rewards without signal
python3 -c 'print("\n".join("{\"prompt\": \"%d+1=\", \"answer\": \"77777\"}" % (i % 10) for i in range(20)))' >same.jsonl
accepts "groups of equal rewards train nothing" '3/3' \
    "$foresight" train run.yaml run.name=same run.steps=3 data.train=same.jsonl optimizer.updates_per_step=2
holds "no NaN, all groups counted, weights as they were" <<'PY'
import json, math, struct
def tensors(path):
    raw = open(path, "rb").read()
    n = struct.unpack("<Q", raw[:8])[0]
    header, data = json.loads(raw[8:8 + n]), raw[8 + n:]
    header.pop("__metadata__", None)
    return {k: data[v["data_offsets"][0]:v["data_offsets"][1]] for k, v in header.items()}
rows = [json.loads(line) for line in open("runs/same/metrics.jsonl")]
assert len(rows) == 3
for row in rows:
    assert row["frac_reward_zero_std"] == 1, row["frac_reward_zero_std"]
    bad = {k: v for k, v in row.items() if not isinstance(v, (int, float)) or not math.isfinite(v)}
    assert not bad, bad
    assert row["grad_norm"] == 0 and row["loss"] == 0, (row["grad_norm"], row["loss"])
assert tensors("base/model.safetensors") == tensors("runs/same/checkpoints/step_000003/model.safetensors")
PY
refuses "dynamic sampling that finds no signal" 'dynamic_sampling' \
    "$foresight" train run.yaml run.name=dyn data.train=same.jsonl loss.dynamic_sampling=true \
    loss.dynamic_sampling_rounds=2

# --- going on
refuses "resume never" 'runs/a.*resume.*never' "$foresight" train run.yaml run.resume=never
refuses "resume must, without a checkpoint" 'runs/fresh.*must' \
    "$foresight" train run.yaml run.name=fresh run.resume=must
refuses "another seed" 'run\.seed is 2' "$foresight" train run.yaml run.seed=2 run.steps=3
refuses "other data" 'data\.train' "$foresight" train run.yaml data.train=same.jsonl run.steps=3
rm -rf init_wide
cp -r init init_wide
sed -i 's/"intermediate_size": 64/"intermediate_size": 96/' init_wide/config.json
accepts "a wider model" 'sft: ' "$foresight" sft run.yaml run.name=wide model.path=init_wide \
    sft.output=base_wide
refuses "a model of another shape" 'step_000002' "$foresight" train run.yaml run.steps=3 \
    model.path=base_wide
rm -rf runs/b && cp -r runs/a runs/b
state=runs/b/checkpoints/step_000002/state.h5
python3 - $state <<'PY'
import sys
data = bytearray(open(sys.argv[1], "rb").read())
data[len(data) // 2] ^= 1
open(sys.argv[1], "wb").write(data)
PY
accepts "a rotten checkpoint is passed over, and it says why" 'step_000002.*(hash|state\.h5)' \
    "$foresight" train run.yaml run.name=b run.steps=3
grep -q 'resumed from .*step_000001' output || { status=0; complain "resumes from the older one"; }
flip() { # the byte at $2 thousandths of the file
    python3 - "$1" "$2" <<'PY'
import sys
data = bytearray(open(sys.argv[1], "rb").read())
data[(len(data) - 1) * int(sys.argv[2]) // 1000] ^= 4
open(sys.argv[1], "wb").write(data)
PY
}
for file in $(ls runs/a/checkpoints/step_000002); do # each of them, not only the large ones
    for place in 0 437 1000; do
        rm -rf runs/b && cp -r runs/a runs/b
        flip runs/b/checkpoints/step_000002/$file $place
        refuses "a flipped byte of $file" "$file" "$foresight" inspect runs/b/checkpoints/step_000002
    done
done
[ "$(ls runs/a/checkpoints/step_000002 | wc -l)" -ge 6 ] || { status=0; complain "few files"; }
rm -rf runs/b && cp -r runs/a runs/b
for step in 1 2; do : >runs/b/checkpoints/step_00000$step/model.safetensors; done
refuses "no sound checkpoint with resume must" 'must' \
    "$foresight" train run.yaml run.name=b run.steps=3 run.resume=must
rm -rf runs/b && cp -r runs/a runs/b
echo '{' >runs/b/checkpoints/step_000002/MANIFEST.json
accepts "a manifest cut off" 'step_000002' "$foresight" train run.yaml run.name=b run.steps=3

# --- places that cannot be written
refuses "run folder that is a file" 'run\.yaml' "$foresight" train run.yaml run.dir=run.yaml
refuses "run name with a folder in it that is a file" 'run\.yaml' \
    "$foresight" train run.yaml run.dir=. run.name=run.yaml/x
sound_checkpoint() { # after a full disk: DIR still holds a checkpoint that verifies
    accepts "$1: the earlier checkpoint is sound" 'sound' "$foresight" inspect "$2"
    accepts "$1: and the run goes on from it" 'resumed from .*step_000002' \
        "$foresight" train run.yaml run.dir="$(dirname "$2")" run.name="$(basename "$2")" run.steps=3
}
cat >limited <<'SH'
#!/bin/bash
# limited BLOCKS COMMAND...: no file may grow beyond so many blocks of 1024 bytes
trap '' XFSZ
ulimit -f "$1"
shift
exec "$@"
SH
chmod +x limited
size=$(stat -c %s runs/a/checkpoints/step_000002/model.safetensors)
rm -rf runs/c && cp -r runs/a runs/c
refuses "files that may not grow" 'runs/c/checkpoints' ./limited $((size / 2048)) \
    "$foresight" train run.yaml run.name=c run.steps=4
sound_checkpoint "file limit" runs/c
mkdir disk
if mount -t tmpfs -o size=600k none disk 2>/dev/null; then
    mounted=$work/disk
    cp -r runs/a disk/full
    dd if=/dev/zero of=disk/ballast bs=1k 2>/dev/null
    truncate -s -40k disk/ballast
    refuses "full disk" 'disk/full.*No space left|No space left.*disk/full' \
        "$foresight" train run.yaml run.dir=disk run.name=full run.steps=4
    rm disk/ballast
    sound_checkpoint "full disk" disk/full
else
    echo "note: no right to mount a small disk here; the file limit stands in for it"
fi

[ $failed -eq 0 ] && echo "script_bad_input: $cases cases, all as expected"
exit $failed

#!/usr/bin/env python3
"""Make tests/data/tokenizers: small tokenizers trained on a text written here, with what the
`tokenizers` package answers for them, and template cases with what `transformers` renders.

    tests/tools/make_tokenizer_data.py OUT

Needs the Python packages `tokenizers` and `transformers` (with jinja2). The output is checked in;
run it again only to add cases.
"""
import json
import os
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers
from transformers.utils.chat_template_utils import render_jinja_template

TEXT = """A learner reads what the workers wrote, and the workers read what the learner learned.
Nothing is lost and nothing is doubled: each ticket is issued, generated, scored, and trained on once.
It's simple, isn't it? We've 12 apples; they'll give 3.5 away, so 8.5 are left. 12 - 3.5 = 8.5
def add(x, y):\n    return x + y\n\n\tprint(add(1, 2))  # 3
Der Fluß fließt über die Straße. Où est le café? Привет, мир! 今天天气很好。 한국어 문장.
The weights are written beside the old ones while decoding goes on, and the workers switch to them.
"""

STRINGS = [
    "", " ", "  ", "\n", "a", " a", "The workers read.", "the  workers\n\n\nread\t\twhat", "It's HE'S we'Ve",
    "x = 12345.678e-9", "café cafe\u0301", "Å\u212b", "ﬁnd ½", "今天天气很好", "한국어 한", "🙂👨‍👩‍👧",
    "<|im_start|>user\nhi<|im_end|>", "a<|im_end|> b", "<|im_", "|>", "<pad><s></s>", "tool  tool",
    "\u00a0\u3000\u2003x", "\u0085\ufeff\u200b", "\x00\x01\x7f", "▁Ġ▁", "\ud7ff\ue000\U0010ffff",
    "mixed ТЕКСТ with ΣΑΣ and İstanbul", "١٢٣ ① Ⅷ ²", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "def add(x, y):\n    return x + y", "    indented\n\tand\r\ntabs", "e\u0323\u0301 \u0301start", "क्षि ำน้ำ",
    "no no no no, NO!!!", "(a)[b]{c}<d>", "https://example.org/a?b=c#d", "\u2028\u2029 lines", "$5.00 €3,50",
    "  leading and trailing  ", "<0x41>\u00ff", "learner's weights weren't switched; they've been written",
]

def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    trainer = trainers.BpeTrainer(vocab_size=420, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False),
                          AddedToken("    ", normalized=True)])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer

def metaspace():
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=460, show_progress=False, special_tokens=special,
                                  limit_alphabet=70)
    tokenizer.train_from_iterator([line for line in TEXT.split("\n")], trainer)
    tokenizer.add_special_tokens(["<pad>"])
    tokenizer.add_tokens([AddedToken("tool", single_word=True, lstrip=True, rstrip=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["<s>", "$A"], pair=["<s>", "$A", "<s>", "$B"], special_tokens=[("<s>", 1)])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(),
                                           decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    saved = json.loads(tokenizer.to_str())
    saved["added_tokens"] = [token for token in saved["added_tokens"]
                             if not token["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(saved))

def words():
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(),
                                                 normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.Punctuation()])
    trainer = trainers.BpeTrainer(vocab_size=260, show_progress=False, end_of_word_suffix="</w>",
                                  special_tokens=["<unk>"])
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.add_special_tokens([AddedToken("<s>", normalized=True)])
    tokenizer.decoder = decoders.BPEDecoder()
    return tokenizer

def first():
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", continuing_subword_prefix="##"))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Metaspace(prepend_scheme="first"),
        pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "merged_with_previous")])
    trainer = trainers.BpeTrainer(vocab_size=240, show_progress=False, special_tokens=["<unk>"],
                                  continuing_subword_prefix="##")
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.add_special_tokens(["</s>", "<s>"])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", tokenizer.token_to_id("</s>")),
                                                            ("<s>", tokenizer.token_to_id("<s>")))
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return tokenizer

def write_rows(path, rows):
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

def vectors(tokenizer):
    rows = []
    for text in STRINGS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        rows.append({"text": text, "ids": ids, "ids_special": tokenizer.encode(text).ids,
                     "decoded": tokenizer.decode(ids, skip_special_tokens=False),
                     "decoded_skip_special": tokenizer.decode(ids)})
    size = tokenizer.get_vocab_size()
    for start in range(0, size + 7, 23): # every id, and some beyond
        ids = [(start * 31 + step * 7) % (size + 9) for step in range(12)]
        rows.append({"ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=False),
                     "decoded_skip_special": tokenizer.decode(ids)})
    return rows

CHAT = [{"role": "system", "content": "Be brief. é✓"}, {"role": "user", "content": "  What is 2+2?\n"},
        {"role": "assistant", "content": "<think>\nEasy.\n</think>\n\n4", "tool_calls": [
            {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": [2.5, None, True]}}}]},
        {"role": "tool", "content": "{\"sum\": 4}", "name": "add"}, {"role": "user", "content": ""}]
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds \"a\" & 'b' <x>",
                                           "parameters": {"type": "object", "properties": {
                                               "a": {"type": "number"}}, "required": ["a"]}}}]
TEMPLATES = [
    "{{ messages[0]['content'] }}", "{{- messages[-1].role -}}  \n x", "a\n  {% if true %}\n  b\n  {% endif %}\nc\n",
    "{# note #}\nx{#- y -#}  z", "{%- for m in messages %}{{ loop.index }}/{{ loop.length }}:{{ m.role }} {% endfor %}",
    "{% for m in messages if m.role != 'tool' %}{{ loop.first }}{{ loop.last }}{{ m.role }};{% else %}none{% endfor %}",
    "{% set ns = namespace(a=0, b='') %}{% for m in messages %}{% set ns.a = ns.a + m.content|length %}"
    "{% set ns.b = ns.b ~ loop.index0 %}{% endfor %}{{ ns.a }} {{ ns.b }}",
    "{% for m in messages[::-1] %}{{ m.role[0] }}{% endfor %}{{ messages[1:3]|length }}{{ 'abcdef'[1:-1:2] }}",
    "{{ messages[1].content|trim }}|{{ messages[1].content.strip() }}|{{ messages[1]['content'].lstrip() }}|"
    "{{ messages[1].content.rstrip('\\n?') }}",
    "{{ tools | tojson }}{{ tools | tojson(indent=2) }}{{ messages[2].tool_calls[0].function.arguments | tojson }}",
    "{{ messages[2].tool_calls[0].function.arguments }} {{ [1, 'a\\'b', none, 1.0, {'k': (1,)}] }} {{ 1e0 if false else 2.50 }}",
    "{% if tools is defined and tools is not none and tools %}T{% endif %}{% if x is not defined %}U{% endif %}{{ x }}",
    "{{ x is none }}{{ none is none }}{{ 'a' is string }}{{ messages is iterable }}{{ messages[0] is mapping }}"
    "{{ 1 is number }}{{ true is boolean }}{{ 3 is odd }}{{ 4 is divisibleby 2 }}{{ 'a' is in ['a'] }}",
    "{{ 'a' in 'cat' }}{{ 'role' in messages[0] }}{{ 3 not in [1, 2] }}{{ not 1 == 2 }}{{ 1 < 2 <= 2 }}{{ 'a' < 'b' }}",
    "{{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** 10 }} {{ 1 + 2 * 3 - -4 }} {{ 'ab' * 3 }} {{ [1] + [2] }}",
    "{{ 'a' ~ 1 ~ none ~ 2.0 }}{{ 'x' 'y' }}{{ \"q\\\"\\n\\t\\u00e9\\x41\\\\\" }}",
    "{% macro f(a, b='B') %}[{{ a }}{{ b }}]{% endmacro %}{{ f('x') }}{{ f('y', b='z') }}{{ f(b=1, a=2)|length }}",
    "{% macro show(d, n=0) %}{% for k, v in d.items() %}{{ k }}={% if v is mapping %}({{ show(v, n + 1) }}){% else %}"
    "{{ v }}{% endif %};{% endfor %}{% endmacro %}{{ show(tools[0]) }}",
    "{% set x = 'out' %}{% for m in messages %}{% set x = m.role %}{% endfor %}{{ x }}{% if true %}{% set x = 'in' %}{% endif %}{{ x }}",
    "{% set body %}\n  <{{ messages[0].role }}>\n{% endset %}{{ body }}|{{ body|length }}",
    "{{ messages[2].content.split('</think>')[-1].lstrip('\\n') }}|{{ messages[2].content.split('</think>')[0].split('<think>')[-1].strip() }}",
    "{{ 'a,b,,c'.split(',') }}{{ ' a  b '.split() }}{{ 'a b c'.split(' ', 1) }}{{ 'x'.startswith('x') }}{{ 'xyz'.endswith(('y', 'z')) }}",
    "{{ 'banana'.replace('an', 'AN') }}{{ 'abc'.upper() }}{{ 'ABC' | lower }}{{ 'hello world'|title }}{{ 'hELLO'|capitalize }}{{ 'abcabc'.find('c') }}",
    "{{ ['a', 'b']|join(', ') }}{{ [1, 2, 3]|first }}{{ [1, 2, 3]|last }}{{ 'abc'|list }}{{ 'abc'|reverse }}{{ [3, 4]|reverse|list }}",
    "{{ y|default('d') }}{{ ''|default('e', true) }}{{ none|default('f') }}{{ '12'|int + 1 }}{{ 5|string ~ 'x' }}",
    "{{ messages|selectattr('role', 'equalto', 'user')|list|length }}{{ messages|map(attribute='role')|join('-') }}"
    "{{ messages|rejectattr('tool_calls', 'defined')|list|length }}",
    "{% for k, v in messages[0]|items %}{{ k }}:{{ v }},{% endfor %}{% for k in messages[0] %}{{ k }}{% endfor %}{% for c in 'é✓' %}<{{ c }}>{% endfor %}",
    "{% for i in range(3) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}{% for i in range(1, 9, 3) %}{% if i > 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{{ 'yes' if messages|length > 2 else 'no' }}{{ 'gone' if false }}{{ (1 if x else 2) + 1 }}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}{{ bos_token }}{{ eos_token }}",
    "{% if messages[0].role == 'user' %}{{ raise_exception('no') }}{% elif messages|length == 5 %}five{% else %}other{% endif %}",
    "{{ messages[0].nothing }}{{ messages[9] }}{{ messages[0]['nothing'] is defined }}{{ none.a }}{{ 'abc'[7] }}",
    "{% for m in messages %}{% if not loop.first %}{{ loop.previtem.role }}{% endif %}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.nextitem is defined }} {% endfor %}",
    "{{ {'a': 1, 'b': {'c': [1, 2]}}['b']['c'][1] }}{{ {'a': 1}.get('z', 'dflt') }}{{ {'a': 1}.keys()|list }}{{ dict(q=1)|tojson }}",
    "x\n\n{%- if add_generation_prompt %}\n<gen>\n{%- endif %}\n\n{{- '\\n' }}  {{ enable_thinking is defined and enable_thinking is false }}",
    "{%+ if true %}a{% endif +%}\nb\n   {%+ if true %}c{% endif %}\n\n d",
    "line1\r\nline2 {{ 'x' }}\r\n{% if true %}\r\ny{% endif %}\r\n",
    "{{ 1.5e3 if false else 0.1 + 0.2 }} {{ 10 / 5 }} {{ 3.0 }} {{ 123456789012345678 }} {{ 1 == 1.0 }} {{ true + 1 }}",
    "{{ messages[2].tool_calls[0]['function'] | tojson }}{{ 'a\\u2028</b>&\\x01' | tojson }}{{ [] | tojson }}{{ {} | tojson(indent=4) }}",
    "{% if (messages[0].role == 'system') and not tools or x %}A{% else %}B{% endif %}{{ messages[0] == messages[0] }}{{ [1, 2] == [1, 2] }}",
    "{{ 'abcabc'.count('b') }}{{ 'prefix-x'.removeprefix('prefix-') }}{{ 'a\\nb\\r\\nc'.splitlines() }}{{ '-'.join(['p', 'q']) }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% for x, y in [[1, 2], [3, 4]] %}{{ x }}{{ y }};{% endfor %}{{ (1, 2) }}{{ () }}",
]

def chat_rows():
    rows = []
    for number, template in enumerate(TEMPLATES):
        request = {"messages": CHAT, "tools": TOOLS if number % 3 else None,
                   "add_generation_prompt": number % 2 == 0,
                   "vars": {"enable_thinking": False} if number % 4 == 0 else {}}
        if "tools" in template:
            request["tools"] = TOOLS
        rendered, _ = render_jinja_template(
            [request["messages"]], tools=request["tools"], chat_template=template,
            add_generation_prompt=request["add_generation_prompt"], bos_token="<|im_start|>",
            eos_token="<|im_end|>", pad_token="<|endoftext|>", **request["vars"])
        rows.append({"template": template, "request": request, "rendered": rendered[0]})
    return rows

def main():
    out = sys.argv[1]
    for name, make in (("byte_level", byte_level), ("metaspace", metaspace), ("words", words),
                       ("first", first)):
        tokenizer = make()
        folder = os.path.join(out, name)
        os.makedirs(folder, exist_ok=True)
        saved = json.loads(tokenizer.to_str())
        with open(os.path.join(folder, "tokenizer.json"), "w", encoding="utf-8") as file:
            json.dump(saved, file, ensure_ascii=False, separators=(",", ":"))
            file.write("\n")
        write_rows(os.path.join(folder, "vectors.jsonl"), vectors(tokenizer))
    with open(os.path.join(out, "byte_level", "tokenizer_config.json"), "w") as file:
        json.dump({"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"},
                   "pad_token": "<|endoftext|>", "model_max_length": 10**30}, file)
        file.write("\n")
    write_rows(os.path.join(out, "chat_cases.jsonl"), chat_rows())

if __name__ == "__main__":
    main()

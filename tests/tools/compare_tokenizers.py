#!/usr/bin/env python3
"""Compare `foresight tokenize` with the `tokenizers` package on random tokenizers and hostile texts.

    tests/tools/compare_tokenizers.py PROGRAM [--rounds N] [--texts N] [--seed S] [--dir TOKENIZER]

Each round trains a small BPE model with a random choice of normalizer, pre-tokenizer, options,
added tokens, post-processor and decoder, saves it as tokenizer.json, and compares ids (with and
without special tokens) and decoded texts (with and without skipping them). With --dir the texts
are tried on that tokenizer instead. Needs the Python package `tokenizers`.
"""
import argparse
import json
import os
import random
import subprocess
import sys
import tempfile

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers

PATTERNS = [
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", r"\p{N}{1,3}", r"\p{N}", r"\d+", r"\w+|[^\w\s]+",
    r" ?[^(\s|[.,!?…。，、।۔،])]+", r"\s?\p{L}+", r"\s+$", r"[^\s]+", r"\p{Han}+", r"\h+", r"\bthe\b",
    r"[\p{L}&&[^\p{Han}]]+", r"[a-z[0-9]]+", r"\W", r"\S+", r"x{1,2}+", r"a{,2}", r"(?<=\s)\S",
    r"[[:punct:]]+", r"[[:alpha:]]+", r"\p{Lu}", r"\p{^L}", r"[^\W\d_]+", r"^.", r".$", r"[\r\n]",
    r"(?:\r\n|\n)+", r"[\S&&\D]+", r"\s*", r"[^\P{L}]", r"\.", r"(?=[A-Z])", r"\v|\R", r"[\w']+",
]
CORPUS_WORDS = ("the of and to in is was he for it with as his on be at by had not are but from or "
                "have an they which one you were all her she there would their we him been has when "
                "who will no more if out so up said what its about than into them can only other "
                "time new some could these two may first then do any like my now over such our man "
                "don't I'm we've they'll it's he'd Straße naïve café 今天 天气 很好 한국어 привет "
                "1234 42 3.14 def return x**2 print(\"hello\") \u0915\u094d\u0937 e\u0301 ﬁne ①②").split()
PIECES = [" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2003", "\u0085", "\u200b", "\ufeff",
          "\u180e", "\u200d", "\u200c", "\u0301", "\u0323\u0301", "\u0300\u0327", "é", "e\u0301", "ö",
          "Å", "\u212b", "ﬁ", "ﬆ", "ß", "ẞ", "İ", "ı", "ſ", "K", "Σ", "ς", "½", "²", "Ⅷ", "①", "٣",
          "๓", "한국어", "한", "中文", "日本語", "カタカナ", "ー", "مرحبا", "\u0651\u064e", "हिन्दी",
          "\U0001F600", "\U0001F468\u200D\U0001F469\u200D\U0001F467", "\U0001F1E9\U0001F1EA",
          "\U0001FAE8", "\U00031350", "\U0001D518", "\u0378", "\ue000", "\U0010FFFF", "\x00", "\x01",
          "\x1f", "\x7f", "\x80", "\u2028", "\u2029", "▁", "▁▁", "Ġ", "Ċ", "Ā", "</w>", "##", "<0x41>",
          "<0xFF>", "<unk>", "<s>", "</s>", "<|end|>", "<|end", "|>", "<mask>", "[CLS]", "tok", "'s",
          "'S", "'ſ", "'LL", "'re", "don't", "...", "—", "“", "$", "€", "+", "==", "\\", "//", "0",
          "12", "123", "12345678", "a", "b", "x", "xx", "xxx", "the", "The", "THE", "ab", "\ufffd"]
ADDED = ["<s>", "</s>", "<|end|>", "<|end", "<mask>", "[CLS]", "tok", "<unk>", "  ", "é", "The", "#",
         "<|a|>", "<|ab|>", "İx"]


def random_text(rng):
    kind = rng.random()
    if kind < 0.25:
        return " ".join(rng.choice(CORPUS_WORDS) for _ in range(rng.randrange(1, 30)))
    if kind < 0.35:
        chars = [chr(c) for c in (rng.randrange(0x110000) for _ in range(rng.randrange(1, 20)))
                 if not 0xD800 <= c < 0xE000]
        return "".join(chars)
    if kind < 0.42:
        return rng.choice(PIECES) * rng.randrange(1, 60)
    return "".join(rng.choice(PIECES if rng.random() < 0.6 else CORPUS_WORDS)
                   for _ in range(rng.randrange(0, 25)))


def random_normalizer(rng):
    one = [normalizers.NFC, normalizers.NFD, normalizers.NFKC, normalizers.NFKD,
           normalizers.Lowercase, normalizers.StripAccents, normalizers.Nmt,
           lambda: normalizers.Strip(left=rng.random() < 0.7, right=rng.random() < 0.7),
           lambda: normalizers.Replace(" ", "▁"), lambda: normalizers.Prepend("▁"),
           lambda: normalizers.Replace(Regex(r"\s+"), " "), lambda: normalizers.Replace("the", "th"),
           lambda: normalizers.Replace(Regex(r" {2,}"), "▁"), lambda: normalizers.Prepend("ab"),
           lambda: normalizers.BertNormalizer(rng.random() < 0.5, rng.random() < 0.5,
                                              rng.choice([None, True, False]), rng.random() < 0.5)]
    kind = rng.random()
    if kind < 0.35:
        return None
    if kind < 0.5:
        return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    if kind < 0.75:
        return rng.choice(one)()
    return normalizers.Sequence([rng.choice(one)() for _ in range(rng.randrange(0, 4))])


def random_split(rng):
    behavior = rng.choice(["removed", "isolated", "merged_with_previous", "merged_with_next",
                           "contiguous"])
    pattern = Regex(rng.choice(PATTERNS)) if rng.random() < 0.8 else rng.choice([" ", "the", ".", "▁"])
    return pre_tokenizers.Split(pattern, behavior, invert=rng.random() < 0.3)


def random_pre_tokenizer(rng):
    one = [lambda: pre_tokenizers.ByteLevel(add_prefix_space=rng.random() < 0.3,
                                            use_regex=rng.random() < 0.7),
           lambda: random_split(rng), lambda: random_split(rng),
           lambda: pre_tokenizers.Digits(individual_digits=rng.random() < 0.5),
           lambda: pre_tokenizers.Metaspace(prepend_scheme=rng.choice(["always", "first", "never"]),
                                            split=rng.random() < 0.7),
           pre_tokenizers.Whitespace, pre_tokenizers.WhitespaceSplit, pre_tokenizers.BertPreTokenizer,
           lambda: pre_tokenizers.Punctuation(rng.choice(["removed", "isolated", "contiguous",
                                                          "merged_with_previous",
                                                          "merged_with_next"])),
           lambda: pre_tokenizers.CharDelimiterSplit(rng.choice("x a▁"))]
    kind = rng.random()
    if kind < 0.1:
        return None
    if kind < 0.5:
        return rng.choice(one)()
    if kind < 0.75:
        return pre_tokenizers.Sequence([random_split(rng),
                                        pre_tokenizers.ByteLevel(add_prefix_space=False,
                                                                 use_regex=rng.random() < 0.3)])
    return pre_tokenizers.Sequence([rng.choice(one)() for _ in range(rng.randrange(1, 4))])


def random_decoder(rng):
    one = [decoders.ByteLevel, decoders.ByteFallback, decoders.Fuse, decoders.BPEDecoder,
           lambda: decoders.Metaspace(prepend_scheme=rng.choice(["always", "first", "never"])),
           lambda: decoders.WordPiece(rng.choice(["##", "t"]), rng.random() < 0.5),
           lambda: decoders.Strip(rng.choice(" ta▁"), rng.randrange(3), rng.randrange(3)),
           lambda: decoders.Replace("▁", " "), lambda: decoders.Replace(Regex(r"[a-c]+"), "é")]
    kind = rng.random()
    if kind < 0.1:
        return None
    if kind < 0.3:
        return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(),
                                  decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    if kind < 0.6:
        return rng.choice(one)()
    return decoders.Sequence([rng.choice(one)() for _ in range(rng.randrange(1, 5))])


def random_post_processor(rng, tokenizer):
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    first, second = rng.choice(vocabulary), rng.choice(vocabulary)
    kind = rng.random()
    if kind < 0.3:
        return None
    if kind < 0.4:
        return processors.ByteLevel(trim_offsets=rng.random() < 0.5)
    if kind < 0.5:
        return processors.BertProcessing(first, second)
    if kind < 0.6:
        return processors.RobertaProcessing(first, second)
    if ":" in first[0] + second[0] or first[0].startswith("$") or second[0].startswith("$"):
        return None
    single = rng.choice([[first[0], "$A"], ["$A", second[0]], [first[0], "$A", second[0]],
                         [first[0], first[0], "$A"]])
    template = processors.TemplateProcessing(single=single, pair=["$A", "$B"],
                                             special_tokens=[first, second])
    return template if rng.random() < 0.5 else processors.Sequence([processors.ByteLevel(), template])


def random_tokenizer(rng):
    options = {}
    if rng.random() < 0.5:
        options["unk_token"] = "<unk>"
        options["fuse_unk"] = rng.random() < 0.5
    if rng.random() < 0.25:
        options["continuing_subword_prefix"] = "##"
    if rng.random() < 0.25:
        options["end_of_word_suffix"] = "</w>"
    byte_fallback = rng.random() < 0.4
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.normalizer = random_normalizer(rng) or tokenizer.normalizer
    pre = random_pre_tokenizer(rng)
    if pre is not None:
        tokenizer.pre_tokenizer = pre
    special = ["<unk>"] if "unk_token" in options else []
    if byte_fallback:
        present = range(256) if rng.random() < 0.6 else rng.sample(range(256), 200)
        special += [f"<0x{byte:02X}>" for byte in present]
    alphabet = pre_tokenizers.ByteLevel.alphabet() if rng.random() < 0.6 else []
    trainer = trainers.BpeTrainer(
        vocab_size=rng.randrange(300, 1200), special_tokens=special, show_progress=False,
        initial_alphabet=alphabet, limit_alphabet=rng.choice([60, 1000]),
        continuing_subword_prefix=options.get("continuing_subword_prefix", ""),
        end_of_word_suffix=options.get("end_of_word_suffix", ""))
    corpus = [" ".join(rng.choice(CORPUS_WORDS) for _ in range(40)) for _ in range(60)]
    tokenizer.train_from_iterator(corpus, trainer)
    for content in rng.sample(ADDED, rng.randrange(0, 8)):
        token = AddedToken(content, single_word=rng.random() < 0.2, lstrip=rng.random() < 0.2,
                           rstrip=rng.random() < 0.2, normalized=rng.random() < 0.4)
        if rng.random() < 0.5:
            tokenizer.add_special_tokens([token])
        else:
            tokenizer.add_tokens([token])
    post = random_post_processor(rng, tokenizer)
    if post is not None:
        tokenizer.post_processor = post
    decoder = random_decoder(rng)
    if decoder is not None:
        tokenizer.decoder = decoder
    saved = json.loads(tokenizer.to_str())
    saved["model"]["byte_fallback"] = byte_fallback
    saved["model"]["ignore_merges"] = rng.random() < 0.2
    if byte_fallback: # only in the model, not as special tokens
        saved["added_tokens"] = [token for token in saved["added_tokens"]
                                 if not token["content"].startswith("<0x")]
    if rng.random() < 0.3:
        merges = saved["model"]["merges"]
        if not any(" " in part for pair in merges for part in pair):
            saved["model"]["merges"] = [" ".join(pair) for pair in merges]
    return json.dumps(saved, ensure_ascii=False)


def run(program, folder, flags, lines):
    done = subprocess.run([program, "tokenize", "--tokenizer", folder, *flags],
                          input="".join(json.dumps(line) + "\n" for line in lines).encode(),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    rows = [json.loads(line) for line in done.stdout.decode().split("\n") if line]
    return rows, done.stderr.decode()


def report(what, folder, given, expected, found, save):
    print(f"DIFFERENT {what}: {folder}\n  given    {json.dumps(given)[:300]}\n"
          f"  expected {json.dumps(expected)[:300]}\n  found    {json.dumps(found)[:300]}")
    if save:
        os.makedirs(save, exist_ok=True)
        with open(os.path.join(folder, "tokenizer.json")) as source, \
                open(os.path.join(save, "tokenizer.json"), "w") as target:
            target.write(source.read())


def safe(call):
    """The library panics on some inputs; those have no answer to compare with."""
    try:
        return call()
    except BaseException as error: # pylint: disable=broad-except
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        return None


def compare(program, folder, reference, texts, rng, save):
    """Number of differences; -1 if the program refuses the tokenizer by RL_UNSUPPORTED's wording."""
    differences = 0
    _, errors = run(program, folder, [], [])
    if "not supported" in errors: # the library may need endless memory for what is refused
        return -1, errors
    for flags, special in (([], False), (["--special"], True)):
        wanted = [safe(lambda t=text: reference.encode(t, add_special_tokens=special).ids)
                  for text in texts]
        pairs = [(text, ids) for text, ids in zip(texts, wanted) if ids is not None]
        rows, errors = run(program, folder, flags, [{"text": text} for text, _ in pairs])
        if len(rows) != len(pairs):
            if "not supported" in errors:
                return -1, errors
            report("no answer", folder, pairs[len(rows)][0], pairs[len(rows)][1], errors, save)
            return differences + 1, errors
        for (text, ids), row in zip(pairs, rows):
            if row["ids"] != ids:
                differences += 1
                if differences < 4:
                    report("ids", folder, text, ids, row["ids"], save)
    size = reference.get_vocab_size()
    sequences = [[rng.randrange(size + 20) for _ in range(rng.randrange(0, 20))]
                 for _ in range(len(texts) // 2)]
    sequences += [ids for _, ids in pairs[:len(texts) // 2]]
    for flags, skip in (([], False), (["--skip-special"], True)):
        wanted = [safe(lambda i=ids: reference.decode(i, skip_special_tokens=skip))
                  for ids in sequences]
        pairs = [(ids, text) for ids, text in zip(sequences, wanted) if text is not None]
        rows, errors = run(program, folder, ["--decode", *flags], [{"ids": ids} for ids, _ in pairs])
        if len(rows) != len(pairs):
            report("no text", folder, pairs[len(rows)][0], pairs[len(rows)][1], errors, save)
            return differences + 1, errors
        for (ids, text), row in zip(pairs, rows):
            if row["text"] != text:
                differences += 1
                if differences < 4:
                    report("text", folder, ids, text, row["text"], save)
    return differences, ""


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dir")
    parser.add_argument("--save", help="folder for the last tokenizer.json that differed")
    options = parser.parse_args()
    total, refused = 0, 0
    for round_number in range(1 if options.dir else options.rounds):
        rng = random.Random(options.seed * 1000003 + round_number)
        with tempfile.TemporaryDirectory() as folder:
            if options.dir:
                folder = options.dir
                reference = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
            else:
                text = safe(lambda: random_tokenizer(rng))
                reference = safe(lambda: Tokenizer.from_str(text)) if text else None
                if reference is None:
                    continue
                with open(os.path.join(folder, "tokenizer.json"), "w") as file:
                    file.write(text)
            texts = [random_text(rng) for _ in range(options.texts)]
            found, errors = compare(options.program, folder, reference, texts, rng, options.save)
            if found < 0:
                refused += 1
                print("refused:", errors.strip().split("\n")[-1][:200])
            elif found:
                print(f"round {round_number}: {found} differences")
                total += found
    print(f"{options.rounds} rounds, {refused} refused, {total} differences")
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())

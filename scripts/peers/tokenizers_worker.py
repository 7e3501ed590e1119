"""The Rust side of tokenizers_peer.py: the same documents in one batch."""
import json
import os
import sys
import time


def documents(settings):
    """Cut as `foresight bench tokenizer` cuts: at the first line end after so many bytes."""
    with open(settings["file"], "rb") as file:
        text = file.read(settings["bytes"])
    found, begin = [], 0
    while begin < len(text):
        line = text.find(b"\n", begin + settings["document"])
        end = len(text) if line < 0 else line + 1
        found.append(text[begin:end].decode(errors="replace"))
        begin = end
    return found, len(text)


def main():
    import tokenizers
    settings = json.loads(sys.argv[1])
    tokenizer = tokenizers.Tokenizer.from_file(os.path.join(settings["folder"], "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    texts, count = documents(settings)
    # Without offsets where the binding has that: they are no part of the comparison.
    encode = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)
    encode(texts[: len(texts) // 10 + 1], add_special_tokens=False)
    print(json.dumps({"version": tokenizers.__version__}), flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        found = encode(texts, add_special_tokens=False)
        seconds = time.perf_counter() - begin
        print(json.dumps({"mbytes_per_second": count / seconds * 1e-6,
                          "tokens": sum(len(one) for one in found)}), flush=True)


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # pylint: disable=broad-except
        print(json.dumps({"error": f"{type(error).__name__}: {error}".splitlines()[0]}), flush=True)
        sys.exit(1)

"""The results as a page: docs/performance.md."""
from common import parameters, shapes

SECTIONS = [
    ("decode", "Decode", "A prompt of 64 tokens, then 128 new ones of each sequence, sampled from the"
     " whole vocabulary with log-probs; a peer computes logits and samples nothing. Keys and values"
     " are in bf16, llama.cpp's in f16. Its q8_0 has"
     " a scale for 32 weights, our int8 one for each output; both quantise activations as they come."
     " Tokens a second of all sequences; rows without a peer are our own figures alone."),
    ("prefill", "Prefill", "Prompts: of the same runs, and longer ones alone."),
    ("train", "Training", "Forward, backward, clipping, AdamW and (ours) the publish cast."),
    ("GRPO step", "One GRPO step", "Generate, score, one update, on the same work: what is the same"
     " and what is not stands in `scripts/peers/trl_step.py`."),
    ("tokenizer", "Tokenizer", "Encoding in one thread, no special tokens."),
]


def share(row, key):
    return f"{100 * row[key]:.0f} %" if row.get(key) else "-"


def limit(row):
    """Which limit is near, and how near."""
    fma, read = row.get("fma_share") or 0, row.get("read_share") or 0
    if not fma and not read:
        return "-"
    return f"{100 * read:.0f} % of read bandwidth" if read > fma else f"{100 * fma:.0f} % of FMA peak"


def rate(value):
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def bar(row):
    """Kept or not; a missed one with how near the limit it would have to be."""
    if not row.get("bar"):
        return "-"
    if row["ratio"] >= row["bar"]:
        return f"{row['bar']:g} x, kept"
    near = max(row.get("fma_share") or 0, row.get("read_share") or 0)
    needs = f" (at {100 * near * row['bar'] / row['ratio']:.0f} % of the limit)" if near else ""
    return f"{row['bar']:g} x, **missed**{needs}"


def order(row):
    models = list(shapes())
    model = models.index(row["model"]) if row["model"] in models else len(models)
    return (model, row["model"], row["dtype"], row["peer"], row.get("order", 0), row["case"])


def table(rows):
    head = ("| model | weights | case | ours | peer | its rate | unit | ratio | wanted | limit |"
            " memory |\n|---|---|---|---|---|---|---|---|---|---|---|\n")
    lines = []
    for row in sorted(rows, key=order):
        memory = f"{row['memory_ratio']:.2f}" if row.get("memory_ratio") else "-"
        lines.append(f"| {row['model']} | {row['dtype']} | {row['case']} | {rate(row['ours'])} |"
                     f" {row['peer']} | {rate(row.get('theirs'))} | {row['unit']} |"
                     f" {rate(row.get('ratio'))} | {bar(row)} | {limit(row)} | {memory} |")
    return head + "\n".join(lines) + "\n"


def verdict(rows):
    """The distance in words: how many bars are kept, and the farthest off."""
    barred = [row for row in rows if row.get("bar")]
    missed = sorted((row for row in barred if row["ratio"] < row["bar"]),
                    key=lambda row: row["ratio"] / row["bar"])
    if not barred:
        return ""
    text = f"{len(barred) - len(missed)} of {len(barred)} wanted ratios that were measured are kept."
    if missed:
        text += " Farthest off: " + "; ".join(
            f"{row['model']} {row['dtype']}, {row['case']}: {row['ratio']:.2f} of {row['bar']:g} x"
            for row in missed[:3]) + "."
    return text


def limits_in_words(rows):
    """Per model, the row that is nearest to what the machine can do, and the farthest."""
    found = []
    for model in shapes():
        shares = [(max(row.get("fma_share") or 0, row.get("read_share") or 0), row)
                  for row in rows if row["model"] == model and row.get("fma_share")]
        if not shares:
            continue
        near, far = max(shares, key=lambda one: one[0]), min(shares, key=lambda one: one[0])
        found.append(f"{model}: from {100 * far[0]:.0f} % ({far[1]['dtype']}, {far[1]['case']}) to "
                     f"{100 * near[0]:.0f} % ({near[1]['dtype']}, {near[1]['case']})")
    return "Of the nearer limit: " + "; ".join(found) + "." if found else ""


def shape_table():
    lines = ["| name | layers | width | heads | kv heads | ffn | vocabulary | parameters |",
             "|---|---|---|---|---|---|---|---|"]
    for name, shape in shapes().items():
        values = " | ".join(str(value) for value in shape.values())
        lines.append(f"| {name} | {values} | {parameters(shape) / 1e6:.2f} M |")
    return "\n".join(lines) + "\n"


def not_measured(rows):
    """Peers without a row, so that nobody takes silence for a result."""
    names = ("llama.cpp", "PyTorch", "TRL", "tokenizers", "llm.c")
    absent = [name for name in names if not any(row["peer"].startswith(name) for row in rows)]
    return f"Not measured on this machine: {', '.join(absent)}. " if absent else ""


def page(rows, note):
    dates = sorted({row["date"] for row in rows})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    machines = sorted({f"{row['cpu']}, {row['threads']} threads" for row in rows})
    parts = [f"""# Performance

Written by `scripts/bench_peers --docs docs/performance.md` from measurements of
{when} on: {'; '.join(machines)}.
Both sides take turns on the same machine with the same number of threads; every figure is a median of
the turns, every ratio one of medians; peers run as their packages install them, with the better of
their settings. Limits are measured by `foresight bench` in the same process as the figure: fused
multiply-adds on registers, and reads of the very weights, by all threads at once. A missed ratio says
how near that limit it would be kept, this peer and this turn given; above 100 % it cannot be. Memory is the peak of the
process over weights + KV cache (decode) or over the printed footprint (training); on the smallest
models the program itself is most of it. {note}

Own figures alone: `foresight bench decode|prefill|speculation|train|kernels|tokenizer` (`foresight bench --help`).

{shape_table()}
Qwen2's architecture: biases on q, k and v, tied head, random weights.

## In short

{verdict(rows)} {not_measured(rows)}{limits_in_words(rows)}
"""]
    for what, title, text in SECTIONS:
        chosen = [row for row in rows if row["what"] == what]
        if chosen:
            settings = sorted({f"{row['peer']} ({row['model']}): {row['setting']}" for row in chosen
                               if row.get("setting")})
            parts.append(f"## {title}\n\n{text}\n\n{table(chosen)}" +
                         (f"\nSettings of the peers: {'; '.join(settings)}.\n" if settings else ""))
    return "\n".join(parts)

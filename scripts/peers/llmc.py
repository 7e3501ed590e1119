"""A training step against llm.c, where it stands built with the checkpoint and data its README names.

Its program fixes the batch at 4 sequences of 64 tokens and reads its model from gpt2_124M.bin, whose
header says the size; ours runs the shape that is nearest in parameters on as many tokens. Rates are
compared per parameter: tokens a second times parameters.
"""
import os
import re
import statistics
import struct

from common import Missing, foresight, output_of, parameters, result, shapes, take_turns

SEQUENCES, LENGTH, SKIP, BAR = 4, 64, 2, 5.0


def peer_parameters(path):
    """Of a checkpoint: learnt positions, biases everywhere, a tied head."""
    try:
        with open(path, "rb") as file:
            head = struct.unpack("<8i", file.read(32))
    except (OSError, struct.error) as error:
        raise Missing(f"llm.c: {path}: {error}") from error
    positions, vocab, layers, _, width = head[2:7]
    return (vocab + positions) * width + layers * (12 * width * width + 13 * width) + 2 * width


def theirs(args, program):
    out = output_of([program], cwd=os.path.dirname(program),
                    env=dict(os.environ, OMP_NUM_THREADS=str(args.threads)))
    times = [float(time) for time in re.findall(r"\(took ([\d.]+) ms\)", out)][SKIP:]
    if not times:
        raise Missing(f"llm.c: {program} printed no step with its time")
    return SEQUENCES * LENGTH / (statistics.median(times) * 1e-3)


def run(args):
    if args.llmc is None:
        raise Missing("llm.c: give --llmc PATH of a built train_gpt2 beside its gpt2_124M.bin and data")
    program = os.path.abspath(args.llmc)
    count = peer_parameters(os.path.join(os.path.dirname(program), "gpt2_124M.bin"))
    model = min(shapes(), key=lambda name: abs(parameters(shapes()[name]) - count))
    own_count = parameters(shapes()[model])

    def ours():
        return foresight(args, "train", "--model", model, "--tokens", str(SEQUENCES * LENGTH),
                         "--sequence", str(LENGTH), "--threads", args.threads, "--runs",
                         str(args.steps), "--json")["lines"][0]["tokens_per_second"] * own_count

    own, peer = take_turns(args.rounds, ours, lambda: theirs(args, program) * count)
    yield result(args, {"what": "train", "model": model, "dtype": "fp32",
                        "case": f"{SEQUENCES} x {LENGTH}", "peer": "llm.c",
                        "unit": "M parameters x tokens/s"},
                 [rate * 1e-6 for rate in own], [rate * 1e-6 for rate in peer], bar=BAR, order=1,
                 setting=f"its model has {count / 1e6:.1f} million parameters")

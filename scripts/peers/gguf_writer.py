"""A model file for llama.cpp: Qwen2's architecture, random weights, no tokenizer.

    gguf_writer.py OUT f32|bf16|q8_0 SHAPE_JSON
"""
import json
import sys

import gguf
import numpy

TYPES = {"f32": gguf.GGMLQuantizationType.F32, "bf16": gguf.GGMLQuantizationType.BF16,
         "q8_0": gguf.GGMLQuantizationType.Q8_0}
FILE_TYPES = {"f32": gguf.LlamaFileType.ALL_F32, "bf16": gguf.LlamaFileType.MOSTLY_BF16,
              "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}
POSITIONS = 32768


def write_header(writer, shape, kind):
    writer.add_block_count(shape["layers"])
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(shape["width"])
    writer.add_feed_forward_length(shape["ffn"])
    writer.add_head_count(shape["heads"])
    writer.add_head_count_kv(shape["kv_heads"])
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_vocab_size(shape["vocab"])
    writer.add_tokenizer_model("no_vocab")


def write_tensors(writer, shape, kind):
    random = numpy.random.default_rng(1)
    width, ffn = shape["width"], shape["ffn"]
    kv_width = width // shape["heads"] * shape["kv_heads"]

    def matrix(name, rows, columns):
        values = random.standard_normal((rows, columns), dtype=numpy.float32) * numpy.float32(0.02)
        if kind != "f32":
            values = gguf.quants.quantize(values, TYPES[kind])
        writer.add_tensor(name + ".weight", values, raw_dtype=TYPES[kind])

    def vector(name, value, count):
        writer.add_tensor(name, numpy.full(count, value, dtype=numpy.float32))

    matrix("token_embd", shape["vocab"], width)
    vector("output_norm.weight", 1, width)
    for layer in range(shape["layers"]):
        block = f"blk.{layer}."
        vector(block + "attn_norm.weight", 1, width)
        vector(block + "ffn_norm.weight", 1, width)
        for name, rows in (("attn_q", width), ("attn_k", kv_width), ("attn_v", kv_width)):
            matrix(block + name, rows, width)
            vector(block + name + ".bias", 0, rows)
        matrix(block + "attn_output", width, width)
        matrix(block + "ffn_gate", ffn, width)
        matrix(block + "ffn_up", ffn, width)
        matrix(block + "ffn_down", width, ffn)


def main():
    path, kind, shape = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    writer = gguf.GGUFWriter(path, "qwen2")
    write_header(writer, shape, kind)
    write_tensors(writer, shape, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Make tests/golden: tiny random models as Hugging Face folders with what an independent
implementation (transformers + PyTorch, float64) computes on them.

Run by hand when the set of cases changes: scripts/make_golden.py [OUTPUT_FOLDER]
Needs python packages torch, transformers and safetensors; the build and the tests do not.

Each folder holds the model as save_pretrained writes it and expected.safetensors with
  tokens, lengths            packed sequences
  rows, targets              which hidden rows are scored, and the token each must predict
  weight, entropy_weight     loss = sum weight * -logprob + sum entropy_weight * entropy
  inv_temperature            [1]
  logits [N, V], logprob, entropy [M], loss [1]
  grad.NAME                  gradient of the loss for each parameter
  adamw.NAME                 each parameter after ten clipped AdamW steps on that loss
"""
import os
import shutil
import sys

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers import Qwen3Config, Qwen3ForCausalLM

LENGTHS = (19, 7, 33, 16)
ADAMW = dict(lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
WEIGHT_DECAY = 0.1
CLIP = 1.0
STEPS = 10

SIZES = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, vocab_size=70, max_position_embeddings=64, bos_token_id=1,
             eos_token_id=2, pad_token_id=69)


def sized(**changes):
    return {**SIZES, **changes}


def cases():
    """name -> (class, config, dtype of the file, largest shard, temperature)"""
    return {
        "qwen2_tied": (Qwen2ForCausalLM, Qwen2Config(**sized(tie_word_embeddings=True)),
                       torch.bfloat16, "1GB", 1.0),
        "qwen2_window": (Qwen2ForCausalLM,
                         Qwen2Config(**sized(use_sliding_window=True, sliding_window=9,
                                             max_window_layers=1, num_hidden_layers=3,
                                             intermediate_size=24)),
                         torch.float32, "1GB", 1.0),
        "qwen2_yarn": (Qwen2ForCausalLM,
                       Qwen2Config(**sized(rope_parameters=dict(
                           rope_type="yarn", rope_theta=10000.0, factor=4.0,
                           original_max_position_embeddings=16))),
                       torch.bfloat16, "1GB", 0.7),
        "qwen3_tied": (Qwen3ForCausalLM,
                       Qwen3Config(**sized(hidden_size=32, tie_word_embeddings=True,
                                           head_dim=16, num_key_value_heads=1)),
                       torch.bfloat16, "1GB", 1.0),
        "qwen3_untied": (Qwen3ForCausalLM,
                         Qwen3Config(**sized(head_dim=10, attention_bias=True,
                                             rope_parameters=dict(rope_type="default",
                                                                  rope_theta=1e6))),
                         torch.float32, "24KB", 1.3),
        "llama3_rope": (LlamaForCausalLM,
                        LlamaConfig(**sized(rope_parameters=dict(
                            rope_type="llama3", rope_theta=500000.0, factor=8.0,
                            low_freq_factor=1.0, high_freq_factor=4.0,
                            original_max_position_embeddings=32))),
                        torch.float16, "1GB", 1.0),
        "llama_bias": (LlamaForCausalLM,
                       LlamaConfig(**sized(attention_bias=True, mlp_bias=True,
                                           num_key_value_heads=4,
                                           hidden_act="gelu_pytorch_tanh", rms_norm_eps=1e-5,
                                           rope_parameters=dict(rope_type="linear", factor=2.0,
                                                                rope_theta=10000.0))),
                       torch.bfloat16, "1GB", 1.0),
    }


def exact_norm(self, hidden):
    """RMSNorm in the model's own precision; transformers would go down to float32."""
    epsilon = getattr(self, "variance_epsilon")
    return self.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + epsilon)


def make_model(model_class, config, dtype, generator):
    torch.manual_seed(generator.initial_seed())
    config._attn_implementation = "sdpa"
    model = model_class(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = 0.15 if parameter.dim() == 2 else 0.1
            parameter.copy_(scale * noise + (1.0 if "norm" in name else 0.0))
    return model.to(dtype)


def random_batch(vocab, generator):
    total = sum(LENGTHS)
    # Never the padding token: PyTorch's embedding gives it no gradient.
    tokens = torch.randint(0, vocab - 1, (total,), generator=generator)
    rows, targets, start = [], [], 0
    for length in LENGTHS:
        first = length // 3  # what comes before plays the prompt: not scored
        for t in range(first, length - 1):
            rows.append(start + t)
            targets.append(int(tokens[start + t + 1]))
        start += length
    m = len(rows)
    return dict(tokens=tokens.int(), lengths=torch.tensor(LENGTHS, dtype=torch.int32),
                rows=torch.tensor(rows, dtype=torch.int32),
                targets=torch.tensor(targets, dtype=torch.int32),
                weight=torch.randn(m, generator=generator),
                entropy_weight=0.1 * torch.randn(m, generator=generator))


def run(model, batch, inv_temperature):
    start, logits = 0, []
    for length in LENGTHS:
        ids = batch["tokens"][start:start + length].long()[None]
        logits.append(model(input_ids=ids, use_cache=False).logits[0])
        start += length
    logits = torch.cat(logits)
    scores = torch.log_softmax(logits[batch["rows"].long()] * inv_temperature, dim=-1)
    logprob = scores.gather(1, batch["targets"].long()[:, None])[:, 0]
    entropy = -(scores.exp() * scores).sum(-1)
    loss = (-logprob * batch["weight"].double()).sum()
    loss = loss + (entropy * batch["entropy_weight"].double()).sum()
    return logits, logprob, entropy, loss


def train(model, batch, inv_temperature):
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([dict(params=matrices, weight_decay=WEIGHT_DECAY),
                                   dict(params=vectors, weight_decay=0.0)], **ADAMW)
    for _ in range(STEPS):
        optimizer.zero_grad()
        run(model, batch, inv_temperature)[3].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()


def make_case(folder, model_class, config, dtype, shard, temperature, seed):
    generator = torch.Generator().manual_seed(seed)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    model = make_model(model_class, config, dtype, generator)
    model.save_pretrained(folder, max_shard_size=shard)
    # Loaded again: a cast model has lost the precision of its rotary frequencies.
    model = model_class.from_pretrained(folder, dtype=torch.float32).double()
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = exact_norm.__get__(module)
    batch = random_batch(config.vocab_size, generator)
    inv_temperature = float(torch.tensor(1.0 / temperature, dtype=torch.float32))
    logits, logprob, entropy, loss = run(model, batch, inv_temperature)
    loss.backward()
    out = dict(batch, inv_temperature=torch.tensor([inv_temperature]), logits=logits,
               logprob=logprob, entropy=entropy, loss=loss.reshape(1))
    for name, parameter in model.named_parameters():
        out["grad." + name] = parameter.grad.clone()
    train(model, batch, inv_temperature)
    for name, parameter in model.named_parameters():
        out["adamw." + name] = parameter
    out = {k: (v.detach().float() if v.is_floating_point() else v).contiguous()
           for k, v in out.items()}
    save_file(out, os.path.join(folder, "expected.safetensors"))


def main():
    default = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "golden")
    output = sys.argv[1] if len(sys.argv) > 1 else default
    torch.set_num_threads(1)
    for seed, (name, case) in enumerate(cases().items()):
        make_case(os.path.join(output, name), *case, seed=seed + 1)
        print(name)


if __name__ == "__main__":
    main()

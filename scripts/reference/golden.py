"""Write tiny random checkpoints and their reference outputs, computed by Hugging Face transformers in float32.

usage: python golden.py OUT_DIR [NAME ...]      (packages: requirements.txt)

Each OUT_DIR/NAME/ holds
  config.json, model.safetensors (bfloat16)   the checkpoint exactly as save_pretrained writes it
  golden.safetensors                          what the model computes from it
    prompt.P.ids      int32  [n]              the input of case P
    prompt.P.logits   float32 [n, vocab]      logits of every position, from one full forward pass
    prompt.P.greedy   int32  [32]             the greedy continuation, one token at a time through the cache
    hidden.L          float32 [n, hidden]     case 1: the residual stream after layer L (0 = embeddings, before layer 0)
    prompt.P.ill_rows, ill_exact, ill_error   rows that float32 cannot pin down, see exact.conditioning
Weights are bfloat16 on disk and are widened to float32 before anything is computed, so a float32 implementation
must agree to rounding: max|a-b| / max|b| <= 2e-5 over every row that is not listed as ill-conditioned, equal greedy
tokens, and on the listed rows (a delta-rule output close to zero, blown up by the norm after it; the float32 logits
above are themselves up to 7e-5 off there) |a - ill_exact| / max|b| <= 2e-5 + ill_error.
"""
import json
import os
import sys

import numpy as np
import torch
from safetensors.torch import save_file

from exact import conditioning

torch.manual_seed(0)
torch.set_num_threads(2)


def rope(theta=1e7, partial=0.25, section=None):
    r = {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": partial}
    if section:
        r |= {"mrope_interleaved": True, "mrope_section": section}
    return r


BASE = dict(vocab_size=512, hidden_size=64, intermediate_size=160, num_hidden_layers=4, num_attention_heads=2,
            num_key_value_heads=1, head_dim=32, linear_num_key_heads=2, linear_num_value_heads=4,
            linear_key_head_dim=16, linear_value_head_dim=16, linear_conv_kernel_dim=4, full_attention_interval=4,
            rms_norm_eps=1e-6, max_position_embeddings=4096, bos_token_id=None, eos_token_id=0, pad_token_id=0)
MOE = dict(num_experts=8, num_experts_per_tok=3, moe_intermediate_size=48, shared_expert_intermediate_size=80)


# Prompt lengths; the widest checkpoint keeps only the first four to stay small.
LENGTHS = {None: (1, 7, 64, 65, 130, 200), "qwen35-real-heads": (1, 7, 64, 65)}


def models():
    from transformers import (Qwen3_5ForCausalLM, Qwen3_5MoeForCausalLM, Qwen3_5MoeTextConfig, Qwen3_5TextConfig,
                              Qwen3NextConfig, Qwen3NextForCausalLM)
    r35 = rope(section=[2, 1, 1])
    yield "qwen35-dense", Qwen3_5ForCausalLM, Qwen3_5TextConfig(**BASE, rope_parameters=r35, tie_word_embeddings=True)
    yield "qwen35-untied", Qwen3_5ForCausalLM, Qwen3_5TextConfig(
        **(BASE | dict(hidden_size=96, num_hidden_layers=8, linear_num_value_heads=2, linear_key_head_dim=32,
                       linear_value_head_dim=32, num_attention_heads=4, num_key_value_heads=2)),
        rope_parameters=r35, tie_word_embeddings=False)
    yield "qwen35-real-heads", Qwen3_5ForCausalLM, Qwen3_5TextConfig(
        **(BASE | dict(vocab_size=768, hidden_size=256, intermediate_size=512, linear_num_key_heads=2,
                       linear_num_value_heads=4, linear_key_head_dim=128, linear_value_head_dim=128,
                       num_attention_heads=2, num_key_value_heads=1, head_dim=256)),
        rope_parameters=rope(section=[11, 11, 10]), tie_word_embeddings=True)
    yield "qwen35-moe", Qwen3_5MoeForCausalLM, Qwen3_5MoeTextConfig(
        **BASE, **MOE, rope_parameters=r35, tie_word_embeddings=False)
    yield "qwen3-next", Qwen3NextForCausalLM, Qwen3NextConfig(
        **BASE, **MOE, rope_parameters=rope(), tie_word_embeddings=False)


def randomise(model):
    """Weights of a scale that keeps activations near one and makes every path matter."""
    g = torch.Generator().manual_seed(1)
    for name, p in model.named_parameters():
        if name.endswith("A_log"):
            p.data = torch.log(torch.empty_like(p).uniform_(0.2, 4.0, generator=g))
        elif name.endswith("dt_bias"):
            p.data = torch.empty_like(p).uniform_(-4.0, 0.5, generator=g)
        elif "norm" in name and p.dim() == 1:
            p.data += 0.2 * torch.randn(p.shape, generator=g)
        elif "conv1d" in name:
            p.data = 0.5 * torch.randn(p.shape, generator=g)
        elif "embed" in name:  # a tied embedding of scale one would only repeat its input
            p.data = torch.randn(p.shape, generator=g) * (0.1 if model.config.tie_word_embeddings else 1.0)
        elif p.dim() >= 2:
            p.data = torch.randn(p.shape, generator=g) * 1.3 * p.shape[-1] ** -0.5
        p.data = p.data.to(torch.bfloat16).to(torch.float32)


@torch.no_grad()
def golden(model, vocab, lengths):
    out, rng = {}, np.random.default_rng(3)
    for i, n in enumerate(lengths):
        ids = torch.from_numpy(rng.integers(1, vocab, n))[None]
        r = model(ids, output_hidden_states=(i == 1))
        out[f"prompt.{i}.ids"] = ids[0].to(torch.int32)
        out[f"prompt.{i}.logits"] = r.logits[0].contiguous().float()
        if i == 1:
            for j, h in enumerate(r.hidden_states[:-1]):
                out[f"hidden.{j}"] = h[0].contiguous().float()
        cache, tok, got = None, ids, []
        for _ in range(32):
            s = model(tok, past_key_values=cache, use_cache=True)
            cache = s.past_key_values
            tok = s.logits[:, -1].argmax(-1, keepdim=True)
            got.append(tok.item())
        out[f"prompt.{i}.greedy"] = torch.tensor(got, dtype=torch.int32)
    return out


def write(path, name, cls, config):
    model = cls(config).float().eval()
    randomise(model)
    out = golden(model, config.vocab_size, LENGTHS.get(name, LENGTHS[None]))
    prompts = sorted({key.rsplit(".", 1)[0] for key in out if key.startswith("prompt.")})
    out |= conditioning(model, {p: (out[f"{p}.ids"], out[f"{p}.logits"]) for p in prompts})
    folder = os.path.join(path, name)
    os.makedirs(folder, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    for extra in ("generation_config.json",):
        if os.path.exists(os.path.join(folder, extra)):
            os.remove(os.path.join(folder, extra))
    save_file(out, os.path.join(folder, "golden.safetensors"))
    size = sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder))
    print(name, json.dumps({k: list(v.shape) for k, v in out.items() if k.startswith("prompt.3")}), f"{size / 1e6:.1f} MB")


if __name__ == "__main__":
    only = sys.argv[2:]
    for name, cls, config in models():
        if not only or name in only:
            write(sys.argv[1], name, cls, config)

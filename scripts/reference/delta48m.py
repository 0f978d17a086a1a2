"""Write the built-in model's reference outputs, computed by transformers in float32.

usage: python delta48m.py checkpoint MODEL_DIR PUBLISHED OUT_DIR      from the BF16 checkpoint: reference.safetensors
       python delta48m.py gguf MODEL_DIR FILE.gguf OUT_DIR            from the Q4_K_M file: reference_q4km.safetensors, .json

MODEL_DIR holds the Hugging Face checkpoint (config.json, model.safetensors, tokenizer.json, heldout.txt). PUBLISHED is
the reference.safetensors that came with it, the first command checks itself against it and against reference.json.

reference*.safetensors, for the prompts N = 0, 1, 2
  prompt.N.ids             i32 [n]          prompt and continuation; the first prompt_length are the prompt
  prompt.N.prompt_length   i32 [1]
  prompt.N.last_logits     f32 [r, vocab]   logits of the last r positions
  prompt.N.mtp_last_logits f32 [m, vocab]   rows n-1-m .. n-2 of the MTP head: row t predicts token t+2 from the normed
                                            hidden state of t and the embedding of t+1
  prompt.N.nll             f32 [n-1]        loss of every token but the first
  prompt.N.greedy          i32 [48]         (q4km) greedy continuation of the prompt, and
  prompt.N.margin          f32 [48]         by how much each won, to tell a near-tie from a mistake
"""
import json
import sys

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

import gguf_to_hf
from exact import exact_model, relative_rows
from mtp import MultiTokenHead

torch.set_num_threads(2)


def load(folder, tensors):
    config = Qwen3_5TextConfig.from_pretrained(folder)
    model = Qwen3_5ForCausalLM(config).float().eval()
    head = MultiTokenHead(model).float().eval()
    trunk = {name: value for name, value in tensors.items() if not name.startswith("mtp.")}
    missing, unexpected = model.load_state_dict(trunk, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    if config.tie_word_embeddings:
        model.tie_weights()
    head.load_state_dict({name[4:]: value for name, value in tensors.items() if name.startswith("mtp.")})
    return model, head


@torch.no_grad()
def outputs(model, head, prompts, rows, mtp_rows, greedy):
    out = {}
    for key, (ids, length) in prompts.items():
        out[f"{key}.ids"], out[f"{key}.prompt_length"] = ids, torch.tensor([length], dtype=torch.int32)
        row = ids.long()[None]
        hidden = model.model(row).last_hidden_state
        logits, mtp = model.lm_head(hidden)[0], head(model, hidden, row)
        out[f"{key}.last_logits"], out[f"{key}.mtp_last_logits"] = logits[-rows:].clone(), mtp[-mtp_rows:].clone()
        out[f"{key}.nll"] = torch.nn.functional.cross_entropy(logits[:-1], row[0, 1:], reduction="none")
        if greedy:
            cache, token, got, margins = None, row[:, :length], [], []
            for _ in range(greedy):
                step = model(token, past_key_values=cache, use_cache=True)
                cache, top = step.past_key_values, step.logits[0, -1].topk(2)
                token = top.indices[:1][None]
                got.append(token.item())
                margins.append((top.values[0] - top.values[1]).item())
            out[f"{key}.greedy"] = torch.tensor(got, dtype=torch.int32)
            out[f"{key}.margin"] = torch.tensor(margins)
    return out


@torch.no_grad()
def heldout(model, folder, windows=31, width=512):
    """Loss per token of each of the first windows of heldout.txt, 513 tokens read each, none special."""
    with open(f"{folder}/heldout.txt") as file:
        ids = Tokenizer.from_file(f"{folder}/tokenizer.json").encode(file.read(), add_special_tokens=False).ids
    losses = []
    for start in range(0, windows * width, width):
        row = torch.tensor(ids[start:start + width + 1])
        losses.append(torch.nn.functional.cross_entropy(model(row[None, :-1]).logits[0], row[1:]).item())
    return losses


def report_exactness(model, out):
    twin = exact_model(model)
    for key in sorted({name.rsplit(".", 1)[0] for name in out}):
        with torch.no_grad():
            exact = twin(out[f"{key}.ids"].long()[None]).logits[0][-len(out[f"{key}.last_logits"]):]
        print(key, "float32 logits against float64:", f"{relative_rows(out[f'{key}.last_logits'], exact).max():.1e}")


def main(kind, folder, source, target):
    tensors = {name: value.float() for name, value in load_file(f"{folder}/model.safetensors").items()}
    if kind == "checkpoint":
        published = load_file(source)
        prompts = {f"prompt.{i}": (published[f"prompt.{i}.ids"], published[f"prompt.{i}.prompt_length"].item()) for i in range(3)}
        model, head = load(folder, tensors)
        out = outputs(model, head, prompts, rows=5, mtp_rows=3, greedy=0)
        for name, value in out.items():
            there = published[name][-len(value):].float()
            error = ((value - there).abs().max() / there.abs().max()).item()
            assert error <= 2e-6, (name, error)
        with open(f"{folder}/reference.json") as file:
            known = json.load(file)
        loss = sum(heldout(model, folder)) / 31
        assert abs(loss - known["nll_per_token"]) < 1e-5, loss
        print("agrees with the published reference; held-out loss", loss)
        save_file(out, f"{target}/reference.safetensors")
    else:
        restored = gguf_to_hf.state_dict(source)
        assert set(restored) == set(tensors), set(restored) ^ set(tensors)
        for name, value in restored.items():  # quantised, so close and no more; a wrong order or offset is far off
            error = ((value - tensors[name]).norm() / tensors[name].norm()).item()
            assert value.shape == tensors[name].shape and error < 0.12, (name, error)
        prompts = load_file(f"{target}/reference.safetensors")
        prompts = {f"prompt.{i}": (prompts[f"prompt.{i}.ids"], prompts[f"prompt.{i}.prompt_length"].item()) for i in range(3)}
        model, head = load(folder, restored)
        out = outputs(model, head, prompts, rows=6, mtp_rows=4, greedy=48)
        losses = heldout(model, folder)
        with open(f"{target}/reference_q4km.json", "w") as file:
            json.dump({"windows": "as in reference.json", "nll_per_token": sum(losses) / len(losses), "nll_of_windows": losses}, file, indent=1)
            file.write("\n")
        save_file(out, f"{target}/reference_q4km.safetensors")
        print("held-out loss", sum(losses) / len(losses))
    report_exactness(model, out)


if __name__ == "__main__":
    main(*sys.argv[1:])

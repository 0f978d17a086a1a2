"""Write tiny checkpoints in the layouts that real releases have, and the GGUF files llama.cpp makes of them.

usage: python forms.py OUT_DIR LLAMA_CPP HELDOUT.txt      (packages: requirements.txt)

LLAMA_CPP is llama.cpp's source tree (see convert.py). HELDOUT.txt is the text from which the 310-token tokenizer is
trained. tests/data/README.md says what comes out.
"""
import json
import os
import shutil
import subprocess
import sys

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
import transformers

from exact import conditioning
from golden import randomise, rope
from mtp import MultiTokenHead

HERE = os.path.dirname(os.path.abspath(__file__))
TEXT = dict(vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=2,
            num_key_value_heads=1, head_dim=32, linear_num_key_heads=2, linear_num_value_heads=6,
            linear_key_head_dim=16, linear_value_head_dim=16, linear_conv_kernel_dim=4, full_attention_interval=4,
            rms_norm_eps=1e-6, max_position_embeddings=4096, bos_token_id=None, eos_token_id=2, pad_token_id=0)
MOE = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=32)
VISION = dict(depth=1, hidden_size=32, intermediate_size=32, num_heads=2, out_hidden_size=64, patch_size=4,
              num_position_embeddings=16, spatial_merge_size=2, temporal_patch_size=2)
LENGTHS = (3, 20, 80)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>"]
# The pre-tokenizer of Qwen3.5 (llama.cpp calls it qwen35): marks (\p{M}) belong to words.
PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")
TEMPLATE = ("{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
            "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}")


def write_tokenizer(folder, text, normalise):
    """A byte-level BPE of 310 tokens, ten fewer than the models have rows: the rest is padding, as in real releases.

    Real Qwen3.5 tokenizers also bring text to Unicode's composed form (NFC) first; GGUF files lose that."""
    tokenizer = Tokenizer(models.BPE())
    if normalise:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([text], trainers.BpeTrainer(
        vocab_size=310, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tokenizer.save(f"{folder}/tokenizer.json", pretty=False)
    with open(f"{folder}/tokenizer_config.json", "w") as file:
        json.dump({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
                   "bos_token": None, "add_prefix_space": False, "model_max_length": 4096}, file, indent=1)
    with open(f"{folder}/chat_template.jinja", "w") as file:
        file.write(TEMPLATE)


def text_models():
    """Name, text-only class, its configuration, and whether the checkpoint has an MTP head."""
    t = transformers
    r35 = rope(section=[2, 1, 1])
    yield "qwen35-wrapper", t.Qwen3_5ForCausalLM, t.Qwen3_5TextConfig(**TEXT, rope_parameters=r35, tie_word_embeddings=True), True
    yield "qwen35-moe-wrapper", t.Qwen3_5MoeForCausalLM, t.Qwen3_5MoeTextConfig(
        **(TEXT | dict(linear_num_value_heads=4)), **MOE, rope_parameters=r35, tie_word_embeddings=False), True
    yield "qwen3-next-mtp", t.Qwen3NextForCausalLM, t.Qwen3NextConfig(
        **TEXT, **MOE, rope_parameters=rope(), tie_word_embeddings=False), True
    yield "qwen35-plain", t.Qwen3_5ForCausalLM, t.Qwen3_5TextConfig(
        **(TEXT | dict(linear_num_value_heads=2, linear_value_head_dim=32, linear_conv_kernel_dim=3, num_hidden_layers=3,
                       full_attention_interval=2, num_attention_heads=3, num_key_value_heads=3)),
        rope_parameters=rope(theta=5e5, partial=0.5, section=[4, 2, 2]), tie_word_embeddings=True), False


def randomise_head(head):
    generator = torch.Generator().manual_seed(2)
    for name, parameter in head.named_parameters():
        if "norm" in name:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
        else:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 1.3 * parameter.shape[-1] ** -0.5
        parameter.data = parameter.data.to(torch.bfloat16).float()


@torch.no_grad()
def golden(model, head):
    out, rng = {}, np.random.default_rng(7)
    for i, n in enumerate(LENGTHS):
        ids = torch.from_numpy(rng.integers(0, model.config.vocab_size, n))[None]
        hidden = model.model(ids).last_hidden_state
        out[f"prompt.{i}.ids"], out[f"prompt.{i}.logits"] = ids[0].to(torch.int32), model.lm_head(hidden)[0].contiguous()
        if head is not None:
            out[f"prompt.{i}.mtp_logits"] = head(model, hidden, ids).contiguous()
        cache, token, got = None, ids, []
        for _ in range(32):
            step = model(token, past_key_values=cache, use_cache=True)
            cache, token = step.past_key_values, step.logits[:, -1].argmax(-1, keepdim=True)
            got.append(token.item())
        out[f"prompt.{i}.greedy"] = torch.tensor(got, dtype=torch.int32)
    return out | conditioning(model, {f"prompt.{i}": (out[f"prompt.{i}.ids"], out[f"prompt.{i}.logits"]) for i in range(len(LENGTHS))})


def split_experts(tensors):
    """Fused expert tensors to one tensor an expert, as Qwen3-Next releases have them."""
    out = {}
    for name, value in tensors.items():
        if name.endswith("experts.gate_up_proj"):
            for i, both in enumerate(value):
                gate, up = both.chunk(2)
                base = name.removesuffix("gate_up_proj")
                out[f"{base}{i}.gate_proj.weight"], out[f"{base}{i}.up_proj.weight"] = gate, up
        elif name.endswith("experts.down_proj"):
            out |= {f"{name.removesuffix('down_proj')}{i}.down_proj.weight": down for i, down in enumerate(value)}
        else:
            out[name] = value
    return out


def checkpoint_tensors(name, model, head):
    """The tensors as the release they imitate names them."""
    tensors = {k: v for k, v in model.state_dict().items() if not (k == "lm_head.weight" and model.config.tie_word_embeddings)}
    tensors |= {f"mtp.{k}": v for k, v in head.state_dict().items()} if head is not None else {}
    if name.endswith("wrapper"):
        tensors = {k.replace("model.", "model.language_model.", 1) if k.startswith("model.") else k: v for k, v in tensors.items()}
        vision = getattr(transformers, "Qwen3_5VisionModel")(transformers.models.qwen3_5.Qwen3_5VisionConfig(**VISION))
        tensors |= {f"model.visual.{k}": v for k, v in vision.state_dict().items()}
    else:
        tensors = split_experts(tensors)
    return {k: v.to(torch.bfloat16).contiguous().clone() for k, v in tensors.items()}


def wrapper_config(name, text):
    moe = "moe" in name
    kind = "Qwen3_5Moe" if moe else "Qwen3_5"
    vision = getattr(transformers.models, "qwen3_5_moe" if moe else "qwen3_5")
    vision = getattr(vision, f"{kind}VisionConfig")(**VISION).to_dict()
    return {"architectures": [f"{kind}ForConditionalGeneration"], "model_type": "qwen3_5_moe" if moe else "qwen3_5",
            "text_config": text, "vision_config": vision, "image_token_id": 300, "video_token_id": 301,
            "vision_start_token_id": 302, "vision_end_token_id": 303, "tie_word_embeddings": text["tie_word_embeddings"]}


def released_config(name, model, mtp):
    """config.json as releases write it: what a class fills in by itself is left out."""
    config = model.config.to_dict()
    if name.endswith("wrapper"):
        config |= {"mtp_num_hidden_layers": 1, "mtp_use_dedicated_embeddings": False, "full_attention_interval": 4}
        return wrapper_config(name, config)
    # The older spelling: rotary settings at the top level, layer kinds by interval only.
    rotary = config.pop("rope_parameters")
    config.pop("layer_types")
    config |= {"rope_theta": rotary["rope_theta"], "partial_rotary_factor": rotary["partial_rotary_factor"], "rope_scaling": None,
               "full_attention_interval": 4 if mtp else 2, "architectures": [type(model).__name__]}
    if "mrope_section" in rotary:
        config["rope_scaling"] = {"type": "default", "rope_type": "default", "mrope_interleaved": True, "mrope_section": rotary["mrope_section"]}
    return config


def write_safetensors(folder, tensors, shards):
    if shards == 1:
        return save_file(tensors, f"{folder}/model.safetensors", metadata={"format": "pt"})
    names = sorted(tensors)
    total, index, per = sum(t.nbytes for t in tensors.values()), {}, -(-len(names) // shards)
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = names[i * per:(i + 1) * per]
        save_file({k: tensors[k] for k in part}, f"{folder}/{file}", metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    with open(f"{folder}/model.safetensors.index.json", "w") as file:
        json.dump({"metadata": {"total_size": total}, "weight_map": index}, file, indent=0)


@torch.no_grad()
def check_loads(folder, name, expected):
    """transformers itself must read the folder and give the same logits."""
    ids = expected["prompt.1.ids"].long()[None]
    cls = transformers.AutoModelForImageTextToText if name.endswith("wrapper") else transformers.AutoModelForCausalLM
    logits = cls.from_pretrained(folder, dtype=torch.float32).eval()(ids).logits[0]
    error = ((logits - expected["prompt.1.logits"]).abs().max() / expected["prompt.1.logits"].abs().max()).item()
    assert error <= 2e-5, (name, error)


def convert(tree, folder, out, *flags):
    command = [sys.executable, f"{HERE}/convert.py", tree, "qwen35", folder, "--outfile", out, *flags]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def rewrite(source, out, drop=(), version=3):
    """Copy a GGUF file without some keys, with another version in its header (2 and 3 differ in nothing else here)."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(out, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture" or key in drop:
            continue
        kind = field.types[0]
        writer.add_key_value(key, field.contents(), kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open(out, "r+b") as file:
        file.seek(4)
        file.write(version.to_bytes(4, "little"))


def write_gguf(out, tree):
    folder = f"{out}/gguf"
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    dense, moe, following = f"{out}/qwen35-wrapper", f"{out}/qwen35-moe-wrapper", f"{out}/qwen3-next-mtp"
    convert(tree, dense, f"{folder}/qwen35-f32.gguf", "--outtype", "f32")
    convert(tree, dense, f"{folder}/qwen35-bf16.gguf", "--outtype", "bf16")
    convert(tree, dense, f"{folder}/trunk.gguf", "--outtype", "bf16", "--no-mtp")
    rewrite(f"{folder}/trunk.gguf", f"{folder}/qwen35-trunk-v2.gguf", version=2)
    os.remove(f"{folder}/trunk.gguf")
    convert(tree, dense, f"{folder}/mtp-qwen35-bf16.gguf", "--outtype", "bf16", "--mtp")
    convert(tree, moe, f"{folder}/qwen35moe-bf16.gguf", "--outtype", "bf16", "--split-max-tensors", "40")
    convert(tree, following, f"{folder}/whole.gguf", "--outtype", "bf16")
    rewrite(f"{folder}/whole.gguf", f"{folder}/qwen3next-bf16.gguf", drop=("qwen3next.full_attention_interval", "qwen3next.attention.recurrent_layers"))
    os.remove(f"{folder}/whole.gguf")


def main(out, tree, heldout):
    with open(heldout) as file:
        text = file.read()
    for name, cls, config, mtp in text_models():
        folder = f"{out}/{name}"
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        torch.manual_seed(0)
        model = cls(config).float().eval()
        randomise(model)
        head = MultiTokenHead(model).float().eval() if mtp else None
        if mtp:
            randomise_head(head)
        expected = golden(model, head)
        write_safetensors(folder, checkpoint_tensors(name, model, head), 3 if "moe" in name else 1)
        with open(f"{folder}/config.json", "w") as file:
            json.dump(released_config(name, model, mtp), file, indent=1)
        write_tokenizer(folder, text, normalise=name == "qwen35-plain")
        save_file(expected, f"{folder}/golden.safetensors")
        check_loads(folder, name, expected)
    write_gguf(out, tree)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Read a `qwen35` GGUF file back into the tensors of the Hugging Face checkpoint it was made from.

llama.cpp's converter changes weights on the way in: it adds one to zero-centred norms, stores -exp(A_log), and puts
value heads in tiled instead of grouped order. This undoes all of it, in float32.
"""
import gguf
import numpy as np
import torch

LAYER = {"attn_norm.weight": "input_layernorm.weight", "post_attention_norm.weight": "post_attention_layernorm.weight",
         "ffn_gate.weight": "mlp.gate_proj.weight", "ffn_up.weight": "mlp.up_proj.weight",
         "ffn_down.weight": "mlp.down_proj.weight",
         "attn_q.weight": "self_attn.q_proj.weight", "attn_k.weight": "self_attn.k_proj.weight",
         "attn_v.weight": "self_attn.v_proj.weight", "attn_output.weight": "self_attn.o_proj.weight",
         "attn_q_norm.weight": "self_attn.q_norm.weight", "attn_k_norm.weight": "self_attn.k_norm.weight",
         "attn_qkv.weight": "linear_attn.in_proj_qkv.weight", "attn_gate.weight": "linear_attn.in_proj_z.weight",
         "ssm_alpha.weight": "linear_attn.in_proj_a.weight", "ssm_beta.weight": "linear_attn.in_proj_b.weight",
         "ssm_conv1d.weight": "linear_attn.conv1d.weight", "ssm_a": "linear_attn.A_log",
         "ssm_dt.bias": "linear_attn.dt_bias", "ssm_norm.weight": "linear_attn.norm.weight",
         "ssm_out.weight": "linear_attn.out_proj.weight"}
NEXTN = {"nextn.eh_proj.weight": "mtp.fc.weight", "nextn.enorm.weight": "mtp.pre_fc_norm_embedding.weight",
         "nextn.hnorm.weight": "mtp.pre_fc_norm_hidden.weight", "nextn.shared_head_norm.weight": "mtp.norm.weight"}
TOP = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
       "output.weight": "lm_head.weight"}


def grouped(tensor, dim, key_heads, value_heads, width):
    """Value heads from tiled order (k0 k1 .. k0 k1 ..) back to grouped order (k0 k0 .. k1 k1 ..)."""
    shape = tensor.shape
    split = (*shape[:dim], value_heads // key_heads, key_heads, width, *shape[dim + 1:])
    return tensor.reshape(split).transpose(dim, dim + 1).reshape(shape)


def restore(name, tensor, key_heads, value_heads, key_dim, value_dim):
    """Undo the conversion of one layer's tensor, `name` as in the checkpoint."""
    if name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight") or "norm_" in name:
        return tensor - 1
    if name.endswith("A_log"):
        tensor = torch.log(-tensor)
    if name.endswith(("A_log", "dt_bias")):
        return grouped(tensor[:, None], 0, key_heads, value_heads, 1)[:, 0]
    if "in_proj_a" in name or "in_proj_b" in name:
        return grouped(tensor, 0, key_heads, value_heads, 1)
    if "in_proj_z" in name:
        return grouped(tensor, 0, key_heads, value_heads, value_dim)
    if "in_proj_qkv" in name or "conv1d" in name:
        start = 2 * key_heads * key_dim
        tensor = torch.cat([tensor[:start], grouped(tensor[start:], 0, key_heads, value_heads, value_dim)])
        return tensor[:, None] if "conv1d" in name else tensor
    if "linear_attn.out_proj" in name:
        return grouped(tensor, 1, key_heads, value_heads, value_dim)
    return tensor


def state_dict(path):
    """Checkpoint tensors of a single-file `qwen35` GGUF, float32, names as transformers has them (and `mtp.*`)."""
    reader = gguf.GGUFReader(path)
    value = lambda key: reader.fields[f"qwen35.{key}"].contents()
    layers = value("block_count") - (value("nextn_predict_layers") if "qwen35.nextn_predict_layers" in reader.fields else 0)
    key_heads, value_heads, key_dim = value("ssm.group_count"), value("ssm.time_step_rank"), value("ssm.state_size")
    value_dim = value("ssm.inner_size") // value_heads
    out = {}
    for tensor in reader.tensors:
        data = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
        data = data.reshape(*reversed(tensor.shape.tolist()))
        if tensor.name in TOP:
            name = TOP[tensor.name]
        else:
            _, block, rest = tensor.name.split(".", 2)
            if rest in NEXTN:
                name = NEXTN[rest]
            else:
                prefix = f"model.layers.{block}." if int(block) < layers else f"mtp.layers.{int(block) - layers}."
                name = prefix + LAYER[rest]
        out[name] = restore(name, data, key_heads, value_heads, key_dim, value_dim).contiguous()
    return out

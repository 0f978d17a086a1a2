"""Write a GGUF file of the shape of Qwen3.5-0.8B with random weights, for speed and memory measurements.

usage: python random_08b.py VOCABULARY.gguf OUT.gguf      (packages: requirements.txt)

The weights are BF16 (norms, gates and convolutions F32, as llama.cpp's converter leaves them) and 752 million in
number; the text that comes out is noise. `llama-quantize OUT.gguf OUT-Q4_K_M.gguf Q4_K_M` makes other types of it. The
tokenizer is that of VOCABULARY.gguf (the built-in model's file will do), filled up with unused tokens.
"""
import sys

import gguf
import numpy as np

LAYERS, HIDDEN, FEED_FORWARD, HEADS, KV_HEADS, HEAD_DIM = 24, 1024, 3584, 8, 2, 256
KEY_HEADS, VALUE_HEADS, STATE, CONVOLUTION, VOCABULARY, INTERVAL = 16, 16, 128, 4, 248320, 4
ARCHITECTURE = "qwen35"


def metadata(writer, vocabulary):
    writer.add_name("Random 0.8B")
    writer.add_block_count(LAYERS)
    writer.add_context_length(262144)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e7)
    writer.add_rope_dimension_count(HEAD_DIM // 4)
    writer.add_rope_dimension_sections([11, 11, 10, 0])
    writer.add_ssm_conv_kernel(CONVOLUTION)
    writer.add_ssm_state_size(STATE)
    writer.add_ssm_group_count(KEY_HEADS)
    writer.add_ssm_time_step_rank(VALUE_HEADS)
    writer.add_ssm_inner_size(STATE * VALUE_HEADS)
    writer.add_full_attention_interval(INTERVAL)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    field = lambda key: vocabulary.fields[f"tokenizer.ggml.{key}"].contents()
    tokens, types = field("tokens"), field("token_type")
    unused = VOCABULARY - len(tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(field("pre"))
    writer.add_token_list(tokens + [f"[PAD{i}]" for i in range(unused)])
    writer.add_token_types(types + [int(gguf.TokenType.UNUSED)] * unused)
    writer.add_token_merges(field("merges"))
    writer.add_eos_token_id(field("eos_token_id"))
    writer.add_chat_template(vocabulary.fields["tokenizer.chat_template"].contents())


def bfloat16(values):
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def tensors(rng):
    """Name, shape (rows first) and either a scale for random BF16 weights or a function that gives F32 ones."""
    ones = lambda n: (1 + 0.1 * rng.normal(size=n)).astype(np.float32)
    matrix = lambda rows, columns: ((rows, columns), 0.7 * columns**-0.5)
    inner, keys = STATE * VALUE_HEADS, STATE * KEY_HEADS
    yield "token_embd.weight", ((VOCABULARY, HIDDEN), 0.02)
    yield "output_norm.weight", ones(HIDDEN)
    for layer in range(LAYERS):
        block = {"attn_norm.weight": ones(HIDDEN), "post_attention_norm.weight": ones(HIDDEN),
                 "ffn_gate.weight": matrix(FEED_FORWARD, HIDDEN), "ffn_up.weight": matrix(FEED_FORWARD, HIDDEN),
                 "ffn_down.weight": matrix(HIDDEN, FEED_FORWARD)}
        if layer % INTERVAL == INTERVAL - 1:
            block |= {"attn_q.weight": matrix(2 * HEADS * HEAD_DIM, HIDDEN), "attn_k.weight": matrix(KV_HEADS * HEAD_DIM, HIDDEN),
                      "attn_v.weight": matrix(KV_HEADS * HEAD_DIM, HIDDEN), "attn_output.weight": matrix(HIDDEN, HEADS * HEAD_DIM),
                      "attn_q_norm.weight": ones(HEAD_DIM), "attn_k_norm.weight": ones(HEAD_DIM)}
        else:
            block |= {"attn_qkv.weight": matrix(2 * keys + inner, HIDDEN), "attn_gate.weight": matrix(inner, HIDDEN),
                      "ssm_alpha.weight": matrix(VALUE_HEADS, HIDDEN), "ssm_beta.weight": matrix(VALUE_HEADS, HIDDEN),
                      "ssm_conv1d.weight": (0.5 * rng.normal(size=(2 * keys + inner, CONVOLUTION))).astype(np.float32),
                      "ssm_a": -rng.uniform(0.2, 4, VALUE_HEADS).astype(np.float32),
                      "ssm_dt.bias": rng.uniform(-4, 0.5, VALUE_HEADS).astype(np.float32),
                      "ssm_norm.weight": ones(STATE), "ssm_out.weight": matrix(HIDDEN, inner)}
        for name, value in block.items():
            yield f"blk.{layer}.{name}", value


def main(vocabulary, out):
    rng, writer, count = np.random.default_rng(23), gguf.GGUFWriter(out, ARCHITECTURE, use_temp_file=True), 0
    metadata(writer, gguf.GGUFReader(vocabulary))
    for name, value in tensors(rng):
        if isinstance(value, tuple):
            shape, scale = value
            values = rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)
            writer.add_tensor(name, bfloat16(values), raw_shape=shape, raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            values = value
            writer.add_tensor(name, values)
        count += values.size
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(f"{count / 1e6:.1f} million weights")


if __name__ == "__main__":
    main(*sys.argv[1:])

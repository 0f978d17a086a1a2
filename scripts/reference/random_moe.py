"""Write a GGUF file of the shape of Qwen3.5-35B-A3B with random weights, fewer layers and experts, for speed measurements.

usage: python random_moe.py VOCABULARY.gguf OUT.gguf [LAYERS [EXPERTS]]      (packages: requirements.txt)

As random_08b.py, of which it is a variant: hidden 2048, 16 query and 2 key/value heads of 256, 16 key and 32 value heads
of 128, 8 experts of 512 and a shared one for each token. Two layers of 64 experts and a small vocabulary (the default)
are half a billion weights.
"""
import sys

import numpy as np
import random_08b as dense

EXPERTS, CHOSEN, EXPERT_WIDTH = 64, 8, 512


def metadata(writer, vocabulary, plain=dense.metadata):
    plain(writer, vocabulary)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(CHOSEN)
    writer.add_expert_feed_forward_length(EXPERT_WIDTH)
    writer.add_expert_shared_feed_forward_length(EXPERT_WIDTH)


def tensors(rng, plain=dense.tensors):
    hidden, width = dense.HIDDEN, EXPERT_WIDTH
    gate = lambda rows: (hidden**-0.5 * rng.normal(size=(rows, hidden))).astype(np.float32)
    for name, value in plain(rng):
        if ".ffn_" not in name:
            yield name, value
        elif name.endswith("ffn_gate.weight"):
            block = name.removesuffix("ffn_gate.weight")
            yield f"{block}ffn_gate_inp.weight", gate(EXPERTS)
            yield f"{block}ffn_gate_inp_shexp.weight", gate(1)[0]
            for part, shape in {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}.items():
                scale = 0.7 * shape[1] ** -0.5
                yield f"{block}ffn_{part}_exps.weight", ((EXPERTS, *shape), scale)
                yield f"{block}ffn_{part}_shexp.weight", (shape, scale)


if __name__ == "__main__":
    dense.HIDDEN, dense.HEADS, dense.KV_HEADS, dense.VALUE_HEADS = 2048, 16, 2, 32
    dense.VOCABULARY, dense.LAYERS, dense.INTERVAL, dense.ARCHITECTURE = 65536, 2, 2, "qwen35moe"
    if len(sys.argv) > 3:
        dense.LAYERS = int(sys.argv[3])
    if len(sys.argv) > 4:
        EXPERTS = int(sys.argv[4])
    dense.metadata, dense.tensors = metadata, tensors
    dense.main(*sys.argv[1:3])

"""Write a multi-token-prediction head for a file of random_08b.py, for measurements of speed.

usage: python random_08b_mtp.py RANDOM.gguf OUT.gguf      (packages: requirements.txt)

The head has the shapes and types of the model's own layers: its layer is a copy of block 3, the first with full
attention, and its input projection is a copy of that block's output projection. What it proposes is noise.
"""
import sys

import gguf
import numpy as np

SOURCE = 3
NORMS = ["nextn.enorm.weight", "nextn.hnorm.weight", "nextn.shared_head_norm.weight"]


def main(model, out):
    reader = gguf.GGUFReader(model)
    writer = gguf.GGUFWriter(out, "qwen35")
    for name, field in reader.fields.items():
        if name.startswith(("GGUF.", "tokenizer.")) or name == "general.architecture":
            continue
        value = field.contents()
        if name == "qwen35.block_count":
            layers = value
            value += 1
        kind, *element = field.types
        writer.add_key_value(name, value, kind, sub_type=element[-1] if element else None)
    writer.add_nextn_predict_layers(1)
    writer.add_vocab_size(int(next(t for t in reader.tensors if t.name == "token_embd.weight").shape[1]))
    tensors = {tensor.name.split(".", 2)[2]: tensor for tensor in reader.tensors
               if tensor.name.startswith(f"blk.{SOURCE}.")}
    tensors["nextn.eh_proj.weight"] = tensors["attn_output.weight"]
    for name, tensor in tensors.items():
        writer.add_tensor(f"blk.{layers}.{name}", tensor.data, raw_dtype=tensor.tensor_type)
    hidden = int(tensors["attn_norm.weight"].shape[0])
    for name in NORMS:
        writer.add_tensor(f"blk.{layers}.{name}", np.ones(hidden, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Write blocks of every weight format with the float32 values they stand for, by gguf-py.

usage: python quants.py OUT.safetensors LIBGGML_BASE      (packages: requirements.txt)

LIBGGML_BASE is llama.cpp's libggml-base.so (any build with -DBUILD_SHARED_LIBS=ON): it quantises the Gaussian data and
checks gguf-py's dequantisation of everything bit for bit.

For each format TYPE
  TYPE.random.bytes    u8  [blocks, bytes per block]    random bytes; only scales are kept finite
  TYPE.random.values   f32 [blocks, values per block]
  TYPE.gaussian.bytes, TYPE.gaussian.values             quantised from normal data of several sizes
"""
import ctypes
import sys

import gguf
import numpy as np
from safetensors.numpy import save_file

T = gguf.GGMLQuantizationType
# Type, then the byte offsets of the float16 numbers in a block.
HALVES = {T.F16: [0], T.BF16: None, T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
          T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208], T.IQ4_NL: [0], T.IQ4_XS: [0],
          T.MXFP4: None}


class Traits(ctypes.Structure):
    _fields_ = [("type_name", ctypes.c_char_p), ("block", ctypes.c_int64), ("interleave", ctypes.c_int64),
                ("size", ctypes.c_size_t), ("quantized", ctypes.c_bool), ("to_float", ctypes.c_void_p)]


def library(path):
    lib = ctypes.CDLL(path)
    lib.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    return lib


def pointer(array):
    return array.ctypes.data_as(ctypes.c_void_p)


def to_float(lib, kind, data, count):
    traits = lib.ggml_get_type_traits(int(kind)).contents
    assert traits.block == gguf.GGML_QUANT_SIZES[kind][0] and traits.size == gguf.GGML_QUANT_SIZES[kind][1]
    out = np.empty(count, np.float32)
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(traits.to_float)
    call(pointer(data), pointer(out), ctypes.c_int64(count))
    return out


def from_float(lib, kind, values):
    rows, width = values.shape
    block, size = gguf.GGML_QUANT_SIZES[kind]
    out = np.empty(rows * width // block * size, np.uint8)
    written = lib.ggml_quantize_chunk(ctypes.c_int(int(kind)), pointer(values), pointer(out), ctypes.c_int64(0),
                                      ctypes.c_int64(rows), ctypes.c_int64(width), None)
    assert written == out.size, kind
    return out


def random_halves(rng, count):
    """Finite float16 numbers: mostly ordinary scales, some zeros, subnormals and extremes, both signs."""
    plain = rng.normal(0, 0.02, count).astype(np.float16)
    bits = rng.integers(0, 1 << 16, count, dtype=np.uint16)
    bits = np.where((bits & 0x7C00) == 0x7C00, bits & 0xBFFF, bits).astype(np.uint16)
    wild = rng.random(count) < 0.25
    return np.where(wild, bits, plain.view(np.uint16)).astype(np.uint16)


def random_blocks(rng, kind, blocks):
    size = gguf.GGML_QUANT_SIZES[kind][1]
    data = rng.integers(0, 256, (blocks, size), dtype=np.uint8)
    if kind == T.BF16:
        words = rng.integers(0, 1 << 16, (blocks, 1), dtype=np.uint16)
        data = np.where((words & 0x7F80) == 0x7F80, words & 0xBFFF, words).astype(np.uint16).view(np.uint8)
    elif kind == T.MXFP4:
        data[:, 0] = rng.integers(100, 140, blocks)
        data[:4, 0] = [0, 1, 2, 251]  # the ends of the exponent's range that stay finite
    else:
        for offset in HALVES[kind]:
            data[:, offset:offset + 2] = random_halves(rng, blocks)[:, None].view(np.uint8)
    return np.ascontiguousarray(data)


def dequantise(lib, kind, data):
    block = gguf.GGML_QUANT_SIZES[kind][0]
    values = gguf.quants.dequantize(data, kind).astype(np.float32).reshape(-1)
    assert np.isfinite(values).all(), kind
    theirs = to_float(lib, kind, data, values.size)
    assert np.array_equal(values, theirs), kind
    return values.reshape(-1, block)


def main(out, path):
    lib, rng, tensors = library(path), np.random.default_rng(11), {}
    for kind in HALVES:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        count = {1: 1024, 32: 96, 256: 20}[block]
        data = random_blocks(rng, kind, count)
        tensors[f"{kind.name}.random.bytes"], tensors[f"{kind.name}.random.values"] = data, dequantise(lib, kind, data)
        scale = 10.0 ** rng.uniform(-3, 1, (8, 1))
        normal = (rng.normal(size=(8, 256)) * scale).astype(np.float32)
        normal[0, :] = 0  # a block of zeros
        normal = normal.reshape(1, -1) if block == 1 else normal
        data = from_float(lib, kind, normal).reshape(-1, size)
        data = data if block != 1 else data[:256]
        tensors[f"{kind.name}.gaussian.bytes"] = np.ascontiguousarray(data)
        tensors[f"{kind.name}.gaussian.values"] = dequantise(lib, kind, np.ascontiguousarray(data))
    save_file(tensors, out)
    print(len(tensors), "tensors", sum(t.nbytes for t in tensors.values()), "bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Continues a text with a model, through ctypes: story.py LIBRARY MODEL [TEXT]"""

import ctypes
import sys
from ctypes import POINTER, byref, c_char, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_uint32, c_void_p


class Error(ctypes.Structure):
    _fields_ = [("status", c_int32), ("message", c_char * 512)]


class Request(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t),
        ("prompt", POINTER(c_uint32)),
        ("prompt_count", c_size_t),
        ("max_tokens", c_int64),
        ("seed", c_int64),
        ("stop", POINTER(c_char_p)),
        ("stop_count", c_size_t),
        ("json_schema", c_char_p),
        ("grammar", c_char_p),
        ("lark", c_char_p),
        ("regex", c_char_p),
        ("session", c_char_p),
        ("temperature", c_float),
        ("top_k", c_int32),
        ("top_p", c_float),
        ("min_p", c_float),
        ("repeat_penalty", c_float),
        ("presence_penalty", c_float),
        ("frequency_penalty", c_float),
        ("repeat_last_n", c_int32),
        ("logprobs", c_int32),
        ("echo", c_int32),
        ("ignore_eos", c_int32),
        ("cache_prompt", c_int32),
        ("background", c_int32),
        *[(name, c_float) for name in ("typical_p", "top_n_sigma", "xtc_probability", "xtc_threshold")],
        *[(name, c_float) for name in ("dry_multiplier", "dry_base")],
        ("dry_allowed_length", c_uint32),
        ("dry_penalty_last_n", c_int32),
        *[(name, c_float) for name in ("dynatemp_range", "dynatemp_exponent")],
        ("mirostat", c_int32),
        *[(name, c_float) for name in ("mirostat_tau", "mirostat_eta")],
        ("speculation", c_int32),
        ("bias", c_void_p),
        ("bias_count", c_size_t),
        ("draft_max", c_int64),
    ]


class Result(ctypes.Structure):
    _fields_ = [
        ("finish", c_int32),
        ("prompt_tokens", c_size_t),
        ("cached_tokens", c_size_t),
        ("completion_tokens", c_size_t),
        ("drafted_tokens", c_size_t),
        ("accepted_tokens", c_size_t),
        ("queued_seconds", c_double),
        ("prefill_seconds", c_double),
        ("decode_seconds", c_double),
    ]


TextCallback = ctypes.CFUNCTYPE(c_int32, c_void_p, c_size_t, c_void_p)


class Millpond:
    """The library; every failed call becomes an exception."""

    def __init__(self, path):
        self.library = ctypes.CDLL(path)
        self.library.millpond_version.restype = c_char_p

    def call(self, name, *arguments):
        error = Error()
        if getattr(self.library, name)(*arguments, byref(error)) != 0:
            raise RuntimeError(f"{name}: {error.message.decode()}")


def tell(millpond, model, engine, text):
    data = text.encode()
    tokens = (c_uint32 * (len(data) + 1))()  # a token is at least one byte
    count = c_size_t()
    millpond.call(
        "millpond_tokenize", model, data, c_size_t(len(data)), c_int32(0), tokens, c_size_t(len(tokens)), byref(count)
    )
    request = Request()
    millpond.library.millpond_request_init(byref(request))
    request.prompt, request.prompt_count = tokens, count
    request.max_tokens, request.temperature = 24, 0
    generation = c_void_p()
    millpond.call("millpond_generation_start", engine, byref(request), byref(generation))

    def piece(address, size, _user_data):
        print(ctypes.string_at(address, size).decode(), end="", flush=True)
        return 0

    result = Result()
    print(text, end="")
    try:
        millpond.call("millpond_generation_wait", generation, TextCallback(piece), None, byref(result))
    finally:
        millpond.call("millpond_generation_free", generation)
    print()
    return result


def main():
    if len(sys.argv) < 3:
        sys.exit(f"usage: {sys.argv[0]} LIBRARY MODEL [TEXT]")
    millpond = Millpond(sys.argv[1])
    model, engine = c_void_p(), c_void_p()
    millpond.call("millpond_model_load", sys.argv[2].encode(), None, byref(model))
    millpond.call("millpond_engine_start", model, None, byref(engine))
    text = sys.argv[3] if len(sys.argv) > 3 else "The king looked at the dragon and said"
    result = tell(millpond, model, engine, text)
    print(f"{result.prompt_tokens} tokens read, {result.completion_tokens} written", file=sys.stderr)
    millpond.call("millpond_engine_free", engine)
    millpond.call("millpond_model_free", model)


main()

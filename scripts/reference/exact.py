"""The transformers modelling code in float64 throughout.

transformers widens to float32 in places (norms, softmax, rotary angles, the delta rule), whatever the dtype of the
weights, so `model.double()` is not a float64 model. Here the modelling source is compiled once more with every such
float32 replaced by float64, and run with the plain attention and expert paths.
"""
import importlib
import re
import sys
import types

import torch


def module_of(package):
    """`transformers.models.PACKAGE.modeling_PACKAGE`, compiled with float64 in place of float32."""
    name = f"transformers.models.{package}.modeling_{package}_float64"
    if name in sys.modules:
        return sys.modules[name]
    base = importlib.import_module(f"transformers.models.{package}.modeling_{package}")
    with open(base.__file__) as file:
        source = file.read()
    source = re.sub(r"torch\.float32", "torch.float64", source)
    source = re.sub(r"torch\.float\b", "torch.float64", source)
    source = re.sub(r"\.float\(\)", ".double()", source)
    source = re.sub(r"@use_kernel\w+\(.*\)\n", "", source)  # no fused kernels: the plain definitions
    source = re.sub(r"@use_kernelized_func\(\n?.*?\n\)\n", "", source, flags=re.S)
    module = types.ModuleType(name)
    module.__package__, module.__file__ = f"transformers.models.{package}", base.__file__
    sys.modules[name] = module
    exec(compile(source, name, "exec"), module.__dict__)
    return module


def exact_model(model):
    """A float64 twin of a text-only causal language model, with the same weights."""
    config = type(model.config).from_dict(model.config.to_dict())
    config._attn_implementation = config._experts_implementation = "eager"
    package = type(model).__module__.split(".")[2]
    twin = getattr(module_of(package), type(model).__name__)(config).double().eval()
    twin.load_state_dict({name: value.double() for name, value in model.state_dict().items()})
    if config.tie_word_embeddings:
        twin.tie_weights()
    rotary = config.rope_parameters
    width = int(config.head_dim * rotary["partial_rotary_factor"])
    twin.model.rotary_emb.inv_freq = 1.0 / (rotary["rope_theta"] ** (torch.arange(0, width, 2, dtype=torch.float64) / width))
    return twin


def relative_rows(a, b):
    """Largest difference of each row, over the largest magnitude of all of `b`."""
    return (a.double() - b.double()).abs().amax(1) / b.double().abs().max()


@torch.no_grad()
def conditioning(model, cases, threshold=5e-6, draws=8):
    """Which rows of logits float32 cannot pin down, and what they are exactly.

    `cases` maps a prompt's key to (ids, float32 logits). A row is ill-conditioned when the float32 logits are further
    than `threshold` from the float64 ones, or when moving every weight by less than half a float32 rounding moves the
    row by more than that. For each prompt with such rows, returns
      KEY.ill_rows   int32   [m]         their positions
      KEY.ill_exact  float32 [m, vocab]  their float64 logits
      KEY.ill_error  float32 [m]         the error seen there: what a float32 program may reach without a mistake
    """
    twin = exact_model(model)
    out, exact, error = {}, {}, {}
    for key, (ids, logits) in cases.items():
        exact[key] = twin(ids[None].long()).logits[0]
        assert exact[key].dtype == torch.float64
        error[key] = relative_rows(logits, exact[key])
    generator = torch.Generator().manual_seed(5)
    original = {name: value.clone() for name, value in twin.named_parameters()}
    for _ in range(draws):
        for name, value in twin.named_parameters():
            noise = torch.rand(value.shape, generator=generator, dtype=torch.float64) * 2 - 1
            value.data = original[name] * (1 + noise * 2.0**-24)
        for key, (ids, _) in cases.items():
            error[key] = torch.maximum(error[key], relative_rows(twin(ids[None].long()).logits[0], exact[key]))
    for key in cases:
        rows = (error[key] > threshold).nonzero()[:, 0]
        if len(rows):
            out[f"{key}.ill_rows"] = rows.to(torch.int32)
            out[f"{key}.ill_exact"] = exact[key][rows].float().contiguous()
            out[f"{key}.ill_error"] = error[key][rows].float().contiguous()
    return out

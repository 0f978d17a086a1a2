#!/usr/bin/env bash
# Compiles the kernels of cuda/kernels to PTX with pinned compiler packages. Needs Python and a host C++ compiler; no
# CUDA installation and no GPU.
# Usage: scripts/cuda/build_ptx.sh [directory for the compiler, default target/cuda-compiler] [MODULE..., default all]
#
# The PTX is marked with a hash of the sources, which a test compares, and declared as PTX ISA 8.0: the kernels use
# nothing newer, and drivers from CUDA 12.0 on take it.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
tools=${1:-$root/target/cuda-compiler}
modules=("${@:2}")
[ ${#modules[@]} -gt 0 ] || modules=(linear matmul model)
if [ ! -x "$tools/bin/python3" ]; then
    python3 -m venv "$tools"
    "$tools/bin/pip" install -q nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 \
        nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
fi
nvcc=$(echo "$tools"/lib/python3*/site-packages/nvidia/cu13/bin/nvcc)
cd "$root/cuda/kernels"
mkdir -p ptx
for module in "${modules[@]}"; do
    hash=$(python3 "$root/scripts/cuda/source_hash.py" "$module")
    for arch in 80 90; do
        out=ptx/$module.sm_$arch.ptx
        "$nvcc" -O3 -std=c++17 -arch=compute_$arch -ptx -o "$out.new" "$module.cu"
        # The compiler's banner names its build; the sources' hash says more.
        { echo "// sources $hash"; sed -e '/^\/\//d' -e '/^$/d' -e 's/^[ \t]*//' -e 's/[ \t]*\/\/ .*$//' -e '/^\/\/ begin inline asm/d' -e '/^\/\/ end inline asm/d' -e '/used_bytes_mask/d' -e 's/^\.version .*/.version 8.0/' "$out.new"; } >"$out"
        rm "$out.new"
        # The assembler reports registers and spills; it also proves that the declared version is enough.
        "$(dirname "$nvcc")/ptxas" -arch=sm_$arch -v -o /dev/null "$out" 2>&1 |
            grep -E 'error|spill' | grep -v ' 0 bytes spill stores, 0 bytes spill loads' | sort | uniq -c || true
    done
done

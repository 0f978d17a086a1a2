#!/usr/bin/env python3
"""FNV-1a (64 bits) of a kernel module's sources: the .cu file and what it includes, file by file in the order of their
names. Usage: source_hash.py MODULE"""
import pathlib
import re
import sys

folder = pathlib.Path(__file__).resolve().parents[2] / "cuda" / "kernels"
found, open_names = {}, [sys.argv[1] + ".cu"]
while open_names:
    name = open_names.pop()
    if name not in found and (folder / name).exists():
        found[name] = (folder / name).read_bytes()
        open_names += re.findall(r'^#include "([^"]+)"', found[name].decode(), re.M)
value = 0xCBF29CE484222325
for name in sorted(found):
    for byte in found[name]:
        value = (value ^ byte) * 0x100000001B3 % 2**64
print(f"{value:016x}")

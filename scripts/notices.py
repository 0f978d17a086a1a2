"""Writes THIRD-PARTY.md: the licences of everything that is linked into the binary and the C library.

usage: notices.py [--check]

Takes the crates from `cargo tree` (run-time dependencies of default features, on all targets) and the texts from the
crates' own files. Texts that differ in their copyright lines alone are printed once, under the crates and their lines.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "THIRD-PARTY.md"
PACKAGES = ["millpond-server", "millpond-capi"]
# Of a choice, the one whose text is taken.
PREFERRED = ["MIT", "Apache-2.0", "Unicode-3.0", "BSD-3-Clause", "BSD-2-Clause", "ISC", "Zlib", "Unlicense", "BSL-1.0", "CC0-1.0", "CDLA-Permissive-2.0"]
FILES = {
    "MIT": ["LICENSE-MIT", "LICENSE-MIT.md", "LICENSE-MIT.txt", "LICENSE_MIT", "license-mit", "LICENSE.MIT", "LICENSE", "LICENSE.md", "LICENSE.txt", "COPYING"],
    "Apache-2.0": ["LICENSE-APACHE", "LICENSE-APACHE.md", "LICENSE-APACHE.txt", "LICENSE-Apache", "LICENSE_APACHE", "LICENSE", "LICENSE.md", "LICENSE.txt"],
    "Unicode-3.0": ["LICENSE-UNICODE", "LICENSE"],
    "BSD-3-Clause": ["LICENSE.httprouter"],
}
OTHERS = ["LICENSE", "LICENSE.md", "LICENSE.txt", "COPYING"]
COPYRIGHT = re.compile(r"^\W*(copyright\b.*|\(c\) .*)$", re.IGNORECASE)


def crates():
    """(name, version) of all crates from a registry that are linked in."""
    command = ["cargo", "tree", "--locked", "--target", "all", "--edges", "normal", "--prefix", "none", "--format", "{p}"]
    for package in PACKAGES:
        command += ["--package", package]
    lines = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    found = {tuple(line.split(" ")[:2]) for line in lines if line and "(/" not in line}
    return {(name, version.lstrip("v")) for name, version in found}


def metadata():
    command = ["cargo", "metadata", "--locked", "--format-version", "1"]
    packages = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)["packages"]
    return {(package["name"], package["version"]): package for package in packages}


def chosen(expression):
    """The licences to print: all of an AND, the first preferred of an OR."""
    clauses = re.split(r"\bAND\b", expression.replace("/", " OR "))
    picked = []
    for clause in clauses:
        names = [name for name in PREFERRED if re.search(rf"(^|[ (]){re.escape(name)}($|[ )])", clause)]
        if not names:
            sys.exit(f"no text is known for the licence {clause.strip()!r}: see deny.toml and PREFERRED")
        picked.append(names[0])
    return list(dict.fromkeys(picked))


def texts(package, licence):
    folder = Path(package["manifest_path"]).parent
    for name in FILES.get(licence, []) + OTHERS:
        if (folder / name).is_file():
            return (folder / name).read_text(encoding="utf-8", errors="replace")
    return None


def split(text):
    """Copyright lines, and the text without them, in a form to compare."""
    lines = text.replace("\r", "").splitlines()
    # Licences speak of copyright too: only lines before the first long paragraph count.
    owners, rest, body = [], [], False
    for line in lines:
        if not body and COPYRIGHT.match(line.strip()):
            owners.append(line.strip())
            continue
        body = body or len(line) > 60
        rest.append(line.rstrip())
    return owners, "\n".join(rest).strip()


def notices():
    known, groups, silent = metadata(), {}, {}
    for key in sorted(crates()):
        package = known[key]
        expression = package["license"] or "see its file"
        for licence in chosen(expression):
            text = texts(package, licence)
            label = f"{key[0]} {key[1]} ({expression})"
            if text is None:
                silent.setdefault(licence, []).append((label, ", ".join(package["authors"])))
                continue
            owners, body = split(text)
            compared = re.sub(r"\W+", " ", body).lower()
            groups.setdefault((licence, compared), (body, []))[1].append((label, owners))
    parts = [
        "# Third-party notices\n",
        "Millpond links the crates below. Their licences ask for these notices to go with it. Written by\n"
        "`scripts/notices.py`; packages install it beside the documentation.\n",
    ]
    for (licence, _), (body, users) in sorted(groups.items(), key=lambda item: (PREFERRED.index(item[0][0]), -len(item[1][1]), item[0][1])):
        parts.append(f"## {licence}\n")
        for label, owners in users:
            parts.append(f"- {label}" + "".join(f"\n  - {owner}" for owner in owners))
        parts.append("\n```text\n" + body.replace("```", "'''") + "\n```\n")
    for licence, users in sorted(silent.items()):
        parts.append(f"## {licence}, of crates that carry no text of their own\n")
        parts += [f"- {label}" + (f"\n  - {authors}" if authors else "") for label, authors in users]
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def main():
    text = notices()
    if "--check" in sys.argv[1:]:
        if TARGET.read_text(encoding="utf-8") != text:
            sys.exit(f"{TARGET.name} is out of date: run scripts/notices.py")
        return
    TARGET.write_text(text, encoding="utf-8")


main()

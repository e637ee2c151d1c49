"""Claim: Moestro runs a DeepSeek-family model on a CPU faster than its peers do at the same bits.

Models with random weights and real shapes, made on the spot in every peer's format. Each peer is a
process of its own that stays loaded; peers are asked in turns, in another order each time, with
the machine's read bandwidth and matrix peaks measured in between. What cannot be installed or does
not run is reported as absent.

    make bench-peers
    python benchmarks/peers.py [--models small mid] [--repeats 5] [--only llama.cpp moestro]
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from experiment import write_result
from peer_bytes import count_bytes
from peer_figures import FREE, print_figures, print_peers
from peer_models import (
    model_bytes,
    model_config,
    quantize_gguf,
    remove,
    write_folder,
    write_gguf,
    write_quantized,
)
from peer_process import Absent, PeerProcess, PeerSpec

from moestro.ops.bandwidth import measure_int8_ops, measure_read_bandwidth
from moestro.ops.machine import measure_peak

MODELS = Path("runs/benchmark-peers")
THREADS = 2
PRESETS = ("small", "mid", "moonlight")
# Steps of a decode: about a second for the fastest.
STEPS = {"small": 128, "mid": 32, "moonlight": 16}
FORMATS = {"int4": ("Q4_0", "Q4_K_M"), "int8": ("Q8_0",), "bf16": ("BF16",)}
# A model this big is measured at 4 bits alone: nothing else fits.
BIG_BYTES = 20e9
_SHARE_OF_MEMORY = 0.8
_TASKS: dict[str, dict[str, Any]] = {
    "prefill 512": {"task": "prefill", "tokens": 512},
    "decode 128": {"task": "decode", "context": 128, "streams": 1},
    "decode 8 streams": {"task": "decode", "context": 128, "streams": 8},
    "decode 4096": {"task": "decode", "context": 4096, "streams": 1},
    "prefill 4096": {"task": "prefill", "tokens": 4096},
}


def main() -> None:
    """Measure every model and print its tables."""
    arguments = parse_arguments()
    torch.set_num_threads(THREADS)
    results = []
    for preset in arguments.models:
        results.append(measure_model(preset, arguments))
        print_peers(results[-1])
        print_figures(results[-1])
        # Of hours of work nothing must be lost to what comes later.
        path = write_result("peers", {"models": results})
    print(path)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(PRESETS), choices=PRESETS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tasks", nargs="+", default=list(_TASKS), choices=list(_TASKS))
    parser.add_argument("--only", nargs="+", default=[""], help="beginnings of peers' names")
    parser.add_argument("--folder", type=Path, default=MODELS, help="where models are made")
    parser.add_argument("--keep", action="store_true", help="keep the models afterwards")
    parser.add_argument("--peers-python", type=Path, default=Path(".venv-peers/bin/python"))
    parser.add_argument("--vllm-python", type=Path, default=Path(".venv-vllm/bin/python"))
    return parser.parse_args()


def measure_model(preset: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Make one model, measure all peers on it in groups that fit the memory, remove it."""
    folder = arguments.folder / preset
    absent: dict[str, str] = {}
    specs = list(make_peers(preset, folder, arguments, absent))
    result = {"model": preset, "peers": {}, "machine": {}, "absent": absent}
    for each in specs:
        result["peers"][each.name] = {"bytes": count_bytes(each.model), "samples": {}}
    for group in groups(specs, int(available_bytes() * _SHARE_OF_MEMORY)):
        measure_group(group, preset, arguments, result)
    if not arguments.keep:
        remove(folder)
    return result


def make_peers(
    preset: str, folder: Path, arguments: argparse.Namespace, absent: dict[str, str]
) -> Iterator[PeerSpec]:
    """Yield the peers of one model, those of equal bits together, having made their files."""
    own, is_big = Path(sys.executable), model_bytes(preset) > BIG_BYTES
    for kind, types in FORMATS.items():
        if is_big and kind != "int4":
            continue
        if is_asked(f"moestro {kind}", arguments):
            yield spec(f"moestro {kind}", "ours.py", own, make_own(preset, folder, kind))
        names = [name for name in types if not is_big or name == "Q4_0"]
        yield from make_llamas(preset, names, folder, arguments, absent)
    others = (("vllm bf16", "vllm_cpu.py", arguments.vllm_python),)
    others += (("transformers bf16", "hugging_face.py", own),)
    for name, script, python in others:
        if not is_big and is_asked(name, arguments):
            yield spec(name, script, python, make_own(preset, folder, "bf16"))


def is_asked(name: str, arguments: argparse.Namespace) -> bool:
    """Tell whether a peer takes part."""
    return name.startswith(tuple(arguments.only))


def make_own(preset: str, folder: Path, kind: str) -> Path:
    """Make a folder in one of our formats, which are others' too for bfloat16."""
    if kind == "bf16":
        write_folder(preset, folder / kind)
    else:
        write_quantized(preset, folder / kind, kind)
    return folder / kind


def make_llamas(
    preset: str,
    names: list[str],
    folder: Path,
    arguments: argparse.Namespace,
    absent: dict[str, str],
) -> Iterator[PeerSpec]:
    """Yield llama.cpp with each of its formats that is asked for and can be made."""
    for name in names:
        if not is_asked(f"llama.cpp {name}", arguments):
            continue
        try:
            path = make_gguf(preset, folder, name, arguments.peers_python)
        except Absent as error:
            absent[f"llama.cpp {name}"] = str(error)
            continue
        yield spec(f"llama.cpp {name}", "llama.py", arguments.peers_python, path)


def make_gguf(preset: str, folder: Path, name: str, python: Path) -> Path:
    """Make a GGUF file: plain numbers by us, the others by llama.cpp itself from those.

    For the plain file of a big model there is no room: we write its codes, and the head's in 8 bits
    like our own format, where llama.cpp would take 6.
    """
    if not python.exists():
        raise Absent(f"{python} is not there: its installation failed")
    plain, path = folder / "BF16.gguf", folder / f"{name}.gguf"
    folder.mkdir(parents=True, exist_ok=True)
    if model_bytes(preset) > BIG_BYTES:
        write_gguf(preset, path, "int4")
        return path
    write_gguf(preset, plain)
    if name != "BF16":
        quantize_gguf(python, plain, path)
    return path


def spec(name: str, script: str, python: Path, model: Path) -> PeerSpec:
    """Describe a peer; it takes a quarter more memory than its file, and a little beside it."""
    memory = int(1.25 * size_of(model)) + 500_000_000
    # vLLM's own OpenMP, which comes with it and which it warns of when it is missing.
    preloaded = python.absolute().parents[1] / "lib" / "libiomp5.so"
    return PeerSpec(
        name=name,
        script=script,
        python=python,
        model=model,
        memory=memory,
        preloaded=preloaded if script == "vllm_cpu.py" else None,
    )


def size_of(model: Path) -> int:
    """Return the bytes of a file or of a folder's files."""
    return sum(each.stat().st_size for each in ([model] if model.is_file() else model.iterdir()))


def available_bytes() -> int:
    """Return the memory that programs may still take, by the system's own estimate."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def groups(specs: list[PeerSpec], memory: int) -> list[list[PeerSpec]]:
    """Split peers, in order, so that each group fits the memory at once."""
    found: list[list[PeerSpec]] = [[]]
    for each in specs:
        if found[-1] and sum(other.memory for other in (*found[-1], each)) > memory:
            found.append([])
        found[-1].append(each)
    return found


def measure_group(
    group: list[PeerSpec], preset: str, arguments: argparse.Namespace, result: dict[str, Any]
) -> None:
    """Load peers, ask them in turns, note what they answer, end them."""
    running = list(started(group, arguments.folder, result["absent"]))
    for peer in running:
        result["peers"][peer.spec.name]["load_s"] = peer.load_s
    for repeat in range(arguments.repeats + 1):
        note_machine(result["machine"])
        # Another one begins each time.
        for peer in running[repeat % len(running) :] + running[: repeat % len(running)]:
            if peer.spec.name not in result["absent"]:
                ask(peer, preset, repeat, arguments.tasks, result)
    for peer in running:
        peer.stop()


def started(group: list[PeerSpec], folder: Path, absent: dict[str, str]) -> Iterator[PeerProcess]:
    """Yield the peers that load, one after the other."""
    for each in group:
        peer = PeerProcess(each, folder / f"{each.name.replace(' ', '-')}.log")
        print(f"loading {each.name}", file=sys.stderr, flush=True)
        try:
            peer.start()
        except Absent as error:
            absent[each.name] = str(error)
            continue
        yield peer


def ask(
    peer: PeerProcess, preset: str, repeat: int, tasks: list[str], result: dict[str, Any]
) -> None:
    """Have a peer do each task once; the first time warms up and shows what memory it takes."""
    entry = result["peers"][peer.spec.name]
    for name in tasks:
        wish = _TASKS[name] | {"seed": repeat, "steps": STEPS[preset]}
        try:
            answer = peer.ask(**wish)
        except Absent as error:
            result["absent"][peer.spec.name] = f"{name}: {error}"
            return
        if repeat:
            speed = answer["tokens"] / answer["seconds"]
            entry["samples"].setdefault(name, []).append(speed)
    if not repeat:
        entry |= {"about": peer.about, "peak_bytes": peer.peak_bytes}
    if peer.spec.script == "ours.py":
        ask_ours(peer, preset, repeat, tasks, entry)


def ask_ours(
    peer: PeerProcess, preset: str, repeat: int, tasks: list[str], entry: dict[str, Any]
) -> None:
    """Read prompts as peers do, with other bits in other company; decode with half the experts.

    Once, count what eight streams visit together.
    """
    for name in tasks:
        if _TASKS[name]["task"] == "prefill":
            options = {"is_batch_invariant": False}
            answer = peer.ask(**_TASKS[name], seed=repeat, options=options)
            if repeat:
                speed = answer["tokens"] / answer["seconds"]
                entry["samples"].setdefault(f"{name}{FREE}", []).append(speed)
    if not model_config(preset).has_budget:
        return
    half = model_config(preset).fewest_experts
    wish = _TASKS["decode 128"] | {"steps": STEPS[preset], "options": {"experts": half}}
    answer = peer.ask(**wish)
    if repeat:
        speed = answer["tokens"] / answer["seconds"]
        entry["samples"].setdefault("decode 128, half the experts", []).append(speed)
    else:
        wish = _TASKS["decode 8 streams"] | {"steps": 16, "options": {"counts_experts": True}}
        entry["distinct_experts"] = peer.ask(**wish)["distinct_experts"]


def note_machine(samples: dict[str, list[float]]) -> None:
    """Measure the machine's limits once more."""
    limits = {
        "read_bytes_per_s": measure_read_bandwidth(),
        "peak_flops": measure_peak("cpu").flops,
        "int8_ops": measure_int8_ops(),
    }
    for name, value in limits.items():
        if value is not None:
            samples.setdefault(name, []).append(value)


if __name__ == "__main__":
    main()

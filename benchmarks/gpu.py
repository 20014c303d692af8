"""Everything on one GPU in one call: correctness, decoding, prefill, scoring, a circuits sweep.

    pip install "cupy-cuda13x[ctk]" torch transformers       # what is missing is left out and said
    python benchmarks/gpu.py [--output gpu.json] [--minutes 9]

Random weights of 124M's shape. Each part runs in a process of its own with a time limit, so that
one that fails or hangs loses no other; rows are printed as they come and written to the JSON file
after every part. `--rehearse` runs every part on the CPU at a tiny shape, to try the script.

The roofline of decoding is the measured copy bandwidth over the bytes that a step must read
(weights, and the cache at its mean length); that of scoring is the measured gemm rate.
"""
import argparse
import json
import statistics
import subprocess
import sys
import time
import traceback
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from random_model import map_params, random_params  # noqa: E402

import backend  # noqa: E402
import gpt2_np  # noqa: E402

PROMPT, NEW = 32, 128
BATCHES = (1, 8, 64)


class Setting:
    """The shape, the device and the clock that every part shares."""

    def __init__(self, rehearse):
        self.rehearse = rehearse
        self.config = gpt2_np.SIZES["124M"]
        if rehearse:
            self.config = gpt2_np.Config(n_vocab=211, n_ctx=256, n_embd=64, n_head=4, n_layer=2)
        self.xp = np if rehearse else backend.pick("cuda")
        self.torch_device = "cpu" if rehearse else "cuda"
        self.dtypes = ("float32",) if rehearse else ("float32", "float16")
        self.new = 8 if rehearse else NEW
        self.rng = np.random.default_rng(0)

    def host_params(self):
        return random_params(self.config, scale=0.02)

    def model(self, dtype="float32", fast=True):
        """Ours on the device; without `fast` the plain pass on the device decodes."""
        params = map_params(
            lambda array: backend.to_device(array.astype(dtype, copy=False), self.xp),
            self.host_params(),
        )
        model = gpt2_np.Model(self.config, params)
        if not fast:
            vars(model)["_decoder"] = Nothing()
        return model

    def prompts(self, batch, length=PROMPT):
        return self.rng.integers(0, self.config.n_vocab, (batch, length)).tolist()

    def wait(self):
        if self.xp is not np:
            self.xp.cuda.Device().synchronize()

    def median(self, work, repeats=5, wait=None):
        """Median seconds of `work`, after one run that does not count."""
        wait = wait or self.wait
        work(), wait()
        times = []
        for _ in range(2 if self.rehearse else repeats):
            start = time.perf_counter()
            work(), wait()
            times.append(time.perf_counter() - start)
        return statistics.median(times)


class Nothing:
    """A decoder that leaves everything to the plain pass."""

    def is_for(self, params):
        return True

    def start(self, *_):
        return None


def common(a, b):
    """How many tokens two rows begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))


def relative(a, b):
    return float(np.linalg.norm(np.asarray(a, float) - b) / np.linalg.norm(b))


# --- parts: each yields (quantity, unit, value) ----------------------------------------


def part_device(setting):
    """What the card can do: a copy's bandwidth and gemm rates, as measured."""
    xp = setting.xp
    yield "device", "", backend.about(xp)
    n = 1 << (16 if setting.rehearse else 28)
    source, target = xp.zeros(n, np.float32), xp.zeros(n, np.float32)
    seconds = setting.median(lambda: xp.copyto(target, source))
    yield "copy bandwidth", "GB/s", 8 * n / seconds / 1e9
    size = 64 if setting.rehearse else 8192
    for name in (*setting.dtypes, "tf32"):
        dtype = "float32" if name == "tf32" else name
        backend.allow_tf32(name == "tf32")
        square = xp.ones((size, size), dtype)
        seconds = setting.median(lambda a=square: backend.einsum("qd,dm->qm", a, a))
        yield f"gemm {name}", "TFLOP/s", 2 * size**3 / seconds / 1e12
    backend.allow_tf32(False)


def part_correct(setting):
    """Logits beside the CPU's, and the captured step beside the plain pass."""
    tokens = setting.prompts(2, 40)
    host = gpt2_np.Model(setting.config, setting.host_params())
    expected = gpt2_np.forward(host.params, setting.config, tokens)
    for dtype in setting.dtypes:
        model = setting.model(dtype)
        logits = backend.to_host(gpt2_np.forward(model.params, setting.config, tokens))
        yield f"logits {dtype}, relative error", "", relative(logits, expected)
        plain = setting.model(dtype, fast=False)
        for batch in (1, 3, 8):
            prompts = setting.prompts(batch, 7)
            start = time.perf_counter()
            fast_rows = gpt2_np.generate_batch(model, prompts, setting.new)
            first = time.perf_counter() - start
            plain_rows = gpt2_np.generate_batch(plain, prompts, setting.new)
            alike = min(map(common, fast_rows, plain_rows))
            yield f"{dtype}, {batch} rows: tokens alike, of {setting.new}", "", alike
            yield f"{dtype}, {batch} rows: first generation, capture included", "s", first
            again = gpt2_np.generate_batch(model, prompts, setting.new)
            yield f"{dtype}, {batch} rows: runs repeat exactly", "", again == fast_rows
    decoder = vars(model).get("_decoder")
    yield "captured step in use", "", bool(decoder is not None and not decoder.unfit)


def part_decode(setting):
    """Greedy tokens/s, 128 after 32: the prefill's share is taken off by a run of one token."""
    for dtype in setting.dtypes:
        for fast in (True, False):
            model = setting.model(dtype, fast)
            for batch in BATCHES[: 2 if setting.rehearse else 3]:
                prompts = setting.prompts(batch)

                def run(n, model=model, prompts=prompts):
                    gpt2_np.generate_batch(model, prompts, n)

                repeats = 5 if fast else 3
                whole = setting.median(lambda: run(setting.new), repeats)
                seconds = whole - setting.median(lambda: run(1), repeats)
                name = "captured step" if fast else "plain pass"
                rate = batch * (setting.new - 1) / seconds
                yield f"gpt2_np {name}, {dtype}, batch {batch}", "tokens/s", rate
                if fast:
                    itemsize = np.dtype(dtype).itemsize
                    cost = gpt2_np.describe(setting.config, itemsize)
                    cached = cost["cache_bytes_per_token"] * (PROMPT + setting.new / 2)
                    read = cost["bytes"] + batch * cached
                    yield f"  read by its steps, {dtype}, batch {batch}", "GB/s", (
                        read * rate / batch / 1e9
                    )


def torch_model(setting, dtype):
    """The same random weights in transformers, with SDPA."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = setting.config
    peer = GPT2LMHeadModel(GPT2Config(
        vocab_size=config.n_vocab, n_positions=config.n_ctx, n_embd=config.n_embd,
        n_head=config.n_head, n_layer=config.n_layer, attn_implementation="sdpa",
    ))  # fmt: skip
    params = setting.host_params()

    def put(module, given):
        module.weight.data = torch.from_numpy(given["g"] if "g" in given else given["w"])
        module.bias.data = torch.from_numpy(given["b"])

    with torch.no_grad():
        body = peer.transformer
        body.wte.weight.data = torch.from_numpy(params["wte"])
        body.wpe.weight.data = torch.from_numpy(params["wpe"])
        peer.lm_head.weight = body.wte.weight
        for block, given in zip(body.h, params["blocks"], strict=True):
            put(block.ln_1, given["ln_1"])
            put(block.ln_2, given["ln_2"])
            put(block.attn.c_attn, given["attn"]["c_attn"])
            put(block.attn.c_proj, given["attn"]["c_proj"])
            put(block.mlp.c_fc, given["mlp"]["c_fc"])
            put(block.mlp.c_proj, given["mlp"]["c_proj"])
        put(body.ln_f, params["ln_f"])
    return peer.eval().to(setting.torch_device, getattr(torch, dtype))


def torch_wait(setting):
    import torch

    return (lambda: None) if setting.rehearse else torch.cuda.synchronize


def part_transformers(setting):
    """transformers generate as it comes: eager, dynamic cache, SDPA."""
    import torch

    wait = torch_wait(setting)
    with torch.no_grad():
        for dtype in setting.dtypes:
            peer = torch_model(setting, dtype)
            for batch in BATCHES[: 2 if setting.rehearse else 3]:
                ids = torch.tensor(setting.prompts(batch), device=setting.torch_device)

                def run(n, ids=ids, peer=peer):
                    peer.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n,
                                  min_new_tokens=n, do_sample=False, pad_token_id=0)

                whole = setting.median(lambda: run(setting.new), 3, wait)
                seconds = whole - setting.median(lambda: run(1), 3, wait)
                rate = batch * (setting.new - 1) / seconds
                yield f"transformers generate, {dtype}, batch {batch}", "tokens/s", rate


class TorchStep:
    """GPT-2's decode step as one writes it for torch.compile: a static cache and SDPA."""

    def __init__(self, setting, dtype, batch):
        import torch

        self.torch, self.config = torch, setting.config
        where = {"device": setting.torch_device, "dtype": getattr(torch, dtype)}
        self.params = map_params(lambda a: torch.from_numpy(a).to(**where), setting.host_params())
        heads, width = self.config.n_head, self.config.n_embd // self.config.n_head
        self.capacity = PROMPT + setting.new
        self.cache = torch.zeros(
            (self.config.n_layer, 2, batch, heads, self.capacity, width), **where
        )
        self.keys_at = torch.arange(self.capacity, device=setting.torch_device)

    def __call__(self, tokens, position):  # [b], [1] -> [b], and the cache grows
        torch, F = self.torch, self.torch.nn.functional
        p, config = self.params, self.config
        x = p["wte"][tokens] + p["wpe"][position]
        batch, shape = len(tokens), (len(tokens), 3, config.n_head, -1)
        mask = (self.keys_at <= position)[None, None, None]

        def norm(x, given):
            return F.layer_norm(x, (config.n_embd,), given["g"], given["b"], 1e-5)

        for layer, block in enumerate(p["blocks"]):
            attn, mlp = block["attn"], block["mlp"]
            q, k, v = torch.addmm(
                attn["c_attn"]["b"], norm(x, block["ln_1"]), attn["c_attn"]["w"]
            ).reshape(shape).unbind(1)
            self.cache[layer, 0].index_copy_(2, position, k[:, :, None])
            self.cache[layer, 1].index_copy_(2, position, v[:, :, None])
            z = F.scaled_dot_product_attention(q[:, :, None], *self.cache[layer], attn_mask=mask)
            x = x + torch.addmm(
                attn["c_proj"]["b"], z.reshape(batch, -1), attn["c_proj"]["w"]
            )
            hidden = torch.addmm(mlp["c_fc"]["b"], norm(x, block["ln_2"]), mlp["c_fc"]["w"])
            x = x + torch.addmm(
                mlp["c_proj"]["b"], F.gelu(hidden, approximate="tanh"), mlp["c_proj"]["w"]
            )
        return (norm(x, p["ln_f"]) @ p["wte"].T).argmax(-1)


def part_pytorch(setting):
    """A hand-written PyTorch step, eager and compiled with CUDA graphs."""
    import torch

    wait = torch_wait(setting)
    torch.set_grad_enabled(False)
    for dtype in setting.dtypes:
        for batch in BATCHES[: 2 if setting.rehearse else 3]:
            step = TorchStep(setting, dtype, batch)
            forms = {"eager": step}
            if not setting.rehearse:
                compiled = torch.compile(step.__call__, mode="reduce-overhead")
                forms["compiled, CUDA graphs"] = compiled
            for name, form in forms.items():
                first = torch.zeros(batch, dtype=torch.long, device=setting.torch_device)
                positions = [
                    torch.tensor([PROMPT + i], device=setting.torch_device)
                    for i in range(setting.new)
                ]

                def run(form=form, first=first, positions=positions):
                    tokens = first
                    for position in positions:
                        tokens = form(tokens, position).clone()

                try:
                    for _ in range(3):  # compiles, records, replays
                        run()
                    seconds = setting.median(run, 3, wait)
                    rate = batch * setting.new / seconds
                    yield f"PyTorch {name}, {dtype}, batch {batch}", "tokens/s", rate
                except Exception as error:
                    yield f"PyTorch {name}, {dtype}, batch {batch}", "failed", repr(error)[:200]


def part_prefill(setting):
    """The last logits of prompts that fill the context."""
    length = setting.config.n_ctx
    for dtype in setting.dtypes:
        model = setting.model(dtype)
        for batch in (1, 8):
            tokens = np.array(setting.prompts(batch, length))
            seconds = setting.median(
                lambda t=tokens, m=model: gpt2_np.forward(m.params, m.config, t, last_only=True)
            )
            yield f"gpt2_np prefill, {dtype}, batch {batch}", "tokens/s", batch * length / seconds


def part_torch_prefill(setting):
    import torch

    length, wait = setting.config.n_ctx, torch_wait(setting)
    with torch.no_grad():
        for dtype in setting.dtypes:
            peer = torch_model(setting, dtype)
            for batch in (1, 8):
                ids = torch.tensor(setting.prompts(batch, length), device=setting.torch_device)
                seconds = setting.median(
                    lambda ids=ids, peer=peer: peer(ids, logits_to_keep=1).logits, wait=wait
                )
                rate = batch * length / seconds
                yield f"transformers prefill (SDPA), {dtype}, batch {batch}", "tokens/s", rate


def part_score(setting):
    """Scoring a long text, with the share of the operations in the measured gemm rate."""
    length = 4 * setting.config.n_ctx
    tokens = setting.prompts(1, length)[0]
    for name in (*setting.dtypes, "tf32"):
        backend.allow_tf32(name == "tf32")
        model = setting.model("float32" if name == "tf32" else name)
        seconds = setting.median(lambda m=model: gpt2_np.score(m, tokens, m.config.n_ctx), 3)
        cost = gpt2_np.describe(setting.config)
        mean = (cost["flops_per_token_first"] + cost["flops_per_token_at_n_ctx"]) / 2
        yield f"gpt2_np score, {name}", "tokens/s", length / seconds
        yield f"  its operations, {name}", "TFLOP/s", length / seconds * mean / 1e12
    backend.allow_tf32(False)


def part_circuits(setting):
    """Patching every head's z, 4 prompts of 15 tokens, on the device and on the CPU."""
    import circuits

    clean = np.array(setting.prompts(4, 15))
    corrupted = clean.copy()
    corrupted[:, 10] = (clean[:, 10] + 1) % setting.config.n_vocab
    host = gpt2_np.Model(setting.config, setting.host_params())
    found = {}
    for name, model in (("device", setting.model()), ("CPU", host)):
        metric = circuits.logit_difference(model, 3, 5)
        start = time.perf_counter()
        found[name] = circuits.patching(model, corrupted, clean, metric, "z").values
        setting.wait()
        yield f"gpt2_np patching every head, {name}", "s", time.perf_counter() - start
    yield "the two maps, relative error", "", relative(found["device"], found["CPU"])


def part_tests(setting):
    """The project's own tests on the device."""
    marker = "gpu" if not setting.rehearse else "gpu and not gpu"
    command = [sys.executable, "-m", "pytest", "-q", "-m", marker, "-x", "--maxfail=20"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    yield "pytest -m gpu", "", lines[-1] if lines else done.stderr[-300:]
    for line in lines:
        if line.startswith(("FAILED", "ERROR")):
            yield "", "failed", line[:300]


# The seconds that each may take; together under ten minutes.
PARTS = {"device": 60, "correct": 150, "decode": 90, "prefill": 40, "score": 40,
         "transformers": 80, "pytorch": 180, "torch_prefill": 40, "circuits": 40,
         "tests": 120}  # fmt: skip


# --- running them ----------------------------------------------------------------------


def run_part(name, rehearse):
    """In the part's own process: a line of JSON for each row."""
    try:
        for quantity, unit, value in globals()[f"part_{name}"](Setting(rehearse)):
            value = value.item() if isinstance(value, np.generic) else value
            print("ROW " + json.dumps([quantity, unit, value]), flush=True)
    except Exception:
        print("ROW " + json.dumps([f"part {name}", "failed", traceback.format_exc()[-1500:]]),
              flush=True)


def show(quantity, unit, value):
    text = f"{value:,.4g}" if isinstance(value, float) else str(value)
    print(f"{quantity:58s} {text:>14s} {unit}", flush=True)


def start_part(name, seconds, rehearse):
    """The rows of a part that ran within its time, and of one that did not the ones it made."""
    command = [sys.executable, __file__, "--part", name] + ["--rehearse"] * rehearse
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        output, error = done.stdout, "" if done.returncode == 0 else done.stderr[-1500:]
    except subprocess.TimeoutExpired as expired:
        output, error = expired.stdout or b"", f"stopped after {seconds:.0f} s"
        output = output.decode() if isinstance(output, bytes) else output
    rows = [json.loads(line[4:]) for line in output.splitlines() if line.startswith("ROW ")]
    return rows + ([[f"part {name}", "failed", error]] if error else [])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="gpu.json", help="where the JSON goes")
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything together")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, at a tiny shape")
    args = parser.parse_args()
    if args.part:
        return run_part(args.part, args.rehearse)
    end = time.monotonic() + 60 * args.minutes
    results = {}
    for name in args.parts:
        left = end - time.monotonic()
        if left < 5:
            results[name] = [[f"part {name}", "failed", "no time was left"]]
        else:
            results[name] = start_part(name, min(PARTS[name], left), args.rehearse)
        print(f"\n{name}")
        for row in results[name]:
            show(*row)
        Path(args.output).write_text(json.dumps(results, indent=1))
    return None


if __name__ == "__main__":
    main()

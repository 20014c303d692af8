"""Everything on one GPU in one call: correctness, decoding, prefill, scoring, a circuits sweep.

    pip install "cupy-cuda13x[ctk]" torch transformers    # a part whose library is missing fails
    python benchmarks/gpu.py [--output gpu.json] [--minutes 9]

The weights are random, of 124M's shape; no network is needed. Each part runs in a process of its
own with a time limit, so that the others survive its failure. Rows are printed as they come and
written to the JSON file after every part. The most important parts come first. WRONG in place of a
unit marks a result that differs by more than rounding. `--rehearse` runs every part on the CPU at
a tiny shape.

The roofline of decoding is the measured copy bandwidth over the bytes that a step must read
(weights, and the cache at its mean length). That of scoring is the measured gemm rate.
"""
import argparse
import contextlib
import functools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from random_model import map_params, random_params  # noqa: E402

import gpt2_np  # noqa: E402
from gpt2_np import backend, circuits  # noqa: E402
from gpt2_np.inference.decoders import captured_decoder  # noqa: E402

PROMPT, NEW = 32, 128
BATCHES = (1, 8, 64)
ROUNDING = {"float32": 1e-5, "float16": 2e-3}  # relative errors of logits that are no bug


class Setting:
    """The shape, the device and the clock that every part shares."""

    def __init__(self, rehearse):
        self.rehearse = rehearse
        self.config = gpt2_np.SIZES["124M"]
        if rehearse:
            self.config = gpt2_np.Config(n_vocab=211, n_ctx=256, n_embd=64, n_head=4, n_layer=2)
        self.torch_device = "cpu" if rehearse else "cuda"
        self.dtypes = ("float32",) if rehearse else ("float32", "float16")
        self.new = 8 if rehearse else NEW
        self.rng = np.random.default_rng(0)

    @functools.cached_property
    def xp(self):  # PyTorch's parts need no CuPy
        return np if self.rehearse else backend.pick("cuda")

    @functools.cached_property
    def host_params(self):
        return random_params(self.config, scale=0.02)

    def model(self, dtype="float32", fast=True):
        """Return our model on the device. Without `fast` the forward pass decodes."""
        params = map_params(
            lambda array: backend.to_device(array.astype(dtype, copy=False), self.xp),
            self.host_params,
        )
        model = gpt2_np.Model(self.config, params)
        if not fast:
            vars(model)["_decoder"] = NoDecoder()
        return model

    @property
    def batches(self):
        return BATCHES[:2] if self.rehearse else BATCHES

    def random(self, *shape):
        """Return random numbers on the device: zeros would be faster to multiply."""
        return self.xp.asarray(self.rng.standard_normal(shape, np.float32))

    def prompts(self, batch, length=PROMPT):
        return self.rng.integers(0, self.config.n_vocab, (batch, length)).tolist()

    def wait(self):
        if self.xp is not np:
            self.xp.cuda.Device().synchronize()

    def median(self, work, repeats=5, wait=None):
        """Return the median seconds of `work`, after one run that does not count."""
        wait = wait or self.wait
        work(), wait()
        times = []
        for _ in range(2 if self.rehearse else repeats):
            start = time.perf_counter()
            work(), wait()
            times.append(time.perf_counter() - start)
        return statistics.median(times)


class NoDecoder:
    """A decoder that leaves everything to the forward pass."""

    def is_for(self, arrays):
        return True

    def start(self, *_):
        return None


def common(a, b):
    """Return the number of tokens that two rows have in common at their beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))


def relative(a, b):
    return float(np.linalg.norm(np.asarray(a, float) - b) / np.linalg.norm(b))


# --- parts: each yields (quantity, unit, value) ----------------------------------------


def part_device(setting):
    """The card: the bandwidth of a copy and gemm rates, as measured."""
    xp = setting.xp
    yield "device", "", backend.about(xp)
    source = setting.random(1 << (16 if setting.rehearse else 27))
    target = xp.zeros(source.shape, np.float32)
    seconds = setting.median(lambda: xp.copyto(target, source), 20)
    yield "copy bandwidth", "GB/s", 2 * source.nbytes / seconds / 1e9
    for name in (*setting.dtypes, "tf32"):
        yield f"gemm {name}", "TFLOP/s", gemm_rate(setting, name)


def gemm_rate(setting, name):
    """Return the rate of our own einsum on large square matrices, in 1e12 operations a second."""
    size = 64 if setting.rehearse else 8192
    square = setting.random(size, size).astype("float32" if name == "tf32" else name)
    backend.allow_tf32(name == "tf32")
    seconds = setting.median(lambda: backend.einsum("qd,dm->qm", square, square))
    backend.allow_tf32(False)
    return 2 * size**3 / seconds / 1e12


def error(quantity, dtype, a, b):
    """Return a row with the relative error, marked if that is more than rounding."""
    value = relative(backend.to_host(a), backend.to_host(b))
    return quantity, "" if value < ROUNDING[dtype] else "WRONG", value


def part_correct(setting):
    """Logits beside the CPU's, and the captured step beside the forward pass."""
    config = setting.config
    tokens = setting.prompts(2, 40)
    expected = gpt2_np.forward(setting.host_params, config, tokens)
    for dtype in setting.dtypes:
        model = setting.model(dtype)
        logits = gpt2_np.forward(model.params, config, tokens)
        yield error(f"logits {dtype}, relative error", dtype, logits, expected)
        plain = setting.model(dtype, fast=False)
        for batch in setting.batches:
            if setting.xp is not np:
                for length in (1, 63, 64, 200):
                    fast, slow = step_and_pass(model, setting.prompts(batch, length))
                    name = f"step {dtype}, {batch} rows after {length}, relative error"
                    yield error(name, dtype, fast, slow)
            prompts = setting.prompts(batch, 7)
            start = time.perf_counter()
            fast_rows = gpt2_np.generate_batch(model, prompts, setting.new)
            first = time.perf_counter() - start
            yield f"{dtype}, {batch} rows: first generation", "s", first
            again = gpt2_np.generate_batch(model, prompts, setting.new)
            same = again == fast_rows
            yield f"{dtype}, {batch} rows: runs repeat exactly", "" if same else "WRONG", same
            plain_rows = gpt2_np.generate_batch(plain, prompts, setting.new, draft=False)
            alike = min(map(common, fast_rows, plain_rows))
            yield f"{dtype}, {batch} rows: tokens alike, of {setting.new}", "", alike
        decoder = vars(model).get("_decoder")
        used = decoder is not None and not decoder.unusable
        fine = used or setting.xp is np
        yield f"{dtype}: captured step in use", "" if fine else "WRONG", used


def step_and_pass(model, prompts):
    """Return the logits [row, n_vocab] of the prompts' next tokens, by the step and by a pass."""
    prompts, config = np.array(prompts), model.config
    cache = gpt2_np.KVCache(config, len(prompts), prompts.shape[1] + 1)
    logits = gpt2_np.forward(model.params, config, prompts, cache, last_only=True)[:, 0]
    tokens = np.concatenate([prompts, backend.to_host(logits.argmax(-1))[:, None]], 1)
    told = gpt2_np.Sampling(repetition_penalty=2)  # has the step return logits, not tokens
    texts = [SimpleNamespace(tokens=row, rng=None) for row in tokens]
    decoder = captured_decoder(model, cache, texts, told)
    if decoder is None:
        raise RuntimeError("there is no captured step: the line on stderr gives the reason")
    by_step = decoder.run.logits(tokens[:, -1])
    return by_step, gpt2_np.forward(model.params, config, tokens, last_only=True)[:, 0]


def part_decode(setting):
    """Greedy tokens/s, 128 after 32. A run of one token is subtracted, for the prefill."""
    for dtype in setting.dtypes:
        for fast in (True, False):
            model = setting.model(dtype, fast)
            for batch in setting.batches:
                prompts = setting.prompts(batch)

                def run(n, model=model, prompts=prompts):
                    gpt2_np.generate_batch(model, prompts, n, draft=False)

                repeats = 5 if fast else 3
                whole = setting.median(lambda: run(setting.new), repeats)
                seconds = whole - setting.median(lambda: run(1), repeats)
                name = "captured step" if fast else "forward pass"
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
    """Return the same random weights as a model of transformers, with SDPA."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = setting.config
    peer = GPT2LMHeadModel(GPT2Config(
        vocab_size=config.n_vocab, n_positions=config.n_ctx, n_embd=config.n_embd,
        n_head=config.n_head, n_layer=config.n_layer, attn_implementation="sdpa",
    ))  # fmt: skip
    params = setting.host_params

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
    """The generate of transformers with its defaults: eager, dynamic cache, SDPA."""
    import torch

    wait = torch_wait(setting)
    with torch.no_grad():
        for dtype in setting.dtypes:
            peer = torch_model(setting, dtype)
            for batch in setting.batches:
                ids = torch.tensor(setting.prompts(batch), device=setting.torch_device)

                def run(n, ids=ids, peer=peer):
                    peer.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n,
                                  min_new_tokens=n, do_sample=False, pad_token_id=0)

                whole = setting.median(lambda: run(setting.new), 3, wait)
                seconds = whole - setting.median(lambda: run(1), 3, wait)
                rate = batch * (setting.new - 1) / seconds
                yield f"transformers generate, {dtype}, batch {batch}", "tokens/s", rate


def torch_step(setting, dtype, batch):
    """Return GPT-2's decode step as one writes it for torch.compile: a static cache and SDPA.

    Weights and cache are buffers of a module. A CUDA graph reuses the addresses of those alone, and
    copies other tensors at every step.
    """
    import torch
    from torch.nn import Module, ModuleList
    from torch.nn import functional as F

    config, width = setting.config, setting.config.n_embd // setting.config.n_head
    where = {"device": setting.torch_device, "dtype": getattr(torch, dtype)}
    capacity = PROMPT + setting.new

    def module(params):
        made = Module()
        for name, value in params.items():
            if isinstance(value, dict):
                setattr(made, name, module(value))
            elif isinstance(value, list):
                setattr(made, name, ModuleList(map(module, value)))
            else:
                made.register_buffer(name, torch.from_numpy(value).to(**where))
        return made

    def norm(x, given):
        return F.layer_norm(x, (config.n_embd,), given.g, given.b, 1e-5)

    class Step(Module):
        def __init__(self):
            super().__init__()
            self.model = module(setting.host_params)
            self.register_buffer("places", torch.arange(capacity, device=setting.torch_device))
            for block in self.model.blocks:
                for name in ("keys", "values"):
                    empty = torch.zeros((batch, config.n_head, capacity, width), **where)
                    block.register_buffer(name, empty)

        def forward(self, tokens, position):  # [b], [1] -> [b], and the cache grows
            x = self.model.wte[tokens] + self.model.wpe[position]
            mask = (self.places <= position)[None, None, None]
            for block in self.model.blocks:
                attn, mlp = block.attn, block.mlp
                qkv = torch.addmm(attn.c_attn.b, norm(x, block.ln_1), attn.c_attn.w)
                q, k, v = qkv.reshape(batch, 3, config.n_head, 1, width).unbind(1)
                block.keys[:, :, position] = k
                block.values[:, :, position] = v
                z = F.scaled_dot_product_attention(q, block.keys, block.values, attn_mask=mask)
                x = x + torch.addmm(attn.c_proj.b, z.reshape(batch, -1), attn.c_proj.w)
                hidden = torch.addmm(mlp.c_fc.b, norm(x, block.ln_2), mlp.c_fc.w)
                hidden = F.gelu(hidden, approximate="tanh")
                x = x + torch.addmm(mlp.c_proj.b, hidden, mlp.c_proj.w)
            return (norm(x, self.model.ln_f) @ self.model.wte.T).argmax(-1)

    return Step()


def part_pytorch(setting):
    """A hand-written PyTorch step, eager and compiled with CUDA graphs."""
    import torch

    wait = torch_wait(setting)
    torch.set_grad_enabled(False)
    positions = [
        torch.tensor([PROMPT + i], device=setting.torch_device) for i in range(setting.new)
    ]
    for batch in setting.batches:
        for dtype in setting.dtypes:
            step = torch_step(setting, dtype, batch)
            forms = {"eager": step}
            if not setting.rehearse:
                torch._dynamo.reset()
                torch._dynamo.utils.counters.clear()
                forms["compiled, CUDA graphs"] = torch.compile(
                    step, mode="reduce-overhead", fullgraph=True, dynamic=False
                )
            for name, form in forms.items():
                first = torch.zeros(batch, dtype=torch.long, device=setting.torch_device)

                def run(form=form, first=first):
                    tokens = first
                    for position in positions:
                        tokens = form(tokens, position).clone()

                try:
                    for _ in range(3):  # compiles, records, replays
                        run()
                    seconds = setting.median(run, 3, wait)
                    rate = batch * setting.new / seconds
                    yield f"PyTorch {name}, {dtype}, batch {batch}", "tokens/s", rate
                    if form is not step:  # PyTorch leaves a CUDA graph out without an error
                        skips = torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]
                        yield "  graphs left out", "failed" if skips else "", skips
                except Exception as failure:
                    yield f"PyTorch {name}, {dtype}, batch {batch}", "failed", repr(failure)[:300]


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
    """Scoring of a long text, and its operations as a share of the measured gemm rate."""
    length = 4 * setting.config.n_ctx
    tokens = setting.prompts(1, length)[0]
    for name in (*setting.dtypes, "tf32"):
        model = setting.model("float32" if name == "tf32" else name)
        most = gemm_rate(setting, name)
        backend.allow_tf32(name == "tf32")
        seconds = setting.median(lambda m=model: gpt2_np.score(m, tokens, m.config.n_ctx), 3)
        cost = gpt2_np.describe(setting.config)
        mean = (cost["flops_per_token_first"] + cost["flops_per_token_at_n_ctx"]) / 2
        yield f"gpt2_np score, {name}", "tokens/s", length / seconds
        rate = length / seconds * mean / 1e12
        yield f"  its operations, {name}", "TFLOP/s", rate
        yield f"  of the gemm rate, {name}", "", rate / most
    backend.allow_tf32(False)


def part_circuits(setting):
    """Patching every head's z, 4 prompts of 15 tokens, on the device and on the CPU."""
    clean = np.array(setting.prompts(4, 15))
    corrupted = clean.copy()
    corrupted[:, 10] = (clean[:, 10] + 1) % setting.config.n_vocab
    host = gpt2_np.Model(setting.config, setting.host_params)
    found = {}
    for name, model in (("device", setting.model()), ("CPU", host)):
        metric = circuits.logit_difference(model, 3, 5)
        if name == "device":  # compiles what it needs
            circuits.patching(model, "z", base=corrupted, source=clean, metric=metric)
        start = time.perf_counter()
        found[name] = circuits.patching(model, "z", base=corrupted, source=clean,
                                        metric=metric).values
        setting.wait()
        yield f"gpt2_np patching every head, {name}", "s", time.perf_counter() - start
    yield "the two maps, relative error", "", relative(found["device"], found["CPU"])


def part_tests(setting):
    """The project's own tests on the device, of the files that have such tests."""
    marker = "gpu" if not setting.rehearse else "gpu and not gpu"
    files = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "tests").rglob("test_*.py"))
             if path.parent.name == "cuda" or "mark.gpu" in path.read_text("utf-8")]  # fmt: skip
    files.sort(key=lambda path: "cuda" not in Path(path).parts)  # the kernels before their users
    command = [sys.executable, "-m", "pytest", "-v", "-m", marker, "--maxfail=20", "-p",
               "no:cacheprovider", "-W", "default", "--tb=short", "-c", "setup.cfg",
               "--rootdir=tests", "--confcutdir=tests", *files]  # fmt: skip
    lines = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True) as process:  # fmt: skip
        for line in process.stdout:
            lines.append(line.rstrip())
            if re.search(r"::.* (FAILED|ERROR)\b", line):
                yield lines[-1], "failed", ""
            elif re.search(r"::.* PASSED\b", line) and len(lines) % 100 == 0:
                yield f"pytest -m gpu{line[line.rindex('[') :].rstrip()}", "", "passing"
    yield "pytest -m gpu", "", lines[-1] if lines else "said nothing"
    if process.returncode not in (0, 5):  # 5: nothing was selected
        yield "pytest -m gpu", "failed", "\n".join(lines)[-8000:]


# The seconds that each part may take at most. The last ones get what is left.
PARTS = {"device": 60, "correct": 120, "decode": 90, "transformers": 70, "prefill": 40, "score": 40,
         "torch_prefill": 40, "tests": 170, "pytorch": 240, "circuits": 40}  # fmt: skip


# --- running them ----------------------------------------------------------------------


def run_part(name, rehearse):
    """Print a line of JSON for each row, in the part's own process."""
    try:
        for quantity, unit, value in globals()[f"part_{name}"](Setting(rehearse)):
            value = value.item() if isinstance(value, np.generic) else value
            print("ROW " + json.dumps([quantity, unit, value]), flush=True)
    except Exception:
        failed = [f"part {name}", "failed", traceback.format_exc()[-3000:]]
        print("ROW " + json.dumps(failed), flush=True)


def show(quantity, unit, value):
    text = f"{value:,.4g}" if isinstance(value, float) else str(value)
    print(f"{quantity:58s} {text:>14s} {unit}", flush=True)


def start_part(name, seconds, rehearse):
    """Return the rows of a part, printed as they come, also of one that is stopped half-way."""
    command = [sys.executable, "-u", __file__, "--part", name] + ["--rehearse"] * rehearse
    rows, late = [], threading.Event()

    def end():
        late.set()
        stop(process)

    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        timer = threading.Timer(seconds, end)
        timer.start()
        try:
            for line in process.stdout:
                if line.startswith("ROW "):
                    rows.append(json.loads(line[4:]))
                    show(*rows[-1])
            process.wait()
        finally:
            timer.cancel()
            stop(process)  # and compilers that it started
            process.stdout.close()
            process.wait()
        errors.seek(0)
        said = errors.read()[-3000:]
    reason = f"stopped after {seconds:.0f} s. " if late.is_set() else ""
    if reason or process.returncode or "gpt2_np: " in said:  # it went on without something
        rows.append([f"part {name}", "failed", reason + said])
        show(*rows[-1])
    return rows


def stop(process):
    """End a part and every process that it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


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
        print(f"\n{name}", flush=True)
        if left < 5:
            results[name] = [[f"part {name}", "failed", "no time was left"]]
            show(*results[name][0])
        else:
            results[name] = start_part(name, min(PARTS[name], left), args.rehearse)
        Path(args.output).write_text(json.dumps(results, indent=1))
    units = {unit for rows in results.values() for _, unit, _ in rows}
    return 1 if units & {"failed", "WRONG"} else 0


if __name__ == "__main__":
    sys.exit(main())

"""The captured decode step beside the forward pass.

The default tests check what the host does: the arguments of every launch against the kernels'
parameters, and the ways back to the plain pass. Marked `compiler`, the CUDA source itself is
compiled for the CPU and run; marked `nvcc`, it is compiled for two kinds of GPU; marked `gpu`, it
runs on one.
"""
import functools
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cuda_on_cpu
import numpy as np
import pytest
import strict_arrays
from random_model import map_params, random_model

import backend
import cuda_step
import gpt2_np
from gpt2_np import Config

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
import gpu

CHUNKS = Config(n_vocab=61, n_ctx=150, n_embd=40, n_head=8, n_layer=2)  # heads 5 wide, 3 chunks
SMALL = Config(n_vocab=97, n_ctx=24, n_embd=32, n_head=2, n_layer=2)
WIDEST = Config(n_vocab=50257, n_ctx=1024, n_embd=1600, n_head=25, n_layer=1)  # as in 1558M
ORIGINAL = backend.fused_kernels


def on_device(host, xp, dtype=np.float32):
    return gpt2_np.Model(
        host.config, map_params(lambda a: xp.asarray(a.astype(dtype)), host.params)
    )


@pytest.fixture
def launched(monkeypatch):
    """The stand-in with launches that are checked and not computed."""
    cuda_on_cpu.install(monkeypatch)
    return strict_arrays


@pytest.fixture(params=[pytest.param("compiled", marks=pytest.mark.compiler),
                        pytest.param("cuda", marks=pytest.mark.gpu)])  # fmt: skip
def xp(request, monkeypatch):
    if request.param == "cuda":
        return backend.pick("cuda")
    compiler = shutil.which("c++")
    assert compiler, "the tests marked compiler need a C++ compiler named c++"
    cuda_on_cpu.install(monkeypatch, compiler)
    return strict_arrays


# --- what the host does ----------------------------------------------------------------


@pytest.mark.parametrize("n_rows", [1, 3, 64])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_every_launch_gives_a_kernel_what_it_takes(launched, n_rows, dtype):
    model = on_device(random_model(CHUNKS), launched, dtype)
    step = cuda_step.Step(model.params, CHUNKS, n_rows, launched)
    names = [name for _, name, *_ in step.graph.launches]
    layer = ["norm_product", "attention", "attention_product", "norm_product", "gelu_product"]
    assert names == ["embed", *layer, *layer, "unembed", "best_of_part", "choose"]
    assert set(names) == set(cuda_step.KERNELS) == set(cuda_on_cpu.signatures(cuda_step.SOURCE))


def test_the_host_and_the_source_agree_on_sizes():
    in_source = dict(re.findall(r"(\w+) = (\d+)[,;]", cuda_step.SOURCE))
    for here, there in (("ROW", "BLOCK"), ("PRODUCT", "BLOCK"), ("COLUMN", "SIDE"),
                        ("CHUNK", "CHUNK"), ("ATTENTION", "ATTENTION_BLOCK"),
                        ("CHOOSE", "CHOOSE_BLOCK"), ("MOST_SPLITS", "MOST_SPLITS")):  # fmt: skip
        assert getattr(cuda_step, here) == int(in_source[there])


@pytest.mark.parametrize("n_rows", [1, 2, 3, 4, 5, 8, 9, 33, 64])
@pytest.mark.parametrize("n_embd", [8, 768, 1024, 1280, 1600, 6400])
def test_rows_that_share_a_read_fit_into_shared_memory(launched, n_rows, n_embd):
    tiny = Config(n_vocab=5, n_ctx=4, n_embd=n_embd, n_head=1, n_layer=0)
    params = map_params(launched.asarray, random_model(tiny).params)
    step = cuda_step.Step(params, tiny, n_rows, launched)
    together = step.rows_at_once
    assert together in (1, 2, 4, 8) and together * n_embd <= cuda_step.SHARED_NUMBERS
    assert together == 8 or together >= n_rows or 2 * together * n_embd > cuda_step.SHARED_NUMBERS


@pytest.mark.parametrize("n_in", [8, 256, 257, 768, 1600, 6400])
@pytest.mark.parametrize("n_out", [8, 768, 4800])
@pytest.mark.parametrize("multiprocessors", [1, 20, 132])
def test_splits_cover_every_input_once(n_in, n_out, multiprocessors):
    step = SimpleNamespace(pack=8, multiprocessors=multiprocessors)
    columns, n_splits, each = cuda_step.Step.splits(step, n_in, n_out)
    n_tiles = -(-n_in // cuda_step.ROW)
    assert columns * 32 >= n_out and 1 <= n_splits <= cuda_step.MOST_SPLITS
    assert (n_splits - 1) * each < n_tiles <= n_splits * each


@pytest.mark.parametrize("forbidden", [
    lambda xp, array: array.get(),
    lambda xp, array: array.set(np.zeros(array.shape, array.dtype)),
    lambda xp, array: xp.asarray(np.zeros(3)),
    lambda xp, array: backend.einsum("bd,de->be", array, array),
], ids=["get", "set", "asarray", "cuBLAS"])  # fmt: skip
def test_the_stand_in_refuses_to_capture_what_cupy_refuses(launched, forbidden):
    array = launched.asarray(np.ones((4, 4), np.float32))
    with launched.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        try:
            with pytest.raises((RuntimeError, NotImplementedError), match="capturing"):
                forbidden(launched, array)
        finally:
            stream.end_capture()


def test_a_step_that_another_thread_took_first_is_no_failure(launched):
    class Taken(list):
        def __bool__(self):  # it looked as if there were one
            return True

    host = random_model(SMALL)
    model = on_device(host, launched)
    decoder = vars(model)["_decoder"] = cuda_step.Decoder(model.params, SMALL, launched)
    decoder.free[1] = Taken()
    assert next(gpt2_np.generate(model, [1], 5)) == next(gpt2_np.generate(host, [1], 5))
    assert not decoder.unfit


def broken(where):
    def fail(*_, **__):
        raise RuntimeError(f"{where} failed\nwith a long explanation")

    return fail


@pytest.mark.parametrize("where", ["RawModule", "begin_capture"])
def test_what_cannot_be_captured_goes_the_plain_way_and_says_so_once(
    launched, monkeypatch, capsys, where
):
    place = launched if where == "RawModule" else cuda_on_cpu.Stream
    monkeypatch.setattr(place, where, broken(where))
    host = random_model(CHUNKS)
    model = on_device(host, launched)
    for _ in range(2):
        assert list(gpt2_np.generate(model, [1, 2], 5)) == list(gpt2_np.generate(host, [1, 2], 5))
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"no fast decoding on this GPU, going on without it ({where}" in said


@pytest.mark.parametrize("change", ["float64", "width", "mixed"])
def test_weights_that_the_kernels_cannot_read_go_the_plain_way(launched, capsys, change):
    config = Config(61, 24, 18, 2, 1) if change == "width" else SMALL
    host = random_model(config)
    model = on_device(host, launched, np.float64 if change == "float64" else np.float32)
    if change == "mixed":
        model.params["wpe"] = model.params["wpe"].astype(np.float64)
    assert list(gpt2_np.generate(model, [1, 2], 5)) == list(gpt2_np.generate(host, [1, 2], 5))
    assert "_decoder" in vars(model) and capsys.readouterr().err == ""


# --- the kernels' arithmetic -----------------------------------------------------------


def one_step(model, host, lengths, tokens):
    """Logits [row, n_vocab] of one captured step, and of the forward pass on the host."""
    config, xp = host.config, backend.namespace(model.params["wte"])
    texts = np.random.default_rng(0).integers(0, config.n_vocab, (len(lengths), max(lengths) + 1))
    texts[np.arange(len(lengths)), lengths] = tokens
    whole = gpt2_np.forward(host.params, config, texts)
    cache = gpt2_np.KVCache(config, len(lengths), config.n_ctx)
    if max(lengths):
        gpt2_np.forward(model.params, config, texts[:, :-1], cache)
    else:  # there is nothing to put into the cache: only make it
        for layer in range(config.n_layer):
            empty = xp.zeros((len(lengths), 1, *cache.shape[1::2]), model.params["wte"].dtype)
            cache.append(layer, empty, empty)
    cache.lengths[:] = lengths
    decoder = cuda_step.Decoder(model.params, config, xp)
    generators = [None] * len(lengths)
    run = decoder.start(
        cache, tokens, gpt2_np.Sampling(repetition_penalty=2), config.n_vocab, generators
    )
    assert run is not None and not run.chooses
    return run.logits(tokens), whole[np.arange(len(lengths)), lengths]


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


EDGES = [[0], [1], [62], [63], [64], [65], [127], [128], [149], [0, 149, 64], [3, 63, 7, 128, 64],
         [5, 0, 149, 20, 63, 64, 65, 100, 11]]  # fmt: skip


@pytest.mark.parametrize("lengths", EDGES, ids=str)
@pytest.mark.parametrize(("dtype", "error"), [(np.float32, 1e-5), (np.float16, 2e-3)])
def test_a_step_equals_the_forward_pass_at_every_edge(xp, lengths, dtype, error):
    host = random_model(CHUNKS)
    logits, expected = one_step(on_device(host, xp, dtype), host, lengths, [7] * len(lengths))
    assert relative(logits, expected) < error


@pytest.mark.parametrize("shape", [(SMALL, [23, 4]), (WIDEST, [1023, 2])], ids=["16", "1600"])
@pytest.mark.parametrize(("dtype", "error"), [(np.float32, 1e-5), (np.float16, 2e-3)])
def test_a_step_equals_the_forward_pass_at_other_shapes(xp, shape, dtype, error):
    config, lengths = shape
    host = random_model(config, scale=0.3 if config is SMALL else 0.02)
    logits, expected = one_step(on_device(host, xp, dtype), host, lengths, [3] * len(lengths))
    assert relative(logits, expected) < error


OPTIONS = [
    {},
    {"temperature": 0.9, "top_k": 20, "seed": 3},
    {"temperature": 1.2, "seed": 5},
    {"temperature": 0.8, "top_k": 1, "seed": 5},
    {"temperature": 1.2, "top_k": 10**12, "seed": 5},
    {"temperature": 1.1, "top_p": 0.8, "min_p": 0.01, "seed": 4},
    {"repetition_penalty": 1.5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("prompts", [[[1, 2, 3]], [[1, 2, 3], [4], [5] * 60]], ids=["1", "ragged"])
def test_generation_with_the_step_equals_the_hosts(xp, prompts, options):
    host = random_model(SMALL if len(prompts) == 1 else CHUNKS)
    model = on_device(host, xp)
    rows = gpt2_np.generate_batch(model, prompts, 12, **options)
    assert not vars(model)["_decoder"].unfit
    assert rows == gpt2_np.generate_batch(host, prompts, 12, **options)


def test_rows_that_end_and_a_full_context_leave_the_others_as_they_are(xp):
    host = random_model(SMALL)
    model = on_device(host, xp)
    prompts = [[1, 2, 3], [4] * 20, [5, 6]]
    free = gpt2_np.generate_rows(host, prompts, 30)
    assert free.reasons == ["context"] * 3
    stop = free.continuations()[0][4]
    expected = gpt2_np.generate_rows(host, prompts, 30, stop=stop)
    rows = gpt2_np.generate_rows(model, prompts, 30, stop=stop)
    assert rows.continuations() == expected.continuations() and rows.reasons == expected.reasons


def test_generations_may_be_interleaved_and_dropped(xp):
    host = random_model(SMALL)
    model = on_device(host, xp)
    expected = {start: list(gpt2_np.generate(host, [start], 10)) for start in (1, 2, 3)}
    first, second = (gpt2_np.generate(model, [start], 10) for start in (1, 2))
    pairs = list(zip(first, second, strict=True))
    assert [list(column) for column in zip(*pairs, strict=True)] == [expected[1], expected[2]]
    dropped = gpt2_np.generate(model, [9], 10)
    next(dropped), next(dropped)
    del dropped
    assert list(gpt2_np.generate(model, [3], 10)) == expected[3]
    decoder = vars(model)["_decoder"]
    del first, second
    assert len(decoder.free[1]) == 2  # two ran at once, and both came back


def test_a_callers_generator_advances_by_the_tokens_that_were_used(xp):
    host = random_model(SMALL)
    model = on_device(host, xp)
    here, there = np.random.default_rng(1), np.random.default_rng(1)
    expected = list(gpt2_np.generate(host, [1], 9, temperature=1.0, seed=there))
    tokens = gpt2_np.generate(model, [1], 20, temperature=1.0, seed=here)
    assert [next(tokens) for _ in range(9)] == expected
    assert here.random() == there.random()


def test_weights_that_are_replaced_are_captured_anew(xp):
    model, other = (on_device(random_model(SMALL, seed), xp) for seed in (0, 1))
    list(gpt2_np.generate(model, [1], 5))
    model.params["blocks"] = other.params["blocks"]
    changed = random_model(SMALL)
    changed.params["blocks"] = random_model(SMALL, 1).params["blocks"]
    assert list(gpt2_np.generate(model, [1], 5)) == list(gpt2_np.generate(changed, [1], 5))


def test_a_vocabulary_padded_beyond_the_tokenizers_is_not_chosen_from(xp):
    host = random_model(SMALL)
    prompts = [[1], [2]]
    highest = max(max(row) for row in gpt2_np.generate_batch(host, prompts, 6))
    tokenizer = SimpleNamespace(n_vocab=highest)  # the last id that would be chosen is no token
    here, there = (
        gpt2_np.generate_batch(gpt2_np.Model(SMALL, params, tokenizer), prompts, 6)
        for params in (on_device(host, xp).params, host.params)
    )
    assert here == there


# --- the plain pass --------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3,), (1, 1), (2, 9, 61), (40, 300)], ids=str)
@pytest.mark.parametrize("function", [gpt2_np.softmax, gpt2_np.gelu], ids=["softmax", "gelu"])
def test_a_function_as_one_kernel_is_the_same_function(xp, function, shape):
    host = np.random.default_rng(0).normal(size=shape, scale=3).astype(np.float32)
    host[..., 1:] += np.where(np.arange(1, shape[-1]) % 3 == 0, -np.inf, 0)  # masked
    if function is gpt2_np.gelu:
        host[host == -np.inf] = 1e4
    array, before = xp.asarray(host), host.copy()
    np.testing.assert_allclose(function(array).get(), function(host), rtol=1e-5, atol=1e-6)
    assert (array.get() == before).all()
    doubled = xp.asarray(np.repeat(host, 2, -1))[..., ::2]  # not contiguous: operation by operation
    np.testing.assert_allclose(function(doubled).get(), function(host), rtol=1e-5, atol=1e-6)
    assert function(array.astype(np.float64)).dtype == np.float64


def test_functions_that_cannot_be_compiled_go_the_plain_way_and_say_so_once(
    launched, monkeypatch, capsys
):
    fresh = functools.cache(ORIGINAL.__wrapped__)
    monkeypatch.setattr(backend, "fused_kernels", fresh)
    monkeypatch.setattr(launched, "RawModule", broken("RawModule"))
    host = np.arange(6, dtype=np.float32).reshape(2, 3)
    for function in (gpt2_np.softmax, gpt2_np.gelu):
        assert (function(launched.asarray(host)).get() == function(host)).all()
    said = capsys.readouterr().err
    assert said == "gpt2_np: softmax and GELU are slow on this GPU (RawModule failed)\n"


def test_the_forward_pass_with_functions_as_one_kernel_equals_the_hosts(xp):
    host = random_model(CHUNKS)
    tokens = np.random.default_rng(0).integers(0, CHUNKS.n_vocab, (2, 70))
    logits = gpt2_np.forward(on_device(host, xp).params, CHUNKS, tokens)
    assert backend.fused_kernels(xp) is not None
    assert relative(logits.get(), gpt2_np.forward(host.params, CHUNKS, tokens)) < 1e-5


# --- the benchmark ---------------------------------------------------------------------


def test_the_benchmarks_check_finds_a_right_step_right_and_a_wrong_one_wrong(xp):
    def verdicts():
        setting = gpu.Setting(rehearse=True)
        setting.config = Config(n_vocab=61, n_ctx=210, n_embd=32, n_head=4, n_layer=1)
        setting.xp, setting.new = xp, 4
        return {quantity: unit for quantity, unit, _ in gpu.part_correct(setting)}

    assert len(verdicts()) > 10 and "WRONG" not in verdicts().values()
    if xp is strict_arrays:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cuda_step, "SOURCE", cuda_step.SOURCE.replace("0.044715f", "0.1f"))
            assert verdicts()["step float32, 1 rows after 64, relative error"] == "WRONG"


def test_a_part_of_the_benchmark_that_hangs_or_fails_keeps_the_rows_it_made(
    tmp_path, monkeypatch, capsys
):
    script = tmp_path / "part.py"
    monkeypatch.setattr(gpu, "__file__", str(script))
    for ending, said in (("import time; time.sleep(600)", "stopped after 2 s"),
                         ("raise SystemExit('no GPU any more')", "no GPU any more")):  # fmt: skip
        script.write_text(f"print('ROW [\"speed\", \"tokens/s\", 2.5]', flush=True)\n{ending}")
        speed, failure = gpu.start_part("decode", 2, False)
        assert speed == ["speed", "tokens/s", 2.5] and failure[:2] == ["part decode", "failed"]
        assert said in failure[2] and "2.5 tokens/s" in capsys.readouterr().out


# --- the kernels as a GPU takes them ---------------------------------------------------


@pytest.mark.nvcc
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_the_functions_as_one_kernel_compile_without_warnings(tmp_path, architecture):
    (tmp_path / "fused.cu").write_text(backend.FUSED)
    command = ["nvcc", "-std=c++17", f"-arch={architecture}", "-cubin", "-Werror", "all-warnings",
               "fused.cu"]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.nvcc
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize(("n_embd", "n_head", "rows"), [(768, 12, 1), (768, 12, 8), (1600, 25, 4)])
@pytest.mark.parametrize("half", [0, 1])
def test_the_kernels_compile_without_warnings(tmp_path, architecture, n_embd, n_head, rows, half):
    (tmp_path / "step.cu").write_text(cuda_step.SOURCE)
    given = [f"-DN_EMBD={n_embd}", f"-DN_HEAD={n_head}", f"-DROWS={rows}", f"-DHALF={half}",
             "-DEPSILON=1e-5f"]  # fmt: skip
    command = ["nvcc", "-std=c++17", f"-arch={architecture}", "-cubin", "-Werror", "all-warnings",
               *given, "step.cu"]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

"""The captured decode step beside the forward pass.

The default tests check the host's work: the arguments of every launch against the kernels'
parameters, and the ways back to the forward pass. Marked `compiler`, the CUDA source is compiled
for the CPU and run; marked `gpu`, it runs on a GPU.
"""
import functools
import itertools
from types import SimpleNamespace

import cuda_on_cpu
import numpy as np
import pytest
import strict_arrays
from random_model import map_params, random_model

import gpt2_np
from gpt2_np import Config, backend
from gpt2_np.cuda import decode_step, kernels
from gpt2_np.gpt2_np import map_leaves, transformer, unembed
from gpt2_np.inference.generation import run_batch
from gpt2_np.inference.packing import Packed

CHUNKS = Config(n_vocab=61, n_ctx=150, n_embd=40, n_head=8, n_layer=2)  # heads 5 wide, 3 chunks
SMALL = Config(n_vocab=97, n_ctx=24, n_embd=32, n_head=2, n_layer=2)
WIDEST = Config(n_vocab=50257, n_ctx=1024, n_embd=1600, n_head=25, n_layer=1)  # as in 1558M
SIZE = kernels.constants(decode_step.SOURCE)


def on_device(host, xp, dtype=np.float32):
    return gpt2_np.Model(
        host.config, map_params(lambda a: xp.asarray(a.astype(dtype)), host.params)
    )


def flat(params):
    arrays = []
    map_leaves(lambda _, array: arrays.append(array), params)
    return arrays


def step_of(model, n_rows, xp):
    return decode_step.Step(model.params, model.config, flat(model.params), n_rows, xp)


def decoder_of(model, xp):
    return decode_step.CapturedSteps(model.params, model.config, flat(model.params), xp)


# --- the host's work -------------------------------------------------------------------


@pytest.mark.parametrize("n_rows", [1, 3, 64])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_every_launch_gives_a_kernel_its_parameters(launched, n_rows, dtype):
    step = step_of(on_device(random_model(CHUNKS), launched, dtype), n_rows, launched)
    names = [name for _, name, *_ in step.graph.launches]
    layer = ["norm_product", "attention", "attention_product", "norm_product", "gelu_product"]
    assert names == ["embed", *layer, *layer, "unembed", "best_of_part", "choose"]
    assert set(names) == set(step.kernels)


def test_every_block_has_the_threads_that_its_kernel_expects(launched):
    step = step_of(on_device(random_model(CHUNKS), launched), 3, launched)
    threads = {name: block for _, name, _, block, _ in step.graph.launches}
    assert threads.pop("attention") == (SIZE["ATTENTION_BLOCK"],)
    assert threads.pop("choose") == (SIZE["CHOOSE_BLOCK"],)
    assert set(threads.values()) == {(SIZE["BLOCK"],)}


@pytest.mark.parametrize("n_rows", [1, 2, 3, 4, 5, 8, 9, 33, 64])
@pytest.mark.parametrize("n_embd", [8, 768, 1024, 1280, 1600, 6400])
def test_rows_that_share_a_read_fit_into_shared_memory(n_rows, n_embd):
    together = decode_step.rows_per_read(n_rows, n_embd)
    assert together in (1, 2, 4, 8) and together * n_embd <= decode_step.SHARED_NUMBERS
    assert (together == 8 or together >= n_rows
            or 2 * together * n_embd > decode_step.SHARED_NUMBERS)  # fmt: skip


@pytest.mark.parametrize("n_in", [8, 256, 257, 768, 1600, 6400])
@pytest.mark.parametrize("n_out", [8, 768, 4800])
@pytest.mark.parametrize("row_blocks", [1, 8])
@pytest.mark.parametrize("multiprocessors", [1, 20, 132])
def test_splits_cover_every_input_once_and_are_no_more_than_needed(
    n_in, n_out, row_blocks, multiprocessors
):
    columns, n_splits, each = decode_step.splits(n_in, n_out, 8, row_blocks, multiprocessors)
    n_tiles = -(-n_in // SIZE["BLOCK"])
    assert columns * 32 >= n_out and 1 <= n_splits <= SIZE["MAX_SPLITS"]
    assert (n_splits - 1) * each < n_tiles <= n_splits * each
    assert n_splits == 1 or columns * row_blocks < 2 * multiprocessors


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
    decoder = vars(model)["_decoder"] = decoder_of(model, launched)
    decoder.free[1] = Taken()
    assert next(gpt2_np.generate(model, [1], 5)) == next(gpt2_np.generate(host, [1], 5))
    assert not decoder.unusable


@pytest.mark.parametrize("where", ["RawModule", "begin_capture"])
def test_a_step_that_cannot_be_captured_is_replaced_by_the_forward_pass_and_says_so_once(
    launched, monkeypatch, capsys, where
):
    def fail(*_, **__):
        raise RuntimeError(f"{where} failed\nwith a long explanation")

    owner = launched if where == "RawModule" else cuda_on_cpu.Stream
    monkeypatch.setattr(owner, where, fail)
    host = random_model(CHUNKS)
    model = on_device(host, launched)
    for _ in range(2):
        assert list(gpt2_np.generate(model, [1, 2], 5)) == list(gpt2_np.generate(host, [1, 2], 5))
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"no fast decoding on this GPU, going on without it ({where} failed)" in said


def test_a_source_that_is_missing_is_replaced_by_the_forward_pass(
    launched, monkeypatch, capsys, tmp_path
):
    monkeypatch.setattr(decode_step, "SOURCE", tmp_path / "decode_step.cu")
    host = random_model(SMALL)
    model = on_device(host, launched)
    assert list(gpt2_np.generate(model, [1, 2], 5)) == list(gpt2_np.generate(host, [1, 2], 5))
    assert "decode_step.cu" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["float64", "width", "mixed"])
def test_weights_that_the_kernels_cannot_read_take_the_forward_pass(launched, capsys, change):
    config = Config(61, 24, 18, 2, 1) if change == "width" else SMALL
    host = random_model(config)
    model = on_device(host, launched, np.float64 if change == "float64" else np.float32)
    if change == "mixed":
        model.params["wpe"] = model.params["wpe"].astype(np.float64)
    assert list(gpt2_np.generate(model, [1, 2], 5)) == list(gpt2_np.generate(host, [1, 2], 5))
    assert "_decoder" in vars(model) and capsys.readouterr().err == ""


def test_more_rows_than_the_kernels_are_for_take_the_forward_pass(launched):
    model = on_device(random_model(SMALL), launched)
    decoder, n_rows = decoder_of(model, launched), decode_step.MAX_ROWS + 1
    cache = gpt2_np.KVCache(SMALL, n_rows, 4)
    started = decoder.start(
        cache, [1] * n_rows, gpt2_np.Sampling(), SMALL.n_vocab, [None] * n_rows)
    assert started is None and not decoder.unusable


def test_a_decoder_is_for_the_arrays_whose_addresses_it_has(launched):
    model = on_device(random_model(SMALL), launched)
    decoder, arrays = decoder_of(model, launched), flat(model.params)
    assert decoder.is_for(arrays) and decoder.is_for(list(arrays))
    assert not decoder.is_for(arrays[:-1])
    assert not decoder.is_for([*arrays[:-1], arrays[-1].copy()])


# --- the kernels' arithmetic -----------------------------------------------------------


@functools.cache
def host_pass(config, lengths, token):
    """Return a random model and its logits [row, n_vocab] for `token` after texts of `lengths`.

    Also returns its cache, of which the last position, that of `token`, is empty.
    """
    host = random_model(config, scale=0.02 if config is WIDEST else 0.3)
    rng, ends = np.random.default_rng(0), np.cumsum([length + 1 for length in lengths]) - 1
    texts = rng.integers(0, config.n_vocab, ends[-1] + 1)
    texts[ends] = token
    cache = gpt2_np.KVCache(config, len(lengths), config.n_ctx)
    packed = Packed([length + 1 for length in lengths], cache)
    last = transformer(host.params, config, texts[None], packed)[:, ends]
    for buffer in itertools.chain(*cache.layers):
        buffer[np.arange(len(lengths)), :, lengths] = 0
    return host, unembed(last, host.params)[0], cache


def step_error(config, lengths, xp, dtype):
    """Return the relative error of the logits of one captured step."""
    host, expected, host_cache = host_pass(config, tuple(lengths), 7)
    model, n_rows = on_device(host, xp, dtype), len(lengths)
    cache = gpt2_np.KVCache(config, n_rows, config.n_ctx)
    cache.layers = [[xp.asarray(buffer.astype(dtype)) for buffer in buffers]
                    for buffers in host_cache.layers]  # fmt: skip
    cache.lengths[:] = lengths
    told = gpt2_np.Sampling(repetition_penalty=2)  # has the step return logits, not tokens
    generation = decoder_of(model, xp).start(
        cache, [7] * n_rows, told, config.n_vocab, [None] * n_rows)
    assert generation is not None and not generation.chooses
    logits = generation.logits([7] * n_rows)
    return np.linalg.norm(logits - expected) / np.linalg.norm(expected)


EDGES = [[0], [1], [62], [63], [64], [65], [127], [128], [149], [0, 149, 64], [3, 63, 7, 128, 64],
         [5, 0, 149, 20, 63, 64, 65, 100, 11]]  # fmt: skip


@pytest.mark.usefixtures("few_parts")
@pytest.mark.parametrize("lengths", EDGES, ids=str)
@pytest.mark.parametrize(("dtype", "error"), [(np.float32, 1e-5), (np.float16, 2e-3)])
def test_a_step_equals_the_forward_pass_at_every_edge(xp, lengths, dtype, error):
    assert step_error(CHUNKS, lengths, xp, dtype) < error


@pytest.mark.parametrize("shape", [(SMALL, [23, 4]), (WIDEST, [1023, 2])], ids=["16", "1600"])
@pytest.mark.parametrize(("dtype", "error"), [(np.float32, 1e-5), (np.float16, 2e-3)])
def test_a_step_equals_the_forward_pass_at_other_shapes(xp, shape, dtype, error):
    assert step_error(*shape, xp, dtype) < error


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
def test_generation_with_the_step_equals_the_hosts(xp, prompts, options, request):
    host = random_model(SMALL)
    if len(prompts) > 1:
        request.getfixturevalue("few_parts")
        host = random_model(CHUNKS)
    model = on_device(host, xp)
    rows = gpt2_np.generate_batch(model, prompts, 12, **options)
    assert not vars(model)["_decoder"].unusable
    assert rows == gpt2_np.generate_batch(host, prompts, 12, **options)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.9}, {"temperature": 2.0, "top_k": 1500}])
def test_a_vocabulary_larger_than_a_block_is_chosen_from_like_the_hosts(xp, options):
    host = random_model(Config(n_vocab=2 * SIZE["CHOOSE_BLOCK"] + 77, n_ctx=24, n_embd=32,
                               n_head=2, n_layer=1))  # fmt: skip
    generate = functools.partial(gpt2_np.generate_batch, prompts=[[1, 2], [3]], n_tokens=6, seed=2)
    assert generate(on_device(host, xp), **options) == generate(host, **options)


@pytest.mark.usefixtures("few_parts")
def test_rows_that_end_and_a_full_context_leave_the_others_as_they_are(xp):
    host = random_model(SMALL)
    model = on_device(host, xp)
    prompts = [[1, 2, 3], [4] * 20, [5, 6]]
    free = run_batch(host, prompts, 30)
    assert free.reasons == ["context"] * 3
    stop = free.continuations[0][4]
    expected = run_batch(host, prompts, 30, stop=stop)
    rows = run_batch(model, prompts, 30, stop=stop)
    assert rows.continuations == expected.continuations and rows.reasons == expected.reasons


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


# --- the fibers that stand in for a GPU's threads ----------------------------------------


@pytest.mark.compiler
def test_a_barrier_that_some_threads_miss_is_found(monkeypatch, tmp_path):
    source = tmp_path / "kernels.cu"
    source.write_text(
        'extern "C" __global__ void __launch_bounds__(BLOCK) half_way(int* x) {\n'
        "    if (threadIdx.x < 40) __syncthreads();\n    x[threadIdx.x] = 1;\n}\n"
        'extern "C" __global__ void __launch_bounds__(BLOCK) crossed(int* x) {\n'
        "    if (threadIdx.x < 40) __syncthreads();\n"
        "    else x[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1, 1);\n}\n"
        'extern "C" __global__ void __launch_bounds__(BLOCK) sum(int* x) {\n'
        "    int value = threadIdx.x;\n"
        "    for (int lane = 16; lane; lane /= 2)\n"
        "        value += __shfl_xor_sync(0xffffffffu, value, lane);\n"
        "    __syncthreads();\n    x[threadIdx.x] = value;\n}\n"
    )
    cuda_on_cpu.install(monkeypatch, "c++")
    compiled = kernels.compile_kernels(source, (), strict_arrays)
    x = strict_arrays.zeros(64, np.int32)
    for name in ("half_way", "crossed"):
        with pytest.raises(AssertionError, match=f"{name}: some threads of a block missed"):
            compiled[name]((1,), (64,), (x,))
        compiled["sum"]((1,), (64,), (x,))  # nothing is left of the failure
        assert x.get().tolist() == [sum(range(32))] * 32 + [sum(range(32, 64))] * 32

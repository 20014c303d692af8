"""A decode step of GPT-2 on an NVIDIA GPU: a few kernels, captured once and replayed.

The plain forward pass launches dozens of small kernels a layer, one by one, from Python. Here a
layer is five kernels, written for one token of each of a few rows. The whole step, the choice of
the token included, is one CUDA graph, and the host only says "again". So everything that changes
from step to step (tokens, lengths, the addresses of the cache) is kept in the device's memory.

`CapturedSteps` belongs to a model, `Step` is the graph for a number of rows, and
`CapturedGeneration` runs one generation on it. The kernels are in decode_step.cu.
Tests compare them with the reference's forward pass. None of the sizes has been
tuned on a device yet.
"""
from __future__ import annotations

import contextlib
import copy
import math
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from .kernels import compile_kernels, constants, reason

SOURCE = os.path.join(os.path.dirname(__file__), "decode_step.cu")

MAX_ROWS = 64  # eight rows share a read of the weights: many more are work for cuBLAS
SHARED_NUMBERS = 6400  # normalized rows that fit into a block's 48 KiB beside its other arrays
SLOTS = 64  # chosen tokens and random draws that the device holds, per row
MAX_AHEAD = 16  # steps launched before their tokens are read back
N_PARTS = 64  # parts of the vocabulary whose best tokens are found side by side
LAYER_NORM_EPSILON = "1e-5f"


def can_read(arrays: Sequence[Any], config: Any) -> bool:
    """Return True if the kernels can read these weights.

    They are of one type, contiguous, and their rows are whole loads of 16 bytes.
    """
    dtype = arrays[0].dtype
    return (
        dtype in (np.float32, np.float16)
        and all(array.dtype == dtype for array in arrays)
        and config.n_embd * dtype.itemsize % 16 == 0
        and config.n_embd <= SHARED_NUMBERS
        and all(array.flags.c_contiguous and array.data.ptr % 16 == 0 for array in arrays)
    )


def rows_per_read(n_rows: int, n_embd: int) -> int:
    """Return the number of rows that share one read of the weights: a power of 2 up to 8."""
    fit = SHARED_NUMBERS // n_embd
    shared = 1 << (min(n_rows, 8, fit) - 1).bit_length()
    return shared if shared <= fit else shared // 2


def splits(
    n_in: int, n_out: int, pack: int, row_blocks: int, multiprocessors: int
) -> tuple[int, int, int]:
    """Return blocks along the outputs, blocks along the inputs, and tiles of inputs for each.

    `pack` is the numbers in a 16-byte load, `row_blocks` the blocks along the rows. There are at
    least two blocks for each multiprocessor, if that needs few splits: every block of the kernel
    that reads the partial sums adds all of them up.
    """
    size = constants(SOURCE)
    n_columns = -(-n_out // (size["SIDE"] * pack))
    n_tiles = -(-n_in // size["BLOCK"])
    wanted = -(-2 * multiprocessors // (n_columns * row_blocks))
    tiles_each = max(n_tiles // wanted, -(-n_tiles // size["MAX_SPLITS"]), 1)
    return n_columns, -(-n_tiles // tiles_each), tiles_each


class Step:
    """The captured step of one model for a number of rows, with its buffers.

    It serves one generation at a time: `CapturedSteps` lends it out. `arrays` are those of
    `params` and are kept alive with it, because the graph knows only their addresses.
    """

    def __init__(self, params: Any, config: Any, arrays: Sequence[Any], n_rows: int, xp: Any):
        self.params, self.config, self.arrays, self.n_rows, self.xp = (
            params, config, arrays, n_rows, xp)
        self.dtype = params["wte"].dtype
        self.size = constants(SOURCE)
        self.rows_per_read = rows_per_read(n_rows, config.n_embd)
        self.row_blocks = -(-n_rows // self.rows_per_read)
        self.n_chunks = -(-config.n_ctx // self.size["CHUNK"])
        self.multiprocessors = xp.cuda.Device().attributes["MultiProcessorCount"]
        self.stream = xp.cuda.Stream(non_blocking=True)
        with self.stream:
            self._make_buffers()
            self.kernels = compile_kernels(SOURCE, self._options(), xp)
            self.launch()  # loads every kernel: nothing may be loaded while a graph is captured
            self.stream.synchronize()
            self.stream.begin_capture()
            try:
                self.launch()
            finally:
                self.graph = self.stream.end_capture()

    def _make_buffers(self):
        xp, config, n = self.xp, self.config, self.n_rows
        d, n_layer = config.n_embd, config.n_layer
        self.tokens, self.lengths, self.steps = (xp.zeros(n, np.int32) for _ in range(3))
        self.settings = xp.asarray(np.array([config.n_vocab, 0, 1, 1], np.int32))
        self.temperature = xp.asarray(np.ones(1))
        self.draws, self.chosen = xp.zeros((SLOTS, n)), xp.zeros((SLOTS, n), np.int32)
        self.chosen_host = pinned(xp, (SLOTS, n), np.int32)
        self.draws_host = pinned(xp, (SLOTS, n), np.float64)
        self.residuals = [xp.zeros((n, d), np.float32) for _ in range(2)]
        self.qkv, self.from_attention, self.hidden, self.from_mlp = (
            xp.zeros((self.size["MAX_SPLITS"], n, width), np.float32)
            for width in (3 * d, d, 4 * d, d)
        )
        heads = (n, config.n_head, self.n_chunks)
        self.maxima, self.weights = xp.zeros(heads, np.float32), xp.zeros(heads, np.float32)
        self.z = xp.zeros((n, self.n_chunks, d), np.float32)
        self.logits = xp.zeros((n, config.n_vocab), np.float32)
        self.best = xp.zeros((n, N_PARTS), np.float32)
        self.best_id = xp.zeros((n, N_PARTS), np.int32)
        # Until a generation brings its cache, every layer has this one, with room for one position.
        self.no_cache = xp.zeros((n, d), self.dtype)
        addresses = np.full((n_layer, 2), self.no_cache.data.ptr, np.uint64)
        self.caches = xp.asarray(addresses)

    def _options(self):
        definitions = {
            "N_EMBD": self.config.n_embd, "N_HEAD": self.config.n_head,
            "HALF": int(self.dtype.itemsize == 2), "ROWS": self.rows_per_read,
            "EPSILON": LAYER_NORM_EPSILON,
        }  # fmt: skip
        return tuple(f"-D{name}={value}" for name, value in definitions.items())

    def _splits(self, n_in, n_out):
        pack = 16 // self.dtype.itemsize
        return splits(n_in, n_out, pack, self.row_blocks, self.multiprocessors)

    def _launch_kernel(self, name, grid, n_threads, *arguments):
        arguments = [np.int32(a) if isinstance(a, int) else a for a in (*arguments, self.n_rows)]
        self.kernels[name](grid, (n_threads,), tuple(arguments))

    def launch(self) -> None:
        """Launch all kernels of one step in order, from `tokens` and `lengths` to the next ones."""
        run, config, params = self._launch_kernel, self.config, self.params
        d, n_vocab, wte = config.n_embd, config.n_vocab, params["wte"]
        threads, attention_threads, choose_threads = (
            self.size[name] for name in ("BLOCK", "ATTENTION_BLOCK", "CHOOSE_BLOCK"))
        row_blocks = self.row_blocks
        residual, next_residual = self.residuals
        run("embed", (self.n_rows,), threads, self.tokens, self.lengths, wte, params["wpe"],
            residual)
        added, n_added, bias = self.from_mlp, 0, wte  # nothing is added before the first block
        for layer, block in enumerate(params["blocks"]):
            attn, mlp = block["attn"], block["mlp"]
            columns, n_qkv, tiles = self._splits(d, 3 * d)
            run("norm_product", (columns, n_qkv, row_blocks), threads, residual, added, n_added,
                bias, next_residual, block["ln_1"]["g"], block["ln_1"]["b"], attn["c_attn"]["w"],
                3 * d, tiles, self.qkv)
            run("attention", (config.n_head, self.n_rows, self.n_chunks), attention_threads,
                self.qkv, n_qkv, attn["c_attn"]["b"], self.caches, layer, self.settings,
                self.lengths, self.n_chunks, self.maxima, self.weights, self.z)
            columns, n_added, tiles = self._splits(d, d)
            run("attention_product", (columns, n_added, row_blocks), threads, self.maxima,
                self.weights, self.z, self.n_chunks, self.lengths, attn["c_proj"]["w"], tiles,
                self.from_attention)
            columns, n_hidden, tiles = self._splits(d, 4 * d)
            run("norm_product", (columns, n_hidden, row_blocks), threads, next_residual,
                self.from_attention, n_added, attn["c_proj"]["b"], residual, block["ln_2"]["g"],
                block["ln_2"]["b"], mlp["c_fc"]["w"], 4 * d, tiles, self.hidden)
            columns, n_added, tiles = self._splits(4 * d, d)
            run("gelu_product", (columns, n_added, row_blocks), threads, self.hidden, n_hidden,
                mlp["c_fc"]["b"], mlp["c_proj"]["w"], 4 * d, d, tiles, self.from_mlp)
            added, bias = self.from_mlp, mlp["c_proj"]["b"]
        blocks = min(-(-4 * self.multiprocessors // row_blocks), -(-n_vocab // (threads // 32)))
        run("unembed", (row_blocks, blocks), threads, residual, added, n_added, bias,
            params["ln_f"]["g"], params["ln_f"]["b"], wte, n_vocab, self.logits)
        run("best_of_part", (N_PARTS, self.n_rows), threads, self.logits, n_vocab, self.settings,
            self.best, self.best_id)
        run("choose", (self.n_rows,), choose_threads, self.logits, n_vocab, self.settings,
            self.temperature, self.draws, self.best, self.best_id, N_PARTS, self.tokens,
            self.lengths, self.steps, self.chosen, SLOTS)


def pinned(xp: Any, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return a host array that the device can copy to while the host goes on."""
    count = math.prod(shape)
    memory = xp.cuda.alloc_pinned_memory(count * np.dtype(dtype).itemsize)
    return np.frombuffer(memory, dtype, count).reshape(shape)


class CapturedSteps:
    """The captured steps of one model, made when first needed and lent to one generation each.

    `arrays` is the flat list of the arrays in `params`.
    """

    def __init__(self, params: Any, config: Any, arrays: Sequence[Any], xp: Any):
        self.params, self.config, self.arrays, self.xp = params, config, arrays, xp
        self.free: dict[int, list[Step]] = {}  # by number of rows
        self.unusable = not can_read(arrays, config)

    def is_for(self, arrays: Sequence[Any]) -> bool:
        """Return True if these are the very arrays whose addresses were captured."""
        return len(arrays) == len(self.arrays) and all(
            a is b for a, b in zip(arrays, self.arrays, strict=True)
        )

    def start(self, cache: Any, tokens: Any, options: Any, n_vocab: int,
              generators: Sequence[np.random.Generator]) -> CapturedGeneration | None:
        """Start a generation after a prefill that filled `cache` and chose `tokens`.

        `options` are the reference's `Sampling`. Returns None if the forward pass must make the
        tokens. The first failure to compile or to capture says so in one line on stderr.
        """
        if self.unusable or len(tokens) > MAX_ROWS:
            return None
        free = self.free.setdefault(len(tokens), [])
        try:
            step = free.pop()
        except IndexError:
            try:
                step = Step(self.params, self.config, self.arrays, len(tokens), self.xp)
            except Exception as error:  # NVRTC's, the driver's, an ImportError of CuPy's
                self.unusable = True
                print("gpt2_np: no fast decoding on this GPU, going on without it "
                      f"({reason(error)})", file=sys.stderr)
                return None
        return CapturedGeneration(step, free, cache, tokens, options, n_vocab, generators)


class CapturedGeneration:
    """One generation on a `Step`, which it gives back to the list `free` at its end.

    The device chooses tokens itself (greedy, temperature, top_k) and runs ahead of the host. With
    other options `chooses` is False: the device makes logits, and the host chooses.
    """

    step: Any = None  # None once more after `close`

    def __init__(self, step: Step, free: list[Step], cache: Any, tokens: Any,
                 options: Any, n_vocab: int, generators: Sequence[np.random.Generator]):
        self.step, self.free, self.cache, self.n_vocab = step, free, cache, n_vocab
        self.rows = np.arange(len(tokens))  # the rows of the step that still grow
        greedy = options.temperature == 0
        self.chooses = not (
            options.top_p or options.min_p or options.repetition_penalty not in (None, 1)
        )
        # The caller's generators advance with the tokens that are used, the copies with the draws.
        self.generators = [] if greedy or not self.chooses else list(generators)
        self.generators_ahead = [copy.deepcopy(generator) for generator in self.generators]
        self.n_launched = self.n_copied = self.n_used = 0  # steps, and those with known tokens
        self.copies = []  # (first step, number of steps, event) of tokens on their way to the host
        self.next_size = 1  # steps that are launched at once
        xp = step.xp
        top_k = min(options.top_k or 0, n_vocab)
        settings = [n_vocab, top_k, greedy or not self.chooses, cache.shape[2]]
        addresses = [[array.data.ptr for array in layer] for layer in cache.layers]
        step.stream.wait_event(xp.cuda.get_current_stream().record())  # the prefill
        for array, values in (
            (step.tokens, tokens), (step.lengths, cache.lengths), (step.settings, settings),
            (step.steps, np.zeros(len(tokens))), (step.temperature, [options.temperature or 1]),
            (step.caches, addresses),
        ):  # fmt: skip
            array.set(np.asarray(values).astype(array.dtype), step.stream)

    def logits(self, tokens: Any) -> Any:
        """Return the logits [row, n_vocab] after one more token in every row that still grows."""
        step = self.step
        all_tokens = np.zeros(step.n_rows, np.int32)
        all_tokens[self.rows] = tokens
        if self.n_launched:
            step.tokens.set(all_tokens, step.stream)
        step.graph.launch(step.stream)
        self.n_launched += 1
        self.cache.lengths += 1
        step.stream.synchronize()
        return step.logits.get(step.stream)[self.rows, : self.n_vocab]

    def tokens(self, n_wanted: int) -> np.ndarray:
        """Return the next token [row] of every row that still grows.

        Up to `n_wanted` more are wanted of each, this one included.
        """
        if self.n_used == self.n_copied:
            if not self.copies:
                self._launch_ahead(n_wanted)
            first, n, event = self.copies.pop(0)
            self._launch_ahead(n_wanted - n)  # the device works while the host reads
            event.synchronize()
            self.n_copied = first + n
        chosen = self.step.chosen_host[self.n_used % SLOTS]
        self.n_used += 1
        self.cache.lengths += 1
        for generator in self.generators:
            generator.random()
        return chosen[self.rows]

    def _launch_ahead(self, n_wanted):
        """Launch some steps and the copy of their tokens, each time twice as many."""
        step, slot = self.step, self.n_launched % SLOTS
        n = min(self.next_size, n_wanted, SLOTS - slot)
        if n <= 0:
            return
        self.next_size = min(2 * self.next_size, MAX_AHEAD)
        slots = slice(slot, slot + n)
        if self.generators_ahead:
            for row, generator in zip(self.rows, self.generators_ahead, strict=True):
                step.draws_host[slots, row] = generator.random(n)
            step.draws[slots].set(step.draws_host[slots], step.stream)
        for _ in range(n):
            step.graph.launch(step.stream)
        step.chosen[slots].get(step.stream, out=step.chosen_host[slots], blocking=False)
        self.copies.append((self.n_launched, n, step.stream.record()))
        self.n_launched += n

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these rows only. The others stay in the graph, and nobody reads them."""
        self.rows = self.rows[rows]
        if self.generators:
            self.generators = [self.generators[row] for row in rows]
            self.generators_ahead = [self.generators_ahead[row] for row in rows]

    def __del__(self):  # a generation that is dropped half-way ends here
        with contextlib.suppress(Exception):  # when Python ends, CUDA may be gone already
            self.close()

    def close(self) -> None:
        """Wait for the steps that were launched, so that the cache may be freed. Return the step.

        A closed generation makes no more tokens.
        """
        if self.step:
            self.step.stream.synchronize()
            self.free.append(self.step)
            self.step = None

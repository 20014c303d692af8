"""A decode step of GPT-2 on an NVIDIA GPU as a few kernels, captured once and replayed.

The plain forward pass launches dozens of small kernels a layer, one by one, from Python. Here a
layer is five kernels, written for a few rows of one token each, and the whole step, the choice of
the token included, is one CUDA graph: the host only says "again". Whatever changes from step to
step (tokens, lengths, where the cache is) therefore lives in the device's memory.
`gpt2_np.forward` remains the reference that tests compare with. None of the sizes below has been
tuned on a device yet. Part of gpt2_np.
"""
from __future__ import annotations

import contextlib
import copy
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

MAX_ROWS = 64  # eight rows share a read of the weights: many more are work for cuBLAS
SHARED_NUMBERS = 6400  # normalized rows that fit into a block's 48 KiB beside its other arrays
SLOTS = 64  # chosen tokens and random draws that the device holds, per row
MOST_AHEAD = 16  # steps begun before their tokens are read back
N_PARTS = 64  # parts of the vocabulary whose best tokens are found side by side
ROW, COLUMN, CHUNK, PRODUCT, ATTENTION, CHOOSE = 256, 4, 64, 256, 128, 1024  # as in SOURCE
MOST_SPLITS = 6


def leaves(params: Any) -> Iterator[Any]:
    """Every array of nested params, in a fixed order."""
    if isinstance(params, Mapping):
        params = params.values()
    elif not isinstance(params, list | tuple):
        yield params
        return
    for inner in params:
        yield from leaves(inner)


def can_read(params: Any, config: Any) -> bool:
    """Whether the kernels can read these weights: one type, whole 16-byte loads, contiguous."""
    arrays = list(leaves(params))
    dtype = arrays[0].dtype
    return (
        dtype in (np.float32, np.float16)
        and all(array.dtype == dtype for array in arrays)
        and config.n_embd * dtype.itemsize % 16 == 0
        and config.n_embd <= SHARED_NUMBERS
        and all(array.flags.c_contiguous and array.data.ptr % 16 == 0 for array in arrays)
    )


class Step:
    """The captured step of one model for a number of rows, with its buffers.

    It serves one generation at a time: `Decoder` lends it out.
    """

    def __init__(self, params: Any, config: Any, n_rows: int, xp: Any):
        self.params, self.config, self.n_rows, self.xp = params, config, n_rows, xp
        self.arrays = list(leaves(params))  # the graph knows addresses only
        self.dtype = params["wte"].dtype
        self.pack = 16 // self.dtype.itemsize
        shared = min(n_rows, 8, SHARED_NUMBERS // config.n_embd)
        self.rows_at_once = 1 << (shared - 1).bit_length()
        if self.rows_at_once > SHARED_NUMBERS // config.n_embd:
            self.rows_at_once //= 2
        self.n_chunks = -(-config.n_ctx // CHUNK)
        self.multiprocessors = xp.cuda.Device().attributes["MultiProcessorCount"]
        self.stream = xp.cuda.Stream(non_blocking=True)
        with self.stream:
            self._make_buffers()
            self._load()
            self.launch()  # loads every kernel: nothing may be loaded while a graph is captured
            self.stream.synchronize()
            self.stream.begin_capture()
            try:
                self.launch()
            finally:
                self.graph = self.stream.end_capture()

    def _make_buffers(self):
        xp, config, n = self.xp, self.config, self.n_rows
        d, layers = config.n_embd, config.n_layer
        self.tokens, self.lengths, self.steps = (xp.zeros(n, np.int32) for _ in range(3))
        self.settings = xp.asarray(np.array([config.n_vocab, 0, 1, 1], np.int32))
        self.temperature = xp.asarray(np.ones(1))
        self.draws, self.chosen = xp.zeros((SLOTS, n)), xp.zeros((SLOTS, n), np.int32)
        self.chosen_host = pinned(xp, (SLOTS, n), np.int32)
        self.draws_host = pinned(xp, (SLOTS, n), np.float64)
        self.residuals = [xp.zeros((n, d), np.float32) for _ in range(2)]
        self.qkv, self.from_attention, self.hidden, self.from_mlp = (
            xp.zeros((MOST_SPLITS, n, width), np.float32) for width in (3 * d, d, 4 * d, d)
        )
        heads = (n, config.n_head, self.n_chunks)
        self.highest, self.weight = xp.zeros(heads, np.float32), xp.zeros(heads, np.float32)
        self.z = xp.zeros((n, self.n_chunks, d), np.float32)
        self.logits = xp.zeros((n, config.n_vocab), np.float32)
        self.best = xp.zeros((n, N_PARTS), np.float32)
        self.best_id = xp.zeros((n, N_PARTS), np.int32)
        # Until a generation brings its cache, every layer's is one place for one position.
        self.nowhere = xp.zeros((n, d), self.dtype)
        places = np.full((layers, 2), self.nowhere.data.ptr, np.uint64)
        self.caches = xp.asarray(places)

    def _load(self):
        config = self.config
        given = {
            "N_EMBD": config.n_embd, "N_HEAD": config.n_head, "HALF": int(self.dtype.itemsize == 2),
            "ROWS": self.rows_at_once, "EPSILON": "1e-5f",
        }  # fmt: skip
        options = ("-std=c++17", *(f"-D{name}={value}" for name, value in given.items()))
        module = self.xp.RawModule(code=SOURCE, options=options)
        self.kernels = {name: module.get_function(name) for name in KERNELS}

    def splits(self, n_in: int, n_out: int) -> tuple[int, int, int]:
        """Blocks along the outputs, blocks along the inputs, and tiles of inputs for each.

        At least two blocks for each multiprocessor, but few splits: every block of the kernel
        that reads the partial sums adds all of them up.
        """
        n_columns = -(-n_out // (COLUMN * self.pack))
        n_tiles = -(-n_in // ROW)
        wanted = -(-2 * self.multiprocessors // n_columns)
        each = max(n_tiles // wanted, -(-n_tiles // MOST_SPLITS), 1)
        return n_columns, -(-n_tiles // each), each

    def run(self, name: str, grid: tuple[int, ...], block: int, *arguments: Any) -> None:
        arguments = [np.int32(a) if isinstance(a, int) else a for a in (*arguments, self.n_rows)]
        self.kernels[name](grid, (block,), tuple(arguments))

    def launch(self) -> None:
        """All kernels of one step, in order: from `tokens` and `lengths` to the next ones."""
        d, n_vocab = self.config.n_embd, self.config.n_vocab
        wte = self.params["wte"]
        row_blocks = -(-self.n_rows // self.rows_at_once)
        here, there = self.residuals
        self.run("embed", (self.n_rows,), PRODUCT, self.tokens, self.lengths, wte,
                 self.params["wpe"], here)
        added, n_added, bias = self.from_mlp, 0, wte  # nothing yet
        for layer, block in enumerate(self.params["blocks"]):
            attn, mlp = block["attn"], block["mlp"]
            columns, n_qkv, each = self.splits(d, 3 * d)
            self.run("norm_product", (columns, n_qkv, row_blocks), PRODUCT, here, added, n_added,
                     bias, there, block["ln_1"]["g"], block["ln_1"]["b"], attn["c_attn"]["w"],
                     3 * d, each, self.qkv)
            self.run("attention", (self.config.n_head, self.n_rows, self.n_chunks), ATTENTION,
                     self.qkv, n_qkv, attn["c_attn"]["b"], self.caches, layer, self.settings,
                     self.lengths, self.n_chunks, self.highest, self.weight, self.z)
            columns, n_added, each = self.splits(d, d)
            self.run("attention_product", (columns, n_added, row_blocks), PRODUCT, self.highest,
                     self.weight, self.z, self.n_chunks, self.lengths, attn["c_proj"]["w"], each,
                     self.from_attention)
            columns, n_hidden, each = self.splits(d, 4 * d)
            self.run("norm_product", (columns, n_hidden, row_blocks), PRODUCT, there,
                     self.from_attention, n_added, attn["c_proj"]["b"], here, block["ln_2"]["g"],
                     block["ln_2"]["b"], mlp["c_fc"]["w"], 4 * d, each, self.hidden)
            columns, n_added, each = self.splits(4 * d, d)
            self.run("gelu_product", (columns, n_added, row_blocks), PRODUCT, self.hidden, n_hidden,
                     mlp["c_fc"]["b"], mlp["c_proj"]["w"], 4 * d, d, each, self.from_mlp)
            added, bias = self.from_mlp, mlp["c_proj"]["b"]
        blocks = min(4 * self.multiprocessors, -(-n_vocab // (PRODUCT // 32)))
        self.run("unembed", (row_blocks, blocks), PRODUCT, here, added, n_added, bias,
                 self.params["ln_f"]["g"], self.params["ln_f"]["b"], wte, n_vocab, self.logits)
        self.run("best_of_part", (N_PARTS, self.n_rows), PRODUCT, self.logits, n_vocab,
                 self.settings, self.best, self.best_id)
        self.run("choose", (self.n_rows,), CHOOSE, self.logits, n_vocab, self.settings,
                 self.temperature, self.draws, self.best, self.best_id, N_PARTS, self.tokens,
                 self.lengths, self.steps, self.chosen, SLOTS)


def pinned(xp: Any, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """A host array that the device can copy to while the host goes on."""
    count = math.prod(shape)
    memory = xp.cuda.alloc_pinned_memory(count * np.dtype(dtype).itemsize)
    return np.frombuffer(memory, dtype, count).reshape(shape)


class Decoder:
    """The captured steps of one model, made when first needed and lent to one generation each."""

    def __init__(self, params: Any, config: Any, xp: Any):
        self.params, self.config, self.xp = params, config, xp
        self.arrays = list(leaves(params))
        self.free: dict[int, list[Step]] = {}
        self.unfit = not can_read(params, config)

    def is_for(self, params: Any) -> bool:
        """Whether the captured addresses are still those of the weights."""
        found = list(leaves(params))
        return len(found) == len(self.arrays) and all(map(_is, found, self.arrays))

    def start(self, cache: Any, tokens: Sequence[int], options: Any, n_vocab: int,
              generators: Sequence[np.random.Generator]) -> Run | None:
        """A generation's steps, from a cache that a prefill has filled; None to do without."""
        if self.unfit or len(tokens) > MAX_ROWS:
            return None
        try:
            free = self.free.setdefault(len(tokens), [])
            try:
                step = free.pop()
            except IndexError:
                step = Step(self.params, self.config, len(tokens), self.xp)
        except Exception as error:  # NVRTC's, the driver's, an ImportError: all mean the same here
            self.unfit = True
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            print(f"gpt2_np: no fast decoding on this GPU, going on without it ({reason})",
                  file=sys.stderr)
            return None
        return Run(step, free, cache, tokens, options, n_vocab, generators)


def _is(a, b):
    return a is b


class Run:
    """One generation on a `Step`.

    The device chooses the tokens itself (greedy, temperature, top_k) and runs ahead; with other
    options it makes logits and is told the tokens. Its end gives the step back.
    """

    step = None

    def __init__(self, step, free, cache, tokens, options, n_vocab, generators):
        self.step, self.free, self.cache, self.n_vocab = step, free, cache, n_vocab
        self.rows = np.arange(len(tokens))  # where the rows that still grow are in the step
        greedy = options.temperature == 0
        self.chooses = not (
            options.top_p or options.min_p or options.repetition_penalty not in (None, 1)
        )
        # The caller's generators advance with the tokens that are used, these with the draws.
        self.generators = [] if greedy or not self.chooses else list(generators)
        self.ahead = [copy.deepcopy(generator) for generator in self.generators]
        self.begun = self.given = 0  # steps launched, and steps whose tokens were handed out
        self.rounds = []  # (first step, number, event) whose tokens are on their way
        self.arrived = 0
        self.size = 1
        xp = step.xp
        top_k = min(options.top_k or 0, n_vocab)
        settings = [n_vocab, top_k, greedy or not self.chooses, cache.shape[2]]
        places = [[array.data.ptr for array in layer] for layer in cache._layers]
        step.stream.wait_event(xp.cuda.get_current_stream().record())  # the prefill
        for array, values in (
            (step.tokens, tokens), (step.lengths, cache.lengths), (step.settings, settings),
            (step.steps, np.zeros(len(tokens))), (step.temperature, [options.temperature or 1]),
            (step.caches, places),
        ):  # fmt: skip
            array.set(np.asarray(values).astype(array.dtype), step.stream)

    def logits(self, tokens: Sequence[int]) -> Any:
        """The logits [row, n_vocab] after one token more in every row that still grows."""
        step = self.step
        given = np.zeros(step.n_rows, np.int32)
        given[self.rows] = tokens
        if self.begun:
            step.tokens.set(given, step.stream)
        step.graph.launch(step.stream)
        self.begun += 1
        self.cache.lengths += 1
        step.stream.synchronize()
        return step.logits.get(step.stream)[self.rows, : self.n_vocab]

    def tokens(self, most: int) -> np.ndarray:
        """The next token [row] of every row that still grows; at most `most` more are wanted."""
        if self.given == self.arrived:
            if not self.rounds:
                self._begin(most)
            first, n, event = self.rounds.pop(0)
            self._begin(most - n)  # the device works on these while the host reads the others
            event.synchronize()
            self.arrived = first + n
        chosen = self.step.chosen_host[self.given % SLOTS]
        self.given += 1
        self.cache.lengths += 1
        for generator in self.generators:
            generator.random()
        return chosen[self.rows]

    def _begin(self, most: int) -> None:
        """Launch some steps and the copy of their tokens; twice as many every time."""
        step, slot = self.step, self.begun % SLOTS
        n = min(self.size, most, SLOTS - slot)
        if n <= 0:
            return
        self.size = min(2 * self.size, MOST_AHEAD)
        part = slice(slot, slot + n)
        if self.ahead:
            for row, generator in zip(self.rows, self.ahead, strict=True):
                step.draws_host[part, row] = generator.random(n)
            step.draws[part].set(step.draws_host[part], step.stream)
        for _ in range(n):
            step.graph.launch(step.stream)
        step.chosen[part].get(step.stream, out=step.chosen_host[part], blocking=False)
        self.rounds.append((self.begun, n, step.stream.record()))
        self.begun += n

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these of the rows. The others stay in the graph and nobody reads them."""
        self.rows = self.rows[rows]
        self.generators = [self.generators[row] for row in rows] if self.generators else []
        self.ahead = [self.ahead[row] for row in rows] if self.ahead else []

    def __del__(self):  # a generator that is dropped half-way has no other last word
        with contextlib.suppress(Exception):  # at Python's end CUDA may be gone before us
            self.close()

    def close(self) -> None:
        """Wait for what was begun, so that the cache may be freed, and give the step back."""
        if self.step:
            self.step.stream.synchronize()
            self.free.append(self.step)
            self.step = None


KERNELS = ("embed", "norm_product", "attention", "attention_product", "gelu_product", "unembed",
           "best_of_part", "choose")

SOURCE = r"""
// Given by the compiler's options: N_EMBD, N_HEAD, HALF (1: weights and cache are float16), ROWS
// (rows that share one read of the weights), EPSILON (of the layer norms).
//
// A product never waits for another block: each block writes its own partial sums and the kernel
// that needs them adds them up, always in the same order, so that runs repeat exactly.
#if HALF
typedef unsigned short number;
#else
typedef float number;
#endif

constexpr int D = N_EMBD, HEAD = N_EMBD / N_HEAD;
constexpr int PACK = 16 / sizeof(number);   // numbers of a 16-byte load
constexpr int BLOCK = 256, WARPS = BLOCK / 32;
constexpr int SIDE = 4;                     // loads side by side: 64 bytes of a row of weights
constexpr int DEEP = BLOCK / SIDE;          // rows of weights that a block reads at once
constexpr int LOADS = BLOCK / DEEP;         // loads of a thread in a tile of BLOCK inputs
constexpr int COLUMNS = SIDE * PACK;        // outputs of a block
constexpr int CHUNK = 64;                   // keys that a block of attention looks at
constexpr int ATTENTION_BLOCK = 128, CHOOSE_BLOCK = 1024;
constexpr int MOST_SPLITS = 6;              // of the inputs of a product
constexpr float LOWEST = -3.4028235e38f;

#ifdef __CUDACC__
__device__ __forceinline__ float from_half(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
__device__ __forceinline__ unsigned short to_half(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#endif

__device__ __forceinline__ float read(float value) { return value; }
__device__ __forceinline__ float read(unsigned short bits) { return from_half(bits); }
__device__ __forceinline__ void write(float* place, float value) { *place = value; }
__device__ __forceinline__ void write(unsigned short* place, float value) {
    *place = to_half(value);
}

__device__ __forceinline__ float rounded(float value) {  // as the cache will hold it
#if HALF
    return from_half(to_half(value));
#else
    return value;
#endif
}

__device__ __forceinline__ void unpack(uint4 load, float out[PACK]) {
    const unsigned int words[4] = {load.x, load.y, load.z, load.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
#if HALF
        out[2 * i] = from_half((unsigned short)(words[i] & 0xffff));
        out[2 * i + 1] = from_half((unsigned short)(words[i] >> 16));
#else
        out[i] = __uint_as_float(words[i]);
#endif
    }
}

// --- sums over splits and over a block ---------------------------------------------------

// What the splits of a product have added up, `step` numbers apart. Between two small kernels time
// is spent waiting, not reading: all loads are on their way before the first sum.
__device__ __forceinline__ float over_splits(const float* partial, int n_splits, long long step) {
    float parts[MOST_SPLITS], total = 0;
#pragma unroll
    for (int s = 0; s < MOST_SPLITS; s++) parts[s] = s < n_splits ? partial[s * step] : 0;
#pragma unroll
    for (int s = 0; s < MOST_SPLITS; s++) total += parts[s];
    return total;
}

// Every thread gets the sums over the block of its N values. `scratch` is [WARPS][N].
template <int N>
__device__ void block_sums(float values[N], float* scratch) {
#pragma unroll
    for (int n = 0; n < N; n++)
        for (int lane = 16; lane; lane /= 2)
            values[n] += __shfl_xor_sync(0xffffffffu, values[n], lane);
    __syncthreads();  // the scratch may still be read from the last time
    if (threadIdx.x % 32 == 0)
        for (int n = 0; n < N; n++) scratch[threadIdx.x / 32 * N + n] = values[n];
    __syncthreads();
#pragma unroll
    for (int n = 0; n < N; n++) {
        values[n] = 0;
        for (int warp = 0; warp < WARPS; warp++) values[n] += scratch[warp * N + n];
    }
}

// --- the residual stream and its layer norm --------------------------------------------

extern "C" __global__ void embed(
    const int* tokens, const int* lengths, const number* wte, const number* wpe, float* residual,
    int n_rows) {
    int row = blockIdx.x;
    if (row >= n_rows) return;
    for (int i = threadIdx.x; i < D; i += BLOCK)
        residual[row * D + i] =
            read(wte[(long long)tokens[row] * D + i]) + read(wpe[lengths[row] * D + i]);
}

// residual + (bias + partial sums), normalized without gain and bias, into x [ROWS][D] of shared
// memory. The blocks that `keep` also write the new residual stream, to another array than they
// read, which no other block of this kernel reads.
__device__ __forceinline__ void normalize(
    const float* __restrict__ residual, const float* __restrict__ partial, int n_splits,
    const number* __restrict__ bias, float* __restrict__ new_residual, bool keep, int first_row,
    int n_rows, float* x, float* scratch) {
    constexpr int EACH = (D + BLOCK - 1) / BLOCK;
    float sums[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        int row = first_row + r;
        float values[EACH];
        sums[r] = 0;
        if (row >= n_rows) continue;
#pragma unroll
        for (int e = 0; e < EACH; e++) {
            int i = e * BLOCK + threadIdx.x;
            if (D % BLOCK && i >= D) continue;
            values[e] = residual[row * D + i];
            if (n_splits)
                values[e] += over_splits(partial + row * D + i, n_splits, n_rows * D)
                    + read(bias[i]);
        }
#pragma unroll
        for (int e = 0; e < EACH; e++) {
            int i = e * BLOCK + threadIdx.x;
            if (D % BLOCK && i >= D) continue;
            if (keep) new_residual[row * D + i] = values[e];
            x[r * D + i] = values[e];
            sums[r] += values[e];
        }
    }
    block_sums<ROWS>(sums, scratch);
    float squares[ROWS];
    for (int r = 0; r < ROWS; r++) {
        squares[r] = 0;
        if (first_row + r >= n_rows) continue;
        for (int i = threadIdx.x; i < D; i += BLOCK) {
            float centred = x[r * D + i] - sums[r] / D;
            x[r * D + i] = centred;
            squares[r] += centred * centred;
        }
    }
    block_sums<ROWS>(squares, scratch);
    for (int r = 0; r < ROWS; r++) {
        float scale = 1 / sqrtf(squares[r] / D + EPSILON);
        for (int i = threadIdx.x; i < D; i += BLOCK)
            x[r * D + i] = first_row + r < n_rows ? x[r * D + i] * scale : 0;
    }
    __syncthreads();
}

// --- products of a few rows with a matrix [n_in, n_out] --------------------------------

__device__ __forceinline__ void load_tile(
    const number* w, int n_in, int n_out, int tile, uint4 loads[LOADS]) {
    int column = (blockIdx.x * SIDE + threadIdx.x % SIDE) * PACK;
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
        int row = tile * BLOCK + i * DEEP + threadIdx.x / SIDE;
        loads[i] = make_uint4(0, 0, 0, 0);
        if (row < n_in && column < n_out)
            loads[i] = *(const uint4*)(w + (long long)row * n_out + column);
    }
}

// partial[split][row][column] = the sum of input(r, i) * w[i, column] over the inputs i of this
// split: tiles of BLOCK inputs, blockIdx.y * tiles_each and on. Thread t reads SIDE loads of row
// t / SIDE, and the tile after while it works on this one. `first` was loaded before the input was
// ready, because weights do not wait for the kernel before.
template <class Input>
__device__ void product(
    uint4 loads[LOADS], const number* w, int n_in, int n_out, int tiles_each, int first_row,
    int n_rows, float* partial, float (*x)[BLOCK], float (*sums)[ROWS][COLUMNS], Input input) {
    float totals[ROWS][PACK] = {};
    int n_tiles = (n_in + BLOCK - 1) / BLOCK;
    int from = blockIdx.y * tiles_each, to = min(from + tiles_each, n_tiles);
    for (int tile = from; tile < to; tile++) {
        int i = tile * BLOCK + threadIdx.x;
        for (int r = 0; r < ROWS; r++)
            x[r][threadIdx.x] = i < n_in && first_row + r < n_rows ? input(r, i) : 0;
        __syncthreads();
        uint4 next[LOADS] = {};
        if (tile + 1 < to) load_tile(w, n_in, n_out, tile + 1, next);
#pragma unroll
        for (int load = 0; load < LOADS; load++) {
            float weights[PACK];
            unpack(loads[load], weights);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                float value = x[r][load * DEEP + threadIdx.x / SIDE];
#pragma unroll
                for (int c = 0; c < PACK; c++) totals[r][c] += value * weights[c];
            }
            loads[load] = next[load];
        }
        __syncthreads();
    }
    // Lanes SIDE apart hold the same columns: first within the warp, then over the warps.
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int c = 0; c < PACK; c++) {
            for (int lane = SIDE; lane < 32; lane *= 2)
                totals[r][c] += __shfl_xor_sync(0xffffffffu, totals[r][c], lane);
            if (threadIdx.x % 32 < SIDE)
                sums[threadIdx.x / 32][r][threadIdx.x % 32 * PACK + c] = totals[r][c];
        }
    __syncthreads();
    for (int i = threadIdx.x; i < ROWS * COLUMNS; i += BLOCK) {
        int r = i / COLUMNS, column = blockIdx.x * COLUMNS + i % COLUMNS;
        if (first_row + r >= n_rows || column >= n_out) continue;
        float total = 0;
        for (int warp = 0; warp < WARPS; warp++) total += sums[warp][r][i % COLUMNS];
        partial[((long long)blockIdx.y * n_rows + first_row + r) * n_out + column] = total;
    }
}

// Grid of all three products: (columns / COLUMNS, splits, rows / ROWS).
extern "C" __global__ void __launch_bounds__(256) norm_product(
    const float* residual, const float* added, int n_splits, const number* added_bias,
    float* new_residual, const number* g, const number* b, const number* w, int n_out,
    int tiles_each, float* partial, int n_rows) {
    __shared__ float normalized[ROWS * D];
    __shared__ float x[ROWS][BLOCK];
    __shared__ float sums[WARPS][ROWS][COLUMNS];
    uint4 loads[LOADS];
    load_tile(w, D, n_out, blockIdx.y * tiles_each, loads);
    int own = blockIdx.y * tiles_each * BLOCK + threadIdx.x;  // this thread's first input
    float gain = own < D ? read(g[own]) : 0, shift = own < D ? read(b[own]) : 0;
    int first_row = blockIdx.z * ROWS;
    normalize(residual, added, n_splits, added_bias, new_residual,
              blockIdx.x == 0 && blockIdx.y == 0, first_row, n_rows, normalized, &sums[0][0][0]);
    product(loads, w, D, n_out, tiles_each, first_row, n_rows, partial, x, sums,
            [&](int r, int i) {
                if (i == own) return normalized[r * D + i] * gain + shift;
                return normalized[r * D + i] * read(g[i]) + read(b[i]);
            });
}

extern "C" __global__ void __launch_bounds__(256) gelu_product(
    const float* added, int n_splits, const number* added_bias, const number* w, int n_in,
    int n_out, int tiles_each, float* partial, int n_rows) {
    __shared__ float x[ROWS][BLOCK];
    __shared__ float sums[WARPS][ROWS][COLUMNS];
    uint4 loads[LOADS];
    load_tile(w, n_in, n_out, blockIdx.y * tiles_each, loads);
    int first_row = blockIdx.z * ROWS;
    product(loads, w, n_in, n_out, tiles_each, first_row, n_rows, partial, x, sums,
            [&](int r, int i) {
                float value = read(added_bias[i])
                    + over_splits(added + (first_row + r) * n_in + i, n_splits, n_rows * n_in);
                float inner = 0.7978845608f * (value + 0.044715f * value * value * value);
                return 0.5f * value * (1 + tanhf(inner));
            });
}

// The input is what the chunks of attention saw, each weighted by its share of the softmax.
extern "C" __global__ void __launch_bounds__(256) attention_product(
    const float* highest, const float* weight, const float* z, int n_chunks, const int* lengths,
    const number* w, int tiles_each, float* partial, int n_rows) {
    __shared__ float x[ROWS][BLOCK];
    __shared__ float sums[WARPS][ROWS][COLUMNS];
    uint4 loads[LOADS];
    load_tile(w, D, D, blockIdx.y * tiles_each, loads);
    int first_row = blockIdx.z * ROWS;
    product(loads, w, D, D, tiles_each, first_row, n_rows, partial, x, sums,
            [&](int r, int i) {
                int row = first_row + r, seen = lengths[row] / CHUNK + 1;
                const float* top = highest + (row * N_HEAD + i / HEAD) * n_chunks;
                const float* share = weight + (row * N_HEAD + i / HEAD) * n_chunks;
                const float* seen_by = z + (long long)row * n_chunks * D + i;
                // Four chunks at a time: their loads do not wait for each other.
                float most = LOWEST, total = 0, value = 0;
                for (int c = 0; c < seen; c += 4)
#pragma unroll
                    for (int k = c; k < c + 4; k++) most = fmaxf(most, k < seen ? top[k] : LOWEST);
                for (int c = 0; c < seen; c += 4)
#pragma unroll
                    for (int k = c; k < c + 4; k++) {
                        float scale = k < seen ? expf(top[k] - most) : 0;
                        total += scale * (k < seen ? share[k] : 0);
                        value += scale * (k < seen ? seen_by[(long long)k * D] : 0);
                    }
                return value / total;
            });
}

// --- attention over the cache ----------------------------------------------------------

// A load of a head's vector: of 16 bytes where a head is a whole number of them, else one number.
#if (N_EMBD / N_HEAD * (HALF ? 2 : 4)) % 16 == 0
typedef uint4 unit;
constexpr int UNIT = PACK;
__device__ __forceinline__ void unpack_unit(unit load, float out[UNIT]) { unpack(load, out); }
#else
typedef number unit;
constexpr int UNIT = 1;
__device__ __forceinline__ void unpack_unit(unit load, float out[UNIT]) { out[0] = read(load); }
#endif
constexpr int UNITS = HEAD / UNIT;            // loads of a vector
constexpr int TEAM = 8;                       // threads that share a key
constexpr int TEAMS = ATTENTION_BLOCK / TEAM;
constexpr int KEYS = CHUNK / TEAMS;           // keys of a team
constexpr int SHARE = (UNITS + TEAM - 1) / TEAM;  // loads of a thread for a key, at most

// Grid (head, row, chunk of keys). caches: [layer][keys, values], each [row, head, capacity, HEAD].
// The chunk that holds the new position also puts its key and value into the cache.
extern "C" __global__ void __launch_bounds__(128) attention(
    const float* qkv, int n_splits, const number* bias, const unsigned long long* caches, int layer,
    const int* settings, const int* lengths, int n_chunks, float* highest, float* weight, float* z,
    int n_rows) {
    __shared__ float fresh[3][HEAD];  // the new position's query, key and value
    __shared__ float scores[CHUNK], parts[ATTENTION_BLOCK / 32][HEAD];
    int head = blockIdx.x, row = blockIdx.y, chunk = blockIdx.z;
    if (row >= n_rows) return;
    int capacity = settings[3], position = lengths[row], first = chunk * CHUNK;
    if (first > position) return;
    long long start = ((long long)row * N_HEAD + head) * capacity * HEAD;
    number* keys = (number*)caches[2 * layer] + start;
    number* values = (number*)caches[2 * layer + 1] + start;
    int n_keys = min(CHUNK, position + 1 - first), n_cached = min(CHUNK, position - first);
    int team = threadIdx.x / TEAM, member = threadIdx.x % TEAM, lane = threadIdx.x % 32;

    // What the cache holds is on its way before the query is known.
    unit cached_keys[KEYS][SHARE] = {}, cached_values[KEYS][SHARE] = {};
#pragma unroll
    for (int n = 0; n < KEYS; n++)
#pragma unroll
        for (int j = 0; j < SHARE; j++) {
            int k = team + n * TEAMS, u = member + j * TEAM;
            if (k >= n_cached || u >= UNITS) continue;
            cached_keys[n][j] = *(const unit*)(keys + (long long)(first + k) * HEAD + u * UNIT);
            cached_values[n][j] = *(const unit*)(values + (long long)(first + k) * HEAD + u * UNIT);
        }

    int n_fresh = n_keys > n_cached ? 3 * HEAD : HEAD;
#pragma unroll
    for (int at = 0; at < 3 * HEAD; at += ATTENTION_BLOCK) {
        int i = at + threadIdx.x, part = i / HEAD, column = part * D + head * HEAD + i % HEAD;
        if (i >= n_fresh) continue;
        float value = read(bias[column])
            + over_splits(qkv + row * 3 * D + column, n_splits, n_rows * 3 * D);
        if (part == 0) fresh[0][i] = value / sqrtf((float)HEAD);
        else fresh[part][i % HEAD] = rounded(value);
        if (part == 1) write(keys + (long long)position * HEAD + i % HEAD, value);
        if (part == 2) write(values + (long long)position * HEAD + i % HEAD, value);
    }
    __syncthreads();

#pragma unroll
    for (int n = 0; n < KEYS; n++) {
        int k = team + n * TEAMS;
        float score = 0;
#pragma unroll
        for (int j = 0; j < SHARE; j++) {
            int u = member + j * TEAM;
            if (k >= n_keys || u >= UNITS) continue;
            float key[UNIT];
            unpack_unit(cached_keys[n][j], key);
#pragma unroll
            for (int i = 0; i < UNIT; i++)
                score += fresh[0][u * UNIT + i] * (k < n_cached ? key[i] : fresh[1][u * UNIT + i]);
        }
        for (int other = 1; other < TEAM; other *= 2)
            score += __shfl_xor_sync(0xffffffffu, score, other);
        if (member == 0) scores[k] = k < n_keys ? score : LOWEST;
    }
    __syncthreads();

    float most = LOWEST, total = 0;  // every warp finds the same
    for (int k = lane; k < CHUNK; k += 32) most = fmaxf(most, scores[k]);
    for (int other = 16; other; other /= 2)
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, other));
    for (int k = lane; k < n_keys; k += 32) total += expf(scores[k] - most);
    for (int other = 16; other; other /= 2) total += __shfl_xor_sync(0xffffffffu, total, other);

    float sums[SHARE][UNIT] = {};
#pragma unroll
    for (int n = 0; n < KEYS; n++) {
        int k = team + n * TEAMS;
        float share = k < n_keys ? expf(scores[k] - most) : 0;
#pragma unroll
        for (int j = 0; j < SHARE; j++) {
            int u = member + j * TEAM;
            if (k >= n_keys || u >= UNITS) continue;
            float value[UNIT];
            unpack_unit(cached_values[n][j], value);
#pragma unroll
            for (int i = 0; i < UNIT; i++)
                sums[j][i] += share * (k < n_cached ? value[i] : fresh[2][u * UNIT + i]);
        }
    }
#pragma unroll
    for (int j = 0; j < SHARE; j++)
#pragma unroll
        for (int i = 0; i < UNIT; i++) {
            for (int other = TEAM; other < 32; other *= 2)
                sums[j][i] += __shfl_xor_sync(0xffffffffu, sums[j][i], other);
            int u = member + j * TEAM;
            if (lane < TEAM && u < UNITS) parts[threadIdx.x / 32][u * UNIT + i] = sums[j][i];
        }
    __syncthreads();
    for (int i = threadIdx.x; i < HEAD; i += ATTENTION_BLOCK) {
        float value = 0;
        for (int warp = 0; warp < ATTENTION_BLOCK / 32; warp++) value += parts[warp][i];
        z[((long long)row * n_chunks + chunk) * D + head * HEAD + i] = value;
    }
    if (threadIdx.x == 0) {
        highest[(row * N_HEAD + head) * n_chunks + chunk] = most;
        weight[(row * N_HEAD + head) * n_chunks + chunk] = total;
    }
}

// --- logits and the choice of a token --------------------------------------------------

// Grid (rows / ROWS, blocks). A warp reads one row of the embedding after another. Blocks beside
// each other read the same of it, so that it comes from memory once and not for every ROWS.
extern "C" __global__ void __launch_bounds__(256) unembed(
    const float* residual, const float* added, int n_splits, const number* added_bias,
    const number* g, const number* b, const number* wte, int n_vocab, float* logits, int n_rows) {
    __shared__ float x[ROWS * D];
    __shared__ float scratch[WARPS * ROWS];
    int first_row = blockIdx.x * ROWS, lane = threadIdx.x % 32;
    normalize(residual, added, n_splits, added_bias, nullptr, false, first_row, n_rows, x, scratch);
    for (int r = 0; r < ROWS; r++)
        for (int i = threadIdx.x; i < D; i += BLOCK)
            x[r * D + i] = x[r * D + i] * read(g[i]) + read(b[i]);
    __syncthreads();
    int step = gridDim.y * WARPS;
    for (int v = blockIdx.y * WARPS + threadIdx.x / 32; v < n_vocab; v += step) {
        const number* place = wte + (long long)v * D;
        float totals[ROWS] = {};
#pragma unroll 4
        for (int i = lane * PACK; i < D; i += 32 * PACK) {
            float weights[PACK];
            unpack(*(const uint4*)(place + i), weights);
#pragma unroll
            for (int r = 0; r < ROWS; r++)
#pragma unroll
                for (int c = 0; c < PACK; c++) totals[r] += x[r * D + i + c] * weights[c];
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            for (int other = 16; other; other /= 2)
                totals[r] += __shfl_xor_sync(0xffffffffu, totals[r], other);
            if (lane == 0 && first_row + r < n_rows)
                logits[(long long)(first_row + r) * n_vocab + v] = totals[r];
        }
    }
}

// Numbers as unsigned integers in the same order.
__device__ __forceinline__ unsigned int ordered(float value) {
    unsigned int bits = __float_as_uint(value);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Every lane gets the highest value of its warp and, of several, the lowest id.
__device__ __forceinline__ void lower_of_higher(float& value, int& id) {
    for (int lane = 16; lane; lane /= 2) {
        float other = __shfl_xor_sync(0xffffffffu, value, lane);
        int other_id = __shfl_xor_sync(0xffffffffu, id, lane);
        if (other > value || (other == value && other_id < id)) value = other, id = other_id;
    }
}

// Grid (part of the vocabulary, row): the highest logit of each part and its lowest id.
extern "C" __global__ void __launch_bounds__(256) best_of_part(
    const float* logits, int n_vocab, const int* settings, float* best, int* best_id, int n_rows) {
    __shared__ float values[WARPS];
    __shared__ int ids[WARPS];
    int row = blockIdx.y, allowed = settings[0];
    int each = (allowed + gridDim.x - 1) / gridDim.x;
    int from = blockIdx.x * each, to = min(from + each, allowed);
    float value = LOWEST;
    int id = from < allowed ? from : 0;
    for (int v = from + threadIdx.x; v < to; v += BLOCK) {
        float here = logits[(long long)row * n_vocab + v];
        if (here > value) value = here, id = v;
    }
    lower_of_higher(value, id);
    if (threadIdx.x % 32 == 0) values[threadIdx.x / 32] = value, ids[threadIdx.x / 32] = id;
    __syncthreads();
    if (threadIdx.x) return;
    for (int warp = 1; warp < WARPS; warp++)
        if (values[warp] > value || (values[warp] == value && ids[warp] < id))
            value = values[warp], id = ids[warp];
    best[row * gridDim.x + blockIdx.x] = value;
    best_id[row * gridDim.x + blockIdx.x] = id;
}

// Grid (row). Settings: how many tokens to choose from, top_k (0 is all), greedy or not, capacity.
// Greedy takes the highest logit; else the token at which the running sum of exp(logit /
// temperature) over the top_k, in order of ids, passes draw times the whole sum. Then the row is
// made ready for the next step.
extern "C" __global__ void __launch_bounds__(1024) choose(
    const float* logits, int n_vocab, const int* settings, const double* temperature,
    const double* draws, const float* best, const int* best_id, int n_parts, int* tokens,
    int* lengths, int* steps, int* chosen, int n_slots, int n_rows) {
    __shared__ int counts[256];
    __shared__ double sums[CHOOSE_BLOCK];
    __shared__ unsigned int prefix;
    __shared__ int wanted, token;
    __shared__ float most;
    int row = blockIdx.x, t = threadIdx.x;
    int allowed = settings[0], top_k = settings[1], greedy = settings[2];
    int slot = steps[row] % n_slots;
    logits += (long long)row * n_vocab;
    if (t < 32) {
        float value = LOWEST;
        int id = 0;
        for (int part = t; part < n_parts; part += 32) {
            float here = best[row * n_parts + part];
            int here_id = best_id[row * n_parts + part];
            if (here > value) value = here, id = here_id;
        }
        lower_of_higher(value, id);
        if (t == 0) most = value, token = id;
    }
    __syncthreads();
    if (!greedy) {
        // The top_k-th highest logit, eight bits at a time from the highest: how many logits begin
        // with the bits found so far and go on with each of the 256 values.
        if (t == 0) prefix = 0, wanted = top_k;
        for (int shift = 24; top_k && top_k < allowed && shift >= 0; shift -= 8) {
            if (t < 256) counts[t] = 0;
            __syncthreads();
            for (int v = t; v < allowed; v += CHOOSE_BLOCK) {
                unsigned int bits = ordered(logits[v]);
                if (shift == 24 || bits >> (shift + 8) == prefix >> (shift + 8))
                    atomicAdd(&counts[bits >> shift & 255], 1);
            }
            __syncthreads();
            if (t == 0) {
                int digit = 255;
                while (counts[digit] < wanted) wanted -= counts[digit--];
                prefix |= (unsigned int)digit << shift;
            }
            __syncthreads();
        }
        __syncthreads();
        // Each thread sums a run of neighbouring ids; the runs before it are added up in order.
        int each = (allowed + CHOOSE_BLOCK - 1) / CHOOSE_BLOCK, from = min(t * each, allowed);
        int to = min(from + each, allowed);
        double sum = 0, whole = 0, before = 0;
        for (int v = from; v < to; v++)
            if (ordered(logits[v]) >= prefix) sum += exp(((double)logits[v] - most) / *temperature);
        sums[t] = sum;
        __syncthreads();
        for (int other = 0; other < CHOOSE_BLOCK; other++) {
            if (other == t) before = whole;
            whole += sums[other];
        }
        double target = draws[slot * n_rows + row] * whole;
        if (before <= target && target < before + sum) {
            double running = before;
            int found = from;
            for (int v = from; v < to; v++)
                if (ordered(logits[v]) >= prefix) {
                    found = v;
                    running += exp(((double)logits[v] - most) / *temperature);
                    if (running > target) break;
                }
            token = found;
        }
    }
    __syncthreads();
    if (t == 0) {
        tokens[row] = token;
        chosen[slot * n_rows + row] = token;
        lengths[row] = min(lengths[row] + 1, settings[3] - 1);  // no place past the last
        steps[row]++;
    }
}
"""

// A decode step of GPT-2: kernels that lead from one token of each row to the next one.
//
//     embed
//     norm_product, attention, attention_product, norm_product, gelu_product    in every layer
//     unembed, best_of_part, choose
//
// The sizes are compiler options: N_EMBD, N_HEAD, HALF (1 for weights and cache in float16), ROWS
// (rows that share one read of the weights) and EPSILON (of the layer norms). To compile by hand:
//
//     nvcc -std=c++17 -arch=sm_90 -c -DN_EMBD=768 -DN_HEAD=12 -DHALF=0 -DROWS=1 -DEPSILON=1e-5f \
//         decode_step.cu
//
// A product never waits for another block. Each block writes its own partial sums, and the kernel
// that needs them adds them up in a fixed order. So runs repeat exactly.
#if HALF
typedef unsigned short number;
#else
typedef float number;
#endif

constexpr int D = N_EMBD, HEAD = N_EMBD / N_HEAD;
constexpr int PACK = 16 / sizeof(number);   // numbers in a 16-byte load
constexpr float LOWEST = -3.4028235e38f;

// decode_step.py reads these from the source, so that grids and kernels agree.
constexpr int BLOCK = 256;                  // threads of a block, and inputs in a tile of a product
constexpr int ATTENTION_BLOCK = 128;        // threads of a block of attention
constexpr int CHOOSE_BLOCK = 1024;          // threads of a block of choose
constexpr int CHUNK = 64;                   // keys that a block of attention reads
constexpr int SIDE = 4;                     // loads side by side: 64 bytes of a row of weights
constexpr int MAX_SPLITS = 6;               // blocks that share the inputs of a product

constexpr int WARPS = BLOCK / 32;
constexpr int DEEP = BLOCK / SIDE;          // rows of weights that a block reads at once
constexpr int LOADS = BLOCK / DEEP;         // loads of a thread in a tile
constexpr int COLUMNS = SIDE * PACK;        // outputs of a block

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
__device__ __forceinline__ void write(float* address, float value) { *address = value; }
__device__ __forceinline__ void write(unsigned short* address, float value) {
    *address = to_half(value);
}

__device__ __forceinline__ float rounded(float value) {  // to the type of the cache
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

// Add up the partial sums that the splits of a product wrote, `step` numbers apart. Small kernels
// wait more than they read, so all loads are issued before the first addition.
__device__ __forceinline__ float sum_over_splits(
    const float* partial, int n_splits, long long step) {
    float parts[MAX_SPLITS], total = 0;
#pragma unroll
    for (int s = 0; s < MAX_SPLITS; s++) parts[s] = s < n_splits ? partial[s * step] : 0;
#pragma unroll
    for (int s = 0; s < MAX_SPLITS; s++) total += parts[s];
    return total;
}

// Replace the N values of each thread by their sums over the block. `scratch` is [WARPS][N].
template <int N>
__device__ void block_sums(float values[N], float* scratch) {
#pragma unroll
    for (int n = 0; n < N; n++)
        for (int lane = 16; lane; lane /= 2)
            values[n] += __shfl_xor_sync(0xffffffffu, values[n], lane);
    __syncthreads();  // the last call may still be reading the scratch
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

// Write residual + (bias + partial sums), normalized without gain and bias, to x [ROWS][D] in
// shared memory. A block with `store` also writes the new residual stream. That goes to another
// array, because other blocks of the same kernel still read the old one.
__device__ __forceinline__ void normalize(
    const float* __restrict__ residual, const float* __restrict__ partial, int n_splits,
    const number* __restrict__ bias, float* __restrict__ new_residual, bool store, int first_row,
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
                values[e] += sum_over_splits(partial + row * D + i, n_splits, n_rows * D)
                    + read(bias[i]);
        }
#pragma unroll
        for (int e = 0; e < EACH; e++) {
            int i = e * BLOCK + threadIdx.x;
            if (D % BLOCK && i >= D) continue;
            if (store) new_residual[row * D + i] = values[e];
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

// partial[split][row][column] = the sum of input(r, i) * w[i, column] over the inputs i of a split:
// `tiles_each` tiles of BLOCK inputs. Thread t reads load t % SIDE of every DEEP-th row of weights
// from t / SIDE on, and starts to read the next tile before it works on this one. The caller has
// started to read the first tile, because weights need not wait for the kernel before.
template <class Input>
__device__ void product(
    uint4 loads[LOADS], const number* w, int n_in, int n_out, int tiles_each, int first_row,
    int n_rows, float* partial, float (*x)[BLOCK], float (*sums)[ROWS][COLUMNS], Input input) {
    float totals[ROWS][PACK] = {};
    int n_tiles = (n_in + BLOCK - 1) / BLOCK;
    int first = blockIdx.y * tiles_each, end = min(first + tiles_each, n_tiles);
    for (int tile = first; tile < end; tile++) {
        int i = tile * BLOCK + threadIdx.x;
        for (int r = 0; r < ROWS; r++)
            x[r][threadIdx.x] = i < n_in && first_row + r < n_rows ? input(r, i) : 0;
        __syncthreads();
        uint4 next[LOADS] = {};
        if (tile + 1 < end) load_tile(w, n_in, n_out, tile + 1, next);
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
    // Lanes SIDE apart hold the same columns. Add them up within the warp, then over the warps.
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

// The grid of the three products is (columns / COLUMNS, splits, rows / ROWS).
extern "C" __global__ void __launch_bounds__(BLOCK) norm_product(
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

extern "C" __global__ void __launch_bounds__(BLOCK) gelu_product(
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
                    + sum_over_splits(added + (first_row + r) * n_in + i, n_splits, n_rows * n_in);
                float inner = 0.7978845608f * (value + 0.044715f * value * value * value);
                return 0.5f * value * (1 + tanhf(inner));
            });
}

// The input is z, put together from the chunks of attention: the softmax over all chunks from the
// maximum score of each, its sum of exponentials, and its sum of values weighted by them.
extern "C" __global__ void __launch_bounds__(BLOCK) attention_product(
    const float* maxima, const float* weights, const float* z, int n_chunks, const int* lengths,
    const number* w, int tiles_each, float* partial, int n_rows) {
    __shared__ float x[ROWS][BLOCK];
    __shared__ float sums[WARPS][ROWS][COLUMNS];
    uint4 loads[LOADS];
    load_tile(w, D, D, blockIdx.y * tiles_each, loads);
    int first_row = blockIdx.z * ROWS;
    product(loads, w, D, D, tiles_each, first_row, n_rows, partial, x, sums,
            [&](int r, int i) {
                int row = first_row + r, n_seen = lengths[row] / CHUNK + 1;
                const float* own_maxima = maxima + (row * N_HEAD + i / HEAD) * n_chunks;
                const float* own_weights = weights + (row * N_HEAD + i / HEAD) * n_chunks;
                const float* own_z = z + (long long)row * n_chunks * D + i;
                // Four chunks at a time: their loads do not wait for each other.
                float maximum = LOWEST, total = 0, value = 0;
                for (int c = 0; c < n_seen; c += 4)
#pragma unroll
                    for (int k = c; k < c + 4; k++)
                        maximum = fmaxf(maximum, k < n_seen ? own_maxima[k] : LOWEST);
                for (int c = 0; c < n_seen; c += 4)
#pragma unroll
                    for (int k = c; k < c + 4; k++) {
                        float scale = k < n_seen ? expf(own_maxima[k] - maximum) : 0;
                        total += scale * (k < n_seen ? own_weights[k] : 0);
                        value += scale * (k < n_seen ? own_z[(long long)k * D] : 0);
                    }
                return value / total;
            });
}

// --- attention over the cache ----------------------------------------------------------

// A head's vector is read in loads of 16 bytes if it is a whole number of them, else by number.
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

// The grid is (head, row, chunk of keys). `caches` [layer][keys, values] are addresses of
// arrays [row, head, capacity, HEAD]. The chunk that holds the new position also writes its key and
// value to the cache.
extern "C" __global__ void __launch_bounds__(ATTENTION_BLOCK) attention(
    const float* qkv, int n_splits, const number* bias, const unsigned long long* caches, int layer,
    const int* settings, const int* lengths, int n_chunks, float* maxima, float* weights, float* z,
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

    // Start to read the cache before the query is known.
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
            + sum_over_splits(qkv + row * 3 * D + column, n_splits, n_rows * 3 * D);
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

    float maximum = LOWEST, total = 0;  // the same in every warp
    for (int k = lane; k < CHUNK; k += 32) maximum = fmaxf(maximum, scores[k]);
    for (int other = 16; other; other /= 2)
        maximum = fmaxf(maximum, __shfl_xor_sync(0xffffffffu, maximum, other));
    for (int k = lane; k < n_keys; k += 32) total += expf(scores[k] - maximum);
    for (int other = 16; other; other /= 2) total += __shfl_xor_sync(0xffffffffu, total, other);

    float sums[SHARE][UNIT] = {};
#pragma unroll
    for (int n = 0; n < KEYS; n++) {
        int k = team + n * TEAMS;
        float weight = k < n_keys ? expf(scores[k] - maximum) : 0;
#pragma unroll
        for (int j = 0; j < SHARE; j++) {
            int u = member + j * TEAM;
            if (k >= n_keys || u >= UNITS) continue;
            float value[UNIT];
            unpack_unit(cached_values[n][j], value);
#pragma unroll
            for (int i = 0; i < UNIT; i++)
                sums[j][i] += weight * (k < n_cached ? value[i] : fresh[2][u * UNIT + i]);
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
        maxima[(row * N_HEAD + head) * n_chunks + chunk] = maximum;
        weights[(row * N_HEAD + head) * n_chunks + chunk] = total;
    }
}

// --- logits and the choice of a token --------------------------------------------------

// The grid is (rows / ROWS, blocks). A warp reads one row of the embedding after another.
// Neighbouring blocks read the same rows of it, which so come from memory only once.
extern "C" __global__ void __launch_bounds__(BLOCK) unembed(
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
        const number* embedding = wte + (long long)v * D;
        float totals[ROWS] = {};
#pragma unroll 4
        for (int i = lane * PACK; i < D; i += 32 * PACK) {
            float weights[PACK];
            unpack(*(const uint4*)(embedding + i), weights);
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

// Map numbers to unsigned integers in the same order.
__device__ __forceinline__ unsigned int ordered(float value) {
    unsigned int bits = __float_as_uint(value);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Replace each lane's pair by the highest value in its warp and, among equals, the lowest id.
__device__ __forceinline__ void warp_argmax(float& value, int& id) {
    for (int lane = 16; lane; lane /= 2) {
        float other = __shfl_xor_sync(0xffffffffu, value, lane);
        int other_id = __shfl_xor_sync(0xffffffffu, id, lane);
        if (other > value || (other == value && other_id < id)) value = other, id = other_id;
    }
}

// The grid is (part of the vocabulary, row). Find each part's highest logit and its lowest id.
extern "C" __global__ void __launch_bounds__(BLOCK) best_of_part(
    const float* logits, int n_vocab, const int* settings, float* best, int* best_id, int n_rows) {
    __shared__ float values[WARPS];
    __shared__ int ids[WARPS];
    int row = blockIdx.y, allowed = settings[0];
    int size = (allowed + gridDim.x - 1) / gridDim.x;
    int first = blockIdx.x * size, end = min(first + size, allowed);
    float value = LOWEST;
    int id = first < allowed ? first : 0;
    for (int v = first + threadIdx.x; v < end; v += BLOCK) {
        float logit = logits[(long long)row * n_vocab + v];
        if (logit > value) value = logit, id = v;
    }
    warp_argmax(value, id);
    if (threadIdx.x % 32 == 0) values[threadIdx.x / 32] = value, ids[threadIdx.x / 32] = id;
    __syncthreads();
    if (threadIdx.x) return;
    for (int warp = 1; warp < WARPS; warp++)
        if (values[warp] > value || (values[warp] == value && ids[warp] < id))
            value = values[warp], id = ids[warp];
    best[row * gridDim.x + blockIdx.x] = value;
    best_id[row * gridDim.x + blockIdx.x] = id;
}

// The grid is (row). `settings` are the number of tokens to choose from, top_k (0 for all), greedy
// or not, and the cache's capacity. Greedy decoding takes the highest logit. Otherwise the token is
// the one at which the running sum of exp(logit / temperature) over the top_k, in order of ids,
// passes draw times the total. At the end the row is prepared for the next step.
extern "C" __global__ void __launch_bounds__(CHOOSE_BLOCK) choose(
    const float* logits, int n_vocab, const int* settings, const double* temperature,
    const double* draws, const float* best, const int* best_id, int n_parts, int* tokens,
    int* lengths, int* steps, int* chosen, int n_slots, int n_rows) {
    __shared__ int counts[256];
    __shared__ double sums[CHOOSE_BLOCK];
    __shared__ unsigned int prefix;
    __shared__ int wanted, token;
    __shared__ float highest;
    int row = blockIdx.x, t = threadIdx.x;
    int allowed = settings[0], top_k = settings[1], greedy = settings[2];
    int slot = steps[row] % n_slots;
    logits += (long long)row * n_vocab;
    if (t < 32) {
        float value = LOWEST;
        int id = 0;
        for (int part = t; part < n_parts; part += 32) {
            float logit = best[row * n_parts + part];
            int logit_id = best_id[row * n_parts + part];
            if (logit > value) value = logit, id = logit_id;
        }
        warp_argmax(value, id);
        if (t == 0) highest = value, token = id;
    }
    __syncthreads();
    if (!greedy) {
        // Find the top_k-th highest logit, eight bits at a time from the highest: count the logits
        // that begin with the bits found so far by the next eight.
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
        // Each thread adds up a run of neighbouring ids, then the sums of the runs before its own.
        int size = (allowed + CHOOSE_BLOCK - 1) / CHOOSE_BLOCK, first = min(t * size, allowed);
        int end = min(first + size, allowed);
        double sum = 0, total = 0, before = 0;
        for (int v = first; v < end; v++)
            if (ordered(logits[v]) >= prefix)
                sum += exp(((double)logits[v] - highest) / *temperature);
        sums[t] = sum;
        __syncthreads();
        for (int other = 0; other < CHOOSE_BLOCK; other++) {
            if (other == t) before = total;
            total += sums[other];
        }
        double target = draws[slot * n_rows + row] * total;
        if (before <= target && target < before + sum) {
            double running = before;
            int found = first;
            for (int v = first; v < end; v++)
                if (ordered(logits[v]) >= prefix) {
                    found = v;
                    running += exp(((double)logits[v] - highest) / *temperature);
                    if (running > target) break;
                }
            token = found;
        }
    }
    __syncthreads();
    if (t == 0) {
        tokens[row] = token;
        chosen[slot * n_rows + row] = token;
        lengths[row] = min(lengths[row] + 1, settings[3] - 1);  // a full cache has no next place
        steps[row]++;
    }
}

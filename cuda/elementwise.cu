// Softmax, GELU and the causal mask, each of them as one kernel.
//
// Array operations one by one read or write the scores eight times for softmax, and the hidden
// layer eighteen times for GELU. These kernels read a number once from memory, perhaps again from
// the cache, and write it once. To compile by hand:
//
//     nvcc -std=c++17 -arch=sm_90 -c elementwise.cu

// elementwise.py reads these from the source, so that grids and kernels agree.
constexpr int BLOCK = 256;      // threads of a block
constexpr int SOFTMAX_ROWS = 8; // rows of a block of softmax: a warp each

extern "C" __global__ void __launch_bounds__(BLOCK) softmax(
    const float* x, float* out, int n, int n_rows) {
    int row = blockIdx.x * SOFTMAX_ROWS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= n_rows) return;
    x += (long long)row * n;
    out += (long long)row * n;
    float maximum = x[0], total = 0;
    for (int i = lane; i < n; i += 32) maximum = fmaxf(maximum, x[i]);
    for (int other = 16; other; other /= 2)
        maximum = fmaxf(maximum, __shfl_xor_sync(0xffffffffu, maximum, other));
    for (int i = lane; i < n; i += 32) total += expf(x[i] - maximum);
    for (int other = 16; other; other /= 2) total += __shfl_xor_sync(0xffffffffu, total, other);
    for (int i = lane; i < n; i += 32) out[i] = expf(x[i] - maximum) / total;
}

extern "C" __global__ void __launch_bounds__(BLOCK) gelu(const float* x, float* out, int size) {
    int i = blockIdx.x * BLOCK + threadIdx.x;
    if (i >= size) return;
    float value = x[i], inner = 0.7978845608f * (value + 0.044715f * value * value * value);
    out[i] = 0.5f * value * (1 + tanhf(inner));
}

// Write -inf over the scores [row, n_queries, n_keys] of keys after their query. The first query of
// every row is at position `start`.
extern "C" __global__ void __launch_bounds__(BLOCK) mask_future(
    float* scores, int start, int n_queries, int n_keys, int size) {
    int i = blockIdx.x * BLOCK + threadIdx.x;
    if (i >= size) return;
    int key = i % n_keys, query = i / n_keys % n_queries;
    if (key > start + query) scores[i] = __uint_as_float(0xff800000u);
}

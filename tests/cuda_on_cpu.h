// CUDA C++ on the CPU, for tests: the threads of a block are fibers that take turns, and change
// only where they wait for each other.
#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(n)

struct uint3_ { unsigned x, y, z; };
struct uint4 { unsigned x, y, z, w; };
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static uint3_ blockIdx, gridDim, blockDim, threadIdx;
static inline int min(int a, int b) { return a < b ? a : b; }
static inline float __uint_as_float(unsigned bits) { float value; memcpy(&value, &bits, 4); return value; }
static inline unsigned __float_as_uint(float value) { unsigned bits; memcpy(&bits, &value, 4); return bits; }
static inline float from_half(unsigned short bits) { _Float16 value; memcpy(&value, &bits, 2); return value; }
static inline unsigned short to_half(float value) {
    _Float16 half = (_Float16)value;
    unsigned short bits;
    memcpy(&bits, &half, 2);
    return bits;
}
static inline void atomicAdd(int* place, int value) { *place += value; }

enum { MOST = 1024, STACK = 1 << 16 };
static ucontext_t fibers[MOST];             // how each thread begins
static jmp_buf scheduler, places[MOST];      // where it waits: cheaper than swapcontext
static char* stacks;
static int current, n_threads, left, done[MOST], begun[MOST];
static int at_block[MOST], at_warp[MOST];   // how many barriers each thread has come to
static uint32_t exchanged[2][MOST];
static int disagreed;                        // a barrier that some threads of a block never reached
typedef void (*body_type)(void**);
static body_type body;
static void** arguments;

static void leave() {
    if (!_setjmp(places[current])) _longjmp(scheduler, 1);
    threadIdx.x = current;
}

static void go_on() {
    if (_setjmp(scheduler)) return;
    if (begun[current]) _longjmp(places[current], 1);
    begun[current] = 1;
    setcontext(&fibers[current]);
}

// A thread waits until every thread in [from, to) has come as far, or has returned.
static void wait_for(int* counts, int from, int to) {
    int mine = ++counts[current];
    for (int t = from; t < to; t++) {
        while (counts[t] < mine && !done[t]) leave();
        if (counts[t] < mine) disagreed = 1;
    }
}
static void __syncthreads() { wait_for(at_block, 0, n_threads); }
template <class T> static T __shfl_xor_sync(unsigned mask, T value, int lane) {
    int warp = current & ~31, turn = at_warp[current] & 1;
    memcpy(&exchanged[turn][current], &value, 4);
    wait_for(at_warp, warp, min(warp + 32, n_threads));
    T other;
    memcpy(&other, &exchanged[turn][current ^ lane], 4);
    return other;
}

static void begin() {
    threadIdx.x = current;
    body(arguments);
    done[current] = 1;
    _longjmp(scheduler, 1);
}

static int run_grid(body_type kernel, void** args, unsigned* grid, unsigned* block) {
    if (!stacks) stacks = (char*)malloc((size_t)MOST * STACK);
    body = kernel; arguments = args; n_threads = block[0]; disagreed = 0;
    gridDim = {grid[0], grid[1], grid[2]}; blockDim = {block[0], 1, 1};
    for (blockIdx.z = 0; blockIdx.z < grid[2]; blockIdx.z++)
    for (blockIdx.y = 0; blockIdx.y < grid[1]; blockIdx.y++)
    for (blockIdx.x = 0; blockIdx.x < grid[0]; blockIdx.x++) {
        for (int t = 0; t < n_threads; t++) {
            done[t] = begun[t] = at_block[t] = at_warp[t] = 0;
            getcontext(&fibers[t]);
            fibers[t].uc_stack.ss_sp = stacks + (size_t)t * STACK;
            fibers[t].uc_stack.ss_size = STACK;
            fibers[t].uc_link = 0;
            makecontext(&fibers[t], begin, 0);
        }
        for (left = n_threads; left;) {
            left = 0;
            for (current = 0; current < n_threads; current++)
                if (!done[current]) { go_on(); left += !done[current]; }
        }
    }
    return disagreed;
}

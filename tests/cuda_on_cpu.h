// CUDA C++ on the CPU, for tests. The threads of a block are fibers that take turns: one runs until
// it waits for others, at __syncthreads or in a shuffle, or returns.
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
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
    return {x, y, z, w};
}
static uint3_ blockIdx, gridDim, blockDim, threadIdx;
static inline int min(int a, int b) { return a < b ? a : b; }
static inline float __uint_as_float(unsigned bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
static inline unsigned __float_as_uint(float value) {
    unsigned bits;
    memcpy(&bits, &value, 4);
    return bits;
}
static inline float from_half(unsigned short bits) {
    _Float16 value;
    memcpy(&value, &bits, 2);
    return value;
}
static inline unsigned short to_half(float value) {
    _Float16 half = (_Float16)value;
    unsigned short bits;
    memcpy(&bits, &half, 2);
    return bits;
}
static inline void atomicAdd(int* address, int value) { *address += value; }

enum { MAX_THREADS = 1024, WARP = 32, STACK = 1 << 16 };

// Threads that wait for each other: a block at __syncthreads, a warp in a shuffle.
struct Barrier { int size, running, arrived, generation; };
static Barrier block_barrier, warp_barriers[MAX_THREADS / WARP];

static jmp_buf scheduler, places[MAX_THREADS];  // setjmp is cheaper than swapcontext
static int n_fibers;                            // each serves one thread of block after block
static int current, n_threads, done[MAX_THREADS];
static Barrier* waits_for[MAX_THREADS];         // null for a thread that can go on
static int since[MAX_THREADS];                  // the barrier's generation when it began to wait
static uint32_t exchanged[2][MAX_THREADS];
static int turn[MAX_THREADS];                   // the half of `exchanged` of the next shuffle
static int missed;                              // some threads of a block missed a barrier
typedef void (*Body)(void**);
static Body body;
static void** arguments;

static void pause_thread() {
    if (!_setjmp(places[current])) _longjmp(scheduler, 1);
    threadIdx.x = current;
}

static void release(Barrier* barrier) {
    if (barrier->running < barrier->size) missed = 1;
    barrier->arrived = 0;
    barrier->generation++;
}

static void wait_at(Barrier* barrier) {
    int generation = barrier->generation;
    if (++barrier->arrived == barrier->running) return release(barrier);
    waits_for[current] = barrier;
    since[current] = generation;
    pause_thread();
}

static void leave(Barrier* barrier) {
    barrier->running--;
    if (barrier->arrived && barrier->arrived == barrier->running) release(barrier);
}

static void __syncthreads() { wait_at(&block_barrier); }

template <class T> static T __shfl_xor_sync(unsigned, T value, int lane) {
    uint32_t* lanes = exchanged[turn[current] ^= 1];
    memcpy(&lanes[current], &value, 4);
    wait_at(&warp_barriers[current / WARP]);
    T other;
    memcpy(&other, &lanes[current ^ lane], 4);
    return other;
}

static void serve() {
    pause_thread();
    for (;;) {
        body(arguments);
        done[current] = 1;
        leave(&warp_barriers[current / WARP]);
        leave(&block_barrier);
        pause_thread();
    }
}

static void start_fiber(int fiber) {
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = malloc(STACK);
    context.uc_stack.ss_size = STACK;
    context.uc_link = 0;
    makecontext(&context, serve, 0);
    current = fiber;
    if (!_setjmp(scheduler)) setcontext(&context);
}

static void resume_thread() {
    if (!_setjmp(scheduler)) _longjmp(places[current], 1);
}

static int run_threads() {  // and return how many are stuck
    int left = n_threads;
    for (int progress = 1; left && progress;) {
        progress = 0;
        for (current = 0; current < n_threads; current++) {
            Barrier* barrier = waits_for[current];
            if (done[current] || (barrier && barrier->generation == since[current])) continue;
            waits_for[current] = 0;
            resume_thread();
            left -= done[current];
            progress = 1;
        }
    }
    return left;
}

// Return nonzero if some threads of a block missed a barrier that others waited at.
static int run_grid(Body kernel, void** args, unsigned* grid, unsigned* block) {
    body = kernel; arguments = args; n_threads = block[0]; missed = 0;
    gridDim = {grid[0], grid[1], grid[2]}; blockDim = {block[0], 1, 1};
    for (; n_fibers < n_threads; n_fibers++) start_fiber(n_fibers);
    for (blockIdx.z = 0; blockIdx.z < grid[2]; blockIdx.z++)
    for (blockIdx.y = 0; blockIdx.y < grid[1]; blockIdx.y++)
    for (blockIdx.x = 0; blockIdx.x < grid[0]; blockIdx.x++) {
        block_barrier = {n_threads, n_threads, 0, 0};
        for (int t = 0; t < n_threads; t += WARP) {
            int size = min(WARP, n_threads - t);
            warp_barriers[t / WARP] = {size, size, 0, 0};
        }
        memset(done, 0, sizeof(done));
        memset(waits_for, 0, sizeof(waits_for));
        memset(turn, 0, sizeof(turn));
        if (run_threads()) {
            n_fibers = 0;  // they are stuck in the midst of the kernel: make new ones
            return 1;
        }
    }
    return missed;
}

/* Threads of a block and lanes of a warp: shuffles, votes, barriers, atomic operations, against
 * what the programming guide says. On a GPU this checks what the kernels take for granted, in
 * emulation the emulator. */
#include "tests/cuda/words.h"

/* ---- warps ---- */

enum { WARP_WORDS = 20 };

static __global__ void warp_kernel(words_args a) {
    uint32_t t = threadIdx.x, lane = t % 32, x = a.in[t];
    uint32_t *out = a.out + t * WARP_WORDS;
    out[0] = __shfl_sync(0xffffffffu, x, (int)(lane * 7 + 3));
    out[1] = __shfl_sync(0xffffffffu, x, 3, 8);
    out[2] = __shfl_xor_sync(0xffffffffu, x, 5);
    out[3] = __shfl_xor_sync(0xffffffffu, x, 12, 8);
    out[4] = __shfl_up_sync(0xffffffffu, x, 3);
    out[5] = __shfl_up_sync(0xffffffffu, x, 3, 4);
    out[6] = __shfl_down_sync(0xffffffffu, x, 9);
    out[7] = __shfl_down_sync(0xffffffffu, x, 2, 16);
    unsigned long long wide = (unsigned long long)x << 32 | t;
    wide = __shfl_xor_sync(0xffffffffu, wide, 1);
    out[8] = (uint32_t)wide;
    out[9] = (uint32_t)(wide >> 32);
    out[10] = __ballot_sync(0xffffffffu, (int)(x & 1));
    out[11] = (uint32_t)__any_sync(0xffffffffu, x % 64 == 0);
    out[12] = (uint32_t)__all_sync(0xffffffffu, x % 64 != 0);
    /* The two halves of a warp go different ways. */
    if (lane < 16) {
        out[13] = __ballot_sync(0x0000ffffu, (int)(x & 2));
        out[14] = __shfl_sync(0x0000ffffu, x, 15);
    } else {
        out[14] = __shfl_sync(0xffff0000u, x, 16);
        out[13] = __ballot_sync(0xffff0000u, (int)(x & 4));
    }
    __syncwarp();
    out[15] = __float_as_uint(warp_sum((float)(x % 100)));
    out[16] = __float_as_uint(warp_max((float)(x % 1000)));
    out[17] = (uint32_t)__popc(x) << 16 | (uint32_t)__clz((int)x) << 8 | (uint32_t)__ffs((int)x);
    out[18] = min(x, 1000u) + (uint32_t)max((int)x, -5);
    out[19] = __float_as_uint(__int_as_float((int)(x & 0x7f7fffff)));
}

/* What lane (t of the block) gets from lane `from` of its warp. */
static void check_warps() {
    enum { THREADS = 96 };
    std::vector<uint32_t> in;
    for (int i = 0; i < THREADS; i++) {
        in.push_back((uint32_t)next_u64());
    }
    std::vector<uint32_t> out = run(warp_kernel, 1, THREADS, 0, in, THREADS * WARP_WORDS);
    for (uint32_t t = 0; t < THREADS; t++) {
        uint32_t lane = t % 32, base = t - lane, x = in[t];
        const uint32_t *warp = &in[base], *got = &out[t * WARP_WORDS];
        uint32_t odd = 0, low = 0, high = 0, some = 0, sum = 0, most = 0;
        for (uint32_t i = 0; i < 32; i++) {
            odd |= (warp[i] & 1) << i;
            low |= i < 16 ? (warp[i] >> 1 & 1) << i : 0;
            high |= i >= 16 ? (warp[i] >> 2 & 1) << i : 0;
            some |= warp[i] % 64 == 0;
            sum += warp[i] % 100;
            most = warp[i] % 1000 > most ? warp[i] % 1000 : most;
        }
        uint32_t want[WARP_WORDS] = {
            warp[(lane * 7 + 3) % 32],
            warp[lane / 8 * 8 + 3],
            warp[lane ^ 5],
            (lane ^ 12) / 8 <= lane / 8 ? warp[lane ^ 12] : x, /* earlier groups may be read */
            warp[lane >= 3 ? lane - 3 : lane],
            warp[lane % 4 >= 3 ? lane - 3 : lane],
            warp[lane + 9 < 32 ? lane + 9 : lane],
            warp[lane % 16 + 2 < 16 ? lane + 2 : lane],
            t ^ 1,
            warp[lane ^ 1],
            odd,
            some,
            !some,
            lane < 16 ? low : high,
            lane < 16 ? warp[15] : warp[16],
            word_of((float)sum),
            word_of((float)most),
            (uint32_t)__builtin_popcount(x) << 16 |
                (uint32_t)(x != 0 ? __builtin_clz(x) : 32) << 8 | (uint32_t)__builtin_ffs((int)x),
            (x < 1000 ? x : 1000) + (uint32_t)((int)x > -5 ? (int)x : -5),
            x & 0x7f7fffff,
        };
        for (int i = 0; i < WARP_WORDS; i++) {
            CHECK(got[i] == want[i], "thread %u, operation %d: %#x, not %#x", t, i, got[i],
                  want[i]);
        }
    }
    printf("warps\n");
}

/* ---- barriers ---- */

enum { ROUNDS = 12, BLOCK = 160 };

/* Words go round through shared memory, once with one barrier per step and two buffers, and votes
 * of the whole block are taken. The last 13 threads leave half way. */
static __global__ void barrier_kernel(words_args a) {
    __shared__ uint32_t ring[2][BLOCK];
    int n = (int)blockDim.x, t = (int)threadIdx.x, id = (int)blockIdx.x * n + t;
    uint32_t x = a.in[id], votes = 0;
    for (int i = 0; i < ROUNDS; i++) {
        ring[i % 2][t] = x;
        __syncthreads();
        x = ring[i % 2][(t + 7) % n] + 1;
    }
    a.out[2 * id] = x;
    votes = (uint32_t)__syncthreads_count((int)(x & 1)) << 8;
    votes |= __syncthreads_or(x % 256 == 0) != 0 ? 1 : 0;
    votes |= __syncthreads_and(x % 256 != 1) != 0 ? 2 : 0;
    if (t >= n - 13) {
        a.out[2 * id + 1] = votes;
        return;
    }
    __syncthreads();
    votes |= (uint32_t)__syncthreads_count(1) << 20;
    a.out[2 * id + 1] = votes;
}

static void check_barriers() {
    enum { BLOCKS = 24, N = BLOCKS * BLOCK };
    std::vector<uint32_t> in;
    for (int i = 0; i < N; i++) {
        in.push_back((uint32_t)next_u64());
    }
    std::vector<uint32_t> out = run(barrier_kernel, BLOCKS, BLOCK, 0, in, 2 * N);
    for (int b = 0; b < BLOCKS; b++) {
        uint32_t count = 0, any = 0, all = 1;
        std::vector<uint32_t> x(BLOCK);
        for (int t = 0; t < BLOCK; t++) {
            x[(size_t)t] = in[(size_t)(b * BLOCK + (t + 7 * ROUNDS) % BLOCK)] + ROUNDS;
            count += x[(size_t)t] & 1;
            any |= x[(size_t)t] % 256 == 0;
            all &= x[(size_t)t] % 256 != 1;
        }
        for (int t = 0; t < BLOCK; t++) {
            const uint32_t *got = &out[(size_t)(2 * (b * BLOCK + t))];
            uint32_t want = count << 8 | all << 1 | any | (t < BLOCK - 13 ? (BLOCK - 13) << 20 : 0);
            CHECK(got[0] == x[(size_t)t] && got[1] == want,
                  "block %d, thread %d: %#x and %#x, not %#x and %#x", b, t, got[0], got[1],
                  x[(size_t)t], want);
        }
    }
    printf("barriers\n");
}

/* ---- atomic operations, and indexes ---- */

/* out: sum, most, least, bits, swaps, float sum, threads; then a list whose places are handed out.
 */
static __global__ void atomic_kernel(words_args a) {
    uint32_t block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    uint32_t thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    uint32_t i = block * blockDim.x * blockDim.y * blockDim.z + thread, x = a.in[7 + i];
    atomicAdd(&a.out[0], x);
    atomicMax(&a.out[1], x);
    atomicMin(&a.out[2], x);
    atomicOr(&a.out[3], 1u << x % 32);
    uint32_t old = atomicAdd(&a.out[4], 0u), seen;
    while ((seen = atomicCAS(&a.out[4], old, old * 3 + 1)) != old) {
        old = seen;
    }
    atomicAdd((float *)&a.out[5], 0.5f);
    uint32_t place = atomicAdd(&a.out[6], 1u);
    a.out[7 + place] = i;
}

static void check_atomics() {
    enum { N = 3 * 2 * 2 * 120 };
    std::vector<uint32_t> in = {0, 0, 0xffffffff, 0, 1, 0, 0};
    uint32_t sum = 0, most = 0, least = 0xffffffff, bits = 0, cas = 1;
    for (int i = 0; i < N; i++) {
        uint32_t x = (uint32_t)next_u64();
        in.push_back(x);
        sum += x, bits |= 1u << x % 32, cas = cas * 3 + 1;
        most = x > most ? x : most;
        least = x < least ? x : least;
    }
    guarded from = guard_copy(in), to = guard_copy(in);
    words_args a = {from.as<uint32_t>(), to.as<uint32_t>(), (int32_t)in.size()};
    must((cudaError_t)INF_LAUNCH(atomic_kernel, dim3(3, 2, 2), dim3(4, 10, 3), 0, NULL, a),
         "launch");
    std::vector<uint8_t> bytes = take(to);
    (void)take(from);
    std::vector<uint32_t> out(in.size()), count(N);
    memcpy(out.data(), bytes.data(), bytes.size());
    uint32_t want[7] = {sum, most, least, bits, cas, word_of(0.5f * N), N};
    for (int i = 0; i < 7; i++) {
        CHECK(out[(size_t)i] == want[i], "atomic %d: %#x, not %#x", i, out[(size_t)i], want[i]);
    }
    for (size_t i = 7; i < out.size(); i++) {
        CHECK(out[i] < N && count[out[i]]++ == 0, "place %zu of the list: %u", i, out[i]);
    }
    printf("atomics\n");
}

int main(int argc, char **argv) {
    start(argc, argv);
    (void)float_of;
    check_warps();
    check_barriers();
    check_atomics();
    return report("test_emu_threads");
}

/* Single machine instructions. Layouts are those of the PTX ISA, as prelude.cuh tells them. */
#include "kernels/cuda/emu/machine.h"

#include <vector>

#include "kernels/cuda/emu/race.h"

/* ---- number formats ---- */

static uint32_t bits_of(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

uint16_t emu_to_bf16(float x) {
    uint32_t u = bits_of(x);
    if (x != x) {
        return 0x7fff; /* the GPU's NaN */
    }
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

uint16_t emu_to_f16(float x) {
    uint32_t u = bits_of(x), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
    if (x != x) {
        return 0x7fff;
    }
    if (a >= 0x477ff000) { /* 65520, half way to what would be next after 65504 */
        return (uint16_t)(sign | 0x7c00);
    }
    if (a < 0x38800000) { /* below 2^-14: multiples of 2^-24; the sum rounds to even for us */
        return (uint16_t)(sign | (bits_of(bits_to_float(a) + 0.5f) - 0x3f000000));
    }
    return (uint16_t)(sign | (a - 0x38000000 + 0xfff + (a >> 13 & 1)) >> 13);
}

float f16_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, a = h & 0x7fff;
    if (a >= 0x7c00) {
        return bits_to_float(sign | 0x7f800000 | (a & 0x3ff) << 13);
    }
    float x = a < 0x400 ? (float)a * 0x1p-24f : bits_to_float((a << 13) + 0x38000000);
    return sign != 0 ? -x : x;
}

/* ---- cp.async ---- */

struct emu_copies {
    struct copy {
        void *to;
        const void *from;
        bool valid;
    };
    std::vector<copy> asked;
    std::vector<size_t> ends; /* of committed groups, in `asked` */
};

emu_copies *emu_copies_new() { return new emu_copies; }
void emu_copies_free(emu_copies *c) { delete c; }
void emu_copies_clear(emu_copies *c) {
    c->asked.clear();
    c->ends.clear();
}

void cp_async_16(void *shared, const void *global, bool valid, emu_site site) {
    if (((uintptr_t)shared | (uintptr_t)global) % 16 != 0) {
        emu_fault(site, "cp.async from %p to %p, which are not 16-byte aligned", global, shared);
    }
    emu_race_note(shared, 16, true, __builtin_return_address(0));
    memset(shared, 0xcb, 16);
    emu_self->copies->asked.push_back({shared, global, valid});
}

void cp_async_commit() {
    emu_copies *c = emu_self->copies;
    c->ends.push_back(c->asked.size());
}

void emu_copies_wait(int n) {
    emu_copies *c = emu_self->copies;
    size_t groups = c->ends.size();
    if (groups <= (size_t)n) {
        return;
    }
    size_t done = groups - (size_t)n, end = c->ends[done - 1];
    for (size_t i = 0; i < end; i++) {
        const emu_copies::copy &copy = c->asked[i];
        emu_race_note(copy.to, 16, true, __builtin_return_address(0));
        if (copy.valid) {
            emu_race_note(copy.from, 16, false, __builtin_return_address(0));
            memcpy(copy.to, copy.from, 16);
        } else {
            memset(copy.to, 0, 16);
        }
    }
    c->asked.erase(c->asked.begin(), c->asked.begin() + (ptrdiff_t)end);
    c->ends.erase(c->ends.begin(), c->ends.begin() + (ptrdiff_t)done);
    for (size_t &e : c->ends) {
        e -= end;
    }
}

/* ---- ldmatrix ---- */

struct matrix_lane {
    uint32_t *r;
    const void *row;
};

static uint32_t number_at(const void *row, int column) {
    uint16_t h;
    memcpy(&h, (const uint8_t *)row + 2 * column, sizeof h);
    return h;
}

template <bool TRANS> static void load_matrices(void *const lanes[32], uint32_t) {
    for (int t = 0; t < 32; t++) {
        const matrix_lane *to = (const matrix_lane *)lanes[t];
        for (int m = 0; m < 4; m++) {
            uint32_t pair[2];
            for (int j = 0; j < 2; j++) {
                int row = TRANS ? 2 * (t % 4) + j : t / 4, column = TRANS ? t / 4 : 2 * (t % 4) + j;
                pair[j] = number_at(((const matrix_lane *)lanes[8 * m + row])->row, column);
            }
            to->r[m] = pair[1] << 16 | pair[0];
        }
    }
}

/* These take all lanes of the warp. */
static void meet_all(const char *what, emu_operation op, void *operands, emu_site site) {
    if (emu_alive_lanes() != 0xffffffffu) {
        emu_fault(site, "%s: only lanes %#x of the warp live", what, emu_alive_lanes());
    }
    emu_meet(what, 0xffffffffu, op, operands, site);
}

static matrix_lane row_of(uint32_t *r, const void *row, emu_site site, const void *from) {
    if ((uintptr_t)row % 16 != 0) {
        emu_fault(site, "ldmatrix of %p, which is not 16-byte aligned", row);
    }
    emu_race_note(row, 16, false, from);
    return {r, row};
}

void ldmatrix_x4(uint32_t r[4], const void *row, emu_site site) {
    matrix_lane lane = row_of(r, row, site, __builtin_return_address(0));
    meet_all("ldmatrix", load_matrices<false>, &lane, site);
}

void ldmatrix_x4_trans(uint32_t r[4], const void *row, emu_site site) {
    matrix_lane lane = row_of(r, row, site, __builtin_return_address(0));
    meet_all("ldmatrix.trans", load_matrices<true>, &lane, site);
}

/* ---- mma ---- */

struct mma_lane {
    float *d;
    const uint32_t *a, *b;
};

static float bf16_to_float(uint16_t h) { return bits_to_float((uint32_t)h << 16); }

/* Number i of a pair. */
template <float (*F)(uint16_t)> static float half_of(uint32_t pair, int i) {
    return F((uint16_t)(pair >> (16 * i)));
}

template <float (*F)(uint16_t)> static void multiply(void *const lanes[32], uint32_t) {
    float a[16][16], b[16][8];
    for (int t = 0; t < 32; t++) {
        const mma_lane *l = (const mma_lane *)lanes[t];
        int g = t / 4, c = 2 * (t % 4);
        for (int i = 0; i < 2; i++) {
            a[g][c + i] = half_of<F>(l->a[0], i);
            a[g + 8][c + i] = half_of<F>(l->a[1], i);
            a[g][c + 8 + i] = half_of<F>(l->a[2], i);
            a[g + 8][c + 8 + i] = half_of<F>(l->a[3], i);
            b[c + i][g] = half_of<F>(l->b[0], i);
            b[c + 8 + i][g] = half_of<F>(l->b[1], i);
        }
    }
    for (int t = 0; t < 32; t++) {
        const mma_lane *l = (const mma_lane *)lanes[t];
        for (int i = 0; i < 4; i++) {
            int row = t / 4 + 8 * (i / 2), column = 2 * (t % 4) + i % 2;
            float sum = l->d[i];
            for (int k = 0; k < 16; k++) {
                sum += a[row][k] * b[k][column];
            }
            l->d[i] = sum;
        }
    }
}

void mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2], emu_site site) {
    mma_lane lane = {d, a, b};
    meet_all("mma", multiply<bf16_to_float>, &lane, site);
}

void mma_f16(float d[4], const uint32_t a[4], const uint32_t b[2], emu_site site) {
    mma_lane lane = {d, a, b};
    meet_all("mma.f16", multiply<f16_to_float>, &lane, site);
}

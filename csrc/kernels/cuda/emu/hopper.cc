/* wgmma, after the PTX ISA; hopper.cuh tells the layouts. */
#include "kernels/cuda/hopper.cuh"

#include <string.h>

#include "kernels/cuda/emu/inside.h"
#include "kernels/cuda/emu/race.h"

/* ---- products ---- */

struct products {
    std::vector<emu_product> asked;
    std::vector<size_t> ends; /* of committed groups */
};
static thread_local products products_of[EMU_THREADS];

static float operand(uint64_t at, bool mn_major, int mn, int k, bool is_bf16, emu_site site) {
    uint32_t start = (uint32_t)(at & 0x3fff) << 4, leading = (uint32_t)(at >> 16 & 0x3fff) << 4;
    uint32_t stride = (uint32_t)(at >> 32 & 0x3fff) << 4;
    if (at >> 62 != 1 || (at >> 49 & 7) != 0) {
        emu_fault(site, "descriptor %#llx: not 128-byte swizzle with aligned atoms",
                  (unsigned long long)at);
    }
    uint32_t offset = mn_major ? (uint32_t)(mn % 64 * 2 + k % 8 * 128) +
                                     (uint32_t)(mn / 64) * leading + (uint32_t)(k / 8) * stride
                               : (uint32_t)(k * 2 + mn % 8 * 128) + (uint32_t)(mn / 8) * stride;
    const uint8_t *p = emu_swizzled(start + offset, site);
    if ((mn_major ? mn : k) % 8 == 0) {
        emu_race_note(p, 16, false, __builtin_return_address(0));
    }
    uint16_t h;
    memcpy(&h, p, 2);
    return is_bf16 ? bits_to_float((uint32_t)h << 16) : f16_to_float(h);
}

/* For the 16 rows of a warp. */
static void multiply(void *const lanes[32], uint32_t here) {
    const emu_product &p = *(const emu_product *)lanes[0];
    int warp = (int)(emu_self->number / 32 % 4);
    static thread_local float a[16][16], b[16][256];
    for (int k = 0; k < 16; k++) {
        for (int r = 0; r < 16; r++) {
            if (p.a == NULL) {
                a[r][k] = operand(p.a_at, false, 16 * warp + r, k, p.is_bf16, p.site);
                continue;
            }
            const emu_product &owner = *(const emu_product *)lanes[r % 8 * 4 + k % 8 / 2];
            uint32_t pair = owner.a[r / 8 + 2 * (k / 8)];
            uint16_t h = (uint16_t)(pair >> (16 * (k % 2)));
            a[r][k] = p.is_bf16 ? bits_to_float((uint32_t)h << 16) : f16_to_float(h);
        }
        for (int n = 0; n < 8 * p.groups; n++) {
            b[k][n] = operand(p.b_at, p.b_mn_major, n, k, p.is_bf16, p.site);
        }
    }
    for (int t = 0; t < 32; t++) {
        const emu_product &to = *(const emu_product *)lanes[t];
        if (to.a_at != p.a_at || to.b_at != p.b_at || to.keep != p.keep) {
            emu_fault(p.site, "lanes of a wgmma do not agree");
        }
        for (int i = 0; i < 4 * p.groups; i++) {
            int row = t / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + 2 * (t % 4) + i % 2;
            float sum = p.keep ? to.d[i / 4][i % 4] : 0.0f;
            for (int k = 0; k < 16; k++) {
                sum += a[row][k] * b[k][column];
            }
            to.d[i / 4][i % 4] = sum;
        }
    }
    /* The warp as one has read the operands: each lane may say so to others. */
    emu_race_lanes(emu_self->block->machine, emu_self->warp, here);
}

void emu_ask_product(const emu_product &p) { products_of[emu_self->number].asked.push_back(p); }

void emu_commit_products() {
    products &x = products_of[emu_self->number];
    x.ends.push_back(x.asked.size());
}

void emu_wait_products(int n, emu_site site) {
    products &x = products_of[emu_self->number];
    while (x.ends.size() > (size_t)n) {
        size_t end = x.ends[0];
        for (size_t i = 0; i < end; i++) {
            emu_meet("wgmma", 0xffffffffu, multiply, &x.asked[i], site);
        }
        x.asked.erase(x.asked.begin(), x.asked.begin() + (ptrdiff_t)end);
        x.ends.erase(x.ends.begin());
        for (size_t &e : x.ends) {
            e -= end;
        }
    }
}

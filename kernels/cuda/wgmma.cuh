// Hopper building blocks (sm_90a): products of a warpgroup on tiles in shared memory, and barriers between
// the warps that fill tiles and those that read them.
//
// A tile is cut into panels of 64 bf16 columns. A panel is rows of 128 bytes; 16-byte unit u of row r lies at
// u ^ (r & 7): the 128-byte swizzle of wgmma. Tiles start at multiples of 1024 bytes. PTX ISA, "Asynchronous
// warpgroup level matrix shared memory layout".
#pragma once

#include <cuda.h>

#include "kernels/cuda/mma.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define LEVIN_SM90A 1
#endif

namespace levin::kernels::cuda {

template <int ROWS>
__device__ inline uint32_t panel_address(uint32_t tile, int row, int unit) {
    return tile + (unit / 8) * (ROWS * 128) + row * 128 + ((unit % 8) ^ (row & 7)) * 16;
}

// Writes four 8x8 blocks; the address of lane l is row l % 8 of block l / 8.
__device__ inline void store_fragments(uint32_t address, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(a),
                 "r"(b), "r"(c), "r"(d)
                 : "memory");
}

// Where wgmma finds an operand. Leading: bytes between panels where the operand lies with its outer dimension
// (M or N) along the rows ("turned"), else not used. Groups of eight rows are 1024 bytes apart.
__device__ inline uint64_t operand_at(uint32_t address, uint32_t leading) {
    return uint64_t{(address & 0x3ffff) >> 4} | uint64_t{leading >> 4} << 16 | uint64_t{1024 >> 4} << 32 |
           uint64_t{1} << 62;
}
// 16 columns from 16 * k on of a tile [outer, inner]: rows are M or N.
template <int ROWS>
__device__ inline uint64_t straight(uint32_t tile, int first_row, int k) {
    return operand_at(tile + first_row * 128 + (k / 4) * (ROWS * 128) + (k % 4) * 32, 16);
}
// 16 rows from 16 * k on of a tile [inner, outer]: columns are M or N, starting at a panel.
template <int ROWS>
__device__ inline uint64_t turned(uint32_t tile, int first_panel, int k) {
    return operand_at(tile + first_panel * (ROWS * 128) + k * 2048, ROWS * 128);
}

#define LEVIN_R4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define LEVIN_R16(d, i) LEVIN_R4(d, i), LEVIN_R4(d, i + 4), LEVIN_R4(d, i + 8), LEVIN_R4(d, i + 12)

// d[64 x 64] (+)= A B. Values 4 j + e of a thread of warp w, lane 4 g + q: row 16 w + g + 8 (e / 2), column
// 8 j + 2 q + e % 2. `add` false: d starts from zero.
template <bool TURN_A, bool TURN_B>
__device__ inline void multiply(float (&d)[32], uint64_t a, uint64_t b, bool add) {
#ifdef LEVIN_SM90A
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,"
        "%27,%28,%29,%30,%31}, %32, %33, p, 1, 1, %35, %36;\n}"
        : LEVIN_R16(d, 0), LEVIN_R16(d, 16)
        : "l"(a), "l"(b), "r"(int{add}), "n"(int{TURN_A}), "n"(int{TURN_B}));
#endif
}
// The same with A [64 x 16] in registers: the values of multiply's d, packed.
template <bool TURN_B>
__device__ inline void multiply(float (&d)[32], const uint32_t (&a)[4], uint64_t b, bool add) {
#ifdef LEVIN_SM90A
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,"
        "%27,%28,%29,%30,%31}, {%32,%33,%34,%35}, %36, p, 1, 1, %38;\n}"
        : LEVIN_R16(d, 0), LEVIN_R16(d, 16)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int{add}), "n"(int{TURN_B}));
#endif
}
// d[64 x 128]
template <bool TURN_A, bool TURN_B>
__device__ inline void multiply(float (&d)[64], uint64_t a, uint64_t b, bool add) {
#ifdef LEVIN_SM90A
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,"
        "%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,"
        "%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, %64, %65, p, 1, 1, %67, %68;\n}"
        : LEVIN_R16(d, 0), LEVIN_R16(d, 16), LEVIN_R16(d, 32), LEVIN_R16(d, 48)
        : "l"(a), "l"(b), "r"(int{add}), "n"(int{TURN_A}), "n"(int{TURN_B}));
#endif
}
template <bool TURN_B>
__device__ inline void multiply(float (&d)[64], const uint32_t (&a)[4], uint64_t b, bool add) {
#ifdef LEVIN_SM90A
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,"
        "%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,"
        "%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, {%64,%65,%66,%67}, %68, p, 1, 1, %70;\n}"
        : LEVIN_R16(d, 0), LEVIN_R16(d, 16), LEVIN_R16(d, 32), LEVIN_R16(d, 48)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int{add}), "n"(int{TURN_B}));
#endif
}

// Registers written before are visible to the products that follow.
__device__ inline void begin_products() {
#ifdef LEVIN_SM90A
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
__device__ inline void commit_products() {
#ifdef LEVIN_SM90A
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
// Waits until at most PENDING committed groups are under way; `d` is the sum that is read next.
template <int PENDING, int N>
__device__ inline void wait_products(float (&d)[N]) {
#ifdef LEVIN_SM90A
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
#endif
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// Ordinary stores of this thread to shared memory become visible to wgmma.
__device__ inline void publish_to_products() {
#ifdef LEVIN_SM90A
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

__device__ inline void initialize_barrier(uint32_t barrier, int arrivals) {
#ifdef LEVIN_SM90A
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
#endif
}
__device__ inline void arrive(uint32_t barrier) {
#ifdef LEVIN_SM90A
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
#endif
}
// Waits for the end of the phase of this parity (phases alternate, the first is 0).
__device__ inline void wait_barrier(uint32_t barrier, uint32_t parity) {
#ifdef LEVIN_SM90A
    asm volatile(
        "{\n.reg .pred p;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@!p bra "
        "again;\n}" ::"r"(barrier),
        "r"(parity)
        : "memory");
#endif
}
// Registers of a thread from here on; the warpgroups of a block together may have 64 Ki. Takes effect only
// where each role is one branch of an if/else and the launch bounds name one block.
template <int N>
__device__ inline void take_registers() {
#ifdef LEVIN_SM90A
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
#endif
}
template <int N>
__device__ inline void give_registers() {
#ifdef LEVIN_SM90A
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
#endif
}

// One box of a tensor into shared memory; its bytes count towards `barrier`, which has been told to expect
// them.
__device__ inline void fetch_box(uint32_t to, const CUtensorMap& map, int c0, int c1, int c2, int c3,
                                 uint32_t barrier) {
#ifdef LEVIN_SM90A
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, "
        "{%3,%4,%5,%6}], "
        "[%2];" ::"r"(to),
        "l"(reinterpret_cast<uint64_t>(&map)), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
        : "memory");
#endif
}
// Has the map itself fetched, ahead of its first box.
__device__ inline void prefetch_map(const CUtensorMap& map) {
#ifdef LEVIN_SM90A
    asm volatile("prefetch.tensormap [%0];" ::"l"(reinterpret_cast<uint64_t>(&map)) : "memory");
#endif
}
// The way back. The thread that starts it waits with wait_boxes_read before the box in shared memory is used
// again.
__device__ inline void store_box(const CUtensorMap& map, int c0, int c1, int c2, int c3, uint32_t from) {
#ifdef LEVIN_SM90A
    asm volatile(
        "cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2,%3,%4,%5}], [%1];" ::"l"(
            reinterpret_cast<uint64_t>(&map)),
        "r"(from), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
        : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#endif
}
__device__ inline void wait_boxes_read() {
#ifdef LEVIN_SM90A
    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
#endif
}
__device__ inline void arrive_and_expect(uint32_t barrier, uint32_t bytes) {
#ifdef LEVIN_SM90A
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
#endif
}

// Barrier `id` (not 0, which is __syncthreads) among `threads` threads.
__device__ inline void synchronize(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace levin::kernels::cuda

// Runs CUDA kernels on a CPU, one fibre per CUDA thread, and checks what they do with memory.
//
// A block's fibres take turns in an order that a seed shuffles; blocks run one after another. Kernels are compiled with
// -fsanitize=thread, whose hooks (hooks.cpp) see every load and store; nothing of the sanitizer itself is linked.
//
// What it does not see: the text of inline PTX (ptx.cuh calls the functions below in its place), how mma and ex2.approx
// round (here in fp64, once, and as the C library does), what fences order, registers and occupancy. Block sizes are
// multiples of 32, a block never waits for another one, and no kernel uses atomics. Memory is looked at in units of two
// bytes. Two static shared arrays of one kernel have no room between them.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace emulator {

// Where in the source a barrier or an exchange stands.
struct Site {
    const char* file = nullptr;
    int line = 0;
    bool operator==(const Site& other) const;
    std::string name() const;
};
#define EMULATOR_SITE emulator::Site site = {__builtin_FILE(), __builtin_LINE()}

// CUDA's built-in variables, of the fibre that runs.
struct Position {
    uint3 thread, block;
    dim3 block_size, grid_size;
};
extern Position position;

// ---- what a kernel can do (scheduler.cpp, warp.cpp, copies.cpp, hooks.cpp)
void block_barrier(Site site);

enum class Exchange { sync, shuffle, shuffle_xor, shuffle_down, shuffle_up, ballot, ldmatrix, ldmatrix_trans, mma };
struct Request {
    Exchange kind;
    unsigned mask;
    uint64_t value;
    int argument;  // a shuffle's lane or distance
    int width;
    void* operands;  // ldmatrix's or mma's
};
// Waits for the lanes of the mask, which must come to the same site.
uint64_t warp_exchange(const Request& request, Site site);

enum class Half { bf16, f16 };
void ldmatrix_x4(uint32_t (&r)[4], const void* row, bool transposed, Site site);
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Half type, Site site);
void mma_m16n8k8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b, Site site);  // of fp16
void require(int capability, Site site);                                           // or the launch fails

void cp_async(void* shared, const void* global, bool valid, Site site);
void cp_async_commit();
void cp_async_wait(int keep, Site site);

unsigned char* dynamic_shared();
uint4 load16(const void* p);
void store16(void* p, uint4 value);
void store8(void* p, uint2 value);

// ---- what the host does
struct Gpu {
    int capability;                              // sm_XX
    size_t block_shared, multiprocessor_shared;  // bytes of shared memory
};
const Gpu& gpu();
// Is that GPU from now on (sm_90 before); false if it is not known here.
bool pretend(int capability);

cudaError_t launch(const void* kernel, dim3 grid, dim3 block, size_t shared, void (*call)(const void*),
                   const void* closure);

// Memory that kernels may touch, at a 256-byte aligned address as cudaMalloc gives it, with room around that they may
// not touch.
void* allocate(size_t size, const std::string& name);
void deallocate(void* p);

// The order in which a block's threads (and the blocks) run.
enum class Order { forward, reversed, shuffled };
void configure(Order order, uint64_t seed);

// Barriers, __syncwarp and waits for copies are left out at this site of this kernel ("file:line@kernel"), to see that
// it is noticed.
void skip_site(const std::string& name);
// Every such site that was reached so far, one a line.
std::string reached_sites();

// The names of all kernels that were launched so far, one a line: "norm_kernel", "add_pieces_kernel<float>".
std::string launched_kernels();

// From now on, bank conflicts of shared memory are counted.
void count_conflicts();
// A line for each place of each kernel that accessed shared memory: kernel, file:line, accesses of warps and the cycles
// beyond the first that they took, separated by tabs. Counting starts anew.
std::string conflict_counts();

// A launch that takes more processor time ends with a message.
void set_time_limit(int seconds);

}  // namespace emulator

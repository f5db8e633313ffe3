// Launches: a kernel's blocks one after another, each with shared memory that holds garbage.
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <map>
#include <numeric>

#include "internal.h"

namespace emulator {

const Kernel* kernel = nullptr;

namespace {

constexpr size_t kMostThreads = 1024, kMostSharedBytes = 227 << 10;

std::string error;
std::map<const void*, size_t> shared_limits;
unsigned char* shared_memory = nullptr;  // dynamic
size_t shared_size = 0;

void (*kernel_call)(const void*);
const void* kernel_closure;

void thread_main() {
    kernel_call(kernel_closure);
    bool copying = !running->open_copies.empty();
    for (const auto& group : running->copy_groups) copying = copying || !group.empty();
    if (copying) fail("a thread ends with a cp.async under way");
    wait(State::done, {});
    __builtin_unreachable();
}

const char* problem_of_launch(const void* address, dim3 grid, size_t threads, size_t shared) {
    if (!threads || threads > kMostThreads || grid.x >> 31 || grid.y > 65535 || grid.z > 65535)
        return "invalid configuration";
    if (threads % kLanes) return "the emulator needs whole warps: a block size that is a multiple of 32";
    const auto limit = shared_limits.find(address);
    if (shared > (limit == shared_limits.end() ? 48 << 10 : limit->second))
        return "more dynamic shared memory than the kernel may have (cudaFuncSetAttribute)";
    return nullptr;
}

void prepare_shared(size_t size) {
    if (!shared_memory) shared_memory = static_cast<unsigned char*>(map_memory(kMostSharedBytes));
    shared_size = size;
    remove_shared();
    if (size) add_shared(shared_memory, size, "dynamic shared memory");
    for (const Variable& variable : kernel->shared)
        add_shared(variable.start, variable.size, "shared memory " + variable.name);
}

// Not-a-numbers, which show.
void spoil_shared() {
    std::memset(shared_memory, 0xff, shared_size);
    for (const Variable& variable : kernel->shared) std::memset(variable.start, 0xff, variable.size);
}

std::vector<size_t> order_of_blocks(size_t count) {
    std::vector<size_t> blocks(count);
    std::iota(blocks.begin(), blocks.end(), size_t{0});
    if (current_order() == Order::reversed) std::reverse(blocks.begin(), blocks.end());
    if (current_order() == Order::shuffled)
        for (size_t i = count; i > 1; --i) std::swap(blocks[i - 1], blocks[random_below(i)]);
    return blocks;
}

}  // namespace

void fail(const char* format, ...) {
    if (error.empty()) {
        char text[2000];
        va_list values;
        va_start(values, format);
        std::vsnprintf(text, sizeof text, format, values);
        va_end(values);
        error = text;
        const uint3 b = position.block;
        error += " [block " + std::to_string(b.x) + "," + std::to_string(b.y) + "," + std::to_string(b.z);
        error += running ? ", thread " + std::to_string(running->thread) + "]" : "]";
    }
    if (running) leave(running);  // for good
}

bool failed() { return !error.empty(); }

std::string launched_kernels() { return found_kernels(); }

unsigned char* dynamic_shared() { return shared_memory; }

cudaError_t launch(const void* address, dim3 grid, dim3 size, size_t shared, void (*call)(const void*),
                   const void* closure) {
    error.clear();
    const size_t threads = size_t{size.x} * size.y * size.z;
    if (const char* problem = problem_of_launch(address, grid, threads, shared)) {
        error = problem;
        return cudaErrorInvalidConfiguration;
    }
    log_launch(address, threads, shared);
    kernel = &find_kernel(address);
    kernel_call = call;
    kernel_closure = closure;
    position.block_size = size;
    position.grid_size = grid;
    prepare_shared(shared);
    clock_.launch_start = ++clock_.now;
    start_time_limit();
    for (const size_t i : order_of_blocks(size_t{grid.x} * grid.y * grid.z)) {
        position.block = {static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                          static_cast<unsigned>(i / grid.x / grid.y)};
        spoil_shared();
        run_block(fibres(threads), thread_main);
        if (failed()) break;
    }
    end_time_limit();
    return failed() ? cudaErrorLaunchFailure : cudaSuccess;
}

}  // namespace emulator

// The part of the CUDA runtime that csrc/cuda calls on the host.
extern "C" {
const char* cudaGetErrorString(cudaError_t) { return emulator::error.c_str(); }
cudaError_t cudaMemsetAsync(void* p, int value, size_t size, cudaStream_t) {
    std::memset(p, value, size);
    return cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value > static_cast<int>(emulator::gpu().block_shared)) {
        emulator::error = "more shared memory than a block can have on this GPU";
        return cudaErrorInvalidValue;
    }
    emulator::shared_limits[kernel] = static_cast<size_t>(value);
    return cudaSuccess;
}
}

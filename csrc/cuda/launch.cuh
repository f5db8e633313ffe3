// The only way to start a kernel, and where it runs: the caller (bindings.cpp) sets device and stream, per host thread,
// before it calls an operation of kernels.h.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace gpt2c {

// The stream of this host thread's launches. Set with the tensors' device current.
cudaStream_t& launch_stream();

namespace cuda {

inline std::string to_string(dim3 size) {
    return std::to_string(size.x) + "," + std::to_string(size.y) + "," + std::to_string(size.z);
}

[[noreturn]] inline void launch_failed(const char* name, dim3 grid, dim3 block, size_t shared, cudaError_t error) {
    cudaGetLastError();  // it is told here, and not again by the next call
    throw std::runtime_error(std::string(name) + ": launch failed with grid " + to_string(grid) + ", block " +
                             to_string(block) + ", " + std::to_string(shared) +
                             " bytes of dynamic shared memory: " + cudaGetErrorString(error));
}

// What a launch may ask for without cudaFuncSetAttribute.
constexpr size_t kDefaultSharedBytes = 48 * 1024;

// kernel<<<grid, block, shared, launch_stream()>>>(args...), or std::runtime_error that names all of it. An empty grid
// is no launch. Neither allocates nor waits, so that it can be captured in a CUDA graph.
template <class... Params, class... Args>
void launch(const char* name, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared, const Args&... args) {
    static_assert(sizeof...(Params) == sizeof...(Args), "a kernel is launched with as many arguments as it takes");
    if (!grid.x || !grid.y || !grid.z) return;
    const auto check = [&](cudaError_t error) {
        if (error != cudaSuccess) launch_failed(name, grid, block, shared, error);
    };
    if (shared > kDefaultSharedBytes)
        check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(shared)));
    [&](Params... values) {
        void* pointers[] = {const_cast<void*>(static_cast<const void*>(&values))...};
        check(cudaLaunchKernel(kernel, grid, block, pointers, shared, launch_stream()));
    }(static_cast<Params>(args)...);
}

// Queues the zeroing of `size` bytes.
inline void fill_zero(const char* name, void* p, size_t size) {
    if (!size) return;
    const cudaError_t error = cudaMemsetAsync(p, 0, size, launch_stream());
    if (error != cudaSuccess) throw std::runtime_error(std::string(name) + ": " + cudaGetErrorString(error));
}

}  // namespace cuda
}  // namespace gpt2c

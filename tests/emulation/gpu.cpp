// The GPU that the emulator is: what kernels and their launches ask it for.
#include "internal.h"

namespace emulator {
namespace {

// The CUDA C++ programming guide's table of compute capabilities.
constexpr Gpu kGpus[] = {{75, 64 << 10, 64 << 10}, {86, 99 << 10, 100 << 10}, {90, 227 << 10, 228 << 10}};
const Gpu* current = &kGpus[2];

}  // namespace

const Gpu& gpu() { return *current; }

bool pretend(int capability) {
    for (const Gpu& known : kGpus)
        if (known.capability == capability) current = &known;
    return current->capability == capability;
}

void require(int capability, Site site) {
    if (gpu().capability < capability)
        fail("%s needs sm_%d, this is sm_%d", site.name().c_str(), capability, gpu().capability);
}

}  // namespace emulator

extern "C" {
cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    const emulator::Gpu& gpu = emulator::gpu();
    if (attribute == cudaDevAttrComputeCapabilityMajor)
        *value = gpu.capability / 10;
    else if (attribute == cudaDevAttrMaxSharedMemoryPerMultiprocessor)
        *value = static_cast<int>(gpu.multiprocessor_shared);
    else
        return cudaErrorInvalidValue;
    return cudaSuccess;
}
}

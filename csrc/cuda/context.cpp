// What a call of the CUDA backend is told beside its arguments, and what there is on this machine.
#include "cuda/cuda.h"
#include "cuda/launch.cuh"

namespace gpt2c {

cudaStream_t& launch_stream() {
    static thread_local cudaStream_t stream = nullptr;
    return stream;
}

namespace cuda {
namespace {

std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

std::string why_no_gpu(cudaError_t error) {
    cudaGetLastError();
    int driver = 0;
    cudaDriverGetVersion(&driver);
    if (!driver) return "no GPU: no CUDA driver is installed";
    if (error == cudaErrorInsufficientDriver)
        return "no GPU: the driver is for CUDA " + version(driver) + ", expected one for " + version(CUDART_VERSION);
    return std::string("no GPU: ") + cudaGetErrorString(error);
}

}  // namespace

void set_stream(int device, std::uintptr_t stream) {
    const cudaError_t error = cudaSetDevice(device);
    if (error != cudaSuccess)
        throw std::runtime_error("GPU " + std::to_string(device) + ": " + cudaGetErrorString(error));
    launch_stream() = reinterpret_cast<cudaStream_t>(stream);
}

const char* build_description() { return GPT2C_CUDA_BUILD; }

std::string device_description() {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess) return why_no_gpu(error);
    std::string text;
    for (int i = 0; i < count; ++i) {
        cudaDeviceProp gpu{};
        cudaGetDeviceProperties(&gpu, i);
        text += (i ? ", " : "") + std::string(gpu.name) + " (" + std::to_string(gpu.major * 10 + gpu.minor) + ")";
    }
    return text;
}

}  // namespace cuda
}  // namespace gpt2c

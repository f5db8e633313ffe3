// The CUDA kernels on the emulator, for tests/remote/kernel_server.cpp. The backend's name says how threads take turns
// and what to leave out: "shuffled:SEED", "forward" or "reversed", then maybe ",skip=FILE:LINE".
#include "backend.h"

#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "cuda/cuda.h"
#include "cuda/launch.cuh"
#include "emulator.h"

namespace gpt2c {

cudaStream_t& launch_stream() {
    static cudaStream_t stream = nullptr;
    return stream;
}

}  // namespace gpt2c

const gpt2c::Kernels* find_backend(const char* name_) {
    std::string name = name_;
    const size_t comma = name.find(",skip=");
    if (comma != std::string::npos) {
        emulator::skip_site(name.substr(comma + 6));
        name.resize(comma);
    }
    if (name.rfind("shuffled:", 0) == 0)
        emulator::configure(emulator::Order::shuffled, std::strtoull(name.c_str() + 9, nullptr, 10));
    else if (name == "forward" || name == "reversed")
        emulator::configure(name == "forward" ? emulator::Order::forward : emulator::Order::reversed, 0);
    else
        return nullptr;
    // GPT2C_REACHED names a file for the barriers and waits that were reached, one a line.
    std::atexit([] {
        const char* path = std::getenv("GPT2C_REACHED");
        FILE* file = path ? std::fopen(path, "w") : nullptr;
        if (!file) return;
        std::fputs(emulator::reached_sites().c_str(), file);
        std::fclose(file);
    });
    return &gpt2c::cuda::kernels;
}

void* allocate_buffer(size_t size) {
    static int count = 0;
    return emulator::allocate(size, "tensor " + std::to_string(count++));
}
void free_buffer(void* buffer) { emulator::deallocate(buffer); }

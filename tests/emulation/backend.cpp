// The CUDA kernels on the emulator, for tests/remote/kernel_server.cpp. The backend's name says how threads take turns:
// "forward", "reversed" or "shuffled:SEED"; then come, after a comma each, "seconds=N" (the time limit of a launch),
// "sm=75" (the GPU to be), "conflicts" (bank conflicts are counted), and last "skip=FILE:LINE@KERNEL" (this barrier or
// wait is left out).
#include "backend.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "cuda/cuda.h"
#include "cuda/launch.cuh"
#include "emulator.h"
#include "test_kernels.h"

namespace gpt2c {

cudaStream_t& launch_stream() {
    static cudaStream_t stream = nullptr;
    return stream;
}

}  // namespace gpt2c

namespace {

// The rest of `option` after `prefix`, or null.
const char* value_of(const std::string& option, const char* prefix) {
    return option.rfind(prefix, 0) == 0 ? option.c_str() + std::strlen(prefix) : nullptr;
}

bool apply(const std::string& option) {
    using emulator::Order;
    if (option == "forward")
        emulator::configure(Order::forward, 0);
    else if (option == "reversed")
        emulator::configure(Order::reversed, 0);
    else if (const char* seed = value_of(option, "shuffled:"))
        emulator::configure(Order::shuffled, std::strtoull(seed, nullptr, 10));
    else if (const char* seconds = value_of(option, "seconds="))
        emulator::set_time_limit(std::atoi(seconds));
    else if (const char* capability = value_of(option, "sm="))
        return emulator::pretend(std::atoi(capability));
    else if (option == "conflicts")
        emulator::count_conflicts();
    else if (const char* site = value_of(option, "skip="))
        emulator::skip_site(site);
    else
        return false;
    return true;
}

// Writes the text into the first tensor and returns its length.
int64_t answer(const std::string& text, const Buffer* tensors) {
    if (text.size() > tensors[0].size) return -1;
    std::memcpy(tensors[0].data, text.data(), text.size());
    return static_cast<int64_t>(text.size());
}

}  // namespace

const gpt2c::Kernels* find_backend(const char* name) {
    const std::string options = name;
    for (size_t start = 0; start <= options.size();) {
        const bool is_last = options.compare(start, 5, "skip=") == 0;  // a kernel's name may have commas
        const size_t end = is_last ? options.size() : std::min(options.find(',', start), options.size());
        if (!apply(options.substr(start, end - start))) return nullptr;
        start = end + 1;
    }
    return &gpt2c::cuda::kernels;
}

Extra* find_extra(const std::string& name) {
    if (name == "reached_sites")
        return [](const Buffer* tensors) { return answer(emulator::reached_sites(), tensors); };
    if (name == "launched_kernels")
        return [](const Buffer* tensors) { return answer(emulator::launched_kernels(), tensors); };
    if (name == "conflict_counts")
        return [](const Buffer* tensors) { return answer(emulator::conflict_counts(), tensors); };
    const auto& kernels = test_kernels();
    const auto it = kernels.find(name);
    return it == kernels.end() ? nullptr : it->second;
}

void* allocate_buffer(size_t size) {
    static int count = 0;
    return emulator::allocate(size, "tensor " + std::to_string(count++));
}
void free_buffer(void* buffer) { emulator::deallocate(buffer); }

std::map<std::string, Extra*>& test_kernels() {
    static std::map<std::string, Extra*> kernels;
    return kernels;
}

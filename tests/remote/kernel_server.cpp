// Runs kernels on requests from tests/remote/__init__.py, so that the tests of this machine can try kernels that were
// built for another (under an emulator) or with sanitizers, without Python there.
//
// A request is words of 8 bytes: the length of the kernel's name, the name, the number of buffers, and for each its
// size and bytes; then the number of arguments and the arguments. An answer is the length of an error message and the
// message; where that is empty, the kernel's result and all buffers follow.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "backend.h"

using namespace gpt2c;

namespace {

void read_bytes(void* to, size_t size) {
    if (std::fread(to, 1, size, stdin) != size) std::exit(0);  // the tests are over
}

int64_t read_word() {
    int64_t word;
    read_bytes(&word, sizeof word);
    return word;
}

void write_bytes(const void* from, size_t size) { std::fwrite(from, 1, size, stdout); }

// One request. Each buffer is an allocation of its own, so that a sanitizer sees where it ends.
struct Request {
    std::vector<Buffer> buffers;
    std::vector<int64_t> words;
    size_t next = 0;
    std::deque<std::vector<void*>> lists;  // keeps the addresses of pointer lists

    void receive() {
        buffers.resize(read_word());
        for (auto& [data, size] : buffers) {
            size = read_word();
            data = static_cast<char*>(allocate_buffer(size));
            read_bytes(data, size);
        }
        words.resize(read_word());
        read_bytes(words.data(), words.size() * sizeof(int64_t));
    }

    void answer(int64_t result, const std::string& error) {
        const auto length = static_cast<int64_t>(error.size());
        write_bytes(&length, sizeof length);
        write_bytes(error.data(), error.size());
        if (error.empty()) write_bytes(&result, sizeof result);
        for (auto& [data, size] : buffers) {
            if (error.empty()) write_bytes(data, size);
            free_buffer(data);
        }
        std::fflush(stdout);
    }

    // A pointer is 0 or (buffer + 1) * 2^40 + offset.
    void* pointer() {
        const int64_t word = words[next++];
        return word ? buffers[(word >> 40) - 1].data + (word & ((int64_t{1} << 40) - 1)) : nullptr;
    }
};

template <class T>
struct Read {
    static T from(Request& request) {
        if constexpr (std::is_floating_point_v<T>) {
            double value;
            std::memcpy(&value, &request.words[request.next++], sizeof value);
            return static_cast<T>(value);
        } else {
            return static_cast<T>(request.words[request.next++]);
        }
    }
};
template <class T>
struct Read<T*> {
    static T* from(Request& request) { return static_cast<T*>(request.pointer()); }
};
template <class T>
struct Read<T* const*> {
    static T* const* from(Request& request) {
        std::vector<void*>& list = request.lists.emplace_back(request.words[request.next++]);
        for (void*& item : list) item = request.pointer();
        return list.empty() ? nullptr : reinterpret_cast<T* const*>(list.data());
    }
};
template <>
struct Read<Strides> {
    static Strides from(Request& r) { return {Read<int64_t>::from(r), Read<int64_t>::from(r), Read<int64_t>::from(r)}; }
};
template <>
struct Read<AttentionShape> {
    static AttentionShape from(Request& r) {
        return {Read<DType>::from(r),    Read<int64_t>::from(r), Read<int64_t>::from(r),
                Read<int64_t>::from(r),  Read<int64_t>::from(r), Read<int64_t>::from(r),
                Read<bool>::from(r),     Read<float>::from(r),   Read<const int64_t*>::from(r),
                Read<uint32_t>::from(r), Read<float>::from(r),   Read<const int64_t*>::from(r)};
    }
};

template <class R, class... Params>
int64_t run(R (*kernel)(Params...), Request& request) {
    // Braces: the arguments are read from left to right.
    if (!kernel) throw std::runtime_error("this backend has no such kernel");
    std::tuple<std::remove_cv_t<std::remove_reference_t<Params>>...> args{
        Read<std::remove_cv_t<std::remove_reference_t<Params>>>::from(request)...};
    if constexpr (std::is_void_v<R>) {
        std::apply(kernel, args);
        return 0;
    } else {
        return std::apply(kernel, args);
    }
}

int64_t run_named(const std::string& name, const Kernels& kernels, Request& request) {
#define GPT2C_RUN(kernel) \
    if (name == #kernel) return run(kernels.kernel, request);
    GPT2C_KERNELS(GPT2C_RUN)
#undef GPT2C_RUN
    if (Extra* extra = find_extra(name)) return extra(request.buffers.data());
    throw std::runtime_error("this backend has no such kernel");
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) {
        std::fprintf(stderr, "usage: kernel_server BACKEND\n");
        return 2;
    }
    const Kernels* found = find_backend(argv[1]);
    if (!found) {
        std::fprintf(stderr, "kernel_server: backend %s is not available here\n", argv[1]);
        return 2;
    }
    const Kernels& kernels = *found;
    for (;;) {
        std::string name(read_word(), ' ');
        read_bytes(name.data(), name.size());
        Request request;
        request.receive();
        int64_t result = 0;
        std::string error;
        try {
            result = run_named(name, kernels, request);
        } catch (const std::exception& problem) {
            error = problem.what();
        }
        request.answer(result, error);
    }
}

// The Python module gpt2c._ext: every kernel of the active CPU backend, and in gpt2c._ext.cuda, if it was built, of the
// CUDA backend, as a function of integers and numbers.
// No checks and no logic: gpt2c/_native.py is the only caller. The GIL is released while a kernel runs.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <array>
#include <climits>
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/cpuid.h"
#ifdef GPT2C_CUDA
#include "cuda/cuda.h"
#endif
#include "kernels.h"

namespace py = pybind11;
using namespace gpt2c;

namespace {

Isa active{};

// How a kernel's parameter looks from Python, and its way back.
template <class T>
struct Arg {
    using Python = T;
    static T from(const Python& value) { return value; }
};
template <>
struct Arg<DType> {
    using Python = int;
    static DType from(Python value) { return static_cast<DType>(value); }
};
template <class T>
struct Arg<T*> {
    using Python = std::uintptr_t;
    static T* from(Python value) { return reinterpret_cast<T*>(value); }
};
template <class T>
struct Arg<T* const*> {
    using Python = std::vector<std::uintptr_t>;
    static T* const* from(const Python& value) {
        return value.empty() ? nullptr : reinterpret_cast<T* const*>(value.data());
    }
};
template <>
struct Arg<Strides> {
    using Python = std::array<int64_t, 3>;
    static Strides from(const Python& value) { return {value[0], value[1], value[2]}; }
};
template <>
struct Arg<const AttentionShape&> {
    using Python = std::tuple<int, int64_t, int64_t, int64_t, int64_t, int64_t, bool, float, std::uintptr_t, uint32_t,
                              float, std::uintptr_t>;
    static AttentionShape from(const Python& value) {
        return std::apply(
            [](int dtype, int64_t B, int64_t H, int64_t Tq, int64_t Tk, int64_t D, bool causal, float scale,
               std::uintptr_t seed, uint32_t drop_below, float keep_scale, std::uintptr_t starts) {
                return AttentionShape{static_cast<DType>(dtype),
                                      B,
                                      H,
                                      Tq,
                                      Tk,
                                      D,
                                      causal,
                                      scale,
                                      reinterpret_cast<const int64_t*>(seed),
                                      drop_below,
                                      keep_scale,
                                      reinterpret_cast<const int64_t*>(starts)};
            },
            value);
    }
};

// `table` points to the table of kernels in use.
template <class R, class... Params>
void bind(py::module_& m, const char* name, R (*Kernels::*kernel)(Params...), const Kernels* const* table) {
    m.def(
        name,
        [kernel, table](const typename Arg<Params>::Python&... values) {
            return ((*table)->*kernel)(Arg<Params>::from(values)...);
        },
        py::call_guard<py::gil_scoped_release>());
}

#ifdef GPT2C_CUDA
// gpt2c._ext.cuda: the CUDA kernels, the GPU and the stream they are queued on, and what was built.
void bind_cuda(py::module_ m) {
    static const Kernels* const table = &cuda::kernels;
    m.def("set_stream", &cuda::set_stream);
    m.def("build_description", &cuda::build_description);
    m.def("device_description", &cuda::device_description);
#define GPT2C_BIND(name) \
    if (cuda::kernels.name) bind(m, #name, &Kernels::name, &table);
    GPT2C_KERNELS(GPT2C_BIND)
#undef GPT2C_BIND
}
#endif

std::vector<std::string> available_isas() {
    int count = 0;
    const Isa* list = isas(&count);
    std::vector<std::string> names;
    for (int i = 0; i < count; ++i)
        if (list[i].supported) names.push_back(list[i].name);
    return names;
}

// Takes the named backend, or the best one for an empty name. False if this machine cannot run it.
bool set_isa(const std::string& name) {
    int count = 0;
    const Isa* list = isas(&count);
    for (int i = count - 1; i >= 0; --i)
        if (list[i].supported && (name.empty() ? list[i].preferred : name == list[i].name)) {
            active = list[i];
            return true;
        }
    return false;
}

// Makes malloc keep what is freed instead of giving it back to the system. False where malloc is not glibc's.
bool keep_heap() {
#ifdef __GLIBC__
    // Older versions refuse a threshold above 32 MB, but not to map nothing at all.
    const bool heap_only = mallopt(M_MMAP_THRESHOLD, 1 << 30) || mallopt(M_MMAP_MAX, 0);
    return heap_only && mallopt(M_TRIM_THRESHOLD, INT_MAX) && mallopt(M_TOP_PAD, 64 << 20);
#else
    return false;
#endif
}

}  // namespace

PYBIND11_MODULE(_ext, m) {
    set_isa("");
    m.def("available_isas", &available_isas);
    m.def("active_isa", [] { return std::string(active.name); });
    m.def("set_isa", &set_isa);
    m.def("keep_heap", &keep_heap);
#define GPT2C_BIND(name) bind(m, #name, &Kernels::name, &active.kernels);
    GPT2C_KERNELS(GPT2C_BIND)
#undef GPT2C_BIND
#ifdef GPT2C_CUDA
    bind_cuda(m.def_submodule("cuda"));
#endif
}

// The Python module gpt2c._ext: every kernel of the active CPU backend, and in gpt2c._ext.cuda, if it was built, of the
// CUDA backend, as a function of addresses and numbers.
// No logic, and no checks but that each value is of its parameter's kind: gpt2c/_native.py is the only caller. The GIL
// is released while a kernel runs.
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
#include <type_traits>
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

// A number as Python must give it: an int, a bool or a float itself. Whatever else could be turned into one (a tensor,
// a bool where an int belongs) is refused: what it becomes would be a guess.
template <class T>
struct Exactly {
    T value;
};
// An address, in Python a tuple of one int, or None for null: nothing that is a number can be taken for it.
struct Address {
    std::uintptr_t value;
};

// How a kernel's parameter looks from Python, and its way back.
template <class T>
struct Arg {
    using Python = Exactly<T>;
    static T from(const Python& value) { return value.value; }
};
template <>
struct Arg<DType> {
    using Python = Exactly<int>;
    static DType from(Python value) { return static_cast<DType>(value.value); }
};
template <class T>
struct Arg<T*> {
    using Python = Address;
    static T* from(Python address) { return reinterpret_cast<T*>(address.value); }
};
template <class T>
struct Arg<T* const*> {
    using Python = std::vector<Address>;
    static T* const* from(const Python& addresses) {
        return addresses.empty() ? nullptr : reinterpret_cast<T* const*>(addresses.data());
    }
};
template <>
struct Arg<Strides> {
    using Python = std::array<Exactly<int64_t>, 3>;
    static Strides from(const Python& strides) { return {strides[0].value, strides[1].value, strides[2].value}; }
};
template <>
struct Arg<const AttentionShape&> {
    template <class... Fields>
    struct Of {
        using Python = std::tuple<typename Arg<Fields>::Python...>;
        static AttentionShape from(const Python& values) {
            return std::apply([](const auto&... value) { return AttentionShape{Arg<Fields>::from(value)...}; }, values);
        }
    };
    using Shape = Of<DType, int64_t, int64_t, int64_t, int64_t, int64_t, bool, float, const int64_t*, uint32_t, float,
                     const int64_t*>;
    using Python = Shape::Python;
    static AttentionShape from(const Python& values) { return Shape::from(values); }
};

}  // namespace

namespace pybind11::detail {

template <class T>
struct type_caster<Exactly<T>> {
    static constexpr auto kind = const_name<std::is_floating_point_v<T>>(
        const_name("float"), const_name<std::is_same_v<T, bool>>("bool", "int"));
    PYBIND11_TYPE_CASTER(Exactly<T>, kind);
    bool load(handle from, bool) {
        bool is_right = PyLong_Check(from.ptr()) && !PyBool_Check(from.ptr());
        if constexpr (std::is_same_v<T, bool>) is_right = PyBool_Check(from.ptr());
        if constexpr (std::is_floating_point_v<T>) is_right = is_right || PyFloat_Check(from.ptr());
        make_caster<T> number;
        if (!is_right || !number.load(from, true)) return false;
        value.value = cast_op<T>(number);
        return true;
    }
};

template <>
struct type_caster<Address> {
    PYBIND11_TYPE_CASTER(Address, const_name("tuple[int]"));
    bool load(handle from, bool) {
        if (from.is_none()) {
            value.value = 0;
            return true;
        }
        if (!PyTuple_CheckExact(from.ptr()) || PyTuple_GET_SIZE(from.ptr()) != 1) return false;
        make_caster<Exactly<std::uintptr_t>> address;
        if (!address.load(PyTuple_GET_ITEM(from.ptr(), 0), false)) return false;
        value.value = cast_op<Exactly<std::uintptr_t>&>(address).value;
        return true;
    }
};

}  // namespace pybind11::detail

namespace {

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

// Kernels that only tests/test_emulation.py launches, by name.
#pragma once

#include <map>
#include <string>

#include "backend.h"

std::map<std::string, Extra*>& test_kernels();

struct TestKernel {
    TestKernel(const char* name, Extra* run) { test_kernels()[name] = run; }
};

// A block of host code that launches a kernel on `tensors`.
#define TEST_KERNEL(name)                                                 \
    static int64_t launch_##name([[maybe_unused]] const Buffer* tensors); \
    static const TestKernel register_##name(#name, launch_##name);        \
    static int64_t launch_##name([[maybe_unused]] const Buffer* tensors)

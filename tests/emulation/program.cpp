#include "program.h"

#include <cxxabi.h>
#include <elf.h>
#include <link.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>

extern const char __ehdr_start __attribute__((visibility("hidden")));
extern const char _end __attribute__((visibility("hidden")));

namespace emulator {
namespace {

struct Symbol {
    std::string name;
    uintptr_t value;  // a function's address relative to the program, a variable's to the thread-local segment
    size_t size;
};

struct Program {
    uintptr_t base = 0;
    unsigned char* thread_locals = nullptr;
    std::vector<Symbol> functions, variables;

    Program() {
        dl_iterate_phdr(
            [](dl_phdr_info* info, size_t, void* self) {
                auto& program = *static_cast<Program*>(self);  // the first one is the program itself
                program.base = info->dlpi_addr;
                program.thread_locals = static_cast<unsigned char*>(info->dlpi_tls_data);
                return 1;
            },
            this);
        std::ifstream file("/proc/self/exe", std::ios::binary);
        read_symbols(std::vector<char>(std::istreambuf_iterator<char>(file), {}));
    }

 private:
    void read_symbols(const std::vector<char>& file) {
        const auto& header = *reinterpret_cast<const ElfW(Ehdr)*>(file.data());
        const auto* sections = reinterpret_cast<const ElfW(Shdr)*>(file.data() + header.e_shoff);
        for (int i = 0; i < header.e_shnum; ++i) {
            if (sections[i].sh_type != SHT_SYMTAB) continue;
            const char* names = file.data() + sections[sections[i].sh_link].sh_offset;
            const auto* symbols = reinterpret_cast<const ElfW(Sym)*>(file.data() + sections[i].sh_offset);
            for (size_t j = 0; j < sections[i].sh_size / sizeof *symbols; ++j) {
                const ElfW(Sym) & s = symbols[j];
                const int type = ELF64_ST_TYPE(s.st_info);  // the same for 32 bits
                if (type == STT_FUNC) functions.push_back({names + s.st_name, s.st_value, s.st_size});
                if (type == STT_TLS) variables.push_back({names + s.st_name, s.st_value, s.st_size});
            }
        }
    }
};

const Program& program() {
    static const Program program;
    return program;
}

std::map<uint32_t, std::string> known_lines;
std::map<const void*, Kernel> known_kernels;

void erase_all(std::string& text, const std::string& part) {
    for (size_t at; (at = text.find(part)) != std::string::npos;) text.erase(at, part.size());
}

std::string readable(const std::string& symbol) {
    char* demangled = abi::__cxa_demangle(symbol.c_str(), nullptr, nullptr, nullptr);
    std::string name = demangled ? demangled : symbol;
    std::free(demangled);
    for (const char* part : {"(anonymous namespace)::", "gpt2c::cuda::", "gpt2c::"}) erase_all(name, part);
    if (name.rfind("void ", 0) == 0) name.erase(0, 5);
    int depth = 0;
    for (size_t i = 0; i < name.size(); ++i) {
        depth += name[i] == '<' ? 1 : name[i] == '>' ? -1 : 0;
        if (name[i] == '(' && !depth) name.resize(i);
    }
    return name;
}

// A variable "x" of the function "_ZF" is "_ZZFE", the length of its name, and "x".
std::string variable_of(const std::string& symbol, const std::string& function) {
    const std::string prefix = "_ZZ" + function.substr(function.rfind("_Z", 0) == 0 ? 2 : 0) + "E";
    if (symbol.rfind(prefix, 0) != 0) return "";
    const size_t name = symbol.find_first_not_of("0123456789", prefix.size());
    return name == std::string::npos ? "" : symbol.substr(name);
}

Kernel describe(const void* address) {
    Kernel kernel{"?", {}};
    for (const Symbol& function : program().functions) {
        if (function.value != reinterpret_cast<uintptr_t>(address) - program().base) continue;
        kernel.name = readable(function.name);
        for (const Symbol& variable : program().variables) {
            const std::string name = variable_of(variable.name, function.name);
            if (!name.empty()) kernel.shared.push_back({program().thread_locals + variable.value, variable.size, name});
        }
        break;
    }
    return kernel;
}

}  // namespace

uint32_t relative(const void* pc) { return static_cast<uint32_t>(reinterpret_cast<uintptr_t>(pc) - program().base); }

void resolve(const std::vector<uint32_t>& pcs) {
    std::string command = "addr2line -aise /proc/" + std::to_string(getpid()) + "/exe";
    std::vector<std::string*> texts;
    for (const uint32_t pc : pcs) {
        const auto [it, is_new] = known_lines.try_emplace(pc);
        if (!is_new) continue;
        texts.push_back(&it->second);
        char address[20];
        std::snprintf(address, sizeof address, " 0x%x", pc - 1);
        command += address;
    }
    FILE* pipe = texts.empty() ? nullptr : popen((command + " 2>/dev/null").c_str(), "r");
    if (!pipe) return;
    char line[500];
    auto text = texts.begin();
    for (bool first = true; std::fgets(line, sizeof line, pipe); first = false) {
        line[std::strcspn(line, "\n ")] = 0;
        if (!std::strncmp(line, "0x", 2))
            text += !first;
        else
            **text += (**text).empty() ? line : std::string(" in ") + line;
    }
    pclose(pipe);
}

std::string source_line(uint32_t pc) {
    resolve({pc});
    const std::string& text = known_lines[pc];
    return text.empty() ? "offset " + std::to_string(pc) : text;
}

bool is_program(uintptr_t address) {
    return address >= reinterpret_cast<uintptr_t>(&__ehdr_start) && address < reinterpret_cast<uintptr_t>(&_end);
}

const Kernel& find_kernel(const void* address) {
    const auto [it, is_new] = known_kernels.try_emplace(address);
    if (is_new) it->second = describe(address);
    return it->second;
}

std::string found_kernels() {
    std::string all;
    for (const auto& [address, kernel] : known_kernels) all += kernel.name + "\n";
    return all;
}

}  // namespace emulator

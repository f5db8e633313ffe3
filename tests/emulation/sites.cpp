// Where barriers and waits stand, and which one is left out.
#include <cstring>
#include <map>
#include <set>
#include <tuple>

#include "internal.h"

namespace emulator {
namespace {

std::string skipped;
std::set<std::string> reached;
std::map<std::tuple<const char*, int, const Kernel*>, bool> known;  // whether it is left out

}  // namespace

bool Site::operator==(const Site& other) const {
    return line == other.line && (file == other.file || !std::strcmp(file, other.file));
}

std::string Site::name() const {
    const char* slash = std::strrchr(file, '/');
    return std::string(slash ? slash + 1 : file) + ":" + std::to_string(line);
}

bool is_skipped(Site site) {
    const auto [it, is_new] = known.try_emplace({site.file, site.line, kernel});
    if (is_new) {
        const std::string name = site.name() + "@" + kernel->name;
        reached.insert(name);
        it->second = name == skipped;
    }
    return it->second;
}

void skip_site(const std::string& name) { skipped = name; }

std::string reached_sites() {
    std::string all;
    for (const std::string& name : reached) all += name + "\n";
    return all;
}

}  // namespace emulator

// Feeds a fuzz target a fixed series of damaged inputs: bytes flipped, cut, doubled, swapped between seeds.
// The same ones on every run. Seeds: the target's own texts (behind a length field) and the files of its
// extension in a folder.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
extern const char* const fuzz_seeds[];
extern const char* const fuzz_extension;

namespace {

void run(const std::string& input) {
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
}

std::string with_length(const std::string& text, size_t data_bytes) {
    const uint64_t length = text.size();
    std::string input(8, '\0');
    std::memcpy(input.data(), &length, 8);
    return input + text + std::string(data_bytes, '\0');
}

}  // namespace

int main(int argc, char** argv) {
    std::vector<std::string> seeds;
    for (const char* const* seed = fuzz_seeds; *seed; ++seed) seeds.push_back(with_length(*seed, 32));
    if (argc > 1)
        for (const auto& entry : std::filesystem::recursive_directory_iterator(argv[1]))
            if (entry.path().extension() == fuzz_extension) {
                std::ifstream file(entry.path(), std::ios::binary);
                seeds.push_back(with_length({std::istreambuf_iterator<char>(file), {}}, 0));
            }
    if (seeds.empty()) {
        std::fprintf(stderr, "no seeds\n");
        return 1;
    }
    std::mt19937 random(1);
    const auto below = [&](size_t limit) { return limit == 0 ? 0 : random() % limit; };
    const std::string interesting = "{}[]\",:0123456789(.tRQcbu)}\x85\x86\xff";
    constexpr int kRuns = 30000;
    for (int i = 0; i < kRuns; ++i) {
        std::string input = seeds[below(seeds.size())];
        for (size_t changes = 1 + below(6); changes > 0 && input.size() > 8; --changes) {
            const size_t at = 8 + below(input.size() - 8),
                         length = below(std::min<size_t>(40, input.size() - at));
            switch (below(6)) {
                case 0:
                    input[at] = static_cast<char>(input[at] ^ (1 << below(8)));
                    break;
                case 1:
                    input[at] = interesting[below(interesting.size())];
                    break;
                case 2:
                    input.erase(at, length);
                    break;
                case 3:
                    input.insert(at, input.substr(8 + below(input.size() - 8), length));
                    break;
                case 4:
                    input.resize(at);
                    break;
                default: {
                    const std::string& other = seeds[below(seeds.size())];
                    input.insert(
                        at, other.substr(std::min<size_t>(8 + below(other.size()), other.size()), length));
                }
            }
        }
        run(input);
    }
    std::printf("%d inputs\n", kRuns);
}

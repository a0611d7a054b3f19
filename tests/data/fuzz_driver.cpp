// Drives a fuzz target without a fuzzer: changed copies of its seeds, the same ones in every run, for two
// seconds.
#include <gtest/gtest.h>

#include <chrono>
#include <random>

#include "tests/data/fuzz.h"

namespace levin::test {
namespace {

std::string changed(std::string text, const std::vector<std::string>& seeds, std::mt19937& random) {
    const auto below = [&](size_t n) { return n == 0 ? 0 : random() % n; };
    for (size_t n = 1 + below(4); n > 0; --n) {
        const size_t at = below(text.size());
        switch (random() % 8) {
            case 0:
                text.resize(at);
                break;
            case 1:
                text.insert(at, 1 + below(8), static_cast<char>(random()));
                break;
            case 2:
                text.erase(at, 1 + below(16));
                break;
            case 3:  // a number at the edge of its type
                for (size_t i = 0; i < 8 && at + i < text.size(); ++i) {
                    text[at + i] = static_cast<char>(i == 7 ? (random() % 2 ? 0x7F : 0xFF) : 0xFF);
                }
                break;
            case 4:
                text.insert(at, text.substr(below(text.size()), below(32)));
                break;
            case 5: {
                const std::string& other = seeds[below(seeds.size())];
                text.insert(at, other.substr(below(other.size()), below(64)));
                break;
            }
            default:
                if (!text.empty())
                    text[at] = static_cast<char>(random() % 3 ? random() : text[at] ^ (1 << random() % 8));
        }
    }
    return text;
}

int run(const std::string& text) {
    return LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(text.data()), text.size());
}

TEST(Fuzz, ChangedSeedsGiveAnswers) {
    const std::vector<std::string> seeds = fuzz_seeds();
    run("");
    for (const std::string& seed : seeds) {
        run(seed);
        for (size_t size = 0; size < seed.size(); size += 1 + seed.size() / 200) run(seed.substr(0, size));
    }
    std::mt19937 random(2);
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(2);
    int runs = 0;
    while (std::chrono::steady_clock::now() < end && runs < 200000) {
        EXPECT_EQ(run(changed(seeds[random() % seeds.size()], seeds, random)), 0);
        ++runs;
    }
    RecordProperty("runs", runs);
    EXPECT_GT(runs, 10);
}

}  // namespace
}  // namespace levin::test

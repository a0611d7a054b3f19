// The file that remembers the algorithms of matrix products: whatever is in it, it can only be ignored.
#include "kernels/cuda/gemm_cache.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>

#include "tests/temporary_folder.h"

namespace levin::kernels::cuda {
namespace {

namespace fs = std::filesystem;

class GemmCacheFile : public ::testing::Test {
protected:
    std::string path() const { return folder_ / "deep" / "choices.txt"; }
    GemmCache open() const { return GemmCache(path(), "Some GPU", "130100"); }
    std::string text() const { return test::read_text(path()); }
    void write(const std::string& text) const { std::ofstream(path(), std::ios::trunc) << text; }

    const test::TemporaryFolder temporary_;
    const fs::path folder_ = temporary_.path();
};

TEST_F(GemmCacheFile, RemembersBeyondTheProcess) {
    GemmCache first = open();
    EXPECT_EQ(first.find("NT m1"), 0u);
    first.store("NT m1", 77);
    first.store("NT m2", UINT64_MAX);
    first.store("NT m1", 78);
    const GemmCache second = open();
    EXPECT_EQ(second.size(), 2u);
    EXPECT_EQ(second.find("NT m1"), 78u);
    EXPECT_EQ(second.find("NT m2"), UINT64_MAX);
    EXPECT_EQ(second.find("NT m3"), 0u);
    size_t files = 0;
    for ([[maybe_unused]] const auto& entry : fs::directory_iterator(fs::path(path()).parent_path())) ++files;
    EXPECT_EQ(files, 1u) << "a temporary file was left";
}

TEST_F(GemmCacheFile, KeepsWhatAnotherProcessAdded) {
    GemmCache one = open(), other = open();
    one.store("a", 1);
    other.store("b", 2);
    one.store("c", 3);
    const GemmCache read = open();
    EXPECT_EQ(read.find("a") + 10 * read.find("b") + 100 * read.find("c"), 321u);
}

TEST_F(GemmCacheFile, IgnoresAnotherGpuOrVersion) {
    open().store("a", 1);
    EXPECT_EQ(GemmCache(path(), "Other GPU", "130100").size(), 0u);
    EXPECT_EQ(GemmCache(path(), "Some GPU", "130101").size(), 0u);
    EXPECT_EQ(open().size(), 1u);
}

TEST_F(GemmCacheFile, IgnoresDamage) {
    GemmCache cache = open();
    for (int i = 0; i < 20; ++i)
        cache.store("product " + std::to_string(i), 1000u + static_cast<unsigned>(i));
    const std::string good = text();
    std::mt19937 random(3);
    int refused = 0;
    for (int trial = 0; trial < 500; ++trial) {
        std::string bad = good;
        const size_t at = random() % bad.size();
        switch (trial % 3) {
            case 0:
                bad[at] = static_cast<char>(bad[at] ^ (1 + random() % 255));
                break;
            case 1:
                bad.resize(at);
                break;
            default:
                bad.insert(at, std::string(1 + random() % 40, static_cast<char>(random())));
        }
        write(bad);
        const GemmCache read = open();
        refused += read.size() == 0;
        for (int i = 0; i < 20; ++i) {  // right or absent, never wrong
            const uint64_t found = read.find("product " + std::to_string(i));
            EXPECT_TRUE(found == 0 || found == 1000u + static_cast<unsigned>(i)) << bad;
        }
    }
    EXPECT_GT(refused, 300);
    write(std::string(size_t{5} << 20, 'x'));
    EXPECT_EQ(open().size(), 0u);
    open().store("after", 5);  // the damaged file is replaced
    EXPECT_EQ(open().find("after"), 5u);
}

TEST_F(GemmCacheFile, AFolderThatCannotBeWrittenIsNoError) {
    fs::create_directories(folder_);
    std::ofstream(folder_ / "deep") << "a file where the folder should be";
    GemmCache cache = open();
    cache.store("a", 1);
    EXPECT_EQ(cache.find("a"), 1u);
    GemmCache nowhere("", "Some GPU", "1");
    nowhere.store("a", 1);
    EXPECT_EQ(nowhere.find("a"), 1u);
}

TEST(GemmCachePath, ByEnvironment) {
    setenv("LEVIN_GEMM_CACHE", "/somewhere", 1);
    EXPECT_EQ(gemm_cache_path("NVIDIA H100 80GB/HBM3", "130100"),
              "/somewhere/gemm-NVIDIA-H100-80GB-HBM3-cublas-130100.txt");
    setenv("LEVIN_GEMM_CACHE", "off", 1);
    EXPECT_EQ(gemm_cache_path("A", "1"), "");
    unsetenv("LEVIN_GEMM_CACHE");
    setenv("XDG_CACHE_HOME", "/cache", 1);
    EXPECT_EQ(gemm_cache_path("A", "1"), "/cache/levin/gemm-A-cublas-1.txt");
    unsetenv("XDG_CACHE_HOME");
    setenv("HOME", "/home/me", 1);
    EXPECT_EQ(gemm_cache_path("A", "1"), "/home/me/.cache/levin/gemm-A-cublas-1.txt");
    unsetenv("HOME");
    EXPECT_EQ(gemm_cache_path("A", "1"), "");
    EXPECT_TRUE(gemm_tuning_enabled());
    setenv("LEVIN_GEMM_TUNING", "off", 1);
    EXPECT_FALSE(gemm_tuning_enabled());
}

}  // namespace
}  // namespace levin::kernels::cuda

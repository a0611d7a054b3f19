#include "kernels/base/file.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "tests/temporary_folder.h"

namespace levin {
namespace {

namespace fs = std::filesystem;

class File : public ::testing::Test {
protected:
    std::ptrdiff_t count() const { return std::distance(fs::directory_iterator(folder_), {}); }

    const test::TemporaryFolder temporary_;
    const fs::path folder_ = temporary_.path();
    const std::string path_ = (folder_ / "file").string();
};

TEST_F(File, PiecesOfAnySizeArriveInOrder) {
    std::string all;
    AtomicFile file(path_);
    for (const size_t bytes : {1, 1000, 1 << 20, 3, (1 << 20) - 1, 5 << 20, 0, 700'000, 700'000}) {
        std::string piece(bytes, '\0');
        for (size_t i = 0; i < bytes; ++i) piece[i] = static_cast<char>((all.size() + i) % 251);
        file.write(piece);
        all += piece;
    }
    file.truncate(all.size() - 600'000);
    all.resize(all.size() - 600'000);
    file.write("end");
    all += "end";
    EXPECT_EQ(file.size(), all.size());
    file.flush();
    EXPECT_EQ(read_text_file(file.temporary_path()), all);
    EXPECT_FALSE(fs::exists(path_));
    file.commit();
    EXPECT_EQ(read_text_file(path_), all);
    EXPECT_EQ(count(), 1);
}

TEST_F(File, WithoutCommitTheOldFileStays) {
    write_text_file(path_, "old");
    {
        AtomicFile file(path_);
        file.write("new");
        file.sync();
        EXPECT_EQ(count(), 2);
    }
    EXPECT_EQ(read_text_file(path_), "old");
    EXPECT_EQ(count(), 1);
}

TEST_F(File, AFolderThatIsNotThereIsTheUsersToMend) {
    const std::string path = (folder_ / "no" / "file").string();
    try {
        write_text_file(path, "text");
        FAIL() << "no error";
    } catch (const Error& error) {
        EXPECT_EQ(error.fault(), Fault::input);
        EXPECT_EQ(std::string(error.what()), "[file " + path +
                                                 "] cannot be written: No such file or directory; check its "
                                                 "folder and permissions");
    }
}

}  // namespace
}  // namespace levin

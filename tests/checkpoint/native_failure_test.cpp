// Damaged checkpoints, full disks and killed processes.
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "checkpoint/native.h"
#include "tests/checkpoint/checkpoint_test.h"

namespace levin {
namespace {

namespace fs = std::filesystem;

class NativeFailure : public FolderTest {
protected:
    void save(int64_t step, int64_t numbers = 50, const SaveOptions& options = {}) {
        CheckpointState state;
        state.step = step;
        state.model_json = "{}";
        state.fields["run"] = "test";
        const auto seed = static_cast<unsigned>(step);
        save_checkpoint(folder_.string(), state,
                        {{kModelGroup, "w", sample({numbers}, DType::f32, seed)},
                         {kFirstMomentGroup, "w", sample({numbers}, DType::f32, seed + 1)}},
                        options);
    }
    // The older checkpoint is taken, and the reason given names the newer one and `file`.
    void expect_older(const std::string& file, const std::string& how) {
        std::string log;
        const auto found =
            open_newest_checkpoint(folder_.string(), [&](const std::string& line) { log += line; });
        ASSERT_TRUE(found) << how;
        EXPECT_EQ(found->state().step, 10) << how;
        EXPECT_NE(log.find("step_00000020"), std::string::npos) << how << log;
        EXPECT_NE(log.find(file), std::string::npos) << how << log;
    }
};

TEST_F(NativeFailure, AFlippedByteInAnyFileMeansTheOlderOne) {
    save(10);
    save(20);
    int files = 0;
    for (const auto& entry : fs::directory_iterator(path("step_00000020"))) {
        const std::string file = entry.path().string(), bytes = read_text_file(file);
        ++files;
        // Every byte of the manifest, a spread of the others.
        const size_t stride = entry.path().filename() == "manifest" ? 1 : 37;
        for (size_t at = 0; at < bytes.size(); at += stride) {
            std::string damaged = bytes;
            damaged[at] = static_cast<char>(damaged[at] ^ (1 << (at % 8)));
            put(file, damaged);
            expect_older(entry.path().filename().string().substr(0, 5), file + " byte " + std::to_string(at));
        }
        put(file, bytes);
    }
    EXPECT_EQ(files, 3);
    EXPECT_EQ(open_newest_checkpoint(folder_.string())->state().step, 20);
}

TEST_F(NativeFailure, TruncatedOrMissingFilesMeanTheOlderOne) {
    save(10);
    save(20);
    for (const auto& entry : fs::directory_iterator(path("step_00000020"))) {
        const std::string file = entry.path().string(), bytes = read_text_file(file);
        for (const size_t length : {size_t{0}, size_t{1}, bytes.size() / 2, bytes.size() - 1}) {
            put(file, bytes.substr(0, length));
            expect_older(entry.path().filename().string().substr(0, 5),
                         file + " cut to " + std::to_string(length));
        }
        put(file, bytes + "x");
        expect_older(entry.path().filename().string().substr(0, 5), file + " and a byte more");
        fs::remove(file);
        expect_older(entry.path().filename().string().substr(0, 5), file + " missing");
        put(file, bytes);
    }
    put(path("step_00000020/manifest"), std::string(5000, '\xab'));
    expect_older("manifest", "garbage");
}

TEST_F(NativeFailure, NoneGoodSaysSoAndNamesEach) {
    save(10);
    save(20);
    for (const char* name : {"step_00000010/manifest", "step_00000020/manifest"}) put(path(name), "");
    const std::string message = refusal([&] { open_newest_checkpoint(folder_.string()); });
    EXPECT_NE(message.find("none of its 2 checkpoints"), std::string::npos) << message;
    EXPECT_NE(message.find("step_00000010"), std::string::npos) << message;
    EXPECT_NE(message.find("step_00000020"), std::string::npos) << message;
}

TEST_F(NativeFailure, BadOnesDoNotCountWhenOldOnesAreRemoved) {
    save(10);
    save(20);
    fs::remove(path("step_00000020/manifest"));
    save(30, 50, {.keep = 2});
    EXPECT_TRUE(fs::exists(path("step_00000010")));  // 30 and 10 are the two good ones
    save(40, 50, {.keep = 2});
    EXPECT_FALSE(fs::exists(path("step_00000010")));
    EXPECT_FALSE(fs::exists(path("step_00000020")));
}

TEST_F(NativeFailure, AFullDiskLosesNothing) {
    save(10);
    // The size limit of a file stands for the disk's end: write() fails in the same way.
    struct rlimit old_limit;
    ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old_limit), 0);
    const auto old_handler = signal(SIGXFSZ, SIG_IGN);
    const struct rlimit small { 4096, old_limit.rlim_max };
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
    std::string message;
    try {
        save(20, 100000);
    } catch (const Error& error) {
        EXPECT_EQ(error.fault(), Fault::internal);
        message = error.what();
    }
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &old_limit), 0);
    signal(SIGXFSZ, old_handler);
    EXPECT_NE(message.find("cannot be written"), std::string::npos) << message;
    EXPECT_NE(message.find("step_00000020"), std::string::npos) << message;
    EXPECT_EQ(std::distance(fs::directory_iterator(folder_), {}), 1);  // no temporary folder
    EXPECT_EQ(open_newest_checkpoint(folder_.string())->state().step, 10);
    save(20);  // room again
    EXPECT_EQ(open_newest_checkpoint(folder_.string())->state().step, 20);
}

TEST_F(NativeFailure, AFolderThatCannotBeMadeIsAnError) {
    put(path("file"), "x");
    CheckpointState state;
    EXPECT_THROW(save_checkpoint(path("file"), state, {}), Error);
    EXPECT_EQ(read_text_file(path("file")), "x");
}

TEST_F(NativeFailure, AKillInTheMiddleLeavesOnlyWhatIsIgnored) {
    save(10);
    const pid_t child = fork();
    if (child == 0) {
        CheckpointTensor last{kSecondMomentGroup, "w", {}};
        last.shape = {4};
        last.produce = []() -> Tensor {
            raise(SIGKILL);
            return {};
        };
        CheckpointState state;
        state.step = 20;
        save_checkpoint(folder_.string(), state, {{kModelGroup, "w", sample({50}, DType::f32, 1)}, last});
        _exit(0);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status));
    EXPECT_TRUE(fs::exists(path(".tmp-step_00000020/model.safetensors")));
    EXPECT_EQ(list_checkpoints(folder_.string(), true).size(), 1u);
    EXPECT_EQ(open_newest_checkpoint(folder_.string())->state().step, 10);
    std::string log;
    save(30, 50, {.log = [&](const std::string& line) { log += line; }});
    EXPECT_NE(log.find(".tmp-step_00000020"), std::string::npos);
    EXPECT_FALSE(fs::exists(path(".tmp-step_00000020")));
}

}  // namespace
}  // namespace levin

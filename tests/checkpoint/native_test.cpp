#include "checkpoint/native.h"

#include <barrier>
#include <thread>

#include "checkpoint/safetensors.h"
#include "tests/checkpoint/checkpoint_test.h"

namespace levin {
namespace {

class Native : public FolderTest {};

CheckpointState state_at(int64_t step) {
    CheckpointState state;
    state.step = step;
    state.tokens = step * 1000;
    state.next_sample = step * 8;
    state.seed = 0xfedcba9876543210u;
    state.model_json = "{\"model_type\": \"transnormer\"}";
    state.config_yaml = "model:\n  hidden_size: 64\n";
    state.fields = {{"run", "quickstart"}, {"bytes", std::string("\0\1\2 \x7f", 5)}};
    return state;
}

TEST_F(Native, EverythingComesBackToTheBit) {
    const Tensor master = sample({5, 7}, DType::f32, 1), moment = sample({5, 7}, DType::bf16, 2),
                 wide = sample({3}, DType::f64, 3), scalar = sample({}, DType::f32, 4);
    const std::string before = bits(master);
    const std::string where = save_checkpoint(path("checkpoints"), state_at(100),
                                              {{kModelGroup, "embedding", master},
                                               {kModelGroup, "head", wide},
                                               {kModelGroup, "scale", scalar},
                                               {kFirstMomentGroup, "embedding", moment}});
    EXPECT_EQ(where, path("checkpoints/step_00000100"));
    EXPECT_EQ(bits(master), before);

    const Checkpoint checkpoint = Checkpoint::open(where);
    const CheckpointState expected = state_at(100), &state = checkpoint.state();
    EXPECT_EQ(state.step, expected.step);
    EXPECT_EQ(state.tokens, expected.tokens);
    EXPECT_EQ(state.next_sample, expected.next_sample);
    EXPECT_EQ(state.seed, expected.seed);
    EXPECT_EQ(state.model_json, expected.model_json);
    EXPECT_EQ(state.config_yaml, expected.config_yaml);
    EXPECT_EQ(state.fields.at("run"), "quickstart");
    EXPECT_TRUE(same_bits(checkpoint.read(kModelGroup, "embedding"), master));
    EXPECT_TRUE(same_bits(checkpoint.read(kModelGroup, "head"), wide));
    EXPECT_TRUE(same_bits(checkpoint.read(kModelGroup, "scale"), scalar));
    EXPECT_TRUE(same_bits(checkpoint.read(kFirstMomentGroup, "embedding"), moment));
    EXPECT_TRUE(checkpoint.has_group(kFirstMomentGroup));
    EXPECT_FALSE(checkpoint.has_group(kSecondMomentGroup));
    EXPECT_FALSE(checkpoint.contains(kFirstMomentGroup, "head"));
    EXPECT_EQ(checkpoint.names(kModelGroup), (std::vector<std::string>{"head", "embedding", "scale"}));
    refusal([&] { checkpoint.read(kSecondMomentGroup, "embedding"); });
    // Other programs can open the weights.
    EXPECT_TRUE(same_bits(SafetensorsReader(where + "/model.safetensors").read("embedding"), master));
}

TEST_F(Native, AStridedViewAndAProducedTensor) {
    const Tensor whole = sample({6, 8}, DType::f32, 5);
    CheckpointTensor lazy{kModelGroup, "lazy", {}};
    int produced = 0;
    lazy.dtype = DType::f32;
    lazy.shape = {6, 8};
    lazy.produce = [&] { return ++produced, whole; };
    const std::string where = save_checkpoint(folder_.string(), state_at(1),
                                              {{kModelGroup, "columns", whole.narrow(1, 2, 3)}, lazy});
    const Checkpoint checkpoint = Checkpoint::open(where);
    EXPECT_TRUE(same_bits(checkpoint.read(kModelGroup, "columns"), whole.narrow(1, 2, 3).clone()));
    EXPECT_TRUE(same_bits(checkpoint.read(kModelGroup, "lazy"), whole));
    EXPECT_EQ(produced, 1);
}

TEST_F(Native, KeepsTheNewestAndReplacesTheSameStep) {
    for (const int64_t step : {10, 20, 30, 40})
        save_checkpoint(folder_.string(), state_at(step), {{kModelGroup, "w", sample({4}, DType::f32, 1)}},
                        {.keep = 2});
    auto list = list_checkpoints(folder_.string(), true);
    ASSERT_EQ(list.size(), 2u);
    EXPECT_EQ(list[0].step, 30);
    EXPECT_EQ(list[1].step, 40);
    EXPECT_EQ(list[1].problem, "");
    const Tensor other = sample({4}, DType::f32, 9);
    save_checkpoint(folder_.string(), state_at(40), {{kModelGroup, "w", other}}, {.keep = 2});
    EXPECT_TRUE(same_bits(open_newest_checkpoint(folder_.string())->read(kModelGroup, "w"), other));
    save_checkpoint(folder_.string(), state_at(50), {{kModelGroup, "w", other}}, {.keep = 0});
    EXPECT_EQ(list_checkpoints(folder_.string(), false).size(), 3u);
    for (const auto& entry : std::filesystem::directory_iterator(folder_))
        EXPECT_TRUE(entry.path().filename().string().starts_with("step_")) << entry.path();
}

TEST_F(Native, NoCheckpointIsNoError) {
    EXPECT_FALSE(open_newest_checkpoint(path("nowhere")));
    EXPECT_FALSE(open_newest_checkpoint(folder_.string()));
    std::filesystem::create_directory(path("step_x1"));
    put(path("step_00000007"), "a file, not a folder");
    EXPECT_FALSE(open_newest_checkpoint(folder_.string()));
}

// Ranks as threads: what first_text() does over MPI is done by a barrier.
class Ranks {
public:
    explicit Ranks(int count) : count_(count), texts_(static_cast<size_t>(count)), meet_(count) {}
    std::string first_problem(int rank, const std::string& mine) {
        texts_[static_cast<size_t>(rank)] = mine;
        meet_.arrive_and_wait();
        std::string first;
        for (const std::string& text : texts_)
            if (first.empty()) first = text;
        meet_.arrive_and_wait();
        return first;
    }
    SaveOptions options(int rank) {
        return {.rank = rank, .ranks = count_, .first_problem = [this, rank](const std::string& mine) {
                    return first_problem(rank, mine);
                }};
    }
    template <class Work>
    void run(const Work& work) {
        std::vector<std::thread> threads;
        for (int rank = 0; rank < count_; ++rank) threads.emplace_back([&work, rank] { work(rank); });
        for (auto& thread : threads) thread.join();
    }

private:
    int count_;
    std::vector<std::string> texts_;
    std::barrier<> meet_;
};

TEST_F(Native, PartsOfSeveralRanksMakeOneTensor) {
    const Tensor rows = sample({6, 5}, DType::f32, 1), columns = sample({4, 9}, DType::bf16, 2),
                 alone = sample({3}, DType::f32, 3);
    Ranks ranks(3);
    ranks.run([&](int rank) {
        std::vector<CheckpointTensor> mine{
            {kModelGroup, "rows", rows.narrow(0, 2 * rank, 2), {6, 5}, {2 * rank, 0}},
            {kModelGroup, "columns", columns.narrow(1, 3 * rank, 3), {4, 9}, {0, 3 * rank}}};
        if (rank == 1) mine.push_back({kModelGroup, "alone", alone});
        save_checkpoint(folder_.string(), state_at(5), mine, ranks.options(rank));
    });
    const Checkpoint checkpoint = Checkpoint::open(path("step_00000005"));
    EXPECT_TRUE(same_bits(checkpoint.read(kModelGroup, "rows"), rows));
    EXPECT_TRUE(same_bits(checkpoint.read(kModelGroup, "columns"), columns));
    EXPECT_TRUE(same_bits(checkpoint.read(kModelGroup, "alone"), alone));
    // Another number of ranks asks for other parts.
    EXPECT_TRUE(same_bits(checkpoint.read_part(kModelGroup, "rows", {1, 1}, {4, 3}),
                          rows.narrow(0, 1, 4).narrow(1, 1, 3).clone()));
    EXPECT_TRUE(same_bits(checkpoint.read_part(kModelGroup, "columns", {2, 2}, {2, 5}),
                          columns.narrow(0, 2, 2).narrow(1, 2, 5).clone()));
    for (const auto& entry : std::filesystem::directory_iterator(path("step_00000005")))
        EXPECT_EQ(entry.path().string().find(".report"), std::string::npos) << entry.path();
}

TEST_F(Native, OneRankThatCannotWriteFailsAll) {
    save_checkpoint(folder_.string(), state_at(1), {{kModelGroup, "w", sample({4}, DType::f32, 1)}});
    Ranks ranks(3);
    std::atomic<int> failures = 0;
    ranks.run([&](int rank) {
        CheckpointTensor tensor{kModelGroup, "w", sample({2}, DType::f32, 2), {6}, {2 * rank}};
        if (rank == 2) {
            tensor.produce = []() -> Tensor { throw Error(Fault::internal, "test", "rank 2 has no room"); };
            tensor.shape = {2};
        }
        try {
            save_checkpoint(folder_.string(), state_at(2), {tensor}, ranks.options(rank));
        } catch (const Error& error) {
            EXPECT_EQ(error.fault(), Fault::internal);
            EXPECT_NE(std::string(error.what()).find("rank 2 has no room"), std::string::npos)
                << "rank " << rank << " says " << error.what();
            ++failures;
        }
    });
    EXPECT_EQ(failures, 3);
    EXPECT_EQ(open_newest_checkpoint(folder_.string())->state().step, 1);
    EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_), {}), 1);
}

TEST_F(Native, AMissingPartIsNoticed) {
    Ranks ranks(2);
    ranks.run([&](int rank) {  // both hold the first half
        save_checkpoint(folder_.string(), state_at(5),
                        {{kModelGroup, "w", sample({2}, DType::f32, 2), {4}, {0}}}, ranks.options(rank));
    });
    EXPECT_NE(refusal([&] { Checkpoint::open(path("step_00000005")); }).find("missing or double"),
              std::string::npos);
}

}  // namespace
}  // namespace levin

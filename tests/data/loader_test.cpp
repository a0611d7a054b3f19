#include "data/loader.h"

#include <algorithm>
#include <set>

#include "tests/data/test_files.h"

namespace levin::test {
namespace {

// Documents of 1 to 13 tokens that count up: token t of the whole set is t.
Documents counting(int64_t tokens) {
    Documents documents;
    int32_t next = 0;
    while (next < tokens) {
        auto& document = documents.emplace_back();
        const int32_t length = 1 + (next * 7) % 13;
        for (int32_t i = 0; i < length && next < tokens; ++i) document.push_back(next++);
    }
    return documents;
}

struct Shard {
    TemporaryFolder folder;
    std::shared_ptr<Dataset> dataset;
    explicit Shard(int64_t tokens = 1001) {
        write_shard(folder / "x", counting(tokens));
        dataset = std::make_shared<Dataset>(std::vector<std::string>{folder / "x"});
    }
};

LoaderOptions options_of(int64_t length) {
    LoaderOptions options;
    options.length = length;
    options.vocab_size = 65536;
    options.seed = 3;
    return options;
}

TEST(Loader, InputsAndTargetsAreShiftedByOne) {
    const Shard shard;
    const Loader loader(shard.dataset, options_of(10));
    ASSERT_EQ(loader.samples_per_epoch(), 100);
    const Batch batch = loader.batch(0, 100);
    std::set<int32_t> firsts;
    for (size_t row = 0; row < 100; ++row) {
        firsts.insert(batch.inputs[row * 10]);
        for (size_t i = 0; i < 10; ++i) {
            EXPECT_EQ(batch.inputs[row * 10 + i], batch.inputs[row * 10] + static_cast<int32_t>(i));
            EXPECT_EQ(batch.targets[row * 10 + i], batch.inputs[row * 10 + i] + 1);
        }
    }
    EXPECT_EQ(firsts.size(), 100u);  // each sample once
    EXPECT_EQ(*firsts.rbegin(), 990);
    EXPECT_TRUE(batch.cu_seqlens.empty());
}

TEST(Loader, ANaturalOrderForEvaluation) {
    const Shard shard;
    LoaderOptions options = options_of(10);
    options.shuffle = false;
    const Batch batch = Loader(shard.dataset, options).batch(0, 100);
    for (int32_t t = 0; t < 1000; ++t) EXPECT_EQ(batch.inputs[static_cast<size_t>(t)], t);
}

TEST(Loader, BordersOfDocumentsAreReportedAndMasked) {
    const TemporaryFolder folder;
    write_shard(folder / "x", {{1, 2, 3}, {4}, {}, {5, 6, 7, 8}, {9, 10}, {11}});
    LoaderOptions options = options_of(4);
    options.shuffle = false;
    options.packed = true;
    options.mask_document_borders = true;
    const auto dataset = std::make_shared<Dataset>(std::vector<std::string>{folder / "x"});
    const Batch batch = Loader(dataset, options).batch(0, 2);
    EXPECT_EQ(batch.inputs, (std::vector<int32_t>{1, 2, 3, 4, 5, 6, 7, 8}));
    EXPECT_EQ(batch.targets, (std::vector<int32_t>{2, 3, -1, -1, 6, 7, 8, -1}));
    EXPECT_EQ(batch.cu_seqlens, (std::vector<int32_t>{0, 3, 4, 8}));
    options.mask_document_borders = false;
    EXPECT_EQ(Loader(dataset, options).batch(0, 2).targets, (std::vector<int32_t>{2, 3, 4, 5, 6, 7, 8, 9}));
}

TEST(Loader, SeveralShardsAreOneStream) {
    const TemporaryFolder folder;
    const Documents all = counting(300);
    const auto middle = all.begin() + static_cast<std::ptrdiff_t>(all.size() / 2);
    write_shard(folder / "all", all);
    write_shard(folder / "a", Documents(all.begin(), middle), TokenType::i32);
    write_shard(folder / "b", Documents(middle, all.end()), TokenType::u16);
    LoaderOptions options = options_of(7);
    options.packed = options.mask_document_borders = true;
    const Loader one(std::make_shared<Dataset>(std::vector<std::string>{folder / "all"}), options);
    const Loader two(std::make_shared<Dataset>(std::vector<std::string>{folder / "a", folder / "b"}),
                     options);
    ASSERT_EQ(one.samples_per_epoch(), two.samples_per_epoch());
    const Batch x = one.batch(5, 60), y = two.batch(5, 60);
    EXPECT_EQ(x.inputs, y.inputs);
    EXPECT_EQ(x.targets, y.targets);
    EXPECT_EQ(x.cu_seqlens, y.cu_seqlens);
}

TEST(Loader, WeightsMixShards) {
    const TemporaryFolder folder;
    write_shard(folder / "ones", {std::vector<int32_t>(101, 1)});
    write_shard(folder / "twos", {std::vector<int32_t>(5001, 2)});
    const auto dataset = std::make_shared<Dataset>(
        std::vector<std::string>{"3 " + (folder / "ones"), "1.0 " + (folder / "twos")});
    EXPECT_DOUBLE_EQ(dataset->weights()[0], 0.75);
    const Batch batch = Loader(dataset, options_of(10)).batch(0, 2000);
    const auto ones = std::count(batch.inputs.begin(), batch.inputs.end(), 1);
    EXPECT_NEAR(static_cast<double>(ones) / 20000, 0.75, 0.04);
    expect_contains(input_error([&] {
                        Dataset({"0.5 " + (folder / "ones"), folder / "twos"});
                    }),
                    "every one");
    expect_contains(input_error([&] { Dataset({"-1 " + (folder / "ones")}); }), "positive");
    expect_contains(input_error([&] { Dataset({}); }), "data.train");
}

TEST(Loader, RefusesWhatCannotBeTrainedOn) {
    const Shard shard(20);
    expect_contains(input_error([&] { Loader(shard.dataset, options_of(20)); }), "needs 21");
    LoaderOptions small = options_of(10);
    small.vocab_size = 10;  // the tenth target is token 10
    const Loader loader(shard.dataset, small);
    expect_contains(input_error([&] { loader.batch(0, 1); }), "token 10 ");
}

TEST(Loader, SidecarVocabularyMustFitTheModel) {
    const Shard shard(20);
    ShardInfo info;
    info.vocab_size = 64000;
    info.tokenizer_kind = "sentencepiece";
    info.num_tokens = 20;
    info.num_documents = static_cast<int64_t>(counting(20).size());
    shard.folder.write("x.json", to_json(info));
    const auto dataset = std::make_shared<Dataset>(std::vector<std::string>{shard.folder / "x"});
    LoaderOptions options = options_of(10);
    Loader fits(dataset, options);
    options.vocab_size = 50257;
    expect_contains(input_error([&] { Loader(dataset, options); }), "64000");
}

TEST(Dataset, AllShardsHaveOneTokenizer) {
    const TemporaryFolder folder;
    const auto shard = [&](const std::string& name, const std::string& kind, int64_t vocabulary,
                           const std::string& model) {
        write_shard(folder / name, counting(20));
        ShardInfo info;
        info.vocab_size = vocabulary;
        info.tokenizer_kind = kind;
        info.num_tokens = 20;
        info.num_documents = static_cast<int64_t>(counting(20).size());
        if (!model.empty()) info.tokenizer_file = name + ".model";
        folder.write(name + ".json", to_json(info));
        if (!model.empty()) folder.write(name + ".model", model);
        return folder / name;
    };
    const std::string byte = shard("byte", "byte", 257, ""),
                      piece = shard("piece", "sentencepiece", 300, "one"),
                      same = shard("same", "sentencepiece", 300, "one"),
                      other = shard("other", "sentencepiece", 300, "two");
    write_shard(folder / "unknown", counting(20));
    Dataset({piece, folder / "unknown", same});
    for (const std::vector<std::string>& mixture :
         {std::vector{byte, piece}, {piece, other}, {"1 " + piece, "2 " + byte}})
        expect_contains(input_error([&] { Dataset{mixture}; }), "another tokenizer");
    const Dataset train({piece});
    Dataset({same}, &train);
    const std::string message = input_error([&] { Dataset({other}, &train); });
    expect_contains(message, "other.bin");
    expect_contains(message, "piece.bin");
}

TEST(Loader, AnOrdinaryRunEqualsAResumedAndAShardedOne) {
    const Shard shard;
    const Loader loader(shard.dataset, options_of(10));
    const Batch whole = loader.batch(0, 240);  // beyond two epochs
    for (int64_t first = 0; first < 240; first += 8) {
        for (int64_t rank = 0; rank < 2; ++rank) {
            const Batch part = loader.batch(first + rank * 4, 4);
            EXPECT_TRUE(std::equal(part.inputs.begin(), part.inputs.end(),
                                   whole.inputs.begin() + (first + rank * 4) * 10));
        }
    }
    // A loader made anew is the same.
    EXPECT_EQ(Loader(shard.dataset, options_of(10)).batch(120, 7).targets, loader.batch(120, 7).targets);
}

TEST(Prefetcher, YieldsWhatTheLoaderYields) {
    const Shard shard;
    const Loader loader(shard.dataset, options_of(10));
    Prefetcher prefetcher(loader, {.first_sample = 6, .count = 3, .stride = 12, .batches = 30, .depth = 3});
    for (int64_t i = 0; i < 30; ++i) {
        const Batch batch = prefetcher.next(), direct = loader.batch(6 + 12 * i, 3);
        EXPECT_EQ(batch.first_sample, 6 + 12 * i);
        EXPECT_EQ(batch.inputs, direct.inputs);
        EXPECT_EQ(batch.targets, direct.targets);
    }
    EXPECT_GE(prefetcher.total_wait_ms(), prefetcher.last_wait_ms());
    EXPECT_THROW(prefetcher.next(), Error);
}

TEST(Prefetcher, ExceptionsReachTheConsumerAfterTheGoodBatches) {
    const TemporaryFolder folder;
    std::vector<int32_t> tokens(100, 1);
    tokens[55] = 999;
    write_shard(folder / "x", {tokens});
    LoaderOptions options = options_of(10);
    options.vocab_size = 100;
    options.shuffle = false;
    const Loader loader(std::make_shared<Dataset>(std::vector<std::string>{folder / "x"}), options);
    Prefetcher prefetcher(loader, {.count = 1, .stride = 1});
    for (int i = 0; i < 5; ++i) prefetcher.next();
    for (int again = 0; again < 2; ++again) {
        expect_contains(input_error([&] { prefetcher.next(); }), "token 999 at position 55");
    }
}

TEST(Prefetcher, EndsCleanlyAtAnyMoment) {
    const Shard shard;
    const Loader loader(shard.dataset, options_of(10));
    for (int taken = 0; taken < 20; ++taken) {
        Prefetcher prefetcher(loader, {.count = 2, .stride = 2, .depth = 1 + taken % 4});
        for (int i = 0; i < taken % 5; ++i) prefetcher.next();
    }
}

TEST(Dataset, FingerprintTellsDataApart) {
    const Shard a(500), same(500), other(501);
    EXPECT_EQ(a.dataset->fingerprint(), same.dataset->fingerprint());
    EXPECT_NE(a.dataset->fingerprint(), other.dataset->fingerprint());
}

}  // namespace
}  // namespace levin::test

#include "checkpoint/pickle.h"

#include "checkpoint/huggingface.h"
#include "tests/checkpoint/checkpoint_test.h"

namespace levin {
namespace {

class Pickle : public FolderTest {
protected:
    // Written by torch.save(): bf16, f32 and f16 tensors, two names of one storage, a part of a storage, a
    // Parameter.
    std::string data_ = source_file("tests/checkpoint/data/");
};

TEST_F(Pickle, ReadsWhatTorchSaved) {
    const PickleReader reader(data_ + "pytorch_bin");
    const SafetensorsReader expected(data_ + "pytorch_bin/expected.safetensors");
    EXPECT_EQ(reader.names().size(), expected.names().size());
    for (const auto& name : expected.names()) {
        ASSERT_TRUE(reader.contains(name)) << name;
        EXPECT_TRUE(same_bits(reader.read(name), expected.read(name))) << name;
    }
}

TEST_F(Pickle, AModelFolderOfTorchIsRead) {
    const LoadedModel model = load_model(data_ + "pytorch_bin");
    EXPECT_EQ(model.config.hidden_size, 8);
    const Tensor stacked = model.parameters->read("layers.0.glu.in");
    EXPECT_EQ(stacked.shape(), (Shape{24, 8}));
    EXPECT_EQ(stacked.dtype(), DType::f32);  // f16 widened
    const SafetensorsReader expected(data_ + "pytorch_bin/expected.safetensors");
    EXPECT_EQ(bits(stacked.narrow(0, 12, 12).clone()),
              bits(expected.read("model.layers.0.channel_mixer.l2.weight")));
}

TEST_F(Pickle, ProgramsAreRefused) {
    const std::string message =
        refusal([&] { parse_pickled_tensors(read_text_file(data_ + "hostile.pkl"), "hostile.pkl"); });
    EXPECT_NE(message.find("would be run"), std::string::npos) << message;
    using namespace std::string_literals;
    for (const std::string& program :
         {""s, "."s, "N."s, "("s, "\x80\x09."s, "cos\nsystem\n."s, "]."s, "I1\n."s, "}}s."s, "h\x05."s,
          "cbuiltins\neval\n(X\x01\0\0\0xtR."s, "X\xff\xff\xff\xffx."s, "i__main__\nf\n."s,
          "\x8a\xff"
          "1."s,
          "K\x01Q."s, ")R."s, "K\x01K\x02\x86Q."s})
        refusal([&] { parse_pickled_tensors(program, "bad"); });
    refusal(
        [&] { parse_pickled_tensors(std::string(100000, ')') + std::string(100000, '\x85') + ".", "deep"); });
}

TEST_F(Pickle, EveryTruncationOfTheArchiveIsRefused) {
    const std::string bytes = read_text_file(data_ + "pytorch_bin/pytorch_model.bin");
    for (size_t length = 0; length < bytes.size(); length += 61) {
        put(path("pytorch_model.bin"), bytes.substr(0, length));
        refusal([&] { PickleReader reader(folder_.string()); });
    }
}

TEST_F(Pickle, AFlippedByteIsRefusedOrReadAsOtherNumbers) {
    const std::string bytes = read_text_file(data_ + "pytorch_bin/pytorch_model.bin");
    size_t refused = 0;
    for (size_t at = 0; at < bytes.size(); at += 11) {
        std::string damaged = bytes;
        damaged[at] = static_cast<char>(damaged[at] ^ (1 << (at % 8)));
        put(path("pytorch_model.bin"), damaged);
        try {
            const PickleReader reader(folder_.string());
            for (const auto& name : reader.names()) reader.read(name);
        } catch (const Error& error) {
            EXPECT_EQ(error.fault(), Fault::input);
            ++refused;
        }
    }
    EXPECT_GT(refused, 20u);
}

}  // namespace
}  // namespace levin

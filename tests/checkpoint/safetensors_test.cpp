#include "checkpoint/safetensors.h"

#include <cstring>
#include <nlohmann/json.hpp>

#include "tests/checkpoint/checkpoint_test.h"

namespace levin {
namespace {

class Safetensors : public FolderTest {
protected:
    // A sound file with three tensors.
    std::string write_example() {
        const std::string file = path("example.safetensors");
        SafetensorsWriter writer(
            file, {{"a", DType::f64, {3}}, {"b", DType::f32, {2, 5}}, {"c", DType::bf16, {4, 1, 3}}});
        writer.write("a", sample({3}, DType::f64, 1));
        writer.write("b", sample({2, 5}, DType::f32, 2));
        writer.write("c", sample({4, 1, 3}, DType::bf16, 3));
        const FileDigest digest = writer.finish();
        EXPECT_EQ(digest, digest_of_file(file));
        return file;
    }
    std::string with_header(const std::string& header, size_t data_bytes) {
        const uint64_t length = header.size();
        std::string bytes(8, '\0');
        std::memcpy(bytes.data(), &length, 8);
        put(path("hostile.safetensors"), bytes + header + std::string(data_bytes, 'x'));
        return path("hostile.safetensors");
    }
};

TEST_F(Safetensors, WhatIsWrittenIsReadToTheBit) {
    const SafetensorsReader reader(write_example());
    EXPECT_EQ(reader.names(), (std::vector<std::string>{"a", "b", "c"}));
    EXPECT_TRUE(same_bits(reader.read("a"), sample({3}, DType::f64, 1)));
    EXPECT_TRUE(same_bits(reader.read("b"), sample({2, 5}, DType::f32, 2)));
    EXPECT_TRUE(same_bits(reader.read("c"), sample({4, 1, 3}, DType::bf16, 3)));
    EXPECT_NE(refusal([&] { reader.read("d"); }).find("no tensor 'd'"), std::string::npos);
}

TEST_F(Safetensors, DataIsAlignedAndMarkedForTorch) {
    const std::string bytes = read_text_file(write_example());
    uint64_t length;
    std::memcpy(&length, bytes.data(), 8);
    EXPECT_EQ(length % 8, 0u);
    const auto header = nlohmann::json::parse(bytes.substr(8, length));
    EXPECT_EQ(header["__metadata__"]["format"], "pt");
    EXPECT_EQ(header["c"]["dtype"], "BF16");
}

TEST_F(Safetensors, WritesAViewOfAnotherTensor) {
    const Tensor whole = sample({4, 6}, DType::f32, 7);
    SafetensorsWriter writer(path("view.safetensors"), {{"view", DType::f32, {4, 2}}});
    writer.write("view", whole.narrow(1, 3, 2));
    writer.finish();
    EXPECT_TRUE(
        same_bits(SafetensorsReader(path("view.safetensors")).read("view"), whole.narrow(1, 3, 2).clone()));
}

TEST_F(Safetensors, NothingUnderTheNameBeforeItIsFinished) {
    {
        SafetensorsWriter writer(path("w.safetensors"), {{"a", DType::f32, {2}}});
        writer.write("a", sample({2}, DType::f32, 1));
        EXPECT_FALSE(std::filesystem::exists(path("w.safetensors")));
    }
    EXPECT_TRUE(std::filesystem::is_empty(folder_));
}

TEST_F(Safetensors, EmptyTensorsScalarsAndNoTensorsAtAll) {
    SafetensorsWriter writer(path("e.safetensors"), {{"none", DType::f32, {0, 4}}, {"one", DType::i32, {}}});
    writer.write("none", Tensor::empty({0, 4}, DType::f32));
    writer.write("one", Tensor::from<int32_t>({}, {42}));
    writer.finish();
    const SafetensorsReader reader(path("e.safetensors"));
    EXPECT_EQ(reader.read("none").shape(), (Shape{0, 4}));
    EXPECT_EQ(reader.read("one").item(), 42);
    SafetensorsWriter(path("n.safetensors"), {}).finish();
    EXPECT_TRUE(SafetensorsReader(path("n.safetensors")).names().empty());
}

TEST_F(Safetensors, HalvesAreWidenedExactly) {
    // 1, -2, largest, smallest normal, smallest subnormal, -0, infinity, 1/3 rounded
    const std::vector<uint16_t> halves{0x3c00, 0xc000, 0x7bff, 0x0400, 0x0001, 0x8000, 0x7c00, 0x3555};
    const std::string header = R"({"h":{"dtype":"F16","shape":[8],"data_offsets":[0,16]}})";
    with_header(header, 0);
    std::ofstream(path("hostile.safetensors"), std::ios::binary | std::ios::app)
        .write(reinterpret_cast<const char*>(halves.data()), 16);
    const auto values = SafetensorsReader(path("hostile.safetensors")).read("h").to_host<float>();
    const std::vector<float> expected{1, -2, 65504, 0x1p-14f, 0x1p-24f, -0.0f, INFINITY, 0x1.554p-2f};
    EXPECT_EQ(0, std::memcmp(values.data(), expected.data(), 32));
}

TEST_F(Safetensors, HostileHeadersAreRefusedByName) {
    const struct {
        const char* header;
        size_t data;
        const char* reason;
    } cases[] = {
        {"", 0, "start"},
        {"[]", 0, "start"},
        {"{", 0, "JSON"},
        {"{}}", 0, "JSON"},
        {"{} x", 0, "JSON"},
        {R"({"t":null})", 0, "null"},
        {R"({"t":[]})", 0, "a list"},
        {R"({"t":{}})", 0, "lacks"},
        {R"({"t":{"dtype":"F32","shape":[1]}})", 4, "lacks"},
        {R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 8, "too many"},
        {R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4, "takes 8 bytes"},
        {R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8, "hole"},
        {R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"u":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}})",
         6, "overlap"},
        {R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"t":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
         8, "twice"},
        {R"({"t":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4, "twice"},
        {R"({"__metadata__":{"a":"b","a":"c"}})", 0, "twice"},
        {R"({"__metadata__":{"a":1}})", 0, "a number"},
        {R"({"t":{"dtype":"Q4","shape":[1],"data_offsets":[0,4]}})", 4, "unknown type"},
        {R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"extra":1}})", 4, "unknown field"},
        {R"({"t":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4, "negative"},
        {R"({"t":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}})", 4, "whole number"},
        {R"({"t":{"dtype":"F32","shape":["1"],"data_offsets":[0,4]}})", 4, "text"},
        {R"({"t":{"dtype":"F32","shape":[[1]],"data_offsets":[0,4]}})", 4, "a list"},
        {R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", 4, "corrupt"},
        {R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0]}})", 4, "two data_offsets"},
        {R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}})", 4, "two data_offsets"},
        {R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551615]}})", 4, "corrupt"},
        {R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0,99999999999999999999]}})", 4, "whole number"},
        {R"({"t":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,4]}})", 4, "too large"},
        {R"({"t":{"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,4]}})", 4, "impossible"},
        {R"({"t":{"dtype":"F32","shape":[4294967296,4294967296,0],"data_offsets":[0,0]}})", 0, "too large"},
        {"{\"t\xff\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "JSON"},
    };
    for (const auto& hostile : cases) {
        const std::string message =
            refusal([&] { SafetensorsReader(with_header(hostile.header, hostile.data)); });
        EXPECT_NE(message.find(hostile.reason), std::string::npos) << hostile.header << "\n" << message;
        EXPECT_NE(message.find("hostile.safetensors"), std::string::npos) << message;
    }
    // A million brackets must not exhaust the stack, a header longer than the file not the memory.
    EXPECT_NE(
        refusal([&] { SafetensorsReader(with_header("{\"t\":" + std::string(1000000, '['), 0)); }).size(),
        0u);
    put(path("long.safetensors"), std::string("\xff\xff\xff\x04\0\0\0\0{}", 10));
    EXPECT_NE(refusal([&] { SafetensorsReader(path("long.safetensors")); }).find("truncated"),
              std::string::npos);
    put(path("huge.safetensors"), std::string("\0\0\0\0\0\0\1\0{}", 10));
    EXPECT_NE(refusal([&] { SafetensorsReader(path("huge.safetensors")); }).find("not allowed"),
              std::string::npos);
}

TEST_F(Safetensors, EveryTruncationIsRefused) {
    const std::string bytes = read_text_file(write_example());
    for (size_t length = 0; length < bytes.size(); ++length) {
        put(path("cut.safetensors"), bytes.substr(0, length));
        refusal([&] { SafetensorsReader(path("cut.safetensors")); });
    }
    put(path("cut.safetensors"), bytes + "x");
    refusal([&] { SafetensorsReader(path("cut.safetensors")); });
}

TEST_F(Safetensors, AFlippedByteIsRefusedOrReadAsOtherNumbers) {
    const std::string bytes = read_text_file(write_example());
    size_t refused = 0;
    for (size_t at = 0; at < bytes.size(); ++at)
        for (const char flip : {'\1', '\x20', '\x80'}) {
            std::string damaged = bytes;
            damaged[at] = static_cast<char>(damaged[at] ^ flip);
            put(path("flip.safetensors"), damaged);
            try {
                const SafetensorsReader reader(path("flip.safetensors"));
                for (const auto& name : reader.names()) reader.read(name);
            } catch (const Error& error) {
                EXPECT_EQ(error.fault(), Fault::input);
                ++refused;
            }
        }
    EXPECT_GT(refused, bytes.size());  // most of the header's bytes
}

TEST_F(Safetensors, ShardsAndTheirIndex) {
    const std::vector<TensorInfo> layout{{"a", DType::bf16, {100}},
                                         {"b", DType::f32, {10}},
                                         {"c", DType::bf16, {300}},
                                         {"d", DType::bf16, {5}}};
    const auto value = [&](size_t i) {
        return sample(layout[i].shape, layout[i].dtype, static_cast<unsigned>(i));
    };
    write_safetensors_folder(folder_.string(), layout, 250, value);
    const auto index = nlohmann::json::parse(read_text_file(path("model.safetensors.index.json")));
    EXPECT_EQ(index["metadata"]["total_size"], 200 + 40 + 600 + 10);
    EXPECT_EQ(index["weight_map"]["a"], "model-00001-of-00003.safetensors");
    EXPECT_EQ(index["weight_map"]["b"], "model-00001-of-00003.safetensors");
    EXPECT_EQ(index["weight_map"]["c"], "model-00002-of-00003.safetensors");  // larger than the limit: alone
    EXPECT_EQ(index["weight_map"]["d"], "model-00003-of-00003.safetensors");
    const SafetensorsReader reader(folder_.string());
    for (size_t i = 0; i < layout.size(); ++i) EXPECT_TRUE(same_bits(reader.read(layout[i].name), value(i)));
    EXPECT_EQ(reader.entry("b").begin, 0u);  // the wider type first

    const std::string index_text = read_text_file(path("model.safetensors.index.json"));
    auto wrong = nlohmann::json::parse(index_text);
    wrong["weight_map"]["a"] = "../model-00001-of-00003.safetensors";
    put(path("model.safetensors.index.json"), wrong.dump());
    EXPECT_NE(refusal([&] { SafetensorsReader(folder_.string()); }).find("without folders"),
              std::string::npos);
    wrong["weight_map"]["a"] = "model-00002-of-00003.safetensors";
    put(path("model.safetensors.index.json"), wrong.dump());
    EXPECT_NE(refusal([&] { SafetensorsReader(folder_.string()); }).find("not there"), std::string::npos);

    // A smaller model in the same folder leaves nothing of the larger one.
    write_safetensors_folder(folder_.string(), {layout[1]}, 250, [&](size_t) { return value(1); });
    EXPECT_EQ(SafetensorsReader(folder_.string()).names(), std::vector<std::string>{"b"});
    EXPECT_FALSE(std::filesystem::exists(path("model-00002-of-00003.safetensors")));
}

}  // namespace
}  // namespace levin

#include "data/shard_info.h"

#include <nlohmann/json.hpp>

#include "data/file.h"
#include "kernels/base/error.h"
#include "kernels/base/file.h"

namespace levin {

namespace {

using Json = nlohmann::json;

constexpr size_t kLargestInfo = size_t{1} << 20;
constexpr int64_t kLargestVocabulary = (int64_t{1} << 31) - 1;

int64_t integer(const Json& json, const std::string& path, const char* key, int64_t low, int64_t high) {
    const auto at = json.find(key);
    LEVIN_REQUIRE(at != json.end() && at->is_number_integer(), path,
                  "has no integer \"{}\"; build the shard again", key);
    LEVIN_REQUIRE(!at->is_number_unsigned() || at->get<uint64_t>() <= static_cast<uint64_t>(high), path,
                  "\"{}\" is {}, at most {} makes sense", key, at->dump(), high);
    const int64_t value = at->get<int64_t>();
    LEVIN_REQUIRE(value >= low && value <= high, path, "\"{}\" is {}, expected {} to {}", key, value, low,
                  high);
    return value;
}

std::string text(const Json& json, const std::string& path, const char* key) {
    const auto at = json.find(key);
    LEVIN_REQUIRE(at != json.end() && at->is_string(), path, "has no text \"{}\"; build the shard again",
                  key);
    return at->get<std::string>();
}

}  // namespace

std::string to_json(const ShardInfo& info) {
    nlohmann::ordered_json json;
    json["format"] = "levin-shard";
    json["version"] = 1;
    json["vocab_size"] = info.vocab_size;
    json["tokenizer"] = info.tokenizer_kind;
    json["tokenizer_file"] = info.tokenizer_file;
    json["bos_id"] = info.bos_id;
    json["eos_id"] = info.eos_id;
    json["pad_id"] = info.pad_id;
    json["num_tokens"] = info.num_tokens;
    json["num_documents"] = info.num_documents;
    json["append_eos"] = info.append_eos;
    json["input_hash"] = info.input_hash;
    return json.dump(2) + "\n";
}

std::optional<ShardInfo> read_shard_info(const std::string& prefix) {
    const std::string path = prefix + ".json";
    if (!file_exists(path)) return std::nullopt;
    const Json json = Json::parse(read_text_file(path, kLargestInfo), nullptr, /*allow_exceptions=*/false);
    LEVIN_REQUIRE(json.is_object(), path, "is no JSON object; build the shard again, or remove this file");
    LEVIN_REQUIRE(
        json.value("format", Json()) == "levin-shard", path,
        "lies beside a shard but is not its description (\"format\" is not \"levin-shard\"); move it away");
    integer(json, path, "version", 1, 1);
    ShardInfo info;
    info.vocab_size = integer(json, path, "vocab_size", 1, kLargestVocabulary);
    info.tokenizer_kind = text(json, path, "tokenizer");
    info.tokenizer_file = text(json, path, "tokenizer_file");
    LEVIN_REQUIRE(info.tokenizer_file.find('/') == std::string::npos, path,
                  "\"tokenizer_file\" is \"{}\", expected the name of a file in the same folder",
                  info.tokenizer_file);
    const auto id = [&](const char* key) {
        return static_cast<int32_t>(integer(json, path, key, -1, info.vocab_size - 1));
    };
    info.bos_id = id("bos_id");
    info.eos_id = id("eos_id");
    info.pad_id = id("pad_id");
    info.num_tokens = integer(json, path, "num_tokens", 0, INT64_MAX);
    info.num_documents = integer(json, path, "num_documents", 0, INT64_MAX);
    info.append_eos = json.value("append_eos", Json()) == true;
    info.input_hash = text(json, path, "input_hash");
    return info;
}

}  // namespace levin

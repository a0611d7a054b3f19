// Token files of huggingface/datatrove: NAME.ds raw u16 or u32 tokens, NAME.ds.index u64[] the end of each
// document in tokens, NAME.ds.metadata text whose first line ends in "|2" or "|4", the bytes of a token
// (optional here: the sizes of the other two files tell the same).
#include <algorithm>
#include <string_view>

#include "data/token_source.h"
#include "kernels/base/error.h"
#include "kernels/base/file.h"

namespace levin {

std::unique_ptr<TokenSource> open_datatrove_shard(const std::string& ds_path) {
    MappedFile file(ds_path);
    const MappedFile index(ds_path + ".index");
    LEVIN_REQUIRE(index.size() % 8 == 0, index.path(), "holds {} bytes, which is no multiple of 8; truncated",
                  index.size());
    const int64_t documents = static_cast<int64_t>(index.size() / 8),
                  size = static_cast<int64_t>(file.size());
    std::vector<int64_t> starts{0};
    starts.reserve(static_cast<size_t>(documents) + 1);
    for (int64_t d = 0; d < documents; ++d) {
        const uint64_t end = load_unaligned<uint64_t>(index.bytes().data() + 8 * d);
        LEVIN_REQUIRE(
            end >= static_cast<uint64_t>(starts.back()) && end <= static_cast<uint64_t>(size) / 2,
            index.path(),
            "document {} ends at token {}, expected {} to {}; the index is damaged or the .ds file truncated",
            d, end, starts.back(), size / 2);
        starts.push_back(static_cast<int64_t>(end));
    }
    const int64_t tokens = starts.back();
    const int64_t width = tokens > 0 ? size / tokens : 2;
    LEVIN_REQUIRE(
        (width == 2 || width == 4) && size == tokens * width, ds_path,
        "holds {} bytes for the {} tokens of its index, expected {} (u16) or {} (u32); truncated or damaged",
        size, tokens, tokens * 2, tokens * 4);
    const std::string metadata = ds_path + ".metadata";
    if (file_exists(metadata)) {
        const std::string text = read_text_file(metadata, size_t{1} << 20);
        const std::string line = text.substr(0, std::min(text.find('\n'), text.size()));
        const size_t bar = line.rfind('|');
        const std::string said = bar == std::string::npos ? "" : line.substr(bar + 1);
        LEVIN_REQUIRE(said.empty() || tokens == 0 || said == std::to_string(width), metadata,
                      "says a token has {} bytes, the files' sizes say {}; they do not belong together", said,
                      width);
    }
    const TokenType type = width == 2 ? TokenType::u16 : TokenType::u32;
    auto table = std::make_unique<ContiguousDocuments>(std::move(starts), 0, width);
    return std::make_unique<TokenSource>(ds_path, std::move(file), type, std::move(table));
}

}  // namespace levin

// tokenizer.json, and text through whatever tokenizer it makes.
#include "data/tokenizer.h"
#include "tests/data/fuzz.h"
#include "tests/data/test_files.h"

namespace levin::test {

std::vector<std::string> fuzz_seeds() {
    return {
        R"({"normalizer":{"type":"NFC"},"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":)"
        R"({"Regex":" ?[^\\s\\p{L}]+|\\s+(?!\\S)|\\p{L}{1,3}"},"behavior":"Isolated","invert":false},{"type":"Digits",)"
        R"("individual_digits":true},{"type":"ByteLevel","add_prefix_space":true,"use_regex":false}]},"added_tokens":[)"
        R"({"id":7,"content":"<e>","special":true,"lstrip":true,"rstrip":true}],"model":{"type":"BPE","ignore_merges":)"
        R"(true,"vocab":{"a":0,"b":1,"c":2,"ab":3,"abc":4,"Ġ":5,"1":6},"merges":["a b",["ab","c"]]}})",
        R"({"pre_tokenizer":{"type":"ByteLevel"},"model":{"vocab":{"a":0,"aa":1},"merges":["a a"]}})",
        R"({"pre_tokenizer":{"type":"Split","pattern":{"String":"a"},"behavior":"Removed"},"model":{"vocab":{"a":0}}})",
    };
}

}  // namespace levin::test

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace levin;
    levin::test::expect_answer([&] {
        const std::string json(reinterpret_cast<const char*>(data), size);
        const auto tokenizer = make_bpe_tokenizer(json, json, "tokenizer.json");
        for (const std::string text :
             {"abc ab  <e> a1b\xFF", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}) {
            levin::test::expect_answer([&] {
                const auto ids = tokenizer->encode(text);
                tokenizer->decode(ids);
            });
        }
    });
    return 0;
}

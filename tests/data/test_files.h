// What every data test writes and reads.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "data/megatron_shard.h"
#include "kernels/base/error.h"
#include "tests/temporary_folder.h"

namespace levin::test {

template <class T>
std::string bytes_of(const std::vector<T>& values) {
    return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

using Documents = std::vector<std::vector<int32_t>>;

inline void write_shard(const std::string& prefix, const Documents& documents,
                        TokenType type = TokenType::u16) {
    MegatronShardWriter writer(prefix, type);
    for (const auto& document : documents) {
        writer.append(document);
        writer.end_document();
    }
    writer.commit();
}

inline Documents documents_of(const TokenSource& source) {
    Documents documents;
    for (int64_t d = 0; d < source.num_documents(); ++d) {
        const TokenSpan span = source.document(d);
        auto& document = documents.emplace_back();
        for (int64_t i = 0; i < span.count; ++i) document.push_back(static_cast<int32_t>(span[i]));
    }
    return documents;
}

// The message of the Error that `body` throws, which must be the user's to mend.
template <class Body>
std::string input_error(const Body& body) {
    try {
        body();
    } catch (const Error& error) {
        EXPECT_EQ(error.fault(), Fault::input) << error.what();
        return error.what();
    }
    ADD_FAILURE() << "no error was thrown";
    return "";
}

inline void expect_contains(const std::string& text, const std::string& part) {
    EXPECT_NE(text.find(part), std::string::npos) << "\"" << part << "\" is not in: " << text;
}

}  // namespace levin::test

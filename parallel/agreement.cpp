#include "parallel/agreement.h"

#include <algorithm>
#include <cstring>

namespace levin {

namespace {

template <class T>
T reduced(Communicator& ranks, T mine, ReduceOp op) {
    if (ranks.size() == 1) return mine;
    const Tensor value = Tensor::from<T>({1}, {mine});
    ranks.all_reduce(value, op);
    return value.data<T>()[0];
}

}  // namespace

bool any_agree(Communicator& ranks, bool mine) { return reduced<int64_t>(ranks, mine, ReduceOp::max) != 0; }
bool all_agree(Communicator& ranks, bool mine) { return !any_agree(ranks, !mine); }
int64_t max_over(Communicator& ranks, int64_t mine) { return reduced(ranks, mine, ReduceOp::max); }
double max_over(Communicator& ranks, double mine) { return reduced(ranks, mine, ReduceOp::max); }
double sum_over(Communicator& ranks, double mine) { return reduced(ranks, mine, ReduceOp::sum); }

std::string broadcast_text(Communicator& ranks, const std::string& text, int root) {
    if (ranks.size() == 1) return text;
    const Tensor length = Tensor::from<int64_t>({1}, {static_cast<int64_t>(text.size())});
    ranks.broadcast(length, root);
    const Tensor bytes = Tensor::empty({length.data<int64_t>()[0]}, DType::u8);
    if (ranks.rank() == root) std::memcpy(bytes.data(), text.data(), text.size());
    ranks.broadcast(bytes, root);
    return {static_cast<const char*>(bytes.data()), bytes.bytes()};
}

std::vector<std::string> gather_texts(Communicator& ranks, const std::string& text) {
    if (ranks.size() == 1) return {text};
    const Tensor length = Tensor::from<int64_t>({1}, {static_cast<int64_t>(text.size())});
    const Tensor lengths = Tensor::empty({ranks.size()}, DType::i64);
    ranks.all_gather(length, lengths);
    const int64_t* each = lengths.data<int64_t>();
    const int64_t longest = *std::max_element(each, each + ranks.size());
    const Tensor mine = Tensor::zeros({longest}, DType::u8);
    std::memcpy(mine.data(), text.data(), text.size());
    const Tensor all = Tensor::empty({ranks.size(), longest}, DType::u8);
    ranks.all_gather(mine, all);
    std::vector<std::string> texts;
    for (int64_t r = 0; r < ranks.size(); ++r)
        texts.emplace_back(static_cast<const char*>(all.data()) + r * longest, static_cast<size_t>(each[r]));
    return texts;
}

std::string first_text(Communicator& ranks, const std::string& text) {
    if (all_agree(ranks, text.empty())) return "";
    const std::vector<std::string> texts = gather_texts(ranks, text);
    return *std::find_if(texts.begin(), texts.end(), [](const std::string& t) { return !t.empty(); });
}

void require_same(Communicator& ranks, const std::string& what, const std::string& value) {
    const std::vector<std::string> values = gather_texts(ranks, value);
    for (size_t r = 1; r < values.size(); ++r) {
        if (values[r] == values[0]) continue;
        const auto shown = [](const std::string& text) {
            return text.size() <= 80 ? "\"" + text + "\"" : std::to_string(text.size()) + " bytes";
        };
        fail(Fault::communication, ranks.name(),
             "{} differs: rank 0 has {}, rank {} has {}; start every rank from the same program, folder and "
             "arguments",
             what, shown(values[0]), r, shown(values[r]));
    }
}

}  // namespace levin

#include "model/slices.h"

#include <algorithm>

#include "core/transfer.h"

namespace levin {

namespace {

int64_t rounded_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

class Cutter {
public:
    Cutter(const ops::TokenLayout& layout, int64_t most) : layout_(layout), most_(most) {}

    LayerSlices cut() {
        const bool packed = layout_.cu_seqlens.defined();
        const int64_t sequences = layout_.sequences();
        for (int64_t i = 0; i < sequences; ++i) {
            const int64_t begin = packed ? border(i) : i * layout_.length,
                          end = packed ? border(i + 1) : begin + layout_.length;
            if (end - done() > most_) close();
            if (end - begin > most_)
                pieces(begin, end);
            else
                run_.push_back(end);
        }
        close();
        return std::move(result_);
    }

private:
    int64_t border(int64_t i) const { return (*layout_.borders)[static_cast<size_t>(i)]; }
    int64_t done() const {
        return result_.size() == 0 ? 0 : result_.rows.back().begin + result_.rows.back().rows;
    }

    void add(int64_t rows, bool continues, ops::TokenLayout layout) {
        const int64_t begin = done();
        // In a batch of rows every sequence starts anew; packed documents count on (kernels/position.h).
        layout.first_position =
            layout_.first_position + (layout_.cu_seqlens.defined() ? begin : begin % layout_.length);
        result_.rows.push_back({begin, rows, continues});
        result_.layouts.push_back(std::move(layout));
    }

    // Whole sequences from the end of the last slice on.
    void close() {
        const int64_t begin = done(), rows = run_.empty() ? 0 : run_.back() - begin;
        if (rows > 0 && !layout_.cu_seqlens.defined()) {
            add(rows, false, {.batch = rows / layout_.length, .length = layout_.length});
        } else if (rows > 0) {
            ops::TokenLayout layout{.batch = 1, .length = rows};
            std::vector<int32_t> borders{0};
            for (const int64_t end : run_) borders.push_back(static_cast<int32_t>(end - begin));
            if (run_.size() > 1)
                layout.cu_seqlens =
                    upload({static_cast<int64_t>(borders.size())}, borders, layout_.cu_seqlens.device());
            add(rows, false, std::move(layout));
        }
        run_.clear();
    }

    // One sequence that is too long.
    void pieces(int64_t begin, int64_t end) {
        const int64_t length = end - begin, count = (length + most_ - 1) / most_;
        const int64_t piece = std::min(most_, rounded_up((length + count - 1) / count, 128));  // whole tiles
        for (int64_t at = begin; at < end; at += piece) {
            const int64_t rows = std::min(piece, end - at);
            add(rows, at > begin, {.batch = 1, .length = rows});
        }
    }

    const ops::TokenLayout& layout_;
    const int64_t most_;
    std::vector<int64_t> run_;  // ends of the whole sequences of the slice in the making
    LayerSlices result_;
};

}  // namespace

LayerSlices cut_into_slices(const ops::TokenLayout& layout, int64_t most) {
    if (most <= 0 || layout.tokens() <= most)
        return {.rows = {{.begin = 0, .rows = layout.tokens()}}, .layouts = {layout}};
    LEVIN_REQUIRE(
        !layout.chunks, "model",
        "trainer.recompute_slice is {} and a rank of parallel.cp has {} tokens at once: chunks are not "
        "cut; set trainer.recompute_slice=0 or parallel.cp=1",
        most, layout.tokens());
    LEVIN_CHECK(!layout.cu_seqlens.defined() || layout.borders, "model",
                "packed documents in slices: the host needs their borders too (TokenLayout::borders)");
    return Cutter(layout, most).cut();
}

}  // namespace levin

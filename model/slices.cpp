#include "model/slices.h"

#include "core/transfer.h"
#include "parallel/context_parallel/chunks.h"

namespace levin {

namespace {

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
        const std::vector<int64_t> borders = cut_evenly(end - begin, most_, 128);  // whole tiles
        for (size_t i = 0; i + 1 < borders.size(); ++i) {
            const int64_t rows = borders[i + 1] - borders[i];
            add(rows, i > 0, {.batch = 1, .length = rows});
        }
    }

    const ops::TokenLayout& layout_;
    const int64_t most_;
    std::vector<int64_t> run_;  // ends of the whole sequences of the slice in the making
    LayerSlices result_;
};

}  // namespace

LayerSlices cut_into_slices(const ops::TokenLayout& layout, int64_t most) {
    if (layout.slices) {
        LayerSlices result{.rows = {}, .layouts = *layout.slices};
        int64_t begin = 0;
        for (const ops::TokenLayout& slice : *layout.slices) {
            result.rows.push_back({begin, slice.tokens(), slice.chunks->continues()});
            begin += slice.tokens();
        }
        return result;
    }
    if (most <= 0 || layout.tokens() <= most)
        return {.rows = {{.begin = 0, .rows = layout.tokens()}}, .layouts = {layout}};
    LEVIN_CHECK(!layout.chunks, "model",
                "a chunk of {} tokens for slices of {}: give chunk_layout their size, it cuts both ways",
                layout.tokens(), most);
    LEVIN_CHECK(!layout.cu_seqlens.defined() || layout.borders, "model",
                "packed documents in slices: the host needs their borders too (TokenLayout::borders)");
    return Cutter(layout, most).cut();
}

}  // namespace levin

#include "model/slices.h"

#include <algorithm>
#include <cstdlib>

#include "core/transfer.h"
#include "parallel/context_parallel/chunks.h"

namespace levin {

namespace {

class Cutter {
public:
    Cutter(const ops::TokenLayout& layout, int64_t most) : layout_(layout), most_(most) {}

    LayerSlices cut() {
        for (int64_t i = 0; i < layout_.sequences(); ++i) {
            const int64_t begin = i == 0 ? 0 : end_of(i - 1), end = end_of(i);
            if (end - done() > most_) close();
            if (end - begin > most_)
                pieces(begin, end);
            else
                run_.push_back(end);
        }
        close();
        return std::move(result_);
    }

    // Into whole sequences before `middle` and behind it.
    LayerSlices cut_at(int64_t middle) {
        for (int64_t i = 0; i < layout_.sequences(); ++i) {
            run_.push_back(end_of(i));
            if (end_of(i) == middle) close();
        }
        close();
        return std::move(result_);
    }

    // The end of a sequence that is nearest to the middle.
    int64_t nearest_to_middle() const {
        int64_t best = layout_.tokens();
        for (int64_t i = 0; i < layout_.sequences(); ++i)
            if (std::abs(2 * end_of(i) - layout_.tokens()) < std::abs(2 * best - layout_.tokens()))
                best = end_of(i);
        return best;
    }

private:
    int64_t end_of(int64_t i) const {
        return layout_.cu_seqlens.defined() ? (*layout_.borders)[static_cast<size_t>(i) + 1]
                                            : (i + 1) * layout_.length;
    }
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

LayerSlices whole(const ops::TokenLayout& layout) {
    return {.rows = {{.begin = 0, .rows = layout.tokens()}}, .layouts = {layout}};
}

void check_borders(const ops::TokenLayout& layout) {
    LEVIN_CHECK(!layout.cu_seqlens.defined() || layout.borders, "model",
                "packed documents in slices: the host needs their borders too (TokenLayout::borders)");
}

}  // namespace

LayerSlices cut_into_halves(const ops::TokenLayout& layout) {
    if (layout.chunks || layout.slices || layout.sequences() < 2) return whole(layout);
    check_borders(layout);
    Cutter cutter(layout, layout.tokens());
    const int64_t middle = cutter.nearest_to_middle(), tokens = layout.tokens();
    return 4 * std::min(middle, tokens - middle) < tokens ? whole(layout) : cutter.cut_at(middle);
}

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
    if (most <= 0 || layout.tokens() <= most) return whole(layout);
    LEVIN_CHECK(!layout.chunks, "model",
                "a chunk of {} tokens for slices of {}: give chunk_layout their size, it cuts both ways",
                layout.tokens(), most);
    check_borders(layout);
    return Cutter(layout, most).cut();
}

}  // namespace levin

// Causal softmax attention in tiles. Forward and dq: a task is a tile of queries of one group of heads, which
// meets the key tiles before it; dk and dv: a tile of keys, which meets the query tiles behind it. The heads
// that share keys share the loaded tiles. Nothing is added by two tasks into one place.
#include <limits>
#include <vector>

#include "kernels/backends.h"
#include "kernels/cpu/activation.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/tile.h"

namespace levin::kernels::cpu {
namespace {

constexpr int64_t kTile = 64;

// A tile of queries (or keys) first .. first + count of a sequence. Query i of the sequence sees the keys up
// to i + offset; tokens are counted in the packed or batched stream of queries and of keys.
struct Task {
    int64_t row, kv_head, first, count;
    int64_t queries, keys;           // of the sequence
    int64_t query_token, key_token;  // the sequence's first tokens
    int64_t statistics;              // its first element in a head's row of log_sum_exp
    int64_t offset() const { return keys - queries; }
};

void check_shape(const SoftmaxAttentionShape& shape) {
    LEVIN_CHECK(
        shape.batch >= 0 && shape.heads > 0 && shape.kv_heads > 0 && shape.heads % shape.kv_heads == 0 &&
            shape.head_dim > 0 && shape.query_length >= 0 && shape.key_length >= shape.query_length,
        "softmax_attention",
        "batch {} query_length {} key_length {} heads {} kv_heads {} head_dim {}: expected heads a multiple "
        "of "
        "kv_heads and key_length at least query_length",
        shape.batch, shape.query_length, shape.key_length, shape.heads, shape.kv_heads, shape.head_dim);
    if (!shape.cu_seqlens) return;
    const int32_t* borders = shape.cu_seqlens;
    LEVIN_CHECK(shape.batch == 1 && shape.query_length == shape.key_length && shape.documents > 0 &&
                    borders[0] == 0 && borders[shape.documents] == shape.query_length,
                "softmax_attention",
                "batch {}, {} queries, {} keys, {} documents: expected batch 1, as many keys as "
                "queries and borders from 0 to their number",
                shape.batch, shape.query_length, shape.key_length, shape.documents);
    for (int64_t d = 0; d < shape.documents; ++d)
        LEVIN_CHECK(borders[d] <= borders[d + 1], "softmax_attention",
                    "document {} runs from token {} to {}, expected ascending borders", d, borders[d],
                    borders[d + 1]);
}

// Tiles of queries or of keys of all sequences, those with the most work first.
std::vector<Task> make_tasks(const SoftmaxAttentionShape& shape, bool of_queries) {
    std::vector<Task> tasks;
    const auto add = [&](int64_t row, int64_t queries, int64_t keys, int64_t query_token, int64_t key_token,
                         int64_t statistics) {
        for (int64_t kv_head = 0; kv_head < shape.kv_heads; ++kv_head)
            for (int64_t first = 0, all = of_queries ? queries : keys; first < all; first += kTile)
                tasks.push_back({row, kv_head, first, std::min(kTile, all - first), queries, keys,
                                 query_token, key_token, statistics});
    };
    if (shape.cu_seqlens) {
        for (int64_t d = 0; d < shape.documents; ++d) {
            const int64_t begin = shape.cu_seqlens[d], length = shape.cu_seqlens[d + 1] - begin;
            add(0, length, length, begin, begin, begin);
        }
    } else {
        for (int64_t b = 0; b < shape.batch; ++b)
            add(b, shape.query_length, shape.key_length, b * shape.query_length, b * shape.key_length, 0);
    }
    std::stable_sort(tasks.begin(), tasks.end(), [&](const Task& a, const Task& b) {
        return of_queries ? a.first > b.first : a.keys - a.first > b.keys - b.first;
    });
    return tasks;
}

double work_of(const SoftmaxAttentionShape& shape, double products) {
    return products * static_cast<double>(shape.batch * shape.query_length * shape.heads * shape.head_dim) *
           static_cast<double>(shape.key_length);
}

template <class T>
void load_tile(int64_t rows, int64_t columns, const T* x, int64_t x_stride, arithmetic_t<T>* tile,
               int64_t stride) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < columns; ++c) tile[r * stride + c] = load(x[r * x_stride + c]);
}
template <class T>
void store_tile(int64_t rows, int64_t columns, const arithmetic_t<T>* tile, int64_t stride, T* x,
                int64_t x_stride) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < columns; ++c) x[r * x_stride + c] = narrow<T>(tile[r * stride + c]);
}
template <class T>
T* at(void* x, int64_t token, int64_t stride, int64_t head, int64_t dim) {
    return static_cast<T*>(x) + token * stride + head * dim;
}
template <class T>
const T* at(const void* x, int64_t token, int64_t stride, int64_t head, int64_t dim) {
    return static_cast<const T*>(x) + token * stride + head * dim;
}

// How many of the `count` keys from key_first a query sees.
int64_t visible_keys(const Task& task, int64_t query, int64_t key_first, int64_t count) {
    return std::clamp<int64_t>(query + task.offset() + 1 - key_first, 0, count);
}

// Takes the scores of one query with further keys: scores -> exp(scale * score - maximum), with the running
// maximum and sum brought up to date. Returns the factor for what was summed before.
template <class R>
R online_softmax(int64_t visible, int64_t count, R scale, R* scores, R& maximum, R& sum) {
    R highest = maximum;
#pragma omp simd reduction(max : highest)
    for (int64_t c = 0; c < visible; ++c) highest = std::max(highest, scale * scores[c]);
    const R factor = visible == 0 ? R(1) : fast_exp(maximum - highest);
    R added = 0;
#pragma omp simd reduction(+ : added)
    for (int64_t c = 0; c < visible; ++c) {
        const R p = fast_exp(scale * scores[c] - highest);
        scores[c] = p;
        added += p;
    }
    std::fill(scores + visible, scores + count, R(0));
    maximum = highest;
    sum = sum * factor + added;
    return factor;
}

template <class T>
void forward_tile(const SoftmaxAttentionForward& args, const Task& task) {
    using R = arithmetic_t<T>;
    const SoftmaxAttentionShape& shape = args.shape;
    const int64_t dim = shape.head_dim, group = shape.heads / shape.kv_heads, stride = tile_stride<R>(dim),
                  square_stride = tile_stride<R>(kTile);
    Scratch& scratch = Scratch::fresh();
    R *q = scratch.take<R>(group * kTile * stride), *o = scratch.take<R>(group * kTile * stride),
      *k = scratch.take<R>(kTile * stride), *v = scratch.take<R>(kTile * stride),
      *k_turned = scratch.take<R>(round_up<R>(dim) * square_stride),
      *scores = scratch.take<R>(kTile * square_stride), *maximum = scratch.take<R>(group * kTile),
      *sum = scratch.take<R>(group * kTile);
    const int64_t token = task.query_token + task.first;
    for (int64_t g = 0; g < group; ++g)
        load_tile(task.count, dim, at<T>(args.q, token, args.q_stride, task.kv_head * group + g, dim),
                  args.q_stride, q + g * kTile * stride, stride);
    std::fill_n(o, group * kTile * stride, R(0));
    std::fill_n(maximum, group * kTile, -std::numeric_limits<R>::infinity());
    std::fill_n(sum, group * kTile, R(0));

    const int64_t reach = task.first + task.count + task.offset();
    for (int64_t key = 0; key < reach; key += kTile) {
        const int64_t n = std::min(kTile, reach - key);
        load_tile(n, dim, at<T>(args.k, task.key_token + key, args.k_stride, task.kv_head, dim),
                  args.k_stride, k, stride);
        load_tile(n, dim, at<T>(args.v, task.key_token + key, args.v_stride, task.kv_head, dim),
                  args.v_stride, v, stride);
        transpose(n, dim, k, stride, k_turned, square_stride);
        for (int64_t g = 0; g < group; ++g) {
            R* out = o + g * kTile * stride;
            multiply(task.count, n, dim, q + g * kTile * stride, stride, k_turned, square_stride, scores,
                     square_stride, kOne<R>, false);
            for (int64_t i = 0; i < task.count; ++i) {
                const R factor =
                    online_softmax(visible_keys(task, task.first + i, key, n), n, static_cast<R>(shape.scale),
                                   scores + i * square_stride, maximum[g * kTile + i], sum[g * kTile + i]);
                if (factor != R(1))
                    for (int64_t c = 0; c < dim; ++c) out[i * stride + c] *= factor;
            }
            multiply(task.count, dim, n, scores, square_stride, v, stride, out, stride, kOne<R>, true);
        }
    }
    for (int64_t g = 0; g < group; ++g) {
        const int64_t head = task.kv_head * group + g;
        R* out = o + g * kTile * stride;
        for (int64_t i = 0; i < task.count; ++i) {
            const R inverse = R(1) / sum[g * kTile + i];
            for (int64_t c = 0; c < dim; ++c) out[i * stride + c] *= inverse;
            if (args.log_sum_exp)
                static_cast<R*>(args.log_sum_exp)[(task.row * shape.heads + head) * shape.query_length +
                                                  task.statistics + task.first + i] =
                    maximum[g * kTile + i] + std::log(sum[g * kTile + i]);
        }
        store_tile(task.count, dim, out, stride, at<T>(args.o, token, shape.heads * dim, head, dim),
                   shape.heads * dim);
    }
}

// What both backward tasks need of a tile of queries: q, do, log-sum-exp and sum(do * o) per query.
template <class T>
struct QueryTile {
    using R = arithmetic_t<T>;
    int64_t stride;
    R *q, *d_o, *log_sum_exp, *delta;

    QueryTile(Scratch& scratch, int64_t dim)
        : stride(tile_stride<R>(dim)),
          q(scratch.take<R>(kTile * stride)),
          d_o(scratch.take<R>(kTile * stride)),
          log_sum_exp(scratch.take<R>(kTile)),
          delta(scratch.take<R>(kTile)) {}

    void load_from(const SoftmaxAttentionBackward& args, const Task& task, int64_t first, int64_t count,
                   int64_t head) {
        const SoftmaxAttentionShape& shape = args.shape;
        const int64_t dim = shape.head_dim, token = task.query_token + first, o_stride = shape.heads * dim;
        load_tile(count, dim, at<T>(args.q, token, args.q_stride, head, dim), args.q_stride, q, stride);
        load_tile(count, dim, at<T>(args.d_o, token, o_stride, head, dim), o_stride, d_o, stride);
        const R* statistics = static_cast<const R*>(args.log_sum_exp) +
                              (task.row * shape.heads + head) * shape.query_length + task.statistics + first;
        for (int64_t i = 0; i < count; ++i) {
            const T* o = at<T>(args.o, token + i, o_stride, head, dim);
            R dot = 0;
#pragma omp simd reduction(+ : dot)
            for (int64_t c = 0; c < dim; ++c) dot += load(o[c]) * d_o[i * stride + c];
            delta[i] = dot;
            log_sum_exp[i] = statistics[i];
        }
    }
};

template <class T>
void query_gradient_tile(const SoftmaxAttentionBackward& args, const Task& task) {
    using R = arithmetic_t<T>;
    const SoftmaxAttentionShape& shape = args.shape;
    const R scale = static_cast<R>(shape.scale);
    const int64_t dim = shape.head_dim, group = shape.heads / shape.kv_heads, stride = tile_stride<R>(dim),
                  square_stride = tile_stride<R>(kTile), m = task.count;
    Scratch& scratch = Scratch::fresh();
    std::vector<QueryTile<T>> queries;
    for (int64_t g = 0; g < group; ++g) {
        queries.emplace_back(scratch, dim);
        queries.back().load_from(args, task, task.first, m, task.kv_head * group + g);
    }
    R *dq = scratch.take<R>(group * kTile * stride), *k = scratch.take<R>(kTile * stride),
      *v = scratch.take<R>(kTile * stride), *k_turned = scratch.take<R>(round_up<R>(dim) * square_stride),
      *v_turned = scratch.take<R>(round_up<R>(dim) * square_stride),
      *p = scratch.take<R>(kTile * square_stride), *dp = scratch.take<R>(kTile * square_stride);
    std::fill_n(dq, group * kTile * stride, R(0));
    const int64_t reach = task.first + m + task.offset();
    for (int64_t key = 0; key < reach; key += kTile) {
        const int64_t n = std::min(kTile, reach - key);
        load_tile(n, dim, at<T>(args.k, task.key_token + key, args.k_stride, task.kv_head, dim),
                  args.k_stride, k, stride);
        load_tile(n, dim, at<T>(args.v, task.key_token + key, args.v_stride, task.kv_head, dim),
                  args.v_stride, v, stride);
        transpose(n, dim, k, stride, k_turned, square_stride);
        transpose(n, dim, v, stride, v_turned, square_stride);
        for (int64_t g = 0; g < group; ++g) {
            const QueryTile<T>& query = queries[static_cast<size_t>(g)];
            multiply(m, n, dim, query.q, stride, k_turned, square_stride, p, square_stride, kOne<R>, false);
            multiply(m, n, dim, query.d_o, stride, v_turned, square_stride, dp, square_stride, kOne<R>,
                     false);
            for (int64_t i = 0; i < m; ++i) {
                R *s = p + i * square_stride, *ds = dp + i * square_stride;
                const R shift = query.log_sum_exp[i], delta = query.delta[i];
                const int64_t visible = visible_keys(task, task.first + i, key, n);
                for (int64_t c = 0; c < visible; ++c)
                    ds[c] = scale * fast_exp(scale * s[c] - shift) * (ds[c] - delta);
                std::fill(ds + visible, ds + n, R(0));
            }
            multiply(m, dim, n, dp, square_stride, k, stride, dq + g * kTile * stride, stride, kOne<R>, true);
        }
    }
    for (int64_t g = 0; g < group; ++g)
        store_tile(
            m, dim, dq + g * kTile * stride, stride,
            at<T>(args.dq, task.query_token + task.first, args.dq_stride, task.kv_head * group + g, dim),
            args.dq_stride);
}

template <class T>
void key_value_gradient_tile(const SoftmaxAttentionBackward& args, const Task& task) {
    using R = arithmetic_t<T>;
    const SoftmaxAttentionShape& shape = args.shape;
    const R scale = static_cast<R>(shape.scale);
    const int64_t dim = shape.head_dim, group = shape.heads / shape.kv_heads, stride = tile_stride<R>(dim),
                  square_stride = tile_stride<R>(kTile), n = task.count, token = task.key_token + task.first;
    Scratch& scratch = Scratch::fresh();
    QueryTile<T> query(scratch, dim);
    R *k = scratch.take<R>(kTile * stride), *v = scratch.take<R>(kTile * stride),
      *dk = scratch.take<R>(kTile * stride), *dv = scratch.take<R>(kTile * stride),
      *q_turned = scratch.take<R>(round_up<R>(dim) * square_stride),
      *d_o_turned = scratch.take<R>(round_up<R>(dim) * square_stride),
      *p = scratch.take<R>(kTile * square_stride), *dp = scratch.take<R>(kTile * square_stride);
    load_tile(n, dim, at<T>(args.k, token, args.k_stride, task.kv_head, dim), args.k_stride, k, stride);
    load_tile(n, dim, at<T>(args.v, token, args.v_stride, task.kv_head, dim), args.v_stride, v, stride);
    std::fill_n(dk, kTile * stride, R(0));
    std::fill_n(dv, kTile * stride, R(0));
    // The first query that sees a key of this tile.
    const int64_t start = std::max<int64_t>(0, task.first - task.offset());
    for (int64_t first = start / kTile * kTile; first < task.queries; first += kTile) {
        const int64_t m = std::min(kTile, task.queries - first);
        for (int64_t g = 0; g < group; ++g) {
            query.load_from(args, task, first, m, task.kv_head * group + g);
            transpose(m, dim, query.q, stride, q_turned, square_stride);
            transpose(m, dim, query.d_o, stride, d_o_turned, square_stride);
            multiply(n, m, dim, k, stride, q_turned, square_stride, p, square_stride, kOne<R>, false);
            multiply(n, m, dim, v, stride, d_o_turned, square_stride, dp, square_stride, kOne<R>, false);
            for (int64_t s = 0; s < n; ++s) {
                R *row = p + s * square_stride, *d_row = dp + s * square_stride;
                // Queries before `hidden` do not see this key.
                const int64_t hidden = std::clamp<int64_t>(task.first + s - task.offset() - first, 0, m);
                std::fill(row, row + hidden, R(0));
                std::fill(d_row, d_row + hidden, R(0));
                for (int64_t i = hidden; i < m; ++i) {
                    const R probability = fast_exp(scale * row[i] - query.log_sum_exp[i]);
                    row[i] = probability;
                    d_row[i] = scale * probability * (d_row[i] - query.delta[i]);
                }
            }
            multiply(n, dim, m, p, square_stride, query.d_o, stride, dv, stride, kOne<R>, true);
            multiply(n, dim, m, dp, square_stride, query.q, stride, dk, stride, kOne<R>, true);
        }
    }
    store_tile(n, dim, dk, stride, at<T>(args.dk, token, args.dk_stride, task.kv_head, dim), args.dk_stride);
    store_tile(n, dim, dv, stride, at<T>(args.dv, token, args.dv_stride, task.kv_head, dim), args.dv_stride);
}

}  // namespace

void softmax_attention_forward(const SoftmaxAttentionForward& args) {
    check_shape(args.shape);
    const std::vector<Task> tasks = make_tasks(args.shape, true);
    with_floating(args.shape.dtype, [&](auto tag) {
        for_each_task(static_cast<int64_t>(tasks.size()), work_of(args.shape, 2), [&](int64_t i) {
            forward_tile<typename decltype(tag)::type>(args, tasks[static_cast<size_t>(i)]);
        });
    });
}

void softmax_attention_backward(const SoftmaxAttentionBackward& args) {
    check_shape(args.shape);
    LEVIN_CHECK(args.log_sum_exp && args.o, "softmax_attention",
                "backward needs o and log_sum_exp of the forward pass");
    const std::vector<Task> of_queries = make_tasks(args.shape, true),
                            of_keys = make_tasks(args.shape, false);
    with_floating(args.shape.dtype, [&](auto tag) {
        using T = typename decltype(tag)::type;
        const auto keys = static_cast<int64_t>(of_keys.size()),
                   queries = static_cast<int64_t>(of_queries.size());
        for_each_task(keys + queries, work_of(args.shape, 7), [&](int64_t i) {
            if (i < keys)
                key_value_gradient_tile<T>(args, of_keys[static_cast<size_t>(i)]);
            else
                query_gradient_tile<T>(args, of_queries[static_cast<size_t>(i - keys)]);
        });
    });
}

}  // namespace levin::kernels::cpu

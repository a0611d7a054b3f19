// Lightning attention: causal linear attention with a constant decay per head, in tiles (arXiv 2405.17381).
//   o_t = sum_{s<=t} exp(-slope (t-s)) (q'_t . k'_s) v'_s,   q' = LRPE(act(q)), k' = LRPE(act(k)), v' =
//   v_act(v)
// Activations and LRPE happen on the tile, so that raw projections are read once and nothing expanded is
// stored.
#pragma once

#include <functional>
#include <limits>

#include "kernels/kernel.h"

namespace levin::kernels {

// Shape and options, shared by forward and backward.
//   q, k [batch, length, heads, key_dim], v, o [batch, length, heads, value_dim]; batch * length tokens.
// With LRPE the width the state sees is key_width = 2 * key_dim, else key_dim.
// Packed documents: cu_seqlens i32 [documents + 1], ascending, 0 .. batch * length, on the stream's device;
// then batch is 1 and the state restarts at every border. Position of a token for LRPE: first_position + its
// place in its row (relative encoding: it need not restart in a packed document). States are acc [batch or
// documents, heads, key_width, value_dim]. All powers of the decay are exp(-slope * n) in acc.
struct LightningShape {
    int64_t batch, length, heads, key_dim, value_dim;
    DType dtype;
    Activation qk_activation = Activation::none,
               v_activation = Activation::none;  // exp: maximum over the head (key_dim; value_dim for v)
    const float* slopes = nullptr;               // [heads], >= 0
    const void* theta = nullptr;                 // acc [heads, key_dim] or nullptr: no LRPE
    int64_t first_position = 0;
    const int32_t* cu_seqlens = nullptr;
    int64_t documents = 0;
    // The largest slope, where the host knows it: some kernels cannot take decays as steep as exp(-1.17) a
    // token.
    float steepest = std::numeric_limits<float>::infinity();
    // lightning_state goes before lightning_forward and, mirrored, before lightning_backward, and has left
    // what they would make of the states inside the sequences. The same in all these calls.
    bool states_first = false;
    int64_t key_width() const { return theta ? 2 * key_dim : key_dim; }
    int64_t sequences() const { return cu_seqlens ? documents : batch; }
};

// Strides are between tokens; q, k, v are usually columns of one projection. o contiguous.
// Without a token what enters leaves: final_state = initial_state, and backward its gradient likewise.
// A state pointer may be nullptr (initial: zero; final: not wanted); final_state may be initial_state for
// sequences of less than 1024 tokens. Longer ones may be cut, and then every piece reads the initial state.
struct LightningForward {
    LightningShape shape;
    const void* q;
    int64_t q_stride;
    const void* k;
    int64_t k_stride;
    const void* v;
    int64_t v_stride;
    void* o;
    const void* initial_state;
    void* final_state;
    float* kept_states =
        nullptr;  // with states_first it is what lightning_state left, else left for backward
};
void lightning_forward(const Stream& stream, const LightningForward& args);
// Floats that backward would like forward to leave in kept_states (the states inside a sequence that is cut
// into segments); 0: none. Without them backward makes them again.
int64_t lightning_states_to_keep(const Stream& stream, const LightningForward& args);

// What a sequence adds to the state that goes through it, without any output: between ranks this travels
// while the outputs are formed.
//   state = sum_t lambda^(length - 1 - t) k'_t v'_t: what leaves where nothing enters
//   mirrored: sum_t lambda^(t + 1) q'_t d_o_t: the gradient of what enters, where none comes from behind
// t counts from the sequence's first token, lambda = exp(-slope).
struct LightningState {
    LightningShape shape;
    bool mirrored;
    const void* keys;  // k or q, raw
    int64_t key_stride;
    const void* values;  // v, raw, or d_o
    int64_t value_stride;
    void* state;  // acc, as in LightningShape; nullptr: not wanted
    // States inside the sequences for the call that follows, lightning_states_to_keep floats; nullptr where
    // that is 0.
    float* kept_states = nullptr;
};
void lightning_state(const Stream& stream, const LightningState& args);

// Gradients of the raw q, k, v (strided), of theta (acc, dtheta = beta * dtheta + sum, fixed order) and of
// the initial state. d_final_state may be nullptr (zero), d_initial_state too (not wanted). No float32 copies
// of q, k, v.
struct LightningBackward {
    LightningShape shape;
    const void* q;
    int64_t q_stride;
    const void* k;
    int64_t k_stride;
    const void* v;
    int64_t v_stride;
    const void* d_o;
    const void* initial_state;
    const void* d_final_state;
    void* dq;
    int64_t dq_stride;
    void* dk;
    int64_t dk_stride;
    void* dv;
    int64_t dv_stride;
    void* dtheta;
    double beta;
    void* d_initial_state;
    const float* kept_states = nullptr;  // of lightning_forward on the same inputs
    float* kept_gradients = nullptr;     // with states_first: of lightning_state, mirrored; used up
    // Called once, before anything that reads d_final_state is queued: what can go before goes first, so that
    // the host may still be waiting for these values.
    std::function<void()> await_d_final = {};
};
void lightning_backward(const Stream& stream, const LightningBackward& args);

}  // namespace levin::kernels

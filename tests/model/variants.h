// Small models of every family and ablation switch, one change at a time, and a communicator that counts.
#pragma once

#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "model/config.h"
#include "parallel/communicator.h"

namespace levin::test {

inline ModelConfig small(int64_t heads, Family family = Family::tnl) {
    ModelConfig config = ModelConfig::of(family);
    config.vocab_size = 37;
    config.hidden_size = 8 * heads;
    config.num_layers = 3;
    config.num_heads = heads;
    config.glu_dim = 40;
    config.gate_dim = 5;
    config.init_std = 0.2;  // large, so that every part matters
    return config;
}

inline std::vector<std::pair<std::string, ModelConfig>> variants(int64_t heads) {
    std::vector<std::pair<std::string, ModelConfig>> list;
    const auto add = [&](const std::string& name, Family family,
                         const std::function<void(ModelConfig&)>& change) {
        ModelConfig config = small(heads, family);
        change(config);
        list.emplace_back(name, config);
    };
    const auto same = [](ModelConfig&) {};
    add("tnl", Family::tnl, same);
    add("tnl3", Family::tnl3, same);
    add("transformer", Family::transformer, same);
    add("hybrid", Family::tnl, [](ModelConfig& c) {
        c.mixer = {Mixer::lightning, Mixer::softmax, Mixer::lightning};
    });
    add("grouped queries", Family::transformer, [](ModelConfig& c) { c.num_kv_heads = c.num_heads / 2; });
    for (const Decay decay : {Decay::alibi_no_temperature, Decay::paper, Decay::none})
        add("decay " + enum_name(decay), Family::tnl, [=](ModelConfig& c) { c.decay = decay; });
    for (const Position position : {Position::absolute, Position::none})
        add("position " + enum_name(position), Family::tnl, [=](ModelConfig& c) { c.position = position; });
    add("lrpe everywhere", Family::tnl, [](ModelConfig& c) { c.lrpe_layers = LrpeLayers::all; });
    add("no gate", Family::tnl, [](ModelConfig& c) { c.gate = Gate::none; });
    add("activation exp", Family::tnl, [](ModelConfig& c) { c.qk_activation = Activation::exp; });
    for (const Norm norm : {Norm::rmsnorm, Norm::layernorm})
        for (const Family family : {Family::tnl, Family::tnl3})
            add("norm " + enum_name(norm), family, [=](ModelConfig& c) { c.norm = norm; });
    add("glu silu", Family::tnl, [](ModelConfig& c) { c.glu_activation = Activation::silu; });
    add("bias", Family::tnl3, [](ModelConfig& c) { c.bias = true; });
    add("untied", Family::tnl, [](ModelConfig& c) { c.tie_embeddings = false; });
    add("padding", Family::tnl, [](ModelConfig& c) { c.pad_token_id = 20; });
    return list;
}

// Passes everything on; a group counts as one launch. Notes in which order sums are started and waited for.
class CountingCommunicator : public Communicator {
public:
    explicit CountingCommunicator(std::shared_ptr<Communicator> inner)
        : Communicator(inner->rank(), inner->size(), inner->name()), inner_(std::move(inner)) {}
    int launches() const { return launches_; }
    // "s" for every launch that sums, "w" where the first of its works is waited for.
    const std::string& order() const { return *order_; }
    void forget_order() { order_->clear(); }

    void progress() override { inner_->progress(); }
    [[noreturn]] void abort(int status) noexcept override {
        inner_->abort(status);
        std::terminate();  // the compiler does not see that the call above never returns
    }

protected:
    std::shared_ptr<Communicator> do_split(int color, int key, const std::string& name,
                                           const GroupOptions& options) override {
        const auto part = inner_->split(color, key, name, options);
        return part ? std::make_shared<CountingCommunicator>(part) : nullptr;
    }
    Pending do_all_reduce(const Tensor& tensor, ReduceOp op) override {
        return count(), note(inner_->start_all_reduce(tensor, op));
    }
    Pending do_all_gather(const Tensor& part, const Tensor& whole) override {
        return count(), inner_->start_all_gather(part, whole);
    }
    Pending do_reduce_scatter(const Tensor& whole, const Tensor& part, ReduceOp op) override {
        return count(), inner_->start_reduce_scatter(whole, part, op);
    }
    Pending do_broadcast(const Tensor& tensor, int root) override {
        return count(), inner_->start_broadcast(tensor, root);
    }
    Pending do_send(const Tensor& tensor, int to) override { return count(), inner_->start_send(tensor, to); }
    Pending do_recv(const Tensor& tensor, int from) override {
        return count(), inner_->start_recv(tensor, from);
    }
    Pending do_barrier() override { return count(), inner_->start_barrier(); }
    void group_begin() override {
        ++launches_;
        grouped_ = true;
    }
    void group_end() override { grouped_ = noted_ = false; }

private:
    class NotedWork : public Work {
    public:
        NotedWork(Pending inner, std::shared_ptr<std::string> order)
            : inner_(std::move(inner)), order_(std::move(order)) {}
        bool test() override { return inner_->test(); }
        void wait() override {
            *order_ += 'w';
            inner_->wait();
        }

    private:
        Pending inner_;
        std::shared_ptr<std::string> order_;
    };

    void count() { launches_ += grouped_ ? 0 : 1; }
    // Of a group, its first tensor.
    Pending note(Pending work) {
        if (std::exchange(noted_, grouped_)) return work;
        *order_ += 's';
        return std::make_shared<NotedWork>(std::move(work), order_);
    }
    std::shared_ptr<Communicator> inner_;
    int launches_ = 0;
    bool grouped_ = false, noted_ = false;
    std::shared_ptr<std::string> order_ = std::make_shared<std::string>();
};

}  // namespace levin::test

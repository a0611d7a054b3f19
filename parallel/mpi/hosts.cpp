#include "parallel/mpi/hosts.h"

#include <algorithm>
#include <cstring>
#include <map>

#include "parallel/reduce.h"

namespace levin::mpi {

std::shared_ptr<const Hosts> group_by_host(const std::vector<int>& host_of_rank, int rank) {
    auto hosts = std::make_shared<Hosts>();
    std::map<int, size_t> number;  // of a host, by its first rank
    for (size_t r = 0; r < host_of_rank.size(); ++r) {
        const auto [found, fresh] = number.emplace(host_of_rank[r], hosts->ranks.size());
        if (fresh) hosts->ranks.emplace_back();
        std::vector<int>& members = hosts->ranks[found->second];
        if (static_cast<int>(r) == rank) {
            hosts->host = static_cast<int>(found->second);
            hosts->place = static_cast<int>(members.size());
        }
        members.push_back(static_cast<int>(r));
    }
    const size_t each = hosts->ranks[0].size();
    const bool equal = std::all_of(hosts->ranks.begin(), hosts->ranks.end(),
                                   [&](const auto& members) { return members.size() == each; });
    return equal && each > 1 && hosts->ranks.size() > 1 ? hosts : nullptr;
}

void reduce_in_host_order(const Hosts& hosts, std::span<const void* const> parts, void* out, int64_t count,
                          DType dtype, ReduceOp op) {
    const MemoryScope scope(MemoryCategory::workspace);
    const auto number = static_cast<int64_t>(hosts.ranks.size());
    const Tensor sums = Tensor::empty({number, count}, dtype);
    std::vector<const void*> sum_of_host;
    for (int64_t h = 0; h < number; ++h) {
        std::vector<const void*> members;
        for (const int rank : hosts.ranks[static_cast<size_t>(h)])
            members.push_back(parts[static_cast<size_t>(rank)]);
        const Tensor sum = sums.narrow(0, h, 1);
        reduce_in_rank_order(members, sum.data(), count, dtype, op);
        sum_of_host.push_back(sum.data());
    }
    reduce_in_rank_order(sum_of_host, out, count, dtype, op);
}

namespace {

class ByHost : public Operation {
public:
    ByHost(const Call& call, const Tensor& whole, const Tensor& part, std::optional<ReduceOp> op, bool gather)
        : Operation(call),
          hosts_(*call.hosts),
          whole_(whole),
          part_(part),
          data_(static_cast<char*>(whole.data())),
          target_(part.defined() ? static_cast<char*>(part.data()) : place_of(rank())),
          op_(op),
          step_(op ? Step::reduce_inside : Step::gather_across),
          last_(gather ? Step::gather_inside : Step::reduce_across) {}

    void begin() override {
        if (!op_ && target_ != place_of(rank())) std::memcpy(place_of(rank()), target_, part_.bytes());
        post();
    }

    // What the messages of a step brought is put to use, and the next step begins. A rank may have no
    // messages in one: with fewer elements than ranks.
    void advance() override {
        do {
            if (step_ == Step::reduce_inside) sum_inside();
            if (step_ == Step::reduce_across) sum_across();
            if (step_ == last_) return;
            step_ = static_cast<Step>(static_cast<int>(step_) + 1);
            post();
        } while (idle());
    }

private:
    enum class Step { reduce_inside, reduce_across, gather_across, gather_inside };

    int64_t first(int rank) const {
        return whole_.count() / size() * rank + std::min<int64_t>(rank, whole_.count() % size());
    }
    int64_t count_of(int rank) const { return first(rank + 1) - first(rank); }
    size_t bytes_of(int rank) const { return static_cast<size_t>(count_of(rank)) * size_of(whole_.dtype()); }
    char* place_of(int rank) const {
        return data_ + static_cast<size_t>(first(rank)) * size_of(whole_.dtype());
    }
    int number_of_hosts() const { return static_cast<int>(hosts_.ranks.size()); }
    int per_host() const { return static_cast<int>(hosts_.ranks[0].size()); }
    int rank_at(int host, int place) const {
        return hosts_.ranks[static_cast<size_t>(host)][static_cast<size_t>(place)];
    }
    // Of this rank's host and of its place on the others.
    template <class Body>
    void each_inside(const Body& body) const {
        for (int i = 1; i < per_host(); ++i) body((hosts_.place + i) % per_host());
    }
    template <class Body>
    void each_across(const Body& body) const {
        for (int i = 1; i < number_of_hosts(); ++i) body((hosts_.host + i) % number_of_hosts());
    }

    // The parts that the ranks of this place have on all hosts, one behind the other: where each begins.
    std::vector<size_t> column() const {
        std::vector<size_t> starts{0};
        for (int h = 0; h < number_of_hosts(); ++h)
            starts.push_back(starts.back() + bytes_of(rank_at(h, hosts_.place)));
        return starts;
    }
    char* inside(int place, int host) const {  // what the rank of that place sent for that host
        const std::vector<size_t> starts = column();
        const int slot = place < hosts_.place ? place : place - 1;
        return static_cast<char*>(scratch_.data()) + static_cast<size_t>(slot) * starts.back() +
               starts[static_cast<size_t>(host)];
    }
    char* sum_for(int host) const {
        return static_cast<char*>(sums_.data()) + column()[static_cast<size_t>(host)];
    }
    char* across(int host) const {  // what that host sent
        const int slot = host < hosts_.host ? host : host - 1;
        return static_cast<char*>(scratch_.data()) + static_cast<size_t>(slot) * bytes_of(rank());
    }

    void post() {
        const MemoryScope scope(MemoryCategory::workspace);
        const auto scratch = [](size_t bytes) {
            return Tensor::empty({static_cast<int64_t>(bytes)}, DType::u8);
        };
        // A pair of ranks meets in two steps at most, inside in the first and the last one.
        const int round = step_ >= Step::gather_across ? 1 : 0;
        switch (step_) {
            case Step::reduce_inside:
                scratch_ = scratch(column().back() * static_cast<size_t>(per_host() - 1));
                each_inside([&](int place) {
                    for (int h = 0; h < number_of_hosts(); ++h)
                        post_recv(inside(place, h), bytes_of(rank_at(h, hosts_.place)),
                                  rank_at(hosts_.host, place), round);
                });
                each_inside([&](int place) {
                    for (int h = 0; h < number_of_hosts(); ++h)
                        post_send(place_of(rank_at(h, place)), bytes_of(rank_at(h, place)),
                                  rank_at(hosts_.host, place), round);
                });
                return;
            case Step::reduce_across:
                scratch_ = scratch(bytes_of(rank()) * static_cast<size_t>(number_of_hosts() - 1));
                each_across(
                    [&](int h) { post_recv(across(h), bytes_of(rank()), rank_at(h, hosts_.place), round); });
                each_across([&](int h) {
                    const int peer = rank_at(h, hosts_.place);
                    post_send(sum_for(h), bytes_of(peer), peer, round);
                });
                return;
            case Step::gather_across:
                each_across([&](int h) {
                    const int peer = rank_at(h, hosts_.place);
                    post_recv(place_of(peer), bytes_of(peer), peer, round);
                    post_send(place_of(rank()), bytes_of(rank()), peer, round);
                });
                return;
            case Step::gather_inside:
                each_inside([&](int place) {
                    const int peer = rank_at(hosts_.host, place);
                    for (int h = 0; h < number_of_hosts(); ++h) {
                        const int theirs = rank_at(h, place), ours = rank_at(h, hosts_.place);
                        post_recv(place_of(theirs), bytes_of(theirs), peer, round);
                        post_send(place_of(ours), bytes_of(ours), peer, round);
                    }
                });
                return;
        }
    }

    void sum_inside() {
        const MemoryScope scope(MemoryCategory::workspace);
        sums_ = Tensor::empty({static_cast<int64_t>(column().back())}, DType::u8);
        for (int h = 0; h < number_of_hosts(); ++h) {
            const int target = rank_at(h, hosts_.place);
            std::vector<const void*> parts;
            for (int place = 0; place < per_host(); ++place)
                parts.push_back(place == hosts_.place ? place_of(target) : inside(place, h));
            reduce_in_rank_order(parts, sum_for(h), count_of(target), whole_.dtype(), *op_);
        }
    }

    void sum_across() {
        std::vector<const void*> parts;
        for (int h = 0; h < number_of_hosts(); ++h)
            parts.push_back(h == hosts_.host ? sum_for(h) : across(h));
        reduce_in_rank_order(parts, target_, count_of(rank()), whole_.dtype(), *op_);
        scratch_ = sums_ = {};
    }

    const Hosts& hosts_;  // of the call, which the operation keeps
    Tensor whole_, part_;
    // Asked for once: whoever asks a tensor for its memory while it is gathered waits for that.
    char *data_, *target_;
    std::optional<ReduceOp> op_;
    Step step_, last_;
    Tensor scratch_, sums_;
};

}  // namespace

std::shared_ptr<Operation> by_host(const Call& call, const Tensor& whole, const Tensor& part,
                                   std::optional<ReduceOp> op, bool gather) {
    return std::make_shared<ByHost>(call, whole, part, op, gather);
}

}  // namespace levin::mpi

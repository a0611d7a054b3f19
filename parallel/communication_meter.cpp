#include "parallel/communication_meter.h"

#include <chrono>
#include <deque>

#include "kernels/base/error.h"

namespace levin {

namespace {

using Clock = std::chrono::steady_clock;

CommunicationMeter* living = nullptr;

double ms_since(Clock::time_point start) {
    return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

// So many unread times of a communicator are kept before the first ones are looked at.
constexpr size_t kUnread = 256;

}  // namespace

struct CommunicationMeter::State {
    struct Group {
        CommunicationTime host, device;
        int64_t under_way = 0;
        Clock::time_point since;  // under_way > 0: what of it was not counted yet
        std::deque<Later> later;

        void count_busy() {
            if (under_way > 0) host.busy_ms += ms_since(since);
            since = Clock::now();
        }
        void read() {
            for (; !later.empty(); later.pop_front()) {
                const std::optional<CommunicationTime> time = later.front()();
                if (!time) return;
                device.busy_ms += time->busy_ms;
                device.exposed_ms += time->exposed_ms;
            }
        }
    };
    std::map<std::string, Group> groups;
    bool exposed = false;  // an ExposedTime lives
};

CommunicationMeter::CommunicationMeter() : state_(std::make_shared<State>()) {
    LEVIN_CHECK(!living, "communication meter", "a second one in one process");
    living = this;
}

CommunicationMeter::~CommunicationMeter() { living = nullptr; }

CommunicationMeter* CommunicationMeter::current() { return living; }

std::map<std::string, CommunicationTime> CommunicationMeter::take(DeviceType type) {
    std::map<std::string, CommunicationTime> times;
    for (auto& [name, group] : state_->groups) {
        group.count_busy();
        group.read();
        times[name] = type == DeviceType::cpu ? group.host : group.device;
        group.host = group.device = {};
    }
    return times;
}

std::shared_ptr<void> CommunicationMeter::begin(const std::string& communicator) {
    State::Group& group = state_->groups[communicator];
    group.count_busy();
    ++group.under_way;
    // Outlives the meter, if need be, with its state.
    return std::shared_ptr<void>(&group, [state = state_](void* ended) {
        auto& busy = *static_cast<State::Group*>(ended);
        busy.count_busy();
        --busy.under_way;
    });
}

void CommunicationMeter::add_later(const std::string& communicator, Later time) {
    State::Group& group = state_->groups[communicator];
    group.later.push_back(std::move(time));
    if (group.later.size() > kUnread) group.read();
}

struct ExposedTime::Running {
    std::shared_ptr<CommunicationMeter::State> state;
    CommunicationTime& time;
    Clock::time_point start = Clock::now();
};

ExposedTime::ExposedTime(const std::string& communicator) {
    if (!living || living->state_->exposed) return;
    living->state_->exposed = true;
    running_.reset(new Running{living->state_, living->state_->groups[communicator].host});
}

ExposedTime::~ExposedTime() {
    if (!running_) return;
    running_->time.exposed_ms += ms_since(running_->start);
    running_->state->exposed = false;
}

}  // namespace levin

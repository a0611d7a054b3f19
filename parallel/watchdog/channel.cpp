#include "parallel/watchdog/channel.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "kernels/base/error.h"

namespace levin {

namespace {

constexpr size_t kLargestFrame = 1 << 16;

void configure(int socket) {
    const int on = 1;
    setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    fcntl(socket, F_SETFL, fcntl(socket, F_GETFL) | O_NONBLOCK);
    fcntl(socket, F_SETFD, FD_CLOEXEC);
}

}  // namespace

Channel& Channel::operator=(Channel&& other) noexcept {
    close();
    socket_ = std::exchange(other.socket_, -1);
    in_ = std::move(other.in_);
    out_ = std::move(other.out_);
    return *this;
}

void Channel::close() {
    if (socket_ >= 0) ::close(socket_);
    socket_ = -1;
}

void Channel::send(char kind, const std::string& bytes) {
    if (!open()) return;
    const auto length = static_cast<uint32_t>(std::min(bytes.size(), kLargestFrame));
    out_.append(reinterpret_cast<const char*>(&length), sizeof(length));
    out_ += kind;
    out_.append(bytes, 0, length);
    flush();
}

void Channel::flush() {
    while (open() && !out_.empty()) {
        const ssize_t sent = ::send(socket_, out_.data(), out_.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent <= 0) return;  // full, or broken: receive() finds out
        out_.erase(0, static_cast<size_t>(sent));
    }
}

std::vector<Frame> Channel::receive() {
    char buffer[4096];
    while (open()) {
        const ssize_t got = recv(socket_, buffer, sizeof(buffer), MSG_DONTWAIT);
        if (got > 0) {
            in_.append(buffer, static_cast<size_t>(got));
            continue;
        }
        if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) break;
        close();
    }
    std::vector<Frame> frames;
    constexpr size_t header = sizeof(uint32_t) + 1;
    while (in_.size() >= header) {
        uint32_t length = 0;
        std::memcpy(&length, in_.data(), sizeof(length));
        if (length > kLargestFrame) {  // no watchdog speaks so
            close();
            in_.clear();
            break;
        }
        if (in_.size() < header + length) break;
        frames.push_back({in_[sizeof(length)], in_.substr(header, length)});
        in_.erase(0, header + length);
    }
    return frames;
}

int listen_anywhere(int* port) {
    const int listener = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_ANY);
    socklen_t length = sizeof(address);
    if (listener < 0 || bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 ||
        listen(listener, 1024) != 0 ||
        getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length) != 0)
        fail(Fault::communication, "watchdog", "cannot open a TCP port: {}", std::strerror(errno));
    configure(listener);
    *port = ntohs(address.sin_port);
    return listener;
}

std::optional<Channel> accept_from(int listener) {
    const int socket = accept(listener, nullptr, nullptr);
    if (socket < 0) return std::nullopt;
    configure(socket);
    return Channel(socket);
}

std::vector<std::string> own_addresses() {
    std::vector<std::string> addresses;
    ifaddrs* all = nullptr;
    if (getifaddrs(&all) == 0) {
        for (const ifaddrs* one = all; one; one = one->ifa_next) {
            if (!one->ifa_addr || one->ifa_addr->sa_family != AF_INET) continue;
            if (!(one->ifa_flags & IFF_UP) || (one->ifa_flags & IFF_LOOPBACK)) continue;
            char text[INET_ADDRSTRLEN] = {};
            const auto* address = reinterpret_cast<const sockaddr_in*>(one->ifa_addr);
            if (inet_ntop(AF_INET, &address->sin_addr, text, sizeof(text))) addresses.emplace_back(text);
        }
        freeifaddrs(all);
    }
    addresses.emplace_back("127.0.0.1");
    return addresses;
}

std::optional<Channel> connect_to(const std::vector<std::string>& addresses, int port, double seconds) {
    for (const std::string& text : addresses) {
        const int one = socket(AF_INET, SOCK_STREAM, 0);
        if (one < 0) return std::nullopt;
        Channel channel(one);
        configure(one);
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_port = htons(static_cast<uint16_t>(port));
        if (inet_pton(AF_INET, text.c_str(), &address.sin_addr) != 1) continue;
        if (connect(one, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 && errno != EINPROGRESS)
            continue;
        pollfd entry{one, POLLOUT, 0};
        if (poll(&entry, 1, static_cast<int>(seconds * 1000)) != 1) continue;
        int error = 0;
        socklen_t length = sizeof(error);
        if (getsockopt(one, SOL_SOCKET, SO_ERROR, &error, &length) == 0 && error == 0) return channel;
    }
    return std::nullopt;
}

}  // namespace levin

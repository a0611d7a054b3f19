// Messages between the watchdogs of a job: TCP, apart from MPI, so that it goes on while MPI hangs and ends
// the moment a process does.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace levin {

struct Frame {
    char kind;
    std::string bytes;
};

// One connection. Sending never blocks: what the network does not take now goes out with the next flush().
class Channel {
public:
    explicit Channel(int socket = -1) : socket_(socket) {}
    ~Channel() { close(); }
    Channel(Channel&& other) noexcept { *this = std::move(other); }
    Channel& operator=(Channel&& other) noexcept;

    int socket() const { return socket_; }
    bool open() const { return socket_ >= 0; }
    void send(char kind, const std::string& bytes);
    void flush();
    // What has come in. Closes the channel when the other side has.
    std::vector<Frame> receive();
    void close();
    size_t unsent() const { return out_.size(); }

private:
    int socket_ = -1;
    std::string in_, out_;
};

// A socket that listens on every address of this host, on a port the system chose; throws
// Error(communication).
int listen_anywhere(int* port);
std::optional<Channel> accept_from(int listener);
// IPv4 addresses of this host, the loopback last.
std::vector<std::string> own_addresses();
// Tries the addresses in turn, each for at most `seconds`.
std::optional<Channel> connect_to(const std::vector<std::string>& addresses, int port, double seconds);

}  // namespace levin

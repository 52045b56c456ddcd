// A nonblocking stream socket, TCP or Unix, that owns its descriptor. No call blocks, looks a name up or throws for
// what the network does: outcomes are errno values, 0 where all is well. EINTR is retried here.
#pragma once

#include <sys/socket.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace pgpoll::net {

struct endpoint {
  sockaddr_storage storage{};
  socklen_t size = 0;
};

// `literal`: an IPv4 or IPv6 literal (with %scope), the absolute path of a Unix socket, or '@' and the name of an
// abstract one. Where it is none of these, `why` says so.
std::optional<endpoint> make_endpoint(const std::string& literal, std::uint16_t port, std::string& why);

std::string error_text(int error);

// For TCP sockets. 0 is the system's own value.
struct tcp_options {
  bool keepalives = true;       // a peer that vanished while idle is noticed within idle + count * interval
  int keepalives_idle = 15;     // seconds
  int keepalives_interval = 5;  // seconds
  int keepalives_count = 3;
  int user_timeout =
      30'000;  // ms for which what was sent may stay without an acknowledgement; see guard_user_timeout()
};

struct transfer {
  std::size_t size = 0;  // of a recv: 0 without an error is the end of the stream
  int error = 0;         // EAGAIN: not now
};

class socket {
 public:
  socket() = default;
  socket(socket&& other) noexcept { *this = std::move(other); }
  socket& operator=(socket&& other) noexcept {
    if (this != &other) {
      close();
      fd_ = std::exchange(other.fd_, -1);
      user_timeout_ = std::exchange(other.user_timeout_, 0);
      unguarded_ = std::exchange(other.unguarded_, 0);
      suspended_ = std::exchange(other.suspended_, false);
    }
    return *this;
  }
  ~socket() { close(); }

  bool is_open() const { return fd_ >= 0; }
  int fd() const { return fd_; }

  // Opens a new descriptor. 0: connected; EINPROGRESS: finish_connect() will tell; else it failed.
  int connect(const endpoint& where, const tcp_options& tcp);
  int finish_connect();  // 0, EINPROGRESS, or the reason of the failure

  transfer recv(std::span<char> room);
  transfer send(std::string_view bytes);
  void shutdown();  // both directions; the descriptor stays, and becomes readable for whoever watches it
  void close();

 private:
  void guard_user_timeout(std::size_t sent);

  int fd_ = -1;
  int user_timeout_ = 0;       // ms; 0: none of ours
  std::size_t unguarded_ = 0;  // bytes sent since the kernel's queue was last seen empty
  bool suspended_ = false;
};

}  // namespace pgpoll::net

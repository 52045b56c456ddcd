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

struct transfer {
  std::size_t size = 0;  // of a recv: 0 without an error is the end of the stream
  int error = 0;         // EAGAIN: not now
};

class socket {
 public:
  socket() = default;
  socket(socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  socket& operator=(socket&& other) noexcept {
    if (this != &other) {
      close();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  ~socket() { close(); }

  bool is_open() const { return fd_ >= 0; }
  int fd() const { return fd_; }

  // Opens a new descriptor. 0: connected; EINPROGRESS: finish_connect() will tell; else it failed.
  int connect(const endpoint& where);
  int finish_connect();  // 0, EINPROGRESS, or the reason of the failure

  transfer recv(std::span<char> room);
  transfer send(std::string_view bytes);
  void shutdown();  // both directions; the descriptor stays, and becomes readable for whoever watches it
  void close();

 private:
  int fd_ = -1;
};

}  // namespace pgpoll::net

#include "net/socket.hpp"

#include <arpa/inet.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <system_error>

namespace pgpoll::net {
namespace {

template <typename Address>
endpoint endpoint_of(const Address& address, std::size_t size = sizeof(Address)) {
  static_assert(sizeof(Address) <= sizeof(sockaddr_storage));
  endpoint where;
  std::memcpy(&where.storage, &address, size);
  where.size = static_cast<socklen_t>(size);
  return where;
}

std::optional<endpoint> unix_endpoint(const std::string& path, std::string& why) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  constexpr std::size_t limit = sizeof address.sun_path - 1;
  if (path.size() > limit) {
    why = "the path of a Unix socket has at most " + std::to_string(limit) + " bytes, this one has " +
          std::to_string(path.size());
    return std::nullopt;
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  const bool abstract = path.front() == '@';
  if (abstract) address.sun_path[0] = '\0';  // and then every byte up to the size counts
  return endpoint_of(address, offsetof(sockaddr_un, sun_path) + path.size() + (abstract ? 0 : 1));
}

bool scope_of(const std::string& text, std::uint32_t& scope) {
  const char* end = text.data() + text.size();
  auto [stopped, error] = std::from_chars(text.data(), end, scope);
  if (error == std::errc{} && stopped == end) return true;
  scope = if_nametoindex(text.c_str());
  return scope != 0;
}

void set_option(int fd, int level, int option, int value) {
  (void)::setsockopt(fd, level, option, &value, sizeof value);  // a refinement: without it the connection works too
}

void set_tcp_options(int fd, const tcp_options& tcp) {
  set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  if (tcp.keepalives) {
    set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    if (tcp.keepalives_idle > 0) set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, tcp.keepalives_idle);
    if (tcp.keepalives_interval > 0) set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, tcp.keepalives_interval);
    if (tcp.keepalives_count > 0) set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, tcp.keepalives_count);
  }
  if (tcp.user_timeout > 0) set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, tcp.user_timeout);
}

// Less than what the kernel of a peer that reads nothing takes, whatever it is.
constexpr std::size_t least_window = std::size_t{32} << 10;

bool queue_is_empty(int fd) {
  int unacknowledged = 0;
  return ::ioctl(fd, SIOCOUTQ, &unacknowledged) == 0 && unacknowledged == 0;
}

transfer outcome(ssize_t result) {
  if (result >= 0) return {static_cast<std::size_t>(result), 0};
  return {0, errno == EWOULDBLOCK ? EAGAIN : errno};
}

}  // namespace

std::optional<endpoint> make_endpoint(const std::string& literal, std::uint16_t port, std::string& why) {
  if (literal.starts_with('/') || literal.starts_with('@')) return unix_endpoint(literal, why);

  sockaddr_in v4{};
  v4.sin_family = AF_INET;
  v4.sin_port = htons(port);
  if (::inet_pton(AF_INET, literal.c_str(), &v4.sin_addr) == 1) return endpoint_of(v4);

  sockaddr_in6 v6{};
  v6.sin6_family = AF_INET6;
  v6.sin6_port = htons(port);
  const auto percent = literal.find('%');
  if (::inet_pton(AF_INET6, literal.substr(0, percent).c_str(), &v6.sin6_addr) == 1) {
    std::uint32_t scope = 0;
    if (percent == std::string::npos || scope_of(literal.substr(percent + 1), scope)) {
      v6.sin6_scope_id = scope;
      return endpoint_of(v6);
    }
    why = "no such network interface";
    return std::nullopt;
  }
  why = "not an IP address";
  return std::nullopt;
}

std::string error_text(int error) {
  return std::system_category().message(error);
}

int socket::connect(const endpoint& where, const tcp_options& tcp) {
  const int family = where.storage.ss_family;
  close();
  fd_ = ::socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd_ < 0) return errno;
  user_timeout_ = family == AF_UNIX ? 0 : tcp.user_timeout;
  unguarded_ = 0;
  suspended_ = false;
  if (family != AF_UNIX) set_tcp_options(fd_, tcp);
  if (::connect(fd_, reinterpret_cast<const sockaddr*>(&where.storage), where.size) == 0) return 0;
  return errno == EINTR ? EINPROGRESS : errno;  // an interrupted connect goes on by itself
}

int socket::finish_connect() {
  // SO_ERROR alone can't tell "still connecting" from "connected".
  pollfd wanted{fd_, POLLOUT, 0};
  int ready = 0;
  do ready = ::poll(&wanted, 1, 0);
  while (ready < 0 && errno == EINTR);
  if (ready < 0) return errno;
  if (ready == 0) return EINPROGRESS;
  int error = 0;
  socklen_t size = sizeof error;
  return ::getsockopt(fd_, SOL_SOCKET, SO_ERROR, &error, &size) == 0 ? error : errno;
}

transfer socket::recv(std::span<char> room) {
  ssize_t result = 0;
  do result = ::recv(fd_, room.data(), room.size(), 0);
  while (result < 0 && errno == EINTR);
  if (suspended_ && result > 0) guard_user_timeout(0);
  return outcome(result);
}

transfer socket::send(std::string_view bytes) {
  ssize_t result = 0;
  do result = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
  while (result < 0 && errno == EINTR);
  const auto told = outcome(result);
  if (user_timeout_ > 0) guard_user_timeout(told.size);
  return told;
}

// Linux takes a peer whose receive window is closed for a dead one, also where it acknowledges every probe: a server
// that is busy with one long query and doesn't read what was pipelined behind it would lose its connection. So while
// more than any window may be on its way the timeout is off.
void socket::guard_user_timeout(std::size_t sent) {
  unguarded_ += sent;
  if (unguarded_ < least_window) return;
  const bool empty = queue_is_empty(fd_);
  if (empty) unguarded_ = 0;
  if (suspended_ == empty) set_option(fd_, IPPROTO_TCP, TCP_USER_TIMEOUT, (suspended_ = !empty) ? 0 : user_timeout_);
}

void socket::shutdown() {
  if (is_open()) (void)::shutdown(fd_, SHUT_RDWR);  // ENOTCONN: nothing to end
}

void socket::close() {
  // Never retried: on Linux the descriptor is gone whatever close() says.
  if (is_open()) (void)::close(std::exchange(fd_, -1));
}

}  // namespace pgpoll::net

// One session on one socket: everything that poll() of design.md's section 1 promises, without messages, clocks,
// threads or name lookups.
//
//   client one(settings, addresses);
//   auto op = one.session().start_connect();
//   one.start();
//   while (!op->done()) { int wanted = one.poll(); ...wait for one.fileno() as `wanted` says... }
//
// poll() sends what is outbound, receives until a short read or the byte budget, pumps after each recv, and sends
// again; it never blocks. Readiness must be level-triggered: what a poll() left in the socket makes it readable still.
//
// Descriptors: poll() never closes one that was open when it began, so a caller may keep it registered; while
// connecting, the old one is closed by the poll() after the one that changed it, and a new one always has a new number.
// After a loss the descriptor stays open until close_fd().
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/session.hpp"
#include "net/socket.hpp"

namespace pgpoll::net {

struct address {
  std::string host;     // as the user wrote it; for messages
  std::string literal;  // an IP literal, the absolute path of a Unix socket, or '@' and an abstract one's name
  std::uint16_t port = 0;
};

enum flags : int { wait_read = 1, wait_write = 2, ready = 4, idle = 8, closed = 16 };

// Is shown every byte that has left and that has come, in order.
class tap {
 public:
  virtual ~tap() = default;
  virtual void sent(std::string_view bytes) = 0;
  virtual void received(std::string_view bytes) = 0;
};

class client {
 public:
  // `reasons`: why other addresses can't even be tried; for messages.
  client(core::settings options, std::vector<address> addresses, tcp_options tcp = {}, std::string reasons = {});
  client(const client&) = delete;
  client& operator=(const client&) = delete;

  core::session& session() { return session_; }
  const core::session& session() const { return session_; }

  void start() { started_ = true; }  // the next poll() begins to connect: the addresses in turn
  int poll();
  int flush();        // sends what it can and reads nothing: wait_write or 0. What fails is told by the next poll().
  int flags() const;  // what the last poll() returned, or would return after requests have been started since

  // For a loop that is not level-triggered in one case: libuv tells of a reset once and forgets the descriptor. While
  // replies are due poll() then receives until nothing is left; where its budget ends before, `unread()` asks for
  // another one.
  void read_everything() { everything_ = true; }
  bool unread() const { return unread_ && !session_.ended(); }

  // Ends everything now: Terminate leaves if it can without blocking, every operation ends (each is told `why`),
  // whoever watches the descriptor wakes. It stays open until close_fd().
  void terminate(std::string why = "closed");
  void close_fd();

  void tap_with(std::unique_ptr<tap> tap) { tap_ = std::move(tap); }

  int fileno() const { return socket_.fd(); }  // -1 without a socket
  const address* peer() const;                 // the one in use; null without a socket
  const tcp_options& tcp() const { return tcp_; }

 private:
  enum class attempt { connected, in_progress, failed };

  void connect();
  attempt connect_to(const address& where, std::string& why);
  void send();
  void receive();
  void lose(int error);

  core::session session_;
  std::vector<address> addresses_;
  tcp_options tcp_;
  std::size_t current_ = 0;  // the address in use or tried
  std::string reasons_;      // why those before it failed, and those that could not be tried
  socket socket_;
  std::unique_ptr<tap> tap_;  // null as a rule
  socket retired_;            // the one before, for the caller to unregister
  bool everything_ = false;
  bool unread_ = false;
  bool started_ = false;
  bool connected_ = false;
  bool nothing_expected_ = true;  // nothing was in flight when the last poll() ended, and nothing was sent since
  int send_error_ = 0;            // what the server said before it is read first
};

}  // namespace pgpoll::net

// net::client against a server that is a few lines on the other end of a real socket, all in one thread: nothing here
// may block. What is played is start-up without a password and simple queries; the dialogues are the core's tests.
#include "net/client.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "wire/bytes.hpp"

namespace pgpoll::net {
namespace {

using core::operation;
using core::operation_ptr;
using state = enum operation::state;

std::string message(char type, const std::string& body = {}) {
  std::string out(1, type);
  wire::append_uint32(out, static_cast<std::uint32_t>(body.size() + 4));
  return out + body;
}
std::string text(const std::string& value) {
  return value + '\0';
}
const std::string ready_message = message('Z', "I");
const std::string started = message('R', std::string(4, '\0')) + message('K', std::string(8, 'k')) + ready_message;
const std::string served = message('C', text("DO")) + ready_message;
const std::string fatal = message('E', text("SFATAL") + text("C57P01") + text("Mterminating") + '\0');
const std::string terminate = message('X');

// The server's end of one connection.
class peer {
 public:
  explicit peer(int fd) : fd_(fd) { ::fcntl(fd, F_SETFL, O_NONBLOCK); }
  peer(peer&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  ~peer() { close(); }

  std::size_t write(std::string_view bytes) {
    const auto n = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    return n < 0 ? 0 : static_cast<std::size_t>(n);
  }
  std::string read() {
    std::string out(std::size_t{1} << 20, '\0');
    const auto n = ::recv(fd_, out.data(), out.size(), 0);
    at_end_ = n == 0;
    out.resize(n < 0 ? 0 : static_cast<std::size_t>(n));
    return out;
  }
  bool at_end() const { return at_end_; }
  void close() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  }
  void reset() {
    const linger hard{1, 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    close();
  }

 private:
  int fd_;
  bool at_end_ = false;
};

class listener {
 public:
  explicit listener(int family = AF_INET, int backlog = 8) : fd_(::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    if (family == AF_UNIX) {
      where_.literal = "@pgpoll-test-" + std::to_string(::getpid()) + "-" + std::to_string(fd_);
      where_.host = where_.literal;
      std::string why;
      const auto at = make_endpoint(where_.literal, 0, why);
      EXPECT_EQ(::bind(fd_, reinterpret_cast<const sockaddr*>(&at->storage), at->size), 0);
    } else {
      sockaddr_in at{};
      at.sin_family = AF_INET;
      at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
      EXPECT_EQ(::bind(fd_, reinterpret_cast<const sockaddr*>(&at), sizeof at), 0);
      socklen_t size = sizeof at;
      ::getsockname(fd_, reinterpret_cast<sockaddr*>(&at), &size);
      where_ = {"localhost", "127.0.0.1", ntohs(at.sin_port)};
    }
    if (backlog >= 0) {
      EXPECT_EQ(::listen(fd_, backlog), 0);
    }
  }
  ~listener() { ::close(fd_); }
  listener(const listener&) = delete;
  listener& operator=(const listener&) = delete;

  const address& where() const { return where_; }
  peer accept() { return peer(::accept(fd_, nullptr, nullptr)); }

 private:
  int fd_;
  address where_;
};

core::settings settings() {
  core::settings options;
  options.startup_parameters = {{"user", "ann"}};
  options.user = "ann";
  return options;
}

// Waits as a caller's loop would, so that a wrong flag costs a second and shows.
int wait_and_poll(client& one, int wanted) {
  pollfd each{one.fileno(), 0, 0};
  if ((wanted & (wait_read | idle)) != 0) each.events |= POLLIN;
  if ((wanted & wait_write) != 0) each.events |= POLLOUT;
  ::poll(&each, 1, 1000);
  return one.poll();
}

void drive(client& one, const operation_ptr& op) {
  int wanted = one.poll();
  for (int i = 0; i < 1000 && !op->done(); ++i) wanted = wait_and_poll(one, wanted);
  EXPECT_TRUE(op->done());
}

// A client that is connected, and its server.
struct connected {
  explicit connected(int family = AF_INET) : server(family), one(settings(), {server.where()}) {
    auto op = one.session().start_connect();
    one.start();
    for (int i = 0; i < 100 && (one.poll() & wait_write) != 0; ++i) continue;
    other.emplace_back(server.accept());
    EXPECT_NE(there().read().find("user"), std::string::npos);
    there().write(started);
    drive(one, op);
    EXPECT_EQ(op->state, state::succeeded);
    one.session().take(*op);
    EXPECT_EQ(one.poll(), idle);
  }
  peer& there() { return other.front(); }
  operation_ptr command(const std::string& sql) { return one.session().start_script(sql); }

  listener server;
  client one;
  std::vector<peer> other;
};

TEST(Client, ServesARequestOverEachKindOfSocket) {
  for (int family : {AF_INET, AF_UNIX}) {
    connected c(family);
    ASSERT_NE(c.one.peer(), nullptr);
    EXPECT_EQ(c.one.peer()->literal, c.server.where().literal);
    auto op = c.command("do");
    EXPECT_EQ(c.one.poll(), wait_read);
    EXPECT_EQ(c.there().read(), message('Q', text("do")));
    c.there().write(served);
    EXPECT_EQ(wait_and_poll(c.one, wait_read), ready | wait_read);
    EXPECT_EQ(op->state, state::succeeded);
    EXPECT_EQ(c.one.session().next_completed(), op);
    EXPECT_EQ(c.one.poll(), idle);
  }
}

TEST(Client, FlushSendsAndReadsNothing) {
  connected c;
  auto op = c.command("do");
  c.there().write(served);  // an answer before its time stays where it is
  EXPECT_EQ(c.one.flush(), 0);
  EXPECT_FALSE(op->done());
  EXPECT_EQ(c.there().read(), message('Q', text("do")));
  drive(c.one, op);
  EXPECT_EQ(op->state, state::succeeded);
}

TEST(Client, NothingToDoBeforeStart) {
  client one(settings(), {});
  EXPECT_EQ(one.fileno(), -1);
  EXPECT_EQ(one.peer(), nullptr);
  EXPECT_EQ(one.poll(), idle);
  EXPECT_EQ(one.flush(), 0);
}

// ---- addresses

TEST(Client, EveryAddressAndItsReasonIsTold) {
  listener deaf(AF_INET, -1);
  const std::string long_path = "/" + std::string(107, 'x');
  client one(settings(), {deaf.where(),
                          {"127.0.0.1", "127.0.0.1", deaf.where().port},
                          {"/nowhere", "/nowhere/.s.PGSQL.5432", 5432},
                          {"x", long_path, 5432},
                          {"name", "not-an-ip", 5432},
                          {"::1", "::1%no-such-interface", 5432}});
  auto op = one.session().start_connect();
  one.start();
  drive(one, op);
  ASSERT_EQ(op->state, state::failed);
  const auto port = std::to_string(deaf.where().port);
  EXPECT_EQ(op->error->kind, core::failure::kind::lost);
  EXPECT_EQ(op->error->message,
            "could not connect: localhost (127.0.0.1) port " + port + ": Connection refused; 127.0.0.1 port " + port +
                ": Connection refused; socket \"/nowhere/.s.PGSQL.5432\": No such file or directory; socket \"" +
                long_path + "\": the path of a Unix socket has at most 107 bytes, this one has 108; " +
                "name (not-an-ip) port 5432: not an IP address; " +
                "::1 (::1%no-such-interface) port 5432: no such network interface");
  EXPECT_EQ(one.poll(), ready | closed);
}

TEST(Client, NoAddressAtAll) {
  client one(settings(), {});
  auto op = one.session().start_connect();
  one.start();
  one.poll();
  EXPECT_EQ(op->error->message, "could not connect: there is no address");
}

TEST(Client, ALoopThatKnowsOnlyNumbersLosesNoRegistration) {
  listener deaf(AF_INET, -1);
  listener server;
  client one(settings(), {deaf.where(), {"/nowhere", "/nowhere", 1}, deaf.where(), server.where()});
  const int loop = ::epoll_create1(EPOLL_CLOEXEC);
  auto op = one.session().start_connect();
  one.start();
  int registered = -1;
  std::vector<peer> other;
  for (int i = 0; i < 50 && !op->done(); ++i) {
    const int before = one.fileno();
    const int wanted = one.poll();
    if (before != -1) {
      EXPECT_NE(::fcntl(before, F_GETFD), -1);  // not closed while it may be registered
    }
    if (op->done()) break;
    epoll_event event{};
    event.events =
        (wanted & wait_read ? std::uint32_t{EPOLLIN} : 0) | (wanted & wait_write ? std::uint32_t{EPOLLOUT} : 0);
    if (registered != one.fileno()) {  // a loop compares numbers only
      if (registered != -1) {
        EXPECT_EQ(::epoll_ctl(loop, EPOLL_CTL_DEL, registered, nullptr), 0);
      }
      registered = one.fileno();
      EXPECT_EQ(::epoll_ctl(loop, EPOLL_CTL_ADD, registered, &event), 0);
    } else {
      EXPECT_EQ(::epoll_ctl(loop, EPOLL_CTL_MOD, registered, &event), 0);
    }
    if (other.empty() && one.peer()->port == server.where().port && (wanted & wait_write) == 0) {
      other.emplace_back(server.accept());
      other.back().write(started);
    }
    EXPECT_EQ(::epoll_wait(loop, &event, 1, 1000), 1);
  }
  EXPECT_EQ(op->state, state::succeeded);
  ::close(loop);
}

TEST(Client, TheLastSocketStaysOpenUntilClosed) {
  listener deaf(AF_INET, -1);
  client one(settings(), {deaf.where(), {"/nowhere", "/nowhere", 1}});
  auto op = one.session().start_connect();
  one.start();
  one.poll();
  const int fd = one.fileno();
  drive(one, op);
  if (fd != -1) {
    EXPECT_NE(::fcntl(fd, F_GETFD), -1);
    EXPECT_EQ(one.fileno(), fd);
  }
  one.poll();
  one.poll();
  one.close_fd();
  EXPECT_EQ(one.fileno(), -1);
  EXPECT_EQ(::fcntl(fd, F_GETFD), -1);
}

TEST(Client, AFullQueueOfAUnixSocketIsItsReason) {
  listener full(AF_UNIX, 0);
  std::vector<std::unique_ptr<client>> many;
  for (int i = 0; i < 5; ++i) {
    auto& one = *many.emplace_back(std::make_unique<client>(settings(), std::vector{full.where()}));
    auto op = one.session().start_connect();
    one.start();
    one.poll();
    if (!op->done()) continue;
    EXPECT_NE(op->error->message.find("its queue of connections is full"), std::string::npos) << op->error->message;
    return;
  }
  ADD_FAILURE() << "the queue never filled";
}

TEST(Client, NoDescriptorLeftIsAReason) {
  listener server;
  rlimit before{};
  ::getrlimit(RLIMIT_NOFILE, &before);
  client one(settings(), {server.where()});
  auto op = one.session().start_connect();
  one.start();
  const rlimit none{3, before.rlim_max};
  ::setrlimit(RLIMIT_NOFILE, &none);
  one.poll();
  ::setrlimit(RLIMIT_NOFILE, &before);
  ASSERT_TRUE(op->done());
  EXPECT_NE(op->error->message.find("Too many open files"), std::string::npos) << op->error->message;
}

TEST(Client, ASpuriousPollWhileConnectingIsHarmless) {
  listener server(AF_INET, 0);
  std::vector<std::unique_ptr<client>> many;  // past the queue, connects stay in progress
  for (int i = 0; i < 4; ++i) {
    auto& one = *many.emplace_back(std::make_unique<client>(settings(), std::vector{server.where()}));
    auto op = one.session().start_connect();
    one.start();
    for (int k = 0; k < 5; ++k) one.poll();
    EXPECT_FALSE(op->done());
    EXPECT_NE(one.fileno(), -1);
  }
  EXPECT_EQ(many.back()->poll(), wait_read | wait_write);
  EXPECT_EQ(many.back()->flush(), wait_write);
}

// ---- loss

TEST(Client, EndOfStreamAndResetNameTheirPhase) {
  for (bool reset : {false, true}) {
    for (bool asked : {false, true}) {
      connected c;
      auto op = asked ? c.command("do") : nullptr;
      c.one.poll();
      c.there().read();
      reset ? c.there().reset() : c.there().close();
      EXPECT_EQ(wait_and_poll(c.one, wait_read), asked ? ready | closed : closed);
      const auto& why = c.one.session().why_ended()->message;
      EXPECT_EQ(why.find("connection lost: "), 0u) << why;
      if (reset) {
        EXPECT_EQ(why, std::string("connection lost: ") + (asked ? "with requests in flight" : "while idle") +
                           ": Connection reset by peer");
      }
      EXPECT_NE(c.one.fileno(), -1);
    }
  }
}

TEST(Client, WhatTheServerSaidIsReadBeforeAFailedSendIsTold) {
  for (int family : {AF_INET, AF_UNIX}) {
    for (bool by_flush : {false, true}) {
      connected c(family);
      c.there().write(fatal);
      c.there().close();
      auto first = c.command("do");  // TCP learns only now that the other end is gone
      if (by_flush) c.one.flush();
      for (int i = 0; i < 5 && !first->done(); ++i) {
        c.one.session().start_script("more");
        if (by_flush) c.one.flush();
        c.one.poll();
      }
      ASSERT_TRUE(first->done());
      ASSERT_NE(first->error->server, nullptr) << first->error->message;
      EXPECT_EQ(first->error->server->field('C'), "57P01");
      EXPECT_EQ(c.one.poll() & closed, closed);
    }
  }
}

TEST(Client, AFailedSendAloneIsALoss) {
  connected c(AF_UNIX);
  c.there().close();
  auto op = c.command("do");
  EXPECT_EQ(c.one.flush(), wait_write);
  c.one.poll();
  ASSERT_TRUE(op->done());
  EXPECT_EQ(op->error->kind, core::failure::kind::lost);
}

// ---- much in both directions

TEST(Client, ALargeWriteNeverStopsReading) {
  connected c;
  const std::string notice = message('N', text("SNOTICE") + text("M" + std::string(1000, 'n')) + '\0');
  std::string notices;
  while (notices.size() < (std::size_t{16} << 20)) notices += notice;
  auto op = c.command(std::string(std::size_t{8} << 20, 'q'));
  // The server writes all before it reads anything.
  for (std::size_t written = 0, rounds = 0; written < notices.size(); ++rounds) {
    ASSERT_LT(rounds, 100'000u);
    written += c.there().write(std::string_view(notices).substr(written));
    c.one.poll();
  }
  std::size_t read = 0;
  for (int i = 0; i < 100'000 && read < (std::size_t{8} << 20) + 6; ++i) {
    read += c.there().read().size();
    c.one.poll();
  }
  EXPECT_EQ(read, (std::size_t{8} << 20) + 6);
  c.there().write(served);
  drive(c.one, op);
  EXPECT_EQ(op->state, state::succeeded);
}

TEST(Client, ACloseIsSeenWhileAWriteIsBlocked) {
  connected c;
  auto op = c.command(std::string(std::size_t{32} << 20, 'q'));
  for (int i = 0; i < 50; ++i) EXPECT_EQ(c.one.poll(), wait_read | wait_write);
  c.there().write(fatal);
  c.there().close();
  for (int i = 0; i < 100 && !op->done(); ++i) wait_and_poll(c.one, wait_read);
  ASSERT_TRUE(op->done());
  EXPECT_EQ(op->error->server ? op->error->server->field('C') : op->error->message, "57P01");
}

TEST(Client, OnePollReceivesABoundedAmount) {
  constexpr std::size_t each = std::size_t{1} << 20;  // design.md: the byte budget
  connected c;
  auto op = c.command("do");
  c.one.poll();
  std::string notices;
  const std::string notice = message('N', text("M" + std::string(60'000, 'n')) + '\0');
  while (notices.size() < 32 * each) notices += notice;
  notices += served;
  std::thread server([&] {
    for (std::size_t written = 0; written < notices.size();)
      written += c.there().write(std::string_view(notices).substr(written));
  });
  std::size_t polls = 1;
  for (int wanted = wait_read; !op->done() && polls < 1'000'000; ++polls) wanted = wait_and_poll(c.one, wanted);
  server.join();
  EXPECT_EQ(op->state, state::succeeded);
  EXPECT_GE(polls, notices.size() / (each + each / 16));
}

// ---- the end

TEST(Client, CloseSendsTerminateAndWaitsForTheEnd) {
  for (bool reset : {false, true}) {
    connected c;
    auto op = c.one.session().start_close();
    EXPECT_EQ(c.one.poll() & wait_read, wait_read);
    EXPECT_EQ(c.there().read(), terminate);
    EXPECT_FALSE(op->done());
    reset ? c.there().reset() : c.there().close();
    drive(c.one, op);
    EXPECT_EQ(op->state, state::succeeded);
    c.one.session().take(*op);
    EXPECT_EQ(c.one.poll(), closed);
  }
}

TEST(Client, TerminateIsImmediate) {
  connected c;
  auto op = c.command("do");
  c.one.poll();
  c.one.terminate();
  EXPECT_EQ(op->state, state::failed);
  EXPECT_EQ(op->error->kind, core::failure::kind::closed);
  EXPECT_EQ(c.one.flags(), ready | closed);
  const int fd = c.one.fileno();
  EXPECT_NE(::fcntl(fd, F_GETFD), -1);
  EXPECT_EQ(c.there().read(), message('Q', text("do")) + terminate);
  c.there().read();
  EXPECT_TRUE(c.there().at_end());
  c.one.terminate();
  c.one.close_fd();
  EXPECT_EQ(c.one.fileno(), -1);
  EXPECT_EQ(::fcntl(fd, F_GETFD), -1);
  EXPECT_EQ(c.one.poll() & closed, closed);
}

TEST(Client, TerminateNeverCutsIntoAMessage) {
  connected c;
  c.command(std::string(std::size_t{32} << 20, 'q'));
  EXPECT_EQ(c.one.poll(), wait_read | wait_write);
  c.one.terminate();
  std::string last;
  for (int i = 0; i < 100'000 && !c.there().at_end(); ++i) {
    auto got = c.there().read();
    if (!got.empty()) last = got;
  }
  EXPECT_TRUE(c.there().at_end());
  EXPECT_EQ(last.back(), 'q');
}

TEST(Client, CloseFdEndsEveryOperation) {
  connected c;
  auto op = c.command("do");
  c.one.close_fd();
  EXPECT_TRUE(op->done());
  EXPECT_FALSE(op->written);
  EXPECT_EQ(c.one.fileno(), -1);
  EXPECT_EQ(c.one.poll(), ready | closed);
}

TEST(Client, ACancelRequestEndsWithItsSocket) {
  for (bool reset : {false, true}) {
    listener server;
    client one(settings(), {server.where()});
    auto op = one.session().start_cancel({4711, "abcd"});
    one.start();
    for (int i = 0; i < 100 && (one.poll() & wait_write) != 0; ++i) continue;
    auto other = server.accept();
    EXPECT_EQ(other.read().size(), 16u);
    EXPECT_FALSE(op->done());
    reset ? other.reset() : other.close();
    drive(one, op);
    EXPECT_EQ(op->state, state::succeeded);
    EXPECT_EQ(one.poll() & closed, closed);
  }
}

}  // namespace
}  // namespace pgpoll::net

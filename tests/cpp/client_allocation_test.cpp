// Memory that runs out within net::client: each allocation of connecting, a request, an error and each kind of end
// fails once, over a real socket. The client is polled on, as a caller would who reports MemoryError and tries again.
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <optional>
#include <string>
#include <utility>

#include "failing_new.hpp"
#include "messages.hpp"
#include "net/client.hpp"

namespace pgpoll::net {
namespace {

using core::operation_ptr;
using namespace failing_new;
using namespace messages;

const std::string long_text(60, 'x');
const std::string started = message('R', int32(0)) + message('K', int32(47) + "abcd") + messages::ready();
const std::string served =
    one_column() + message('D', int16(1) + int32(60) + long_text) + message('C', text("SELECT 1")) + messages::ready();
const std::string refused = error("ERROR", "22012") + messages::ready();

class listener {
 public:
  explicit listener(bool listening) {
    sockaddr_un at{};
    at.sun_family = AF_UNIX;
    ::bind(fd_, reinterpret_cast<const sockaddr*>(&at), sizeof at.sun_family);  // an abstract name of the system's
    socklen_t size = sizeof at;
    ::getsockname(fd_, reinterpret_cast<sockaddr*>(&at), &size);
    name_ = '@' + std::string(at.sun_path + 1, size - sizeof at.sun_family - 1);
    if (listening) ::listen(fd_, 1);
  }
  listener(const listener&) = delete;
  listener& operator=(const listener&) = delete;
  ~listener() {
    ::close(fd_);
    if (served_ >= 0) ::close(served_);
  }

  const std::string& name() const { return name_; }
  void say(const std::string& bytes) {
    if (served_ < 0) served_ = ::accept4(fd_, nullptr, nullptr, SOCK_NONBLOCK);
    if (served_ >= 0) (void)::send(served_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
  }
  void leave() {
    if (served_ >= 0) ::shutdown(served_, SHUT_RDWR);
  }

 private:
  int fd_ = ::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  int served_ = -1;
  std::string name_;
};

struct playing {
  listener server;
  std::optional<client> one;
  std::vector<operation_ptr> started_ones;

  explicit playing(bool listening) : server(listening) {
    make([&] {
      core::settings options;
      options.startup_parameters = {{"user", "ann"}};
      const address where{"", server.name(), 0};
      one.emplace(std::move(options), std::vector<address>{where, where});
    });
  }

  template <typename Call>
  void make(Call call) {
    EXPECT_TRUE(allocating(call) || !one || one->session().ended() || allocating(call));
    EXPECT_TRUE(one || allocating(call));
  }
  template <typename Verb>
  void start(Verb verb) {
    operation_ptr op;
    make([&] { op = (one->session().*verb)(); });
    if (op) started_ones.push_back(std::move(op));
  }
  void script() {
    operation_ptr op;
    make([&] { op = one->session().start_script("select 1, in more than fifteen bytes"); });
    if (op) started_ones.push_back(std::move(op));
  }
  void poll() {
    for (int i = 0; i < 3; ++i) make([&] { one->poll(); });
  }
};

enum class ending { peer, request, terminate, descriptor };

// Returns how many allocations there were; every operation is told, whichever failed.
std::size_t play(bool listening, ending how) {
  const bool undisturbed = until_failure == 0;
  made = 0;
  playing p(listening);
  p.start(&core::session::start_connect);
  p.one->start();
  p.poll();
  p.server.say(started);
  p.poll();
  p.script();
  p.script();
  p.poll();
  p.server.say(served);
  p.poll();
  p.server.say(refused);  // a script is written behind nobody's
  p.poll();
  if (undisturbed && listening) {
    EXPECT_EQ(p.started_ones.at(1)->state, core::operation::state::succeeded);
    EXPECT_TRUE(p.started_ones.at(2)->error && p.started_ones[2]->error->server);
  }
  p.script();
  p.poll();
  switch (how) {
    case ending::peer:
      p.server.leave();
      break;
    case ending::request:
      p.start(&core::session::start_close);
      p.poll();
      p.server.say(message('C', text("DO")) + messages::ready());
      p.poll();
      p.server.leave();
      break;
    case ending::terminate:
      EXPECT_TRUE(allocating([&] { p.one->terminate(); })) << "it always succeeds";
      break;
    case ending::descriptor:
      EXPECT_TRUE(allocating([&] { p.one->close_fd(); })) << "it always succeeds";
      break;
  }
  p.poll();
  EXPECT_TRUE(p.one->session().ended());
  EXPECT_EQ(p.one->session().in_flight(), 0u);
  for (const auto& each : p.started_ones) EXPECT_TRUE(each->done());
  EXPECT_TRUE(allocating([&] { p.one.reset(); })) << "a destructor does not throw";
  return made;
}

class client_allocation : public testing::TestWithParam<std::pair<const char*, ending>> {};

TEST_P(client_allocation, each_fails_once) {
  for (const bool listening : {true, false}) {
    until_failure = 0;
    const auto all = play(listening, GetParam().second);
    ASSERT_GT(all, 10u);
    for (std::size_t nth = 1; nth <= 2 * all; ++nth) {
      lasting = nth > all;
      until_failure = lasting ? nth - all : nth;
      play(listening, GetParam().second);
      if (HasFailure()) FAIL() << "allocation " << nth << " of " << all << (listening ? "" : ", nobody listens");
    }
  }
}

INSTANTIATE_TEST_SUITE_P(endings, client_allocation,
                         testing::Values(std::pair{"peer", ending::peer}, std::pair{"request", ending::request},
                                         std::pair{"terminate", ending::terminate},
                                         std::pair{"descriptor", ending::descriptor}),
                         [](const auto& each) { return each.param.first; });

}  // namespace
}  // namespace pgpoll::net

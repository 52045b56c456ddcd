#include "net/client.hpp"

#include <algorithm>
#include <cerrno>
#include <utility>

namespace pgpoll::net {
namespace {

constexpr std::size_t receive_room = std::size_t{64} << 10;
constexpr std::size_t receive_budget = std::size_t{1} << 20;  // bytes a poll()
constexpr std::string_view terminate_message("X\0\0\0\4", 5);

std::string describe(const address& where) {
  if (where.literal.starts_with('/') || where.literal.starts_with('@')) return "socket \"" + where.literal + "\"";
  std::string text =
      where.host.empty() || where.host == where.literal ? where.literal : where.host + " (" + where.literal + ")";
  return text + " port " + std::to_string(where.port);
}

const char* phase_of(const core::session& session) {
  if (!session.open()) return "during start-up";
  return session.in_flight() != 0 ? "with requests in flight" : "while idle";
}

core::failure failure_of(enum core::failure::kind kind, std::string message) {
  core::failure why;
  why.kind = kind;
  why.message = std::move(message);
  return why;
}

}  // namespace

client::client(core::settings options, std::vector<address> addresses, tcp_options tcp, std::string reasons)
    : session_(std::move(options)), addresses_(std::move(addresses)), tcp_(tcp), reasons_(std::move(reasons)) {}

int client::poll() {
  retired_.close();
  if (session_.ended() || !started_) return flags();
  if (!connected_) connect();
  if (!connected_ || session_.ended()) return flags();

  if (session_.wants_pump()) session_.pump();
  const bool had_unsent = !session_.outbound().empty();
  const bool nothing_expected = nothing_expected_;
  send();
  // What has only now left in full can't be answered yet: no recv for an EAGAIN. Anything else that has come
  // meanwhile keeps the descriptor readable.
  const bool just_asked = nothing_expected && had_unsent && session_.outbound().empty() && send_error_ == 0;
  if (!just_asked && session_.reads()) {
    receive();
    send();
  }
  nothing_expected_ = session_.in_flight() == 0;
  return flags();
}

int client::flush() {
  if (!started_ || session_.ended()) return 0;
  if (connected_ && session_.wants_pump()) session_.pump();
  if (connected_) send();
  return !connected_ || send_error_ != 0 || !session_.outbound().empty() ? wait_write : 0;
}

int client::flags() const {
  const int done = session_.has_completed() || session_.has_stirred() || session_.has_notifications() ? ready : 0;
  if (session_.ended()) return done | closed;
  if (!started_) return done != 0 ? done : idle;
  if (!connected_) return done | wait_read | wait_write;
  if (!session_.outbound().empty() || session_.wants_pump() || send_error_ != 0) return done | wait_read | wait_write;
  if (done == 0 && session_.in_flight() == 0 && session_.quiet()) return idle;
  return session_.reads() ? done | wait_read : done;
}

void client::terminate(std::string why) {
  if (!session_.ended()) {
    const bool at_message_boundary = connected_ && send_error_ == 0 && session_.outbound().empty();
    const bool past_startup = session_.transaction_status() != '\0';
    // Whether it leaves or not, the end of the stream follows.
    if (at_message_boundary && past_startup) {
      const auto [size, error] = socket_.send(terminate_message);
      if (tap_ && error == 0) tap_->sent(terminate_message.substr(0, size));
    }
    session_.fail(failure_of(core::failure::kind::closed, std::move(why)));
  }
  socket_.shutdown();
}

void client::close_fd() {
  if (!session_.ended()) session_.fail(failure_of(core::failure::kind::closed, "closed"));
  socket_.close();
  retired_.close();
  connected_ = false;
}

const address* client::peer() const {
  return socket_.is_open() ? &addresses_[current_] : nullptr;
}

// Goes on with the address at hand, and with those after it, until one is connected or in progress.
void client::connect() {
  bool maybe_registered = socket_.is_open();
  for (; current_ < addresses_.size(); ++current_) {
    std::string why;
    const auto outcome = connect_to(addresses_[current_], why);
    connected_ = outcome == attempt::connected;
    if (outcome != attempt::failed) return;

    reasons_ += (reasons_.empty() ? "" : "; ") + describe(addresses_[current_]) + ": " + why;
    if (std::exchange(maybe_registered, false))
      retired_ = std::move(socket_);
    else
      socket_.close();
  }
  if (retired_.is_open()) socket_ = std::move(retired_);  // the last one stays until close_fd()
  current_ = addresses_.empty() ? 0 : addresses_.size() - 1;
  session_.fail(failure_of(core::failure::kind::lost,
                           "could not connect: " + (reasons_.empty() ? "there is no address" : reasons_)));
}

client::attempt client::connect_to(const address& where, std::string& why) {
  int error = 0;
  if (socket_.is_open()) {
    error = socket_.finish_connect();
  } else {
    const auto endpoint = make_endpoint(where.literal, where.port, why);
    if (!endpoint) return attempt::failed;
    error = socket_.connect(*endpoint, tcp_);
  }
  if (error == 0) return attempt::connected;
  if (error == EINPROGRESS) return attempt::in_progress;
  why = error_text(error);
  if (error == EAGAIN) why += " (its queue of connections is full)";
  return attempt::failed;
}

void client::send() {
  for (auto bytes = session_.outbound(); !bytes.empty() && send_error_ == 0 && !session_.ended();
       bytes = session_.outbound()) {
    const auto [size, error] = socket_.send(bytes);
    if (error == EAGAIN) return;
    send_error_ = error;
    if (error != 0) return;
    nothing_expected_ = false;
    if (tap_) tap_->sent(bytes.substr(0, size));
    session_.sent(size);
    if (size < bytes.size()) return;
    session_.pump();  // requests that waited for the socket may write now
  }
}

void client::receive() {
  unread_ = false;
  for (std::size_t budget = receive_budget; !session_.ended();) {
    const auto room = session_.prepare(receive_room);
    const auto [size, error] = socket_.recv(room);
    if (error == EAGAIN && send_error_ == 0) return;
    if (error != 0) return lose(error == EAGAIN ? send_error_ : error);
    if (size == 0) {
      session_.eof();
      session_.pump();
      return;
    }
    if (tap_) tap_->received({room.data(), size});
    session_.commit(size);
    session_.pump();
    if (!session_.reads()) return;
    // After a failed send what the server said is read to its end: nothing will wake us for the rest.
    const bool expecting = everything_ && session_.in_flight() != 0;
    const bool short_read = size < room.size() && send_error_ == 0 && !expecting;
    if (short_read) return;
    if (size >= budget || session_.has_notifications()) {  // which are to be taken before they are too many
      unread_ = everything_;
      return;
    }
    budget -= size;
  }
}

void client::lose(int error) {
  // While closing the end of the stream is what we wait for, however it comes.
  if (!session_.accepting()) {
    session_.eof();
    session_.pump();
    return;
  }
  session_.fail(failure_of(core::failure::kind::lost,
                           std::string("connection lost: ") + phase_of(session_) + ": " + error_text(error)));
}

}  // namespace pgpoll::net

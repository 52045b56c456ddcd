// What a dialogue awaits: each answers at once where it can, else notes what the running exchange waits for.
#include "core/session.hpp"

namespace pgpoll::core {

session::write_turn_awaiter session::write_turn() {
  return {*this};
}
session::message_awaiter session::next_message() {
  return {*this};
}
session::arguments_awaiter session::encoded_arguments() {
  return {*this};
}
session::credit_awaiter session::more_credit() {
  return {*this};
}
session::wait_awaiter session::end_of_stream() {
  return {*this, waiting::end_of_stream};
}

session::wait_awaiter session::next_slice() {
  computing_ = true;
  return {*this, waiting::computing};
}

session::reply_turn_awaiter session::reply_turn() {
  auto& p = *running_;
  replies_.push_back(&p);
  p.in_replies = true;
  return {*this};
}

session::rows_awaiter session::data_rows(raw_result& sink) {
  running_->sink = &sink;
  return {*this};
}

bool session::write_turn_awaiter::await_ready() {
  if (owner.writer_ == owner.running_) return true;  // handed to it by the pump
  if (owner.writer_ != nullptr || !owner.writing_.empty() || !owner.may_write(*owner.running_)) return false;
  owner.writer_ = owner.running_;
  return true;
}
void session::write_turn_awaiter::await_suspend(std::coroutine_handle<> frame) {
  owner.running_->resume_point = frame;
  owner.running_->wait = waiting::write_turn;
  owner.writing_.push_back(owner.running_);
}
void session::write_turn_awaiter::await_resume() {
  auto& p = *owner.running_;
  p.first_byte = owner.outbound_.written_total();
  p.op->written = true;  // it can't be taken back; finish() knows whether it really left
  for (const auto& each : p.preamble) each->written = true;
}

bool session::reply_turn_awaiter::await_ready() const {
  return owner.replies_.front() == owner.running_;
}
void session::reply_turn_awaiter::await_suspend(std::coroutine_handle<> frame) {
  owner.running_->resume_point = frame;
  owner.running_->wait = waiting::reply_turn;
}

bool session::message_awaiter::await_ready() {
  return owner.pull();
}
void session::message_awaiter::await_suspend(std::coroutine_handle<> frame) {
  owner.running_->resume_point = frame;
  owner.running_->wait = waiting::message;
}
wire::message session::message_awaiter::await_resume() const {
  return owner.message_;
}

bool session::rows_awaiter::await_ready() {
  return owner.pull_rows();
}
void session::rows_awaiter::await_suspend(std::coroutine_handle<> frame) {
  owner.running_->resume_point = frame;
  owner.running_->wait = waiting::rows;
}
void session::rows_awaiter::await_resume() const {
  owner.running_->sink = nullptr;
}

bool session::credit_awaiter::await_ready() const {
  return owner.has_credit(*owner.running_);
}
void session::credit_awaiter::await_suspend(std::coroutine_handle<> frame) {
  owner.running_->resume_point = frame;
  owner.running_->wait = waiting::credit;
}

void session::wait_awaiter::await_suspend(std::coroutine_handle<> frame) {
  owner.running_->resume_point = frame;
  owner.running_->wait = what;
}

bool session::arguments_awaiter::await_ready() const {
  return owner.running_->op->abandoned;
}
void session::arguments_awaiter::await_suspend(std::coroutine_handle<> frame) {
  owner.running_->resume_point = frame;
  owner.running_->wait = waiting::arguments;
  owner.unencoded_.push_back(owner.running_->op);
}
std::optional<std::string> session::arguments_awaiter::await_resume() const {
  auto& p = *owner.running_;
  return p.op->abandoned ? std::nullopt : std::move(p.arguments);
}

}  // namespace pgpoll::core

// The caller's calls for what lasts: streams, portals, COPY, batches and notifications.
#pragma once

#include "conversation.hpp"

namespace pgpoll::fuzz {

constexpr std::uint8_t channel_calls = 20;

class channel_caller {
 public:
  channel_caller(conversation& with, input& in, const std::string& sql, std::string arguments)
      : with_(with), talk_(with.talk), in_(in), sql_(sql), arguments_(std::move(arguments)) {}

  void call(std::uint8_t verb) {
    switch (verb) {
      case 0:
        return start_stream(in_.byte() % 4);
      case 1:
        return start_open(1 + in_.byte() % 3);
      case 11:
        return with_.watch(talk_.start_batch());
      case 13:
        return with_.watch(talk_.start_executemany(sql_));
      case 6:
        return with_.watch(talk_.start_copy_in("copy t from stdin", described_too()));
      case 7:
        return with_.watch(talk_.start_copy_out("copy t to stdout", described_too()));
      case 3:
        return talk_.close_portal("p");
      case 16:
        return talk_.keep_notifications(in_.byte() % 4 != 0);
      case 17:
        return with_.hear();
      case 18:
        if (const auto op = talk_.next_stirred()) with_.look_at(*op);
        return;
      default:
        if (auto* op = with_.started(in_.byte())) of_operation(verb, *op);
    }
  }

 private:
  using kind = enum operation::kind;

  std::string described_too() { return in_.byte() % 2 == 0 ? "" : "select 1"; }

  void start_stream(std::uint32_t credit) {
    auto known = talk_.find_statement(sql_);
    with_.watch(known ? talk_.start_stream(std::move(known), arguments_, credit) : talk_.start_stream(sql_, credit));
  }
  void start_open(std::uint32_t limit) {
    auto known = talk_.find_statement(sql_);
    with_.watch(known ? talk_.start_open(std::move(known), arguments_, "p", limit)
                      : talk_.start_open(sql_, "p", limit));
  }

  // What the faces check first is checked here.
  void of_operation(std::uint8_t verb, operation& op) {
    const bool many = op.batch && op.batch->many;
    switch (verb) {
      case 2:
        if (op.kind == kind::fetch && !op.results.empty()) with_.watch(talk_.start_fetch(op, 1 + in_.byte() % 3));
        return;
      case 4:
        if (op.kind == kind::stream && op.portal->limited && !op.done()) talk_.grant(op, 1 + in_.byte() % 3);
        return;
      case 5:
        return with_.look_at(op);
      case 8:
        with_.called();
        (void)talk_.feed(op, in_.bytes(in_.byte() % 16));
        return;
      case 9:
        return talk_.finish_feed(op);
      case 10:
        return talk_.fail_feed(op, "no more");
      case 12:
        if (op.batch && !many && !op.done() && !op.batch->ended) add(op);
        return;
      case 14:
        if (many && talk_.may_feed(op)) feed_items(op);
        return;
      case 15:
        if (op.batch && !op.done()) talk_.end_items(op);
        return;
      default:
        if (op.portal) op.portal->spared = true;
        return talk_.abandon(op);
    }
  }

  void add(operation& op) {
    with_.called();
    if (auto known = talk_.find_statement(sql_))
      talk_.add(op, std::move(known), arguments_);
    else
      talk_.add(op, sql_);
  }

  void feed_items(operation& op) {
    with_.called();
    if (!op.statement) return talk_.describe_items(op);
    std::string messages;
    const auto count = 1 + in_.byte() % std::min<std::size_t>(core::largest_run(talk_.max_pipeline()), 3);
    for (std::size_t i = 0; i < count; ++i)
      core::append_execution(messages, *op.statement, arguments_, i == 0 && talk_.opens_items(op));
    talk_.feed(op, std::move(messages), count);
  }

  conversation& with_;
  core::session& talk_;
  input& in_;
  const std::string& sql_;
  std::string arguments_;
};

}  // namespace pgpoll::fuzz

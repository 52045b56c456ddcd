// The conversation with one server, without I/O: bytes in, bytes out, finished operations out.
//
//   session talk(settings);
//   auto op = talk.start_connect();
//   send(talk.outbound()); talk.sent(n);                    whatever is outbound
//   auto room = talk.prepare(65536); talk.commit(recv(room));   whatever arrives; or talk.eof()
//   talk.pump();                                            all the progress that these bytes allow
//   while (auto done = talk.next_completed()) ...
//
// A session is a plain object. Each request is an exchange (exchange.hpp): a coroutine that only pump(), or the
// start_* that creates it, resumes. No call here blocks, reads a clock or runs a caller's code.
//
// Where memory runs out a call throws std::bad_alloc, and has either done nothing or ended the session: what is half
// written can't be taken back. To end one needs no memory.
#pragma once

#include <cstdint>
#include <deque>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/batch.hpp"
#include "core/buffers.hpp"
#include "core/exchange.hpp"
#include "core/result.hpp"
#include "core/statement_cache.hpp"

namespace pgpoll::core {

struct settings {
  // Sent as they are in the StartupMessage: user, database, client_encoding, application_name, ...
  std::vector<std::pair<std::string, std::string>> startup_parameters;
  std::string user;
  std::optional<std::string> password;                       // as given: cleartext and md5
  std::optional<std::string> scram_password;                 // after SASLprep
  bool cleartext_allowed = false;                            // the transport is private (Unix socket, loopback, TLS)
  std::size_t statement_cache_size = 100;                    // 0: only descriptions are kept, statements are unnamed
  std::size_t statement_cache_bytes = std::size_t{4} << 20;  // of their texts
  std::size_t max_pipeline = 1000;                           // requests written and unanswered
  std::size_t max_unsent = 1 << 20;                          // bytes; past it requests wait for the socket
  std::uint32_t max_scram_iterations = 1'000'000;
  // Which types the face decodes from binary; others are asked for as text.
  bool (*decodes_binary)(std::uint32_t type_oid) = nullptr;
};

struct cancel_key {
  std::int32_t pid = 0;
  std::string secret;
};

struct notice {
  std::shared_ptr<const server_message> message;
  std::size_t size = 0;  // bytes of its body
};

// A NotificationResponse; or, where `lost` is not 0, that so many of this channel were dropped here. Where the channel
// is empty they were anyone's.
struct notification {
  std::string channel;
  std::string payload;
  std::int32_t pid = 0;
  std::uint64_t lost = 0;
  std::size_t size = 0;  // bytes of its body
};

enum class cancel_wish { none, now, grace };

class session {
 public:
  explicit session(settings options);
  session(const session&) = delete;
  session& operator=(const session&) = delete;
  ~session();

  // Requests. Each returns at once; an operation may be finished already when it does (a lost session never
  // accepts one: look at `open()` first). `first` begins a block in front of it.
  operation_ptr start_connect();
  operation_ptr start_execute(std::string sql, preamble first = {});  // arguments are asked for by next_unencoded()
  operation_ptr start_execute(statement_ptr known, std::string arguments, preamble first = {});  // one flight
  operation_ptr start_prepare(std::string sql, preamble first = {});
  operation_ptr start_script(std::string sql);  // simple query protocol
  // No parameters, no rows: unnamed, one flight, never cancelled by wish.
  operation_ptr start_command(std::string sql, preamble first = {});
  operation_ptr start_batch();                       // items are added, and ended, by what follows (batch.cpp)
  operation_ptr start_executemany(std::string sql);  // a channel: it stirs while it may be fed
  operation_ptr start_copy_in(std::string sql, std::string query = {});
  operation_ptr start_copy_out(std::string sql, std::string query = {});

  // Rows in parts. A stream is a channel: at most `credit` rows come, and so many more as are granted; 0: all, as far
  // as the face takes them. It ends with its statement. open and fetch are requests of `limit` rows each, of a portal
  // that lasts to the end of its transaction or to close_portal, of which nobody is told.
  operation_ptr start_stream(std::string sql, std::uint32_t credit);
  operation_ptr start_stream(statement_ptr known, std::string arguments, std::uint32_t credit);
  operation_ptr start_open(std::string sql, std::string portal, std::uint32_t limit);
  operation_ptr start_open(statement_ptr known, std::string arguments, std::string portal, std::uint32_t limit);
  operation_ptr start_fetch(const operation& opened, std::uint32_t limit);
  void close_portal(std::string portal);
  void grant(operation& op, std::uint32_t rows);
  row_store take_rows(operation& op);  // those that have come

  operation_ptr start_cancel(cancel_key key);  // the only exchange of a second session; ends at eof()
  operation_ptr start_close();                 // serves what was accepted, sends Terminate, ends at eof()
  void abandon(operation& op);

  // A statement of this text that is parsed and described, made the most recently used; else null.
  statement_ptr find_statement(std::string_view sql);

  // Whether it was prepared here.
  bool owns(const statement& prepared) const { return prepared.origin == origin_; }

  // The next operation whose statement is described and whose arguments are not encoded yet; each is listed once.
  // `arguments` is Bind's parameter section: Int16 count, Int16 formats, Int16 count, (Int32 length, bytes)...
  operation_ptr next_unencoded();
  void supply(operation& op, std::string arguments);
  void refuse(operation& op);  // the face keeps the error; no Bind is sent

  // Items of a batch, in order. One that has failed ignores them. Nothing more is done before end_items().
  void add(operation& op, std::string sql);                                  // its arguments are asked for
  void add(operation& op, statement_ptr known, std::string_view arguments);  // of a statement that we own
  void describe_items(operation& op);                                        // executemany: before it is fed
  bool may_feed(const operation& op) const;                                  // it is described, and has room
  bool opens_items(const operation& op) const;                               // append_execution's, of the next one
  void feed(operation& op, std::string messages, std::size_t items);         // at most largest_run()
  void end_items(operation& op);
  std::size_t max_pipeline() const { return settings_.max_pipeline; }

  // Bytes.
  std::span<char> prepare(std::size_t size) { return inbound_.prepare(size); }
  void commit(std::size_t size) { inbound_.commit(size); }
  std::string_view outbound() const { return outbound_.unsent(); }
  void sent(std::size_t size);
  void eof();                       // the peer closed its side; what was received is served first
  void fail(failure why) noexcept;  // every operation ends; nothing more is read or written
  void pump();
  bool wants_pump() const;  // pump() could go on without new bytes: a long computation, or room to write again

  operation_ptr next_completed();  // the oldest finished one not yet taken; abandoned ones never appear
  bool has_completed() const { return !completed_.empty(); }
  void take(const operation& op);                                           // strikes it from the completed ones
  const std::list<operation_ptr>& completed() const { return completed_; }  // not yet taken, oldest first

  // Channels (D8) are operations that data passes through while they run. The next one that has stirred: there is
  // something to take, or room to feed. Each is listed once, until its face says that it looks.
  operation_ptr next_stirred();
  bool has_stirred() const { return !stirred_.empty(); }
  void look(operation& op);
  bool reads() const;  // false: a channel is full, and nothing more is to be received before its face takes some of it

  // COPY (copy.cpp). What is fed goes straight into the outbound bytes; false: so much is unsent that no more should
  // follow before it stirs, or the server has ended the COPY. Each of these does nothing where it doesn't feed.
  bool feed(operation& op, std::string_view data);
  void finish_feed(operation& op);
  void fail_feed(operation& op, std::string_view reason);  // the server answers with an error that says so
  std::string take_data(operation& op);                    // what has come

  bool open() const { return state_ == state::ready; }  // connected, and accepts requests
  bool accepting() const { return state_ == state::fresh || state_ == state::starting || state_ == state::ready; }
  bool ended() const { return state_ == state::ended; }
  bool quiet() const { return replies_.empty() && writing_.empty() && writer_ == nullptr && outbound_.empty(); }
  std::size_t in_flight() const { return in_flight_; }  // started and not finished; abandoned ones until drained
  failure_ptr why_ended() const { return why_ended_; }

  char transaction_status() const { return transaction_status_; }  // 'I', 'T', 'E'; '\0' before the first ReadyForQuery
  const std::map<std::string, std::string, std::less<>>& parameters() const { return parameters_; }
  const std::optional<cancel_key>& key() const { return key_; }

  // Notices are kept until they are taken, so many that what one pump() receives finds room; what comes past that is
  // dropped, and counted.
  std::optional<notice> next_notice();
  bool has_notices() const { return !notices_.empty(); }
  std::uint64_t notices_kept() const { return notices_kept_; }  // all that ever were
  std::uint64_t notices_dropped() const { return notices_dropped_; }

  // Notifications likewise, but only while somebody asks for them; what was dropped for want of room is told in its
  // place. A message that nobody keeps is not counted.
  void keep_notifications(bool keep);
  std::optional<notification> next_notification();
  bool has_notifications() const { return !notifications_.empty(); }
  std::uint64_t notifications_kept() const { return notifications_kept_; }  // all that ever were

  // Cancelling at the server (D6): the face asks, sends the CancelRequest on a socket of its own and says when
  // that socket begins and has reached its end. In between, and until one empty query has drained a stray 57014, no
  // other request is written. `now`: nobody awaits what is on the wire behind the abandoned head, whose number
  // abandoned_head() is; `grace`: somebody does, so it is given a second to end by itself. A request that is hit in its
  // place runs again where that is safe, until the face says that the CancelRequest is too old to strike.
  cancel_wish cancel_wanted() const;
  std::uint64_t abandoned_head() const;  // 0: none
  void cancel_started();
  void cancel_ended();
  void cancel_too_old() { stray_cancel_ = false; }

  // Whose reply is arriving, for those who time or trace requests; null where nobody's is.
  const operation* head() const { return replies_.empty() ? nullptr : &replies_.front()->current(); }
  bool has_left(const operation& op) const;  // a byte of it; of one that is done, `written` says so

 private:
  enum class state { fresh, starting, ready, closing, ended };
  enum class cancelling { no, socket_open, drain, draining };

  // The dialogues, one coroutine each: startup.cpp, execute.cpp, copy.cpp.
  exchange startup(operation_ptr op);
  exchange execute(operation_ptr op, statement_ptr prepared = nullptr, std::string arguments = {});
  exchange prepare_statement(operation_ptr op);
  exchange script(operation_ptr op);
  exchange command(operation_ptr op);
  exchange batch(operation_ptr op);
  exchange copy_in(operation_ptr op);
  exchange copy_out(operation_ptr op);
  exchange drain_stray_cancel(operation_ptr op);
  exchange cancel(operation_ptr op, cancel_key key);
  exchange close(operation_ptr op);
  exchange stream(operation_ptr op, statement_ptr prepared = nullptr, std::string arguments = {});
  exchange open(operation_ptr op, statement_ptr prepared = nullptr, std::string arguments = {});
  exchange fetch(operation_ptr op);
  exchange portal_end(operation_ptr op);
  step<bool> described(operation_ptr op, statement_ptr& prepared, std::string& arguments);
  bool bind(const statement& prepared, const std::string& arguments, const std::string& portal = {});
  void ask_rows(operation& op);
  step<bool> bound(operation_ptr op, bool unnamed);
  step<bool> rows_to_end(operation_ptr op);
  step<statement_ptr> describe(std::string sql);
  int close_surplus();
  std::shared_ptr<statement> undescribed(std::string sql) const;
  std::size_t parse(const statement& found);
  step<bool> read_description(std::shared_ptr<statement> found, std::size_t closed);
  step<bool> authenticate_scram(std::string_view mechanisms);
  bool write_preamble(exchange_promise& p);  // false: it fails instead, and nothing is written
  step<bool> read_preamble();
  step<bool> copy_begins(operation& op, wire::backend wanted, const char* why_not);
  step<bool> refuse_copy(wire::message response, const char* why);
  static const char* refusal_of(const wire::message& copy_response);
  void await_copy(exchange_promise& p);
  void write_copy_fail(operation& op, std::string_view reason);
  void stop_feed(operation& op);
  void make_room();

  // What a dialogue awaits. Each awaiter suspends the running exchange until pump() can go on with it.
  struct write_turn_awaiter;
  struct reply_turn_awaiter;
  struct message_awaiter;
  struct rows_awaiter;
  struct wait_awaiter;
  struct arguments_awaiter;
  struct credit_awaiter;
  struct next_run_awaiter;
  write_turn_awaiter write_turn();           // arrival order; the writer is ours until sync() or our end
  reply_turn_awaiter reply_turn();           // joins the reply FIFO
  message_awaiter next_message();            // the next message that is no error and not asynchronous
  rows_awaiter data_rows(raw_result& sink);  // every run of DataRows
  arguments_awaiter encoded_arguments();     // from the face; nothing where refused or abandoned
  credit_awaiter more_credit();              // or nobody wants it
  next_run_awaiter next_run();               // of a batch: it is due, or none will be
  wait_awaiter next_slice();                 // lets pump() return in the middle of a long computation
  wait_awaiter end_of_stream();              // the peer has closed

  // For dialogues.
  wire::frontend out() { return wire::frontend(outbound_.buffer()); }
  void sync(exchange_promise& p);  // its own Sync, once: others may write
  void release_writer(exchange_promise& p);
  static wire::message expect(wire::message got, wire::backend wanted);
  void ready_for_query(wire::message got);
  void stir(const operation_ptr& op);         // a channel has news for its face
  enum class formats { text, chosen, told };  // simple protocol; a statement's, by what we decode; a portal's
  columns_ptr row_description_of(wire::message got, formats which) const;
  columns_ptr described_again(wire::message got, const statement& before);
  std::string command_tag(wire::message got);
  void fail_later(exchange_promise& p, failure_ptr error);  // to be told at ReadyForQuery

  // The pump.
  operation_ptr admit(enum operation::kind kind, preamble* first = nullptr);
  operation_ptr begin(operation_ptr op, exchange dialogue, preamble first = {});
  // What the face calls, or pump(). Never within an exchange, which would destroy itself where this fails.
  template <typename Work>
  void guarded(Work work) {
    try {
      work();
    } catch (...) {
      fail_for_thrown();
    }
  }
  void fail_for_thrown();
  void run(exchange_promise& p);
  void finish(exchange_promise& p, enum operation::state outcome, failure_ptr error = nullptr);
  void finish_command(exchange_promise& p, enum operation::state outcome, failure_ptr error = nullptr);
  bool read_replies();
  bool advance_head();
  bool grant_writers();
  bool may_write(const exchange_promise& p) const;
  bool may_drain() const;
  bool pull();       // the head's next message into message_; false where bytes run out or an error has come
  bool pull_rows();  // all DataRows at hand; true where something else follows
  void count_rows(const exchange_promise& p, std::size_t before);
  bool has_credit(const exchange_promise& p) const;
  bool drain();  // to the head's ReadyForQuery; true once it is finished
  bool next(wire::message& got);
  bool asynchronous(const wire::message& got);
  void keep_notice(const wire::message& got);
  void keep_notification(const wire::message& got);
  void note_lost(std::string_view channel);
  void parameter_status(const wire::message& got);
  void server_error(exchange_promise& p, const wire::message& got);
  void unasked(const wire::message& got);
  std::shared_ptr<const server_message> fields_of(const wire::message& got) const;
  void end_by_peer();
  failure_ptr ending(enum failure::kind kind, const char* text, failure_ptr cause = nullptr) const noexcept;
  void fail_all(failure_ptr why) noexcept;

  // A batch (batch.cpp).
  void add(operation& op, batch_state::run added);
  void go_on(operation& op);
  void supply_item(operation& op, std::string_view arguments);
  void refuse_item(operation& op, failure_ptr error);
  bool may_write_items(const exchange_promise& p) const;
  bool has_room(const exchange_promise& p) const;
  bool hungry(const exchange_promise& p) const;
  bool wants_items(const exchange_promise& p) const;
  bool write_items(exchange_promise& p);
  void write_run(exchange_promise& p);
  void write_description(exchange_promise& p, const batch_state::run& of);
  void join_replies(exchange_promise& p);
  bool take_back(exchange_promise& p);
  void break_batch(exchange_promise& p);
  void break_off(exchange_promise& p);
  bool run_due(const exchange_promise& p) const;
  bool interrupted(exchange_promise& p);
  bool blame_item(exchange_promise& p);

  // A second attempt (recovery.cpp).
  static bool leaves_as_it_was(const exchange_promise& other);
  static bool gives_way(const exchange_promise& writer);
  bool again_helps(const exchange_promise& p) const;
  bool may_run_again(const exchange_promise& p) const;
  void run_again(exchange_promise& p);
  void detach(exchange_promise& p);
  void note_dropped(exchange_promise& p, const server_message& error);
  void forget(const statement& dropped);

  settings settings_;
  inbound_bytes inbound_;
  outbound_bytes outbound_;
  statement_cache cache_;
  state state_ = state::fresh;
  cancelling cancelling_ = cancelling::no;

  std::deque<exchange_promise*> writing_;  // those that wait for the write turn, in order of arrival
  exchange_promise* writer_ = nullptr;     // who has it
  std::deque<exchange_promise*> replies_;  // those whose replies are due, in the order written
  exchange_promise* running_ = nullptr;
  std::deque<operation_ptr> unencoded_;
  std::list<operation_ptr> completed_;
  std::deque<operation_ptr> stirred_;
  std::size_t in_flight_ = 0;
  wire::message message_;  // pulled for the head
  operation_ptr closing_;  // the one Terminate that all closers share
  bool computing_ = false;
  bool may_compute_ = false;
  bool eof_ = false;
  bool authenticated_ = false;
  std::shared_ptr<const server_message> fatal_;
  failure_ptr why_ended_;
  failure_ptr out_of_memory_;  // made while there is some

  char transaction_status_ = '\0';
  std::map<std::string, std::string, std::less<>> parameters_;
  std::size_t parameter_bytes_ = 0;
  std::optional<cancel_key> key_;
  std::deque<notice> notices_;
  std::size_t notice_bytes_ = 0;
  std::uint64_t notices_kept_ = 0;
  std::uint64_t notices_dropped_ = 0;
  std::deque<notification> notifications_;
  std::size_t notification_bytes_ = 0;
  std::uint64_t notifications_kept_ = 0;
  bool keeps_notifications_ = false;
  std::size_t startup_messages_ = 0;
  std::uint64_t answered_ = 0;    // requests
  bool names_may_exist_ = false;  // on the server, of statements that we don't know
  bool stray_cancel_ = false;     // a CancelRequest of ours may still strike whoever runs
  std::shared_ptr<statement_handles> origin_ = std::make_shared<statement_handles>();
};

struct session::write_turn_awaiter {
  session& owner;
  bool await_ready();
  void await_suspend(std::coroutine_handle<> frame);
  void await_resume();
};

struct session::reply_turn_awaiter {
  session& owner;
  bool await_ready() const;
  void await_suspend(std::coroutine_handle<> frame);
  void await_resume() const {}
};

struct session::message_awaiter {
  session& owner;
  bool await_ready();
  void await_suspend(std::coroutine_handle<> frame);
  wire::message await_resume() const;
};

struct session::rows_awaiter {
  session& owner;
  bool await_ready();
  void await_suspend(std::coroutine_handle<> frame);
  void await_resume() const;
};

struct session::credit_awaiter {
  session& owner;
  bool await_ready() const;
  void await_suspend(std::coroutine_handle<> frame);
  void await_resume() const {}
};

struct session::next_run_awaiter {
  session& owner;
  bool await_ready() const;
  void await_suspend(std::coroutine_handle<> frame);
  void await_resume() const {}
};

struct session::wait_awaiter {
  session& owner;
  waiting what;
  bool await_ready() const { return false; }
  void await_suspend(std::coroutine_handle<> frame);
  void await_resume() const {}
};

struct session::arguments_awaiter {
  session& owner;
  bool await_ready() const;
  void await_suspend(std::coroutine_handle<> frame);
  std::optional<std::string> await_resume() const;
};

}  // namespace pgpoll::core

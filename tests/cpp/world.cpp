#include "world.hpp"

#include <algorithm>

namespace pgpoll::test {

namespace {

using core::failure;
using core::operation;

core::settings settings_of(const program& made) {
  core::settings out;
  out.startup_parameters = {{"user", "ann"}};
  out.max_pipeline = made.max_pipeline;
  out.statement_cache_size = made.statement_cache_size;
  return out;
}

std::string arguments_of(int token) {
  const auto value = std::to_string(token);
  return int16(0) + int16(1) + int32(static_cast<std::int64_t>(value.size())) + value;
}

bool is_simple(kind what) {
  return what == kind::script || what == kind::copy_script || what == kind::fail_script || what == kind::begin_script;
}

bool is_command(kind what) {
  return what == kind::command || what == kind::begin || what == kind::commit || what == kind::rollback;
}

bool begins(kind what) {
  return what == kind::begin || what == kind::begin_execute || what == kind::begin_script;
}

bool is_insert(kind what) {
  return what == kind::insert || what == kind::known_insert || what == kind::stale_insert ||
         what == kind::dropped_insert || what == kind::copy_in || what == kind::fail_copy_in ||
         what == kind::refused_copy_in || what == kind::batch || what == kind::fail_batch;
}

// Behind such a second attempt might run inside of a transaction, or not at all.
bool hinders_others(kind what) {
  return begins(what) || is_command(what) || is_simple(what) || what == kind::copy || what == kind::known_copy ||
         what == kind::close || what == kind::fail_parse || what == kind::fail_describe || what == kind::fail_late ||
         what == kind::fail_bind || what == kind::fail_sync || (what >= kind::fail_stream && what <= kind::fail_batch);
}

// Statements that have been prepared before the program begins.
const char* known_word(kind what) {
  switch (what) {
    case kind::known:
    case kind::known_prepare:
      return "select known";
    case kind::fail_bind:
      return "fail bind known";
    case kind::fail_sync:
      return "fail sync known";
    case kind::known_copy:
      return "copy known";
    case kind::known_insert:
      return "insert known";
    case kind::stale_insert:
      return "insert stale";
    case kind::dropped_insert:
      return "insert dropped";
    case kind::stream:
    case kind::whole_stream:
    case kind::cursor:
      return "values known";
    case kind::fail_stream:
      return "fail rows known";
    case kind::batch:
    case kind::fail_batch:
      return "insert known";
    default:
      return nullptr;
  }
}

}  // namespace

std::string world::request::word() const {
  const auto number = ' ' + std::to_string(token);
  switch (what) {
    case kind::fresh:
    case kind::refused:
    case kind::prepare:
      return "select" + number;
    case kind::shared:
      return "select shared";
    case kind::fail_parse:
      return "fail parse" + number;
    case kind::fail_describe:
      return "fail describe shared";
    case kind::fail_late:
      return "fail late" + number;
    case kind::copy:
    case kind::copy_script:
      return "copy" + number;
    case kind::script:
      return "select" + number;
    case kind::fail_script:
      return "fail late" + number;
    case kind::command:
      return "tag" + number;
    case kind::insert:
      return "insert" + number;
    case kind::begin:
    case kind::begin_execute:
    case kind::begin_script:
      return "begin" + number;
    case kind::commit:
      return "commit" + number;
    case kind::rollback:
      return "rollback" + number;
    case kind::fresh_stream:
      return "values" + number;
    case kind::copy_in:
    case kind::fail_copy_in:
      return "copy in" + number;
    case kind::refused_copy_in:
      return "copy refused" + number;
    case kind::copy_out:
      return "copy out" + number;
    case kind::broken_copy_out:
      return "copy broken" + number;
    case kind::close:
      return {};
    default:
      return known_word(what);
  }
}

// Connects and prepares what is known before the program begins.
world::world(const program& made) : program_(made), talk_(settings_of(made)) {
  const auto complete = [this](const core::operation_ptr& op) {
    while (!op->done()) {
      settle();
      server_.feed(talk_.outbound());
      talk_.sent(talk_.outbound().size());
      while (server_.can_work()) server_.work(false);
      for (const auto& each : std::exchange(server_.answers, {})) deliver(each);
      talk_.pump();
    }
    say(op->state == operation::state::succeeded && talk_.next_completed() == op, "the beginning failed");
  };
  complete(talk_.start_connect());
  for (const auto what : program_.kinds) {
    const auto* const sql = known_word(what);
    if (sql != nullptr && talk_.find_statement(sql) == nullptr) complete(talk_.start_prepare(sql));
  }
  settle();
  server_.change_plans();
  consumed_.clear();
  inspected_ = 0;
  sent_ = (talk_.*revealed(tag_of_outbound_{})).sent_total();
  for (const auto what : program_.kinds) {
    auto& each = requests_.emplace_back();
    each.what = what;
    each.token = 40 + static_cast<int>(requests_.size());
  }
}

unsigned world::enabled() const {
  if (lost_) return 0;
  unsigned out = 0;
  const auto can = [&out](unsigned which, bool yes = true) { out |= yes ? 1u << which : 0u; };
  can(start, next_ < requests_.size());
  can(send, !talk_.outbound().empty());
  can(work, server_.can_work());
  can(hit, server_.can_be_hit());
  can(receive, !server_.answers.empty());
  can(receive_half, program_.halves && !server_.answers.empty() && !half_received_);
  can(receive_all, server_.answers.size() > 1);
  const auto wish = talk_.cancel_wanted();
  can(cancel_begins, wish == core::cancel_wish::now || (program_.grace && wish == core::cancel_wish::grace));
  can(cancel_strikes, cancel_under_way_);
  can(cancel_ends, cancel_ == cancelling::socket_open);
  can(cancel_is_ignored, cancel_ == cancelling::socket_open && cancel_under_way_);
  for (std::size_t i = 0; i < requests_.size(); ++i) {
    const auto& each = requests_[i];
    can(abandon + static_cast<unsigned>(i), each.op && !each.abandoned && each.what != kind::close);
    can(attend + static_cast<unsigned>(i), may_attend(each));
  }
  constexpr auto moves = 1u << send | 1u << work | 1u << receive | 0xfu << attend;
  const bool progress = (out & moves) != 0 || cancel_ == cancelling::socket_open;
  if (!progress && !server_.ended) say(all_done(), "a request hangs");
  for (const auto each : {end_of_file, reset, fatal}) can(each, each != fatal || !server_.ended);
  return out;
}

bool world::all_done() const {
  return std::all_of(requests_.begin(), requests_.end(), [](const auto& each) {
    return !each.started || each.done || (each.opened && !each.op);  // it is to be fetched from
  });
}

bool world::finished() const {
  const bool all = std::all_of(requests_.begin(), requests_.end(), [](const auto& each) { return each.done; });
  return all && !lost_ && talk_.outbound().empty() && !server_.can_work() && server_.answers.empty() &&
         cancel_ == cancelling::no;
}

void world::act(unsigned which) {
  const auto before = head();
  switch (which) {
    case start:
      start_next();
      break;
    case send: {
      server_.feed(talk_.outbound());
      const auto size = talk_.outbound().size();
      talk_.sent(size);
      sent_ += size;
      inspected_ = 0;
      break;
    }
    case work:
    case hit:
      if (!server_.waiting.empty() && server_.waiting.front().type == 'Q' && server_.waiting.front().sql.empty())
        cancel_under_way_ = false;  // a signal that was sent before is there before what was sent behind it
      server_.work(which == hit);
      break;
    case receive:
      deliver(server_.answers.front());
      server_.answers.pop_front();
      half_received_ = false;
      break;
    case receive_half: {
      auto& front = server_.answers.front();
      deliver(front.substr(0, front.size() / 2));
      front.erase(0, front.size() / 2);
      half_received_ = true;
      break;
    }
    case receive_all: {
      std::string all;
      for (const auto& each : std::exchange(server_.answers, {})) all += each;
      deliver(all);
      half_received_ = false;
      break;
    }
    case cancel_begins:
      talk_.cancel_started();
      cancel_ = cancelling::socket_open;
      cancel_under_way_ = true;
      break;
    case cancel_strikes:
      server_.cancel_pending = true;
      cancel_under_way_ = false;
      break;
    case cancel_is_ignored:
      cancel_under_way_ = false;
      [[fallthrough]];
    case cancel_ends:
      talk_.cancel_ended();
      cancel_ = cancelling::socket_ended;
      break;
    case end_of_file:
    case reset:
    case fatal:
      return lose(which);
    default: {
      if (which >= attend) {
        attend_to(requests_[which - attend]);
        break;
      }
      auto& each = requests_[which - abandon];
      each.abandoned = true;
      talk_.abandon(*each.op);
      inspected_ = std::min(inspected_, talk_.outbound().size());  // a batch of which nothing has left is taken back
      const auto* const p = each.op->exchange;
      say(p == nullptr || p->synced || p->sync_waits || p->draining, "abandoned, and its Sync was not written at once");
    }
  }
  settle();
  take_what_came();
  settle();
  judge_effects();
  take_outcomes();
  inspect(before);
  const bool ends = server_.ended && !server_.can_work();
  say(!talk_.ended() || (ends && all_done()), "the session ended by itself");
  say(!talk_.wants_pump(), "pump() leaves work for another pump()");
  const auto unfinished = std::count_if(requests_.begin(), requests_.end(), [](const auto& r) { return bool(r.op); });
  const bool draining = cancel_ == cancelling::draining;
  say(talk_.in_flight() == static_cast<std::size_t>(unfinished) + draining, "in_flight() counts wrong");
  if (!finished() || server_.ended) return;
  say(talk_.quiet(), "nothing is on its way, and the session is not quiet");
  say(talk_.transaction_status() == server_.status(), "another transaction status than the server's (D19)");
}

void world::start_next() {
  auto& each = requests_[next_++];
  each.started = true;
  const auto word = each.word();
  if (each.what == kind::close) {
    const auto op = talk_.start_close();
    const auto is_closer = [](const auto& other) { return other.started && other.what == kind::close; };
    each.done = std::count_if(requests_.begin(), requests_.end(), is_closer) > 1;  // all closers share one Terminate
    if (!each.done) each.op = op;
  } else if (start_lasting(each)) {
    return;
  } else if (each.what == kind::prepare || each.what == kind::known_prepare) {
    each.op = talk_.start_prepare(word);
  } else if (is_simple(each.what)) {
    each.op = talk_.start_script(word);
  } else if (is_command(each.what)) {
    each.op = talk_.start_command(word);
  } else if (auto found = talk_.find_statement(word)) {
    each.op = talk_.start_execute(std::move(found), arguments_of(each.token));
  } else {
    each.op = talk_.start_execute(word);
  }
}

// The face's part: pump, and encode what is described.
void world::settle() {
  for (bool again = true; again;) {
    again = false;
    talk_.pump();
    while (const auto op = talk_.next_unencoded()) {
      const auto& each = requests_.at(static_cast<std::size_t>(index_of(op.get())));
      if (each.what == kind::refused)
        talk_.refuse(*op);
      else
        talk_.supply(*op, arguments_of(each.token));
      again = true;
    }
  }
  const auto left = (talk_.*revealed(tag_of_inbound_{})).buffered();
  while (received_.size() > left) {
    const auto size = 1 + wire::load_uint32(received_.data() + 1);
    const bool code_57014 = received_[0] == 'E' && received_.substr(0, size).find("57014") != std::string::npos;
    if (received_[0] == 'Z') {
      consumed_.clear();
      if (cancel_ == cancelling::draining && head() != the_drain) cancel_ = cancelling::no;
    } else {
      consumed_ += code_57014 ? 'X' : received_[0];
    }
    received_.erase(0, size);
  }
}

void world::deliver(std::string_view bytes) {
  received_ += bytes;
  const auto room = talk_.prepare(bytes.size());
  std::memcpy(room.data(), bytes.data(), bytes.size());
  talk_.commit(bytes.size());
}

int world::index_of(const operation* op) const {
  if (op == nullptr) return nobody;
  if (op->kind == operation::kind::drain) return the_drain;
  for (std::size_t i = 0; i < requests_.size(); ++i)
    if (requests_[i].op.get() == op) return static_cast<int>(i);
  return nobody;
}

int world::head() const {
  return index_of(talk_.head());
}

// ---- what has left

void world::inspect(int head_before) {
  auto fresh = talk_.outbound().substr(inspected_);
  while (!fresh.empty()) {
    const auto at = sent_ + talk_.outbound().size() - fresh.size();
    const auto got = take_frontend(fresh, true);
    inspect(got, head_before);
    inspect_lasting(got);
    if (writer_ >= 0 && !requests_[static_cast<std::size_t>(writer_)].first_byte)
      requests_[static_cast<std::size_t>(writer_)].first_byte = at;
  }
  inspected_ = talk_.outbound().size();
}

void world::inspect(const frontend_message& got, int head_before) {
  const bool breaks = got.type == 'E' && got.portal == "pgpoll_broken";
  const bool ending = got.type == 'S' || got.type == 'f' || breaks;  // what finishes a dialogue that has begun
  if (got.type == 'Q' && got.sql.empty()) {
    say(cancel_ == cancelling::socket_ended, "a drain without a CancelRequest that has ended");
    cancel_ = cancelling::draining;
    writer_ = the_drain;
  } else if (got.type == 'P' || got.type == 'B' || got.type == 'Q' || got.type == 'X') {
    const auto is_its = [&](const request& each) {
      if (!each.started) return false;
      if (got.type == 'X') return each.what == kind::close && each.op;
      if (got.type == 'B' && !got.argument.empty()) return got.argument == std::to_string(each.token);
      if (got.type == 'B') return &each == &requests_[static_cast<std::size_t>(writer_)];  // a command's
      if (each.what == kind::batch || each.what == kind::fail_batch)
        return each.op && (got.sql.ends_with(std::to_string(each.token)) || got.sql == each.word());
      return each.word() == got.sql && each.op && (each.op->again ? !each.written_again : !each.first_byte);
    };
    const auto found = std::find_if(requests_.begin(), requests_.end(), is_its);
    say(found != requests_.end(), "a message of no request or of a finished one has left");
    writer_ = static_cast<int>(found - requests_.begin());
    found->written_again = found->op->again;
    say(!found->abandoned, "a request goes on though it was abandoned");
  }
  if (got.type == 'E' && got.portal.starts_with("p4"))  // a fetch
    writer_ = static_cast<int>(std::stoul(got.portal.substr(1)) - 41);
  if (got.type == 'C') return;  // Close of an evicted statement, in front of a Parse
  // By grace somebody may be on the wire already, who goes on once the cancel's socket has ended.
  const bool goes_on = program_.grace && cancel_ == cancelling::socket_ended && writer_ >= 0 &&
                       requests_[static_cast<std::size_t>(writer_)].first_byte;
  say(ending || got.type == 'X' || cancel_ == cancelling::no || writer_ == the_drain || goes_on,
      "written before a cancel's drain was over");
  const auto done = [this](int who) { return who >= 0 && !requests_[static_cast<std::size_t>(who)].op; };
  if (done(barrier_) || barrier_ == the_drain) barrier_ = nobody;
  say(barrier_ == nobody || barrier_ == writer_, "written behind COPY or a simple query (D3)");
  for (const auto ahead : {head_before, head()}) {
    if (ending || ahead < 0 || ahead == writer_ || done(ahead)) continue;
    say(!requests_[static_cast<std::size_t>(ahead)].abandoned, "written behind an abandoned head (D6)");
  }
  if (writer_ < 0) return;
  const auto what = requests_[static_cast<std::size_t>(writer_)].what;
  const bool copy = what == kind::copy || what == kind::known_copy;
  const bool copies = what >= kind::copy_in && what <= kind::broken_copy_out;  // which keep the writer to their end
  const bool owns = copy || copies || (what >= kind::stream && what <= kind::fail_stream) || what == kind::batch ||
                    what == kind::fail_batch;
  if (got.type == 'Q' || (got.type == 'B' && owns)) barrier_ = writer_;
  if (got.type != 'S') return;  // written after the answer to Execute: COPY is over, or has failed
  const auto& op = requests_[static_cast<std::size_t>(writer_)].op;
  if (!copies || (op && op->exchange != nullptr && op->exchange->draining)) barrier_ = nobody;
}

// ---- what was told

void world::take_outcomes() {
  while (const auto op = talk_.next_completed()) {
    const auto index = index_of(op.get());
    say(index >= 0, "an outcome of no request, or told twice");
    auto& each = requests_[static_cast<std::size_t>(index)];
    say(!each.abandoned, "an abandoned request was handed out");
    for (int i = 0; i < index; ++i) {
      const auto& ahead = requests_[static_cast<std::size_t>(i)];
      const bool again = (ahead.op && ahead.op->again) || ahead.opened;  // its second place is behind the others'
      say(ahead.done || ahead.abandoned || again || !each.first_byte, "told out of order");
    }
    if (!opens(each, op)) judge(each, *op);
  }
  for (auto& each : requests_) {
    if (!each.op || !each.op->done()) continue;
    say(each.abandoned, "an outcome that was not handed out");
    say(each.op->state == operation::state::cancelled, "abandoned, and not cancelled");
    each.done = true;
    each.op = nullptr;
  }
}

void world::judge(request& each, const operation& op) {
  if (!as_asked(each, op)) {
    say(op.state == operation::state::failed && op.error != nullptr, "a result of somebody else, or half of one");
    const auto& error = *op.error;
    const auto code = error.server ? std::string(error.server->field('C')) : std::string();
    const bool gone = error.kind == failure::kind::lost || error.kind == failure::kind::closed || code == "57P01";
    const bool after_close = std::any_of(requests_.begin(), requests_.end(), [&](const auto& other) {
      return other.what == kind::close && (other.token < each.token || each.opened) && other.started;
    });
    say((code == "57014" && may_be_hit(each, op)) || (gone && (lost_ || after_close)) || is_of_its_place(each, code),
        "an error of somebody else: " + error.message);
    const auto first_byte = each.first_byte;
    say(op.written == (first_byte && sent_ > *first_byte), "safe_to_retry is wrong");
    const auto* const left = effect_of(each);
    const bool known = !op.written || (error.kind == failure::kind::server && code != "57P01");
    say(!known || left == nullptr || left->now == effect::state::undone, "told to have failed, and it stands");
  }
  each.done = true;
  each.op = nullptr;
}

// Whether somebody who waits may get the 57014 that was meant for an abandoned request: never, where cancels are sent
// only while nobody waits behind that one. By grace he may where running him again is not safe, or he has been already.
bool world::may_be_hit(const request& each, const operation& op) const {
  const bool rows_came = !op.results.empty() && op.results[0].rows.size() != 0;
  switch (each.what) {
    case kind::fresh:
    case kind::shared:
    case kind::known:
    case kind::prepare:
    case kind::insert:
    case kind::known_insert:
      return program_.grace && (op.again || rows_came || lost_ || hindered(each));
    default:
      return program_.grace;
  }
}

// Whether an error is due to what came before the request, or to what hindered a second attempt.
bool world::is_of_its_place(const request& each, std::string_view code) const {
  if (code == "25P02") return began_before(each);
  if (code == "34000") return each.opened && !holds_portals(each);
  const bool stale = each.what == kind::stale_insert && code == "0A000";
  const bool dropped = each.what == kind::dropped_insert && code == "26000";
  return (stale || dropped) && (lost_ || hindered(each));
}

bool world::hindered(const request& each) const {
  return std::any_of(requests_.begin(), requests_.end(), [&](const auto& other) {
    return &other != &each && other.started &&
           (begins(other.what) || (other.token > each.token && hinders_others(other.what)));
  });
}

bool world::began_before(const request& each) const {
  return std::any_of(requests_.begin(), requests_.end(), [&](const auto& other) {
    return other.started && begins(other.what) && (other.token < each.token || each.opened);
  });
}

// Whether it was certainly opened in a transaction that nobody has ended.
bool world::holds_portals(const request& each) const {
  const auto ends = [](const auto& other) {
    return other.started && (other.what == kind::commit || other.what == kind::rollback);
  };
  return std::none_of(requests_.begin(), requests_.end(), ends) &&
         std::any_of(requests_.begin(), requests_.end(), [&](const auto& other) {
           return other.done && !other.abandoned && begins(other.what) && other.token < each.token;
         });
}

// Nothing runs twice, and nothing inside of a transaction that begins behind it.
void world::judge_effects() {
  for (const auto& each : requests_) {
    if (!is_insert(each.what)) continue;
    const auto stands = [&](const effect& one) { return one.token == each.token; };
    say(std::count_if(server_.effects.begin(), server_.effects.end(), stands) <= 1, "it ran twice");
    const auto* const left = effect_of(each);
    say(left == nullptr || left->transaction < each.token, "it ran inside of a transaction that began behind it");
    judge_lasting(each);
  }
}

const effect* world::effect_of(const request& each) const {
  for (const auto& left : server_.effects)
    if (is_insert(each.what) && left.token == each.token) return &left;
  return nullptr;
}

// Whether this is the request's own proper outcome.
bool world::as_asked(const request& each, const operation& op) const {
  if (const auto lasting = lasting_as_asked(each, op)) return *lasting;
  const auto token = std::to_string(each.token);
  const auto two_rows = [&](const core::raw_result& result) {
    if (result.rows.size() != 2 || result.tag != "SELECT 2") return false;
    for (std::size_t i = 0; i < 2; ++i)
      if (!std::string_view(result.rows.row(i), core::row_length(result.rows.row(i))).ends_with(token)) return false;
    return true;
  };
  const bool succeeded = op.state == operation::state::succeeded;
  const auto failed = [&](enum failure::kind how, const std::string& text) {
    return op.state == operation::state::failed && op.error->kind == how && op.error->message.find(text) == 0;
  };
  const auto tagged = [&](const std::string& tag) {
    return succeeded && op.results.size() == 1 && op.results[0].tag == tag;
  };
  switch (each.what) {
    case kind::fresh:
    case kind::shared:
    case kind::known:
      return succeeded && op.results.size() == 1 && two_rows(op.results[0]);
    case kind::script:
      return succeeded && op.results.size() == 2 && two_rows(op.results[0]) && op.results[1].tag == "TAG " + token;
    case kind::command:
      return tagged("TAG " + token);
    case kind::insert:
    case kind::known_insert:
    case kind::stale_insert:
    case kind::dropped_insert: {
      const auto* const left = effect_of(each);
      return tagged("INSERT 0 1") && left != nullptr && (left->transaction != 0 || left->now == effect::state::durable);
    }
    case kind::begin:
    case kind::begin_execute:
    case kind::begin_script:
      return tagged("BEGIN");
    case kind::commit:
      return tagged("COMMIT") || (tagged("ROLLBACK") && began_before(each));
    case kind::rollback:
      return tagged("ROLLBACK");
    case kind::prepare:
    case kind::known_prepare:
      return succeeded && op.statement && op.statement->sql == each.word() && op.statement->columns;
    case kind::refused:
      return failed(failure::kind::refused, "");
    case kind::copy:
    case kind::known_copy:
    case kind::copy_script:
      return failed(failure::kind::misuse, "COPY FROM STDIN");
    case kind::close:
      return succeeded;
    case kind::fail_sync:
      if (tagged("INSERT 0 1")) return began_before(each);
      [[fallthrough]];
    case kind::fail_bind:
      return failed(failure::kind::server, each.word().substr(0, 10) + token);
    default:
      return failed(failure::kind::server, each.word());
  }
}

// ---- ends

void world::lose(unsigned how) {
  lost_ = true;
  if (how == fatal) {
    for (const auto& each : server_.answers) deliver(each);
    deliver(server_error("57P01", "FATAL", "terminating connection"));
  }
  if (how == reset)
    talk_.fail({failure::kind::lost, "reset", nullptr, nullptr});
  else if (how == end_of_file)
    talk_.eof();
  settle();
  if (how == fatal) talk_.eof();
  settle();
  take_outcomes();
  say(talk_.ended(), "the connection is lost, and the session goes on");
  say(all_done(), "the connection is lost, and a request was not told");
  say(talk_.in_flight() == 0, "the connection is lost, and something is in flight");
  say(talk_.cancel_wanted() == core::cancel_wish::none, "the connection is lost, and a cancel is wanted");
  while (next_ < requests_.size()) {
    start_next();
    take_outcomes();
    say(requests_[next_ - 1].done, "started when all was lost, and not told");
  }
}

void world::expect_usable() {
  if (server_.ended) return;
  auto& last = requests_.emplace_back();
  last.what = kind::fresh;
  last.token = 4242;
  next_ = requests_.size() - 1;
  for (act(start); !last.done;) {
    const auto can = enabled();
    act(can & 1u << receive_all ? receive_all : can & 1u << receive ? receive : can & 1u << work ? work : send);
  }
}

// ---- equal states

void world::client_key(std::string& out) const {
  const auto add = [&out](auto... values) { (out.push_back(static_cast<char>(values)), ...); };
  const auto& sent_total = (talk_.*revealed(tag_of_outbound_{})).sent_total();
  const auto add_exchange = [&](const core::exchange_promise* p) {
    if (p == nullptr) return add('-');
    add(index_of(p->op.get()), p->wait, p->synced, p->sync_waits, p->draining, p->rows_came, p->answered);
    add(p->error ? 1 + static_cast<int>(p->error->kind) : 0, p->error && p->error->message.starts_with("canceling"));
    add(p->arguments.has_value(), p->op->statement != nullptr, p->first_byte.has_value(), p->in_replies);
    add(p->first_byte && *p->first_byte < sent_total);
    add(p->copy_failed, p->bound, p->op->again, p->op->statement != nullptr && p->op->statement->stale);
  };
  for (const auto& each : requests_) {
    add(each.started | each.abandoned << 1 | each.done << 2 | each.first_byte.has_value() << 3 |
        each.written_again << 4);
    add(each.first_byte && *each.first_byte < sent_);
    lasting_key(each, out);
  }
  add(writer_, barrier_, cancel_);
  for (const auto* p : talk_.*revealed(tag_of_replies_{})) add_exchange(p);
  add('|');
  for (const auto* p : talk_.*revealed(tag_of_writing_{})) add_exchange(p);
  add('|');
  add_exchange(talk_.*revealed(tag_of_writer_{}));
  add(talk_.*revealed(tag_of_cancelling_{}), talk_.*revealed(tag_of_state_{}), talk_.*revealed(tag_of_eof_{}));
  add(talk_.*revealed(tag_of_stray_cancel_{}), talk_.*revealed(tag_of_names_may_exist_{}), talk_.transaction_status());
  for (const auto& each : talk_.*revealed(tag_of_cache_{}).*revealed(tag_of_order_{}))
    out += each->name + (each.use_count() > 1 ? '+' : ';');
  out += consumed_ + '|' + received_ + '|';
  out += talk_.outbound();
  add('|');
}

void world::answers_key(std::string& out) const {
  out += static_cast<char>(half_received_);
  for (const auto& each : server_.answers) out += each;
}

void world::server_key(std::string& out) const {
  out += static_cast<char>(cancel_under_way_);
  server_.key(out);
}

}  // namespace pgpoll::test

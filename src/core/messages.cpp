// What backend messages mean: errors, those that come unasked, and those that several dialogues read.
#include <algorithm>

#include "core/session.hpp"

namespace pgpoll::core {

using wire::backend;

namespace {

constexpr std::size_t max_error_text = 64 * 1024;
constexpr std::size_t max_error_fields = 100;  // PostgreSQL has 18
constexpr std::size_t max_parameters = 1000;
constexpr std::size_t max_parameter_bytes = std::size_t{1} << 20;
constexpr std::size_t max_notices = 10'000;  // kept until the face takes them; what comes past either is dropped
constexpr std::size_t max_notice_bytes = std::size_t{1} << 20;
constexpr std::size_t max_notifications = 10'000;  // likewise
constexpr std::size_t max_notification_bytes = std::size_t{8} << 20;
constexpr std::size_t max_lossy_channels = 100;  // that are told apart

}  // namespace

// An ErrorResponse for the head. It may be running: only notes are taken here, its frame goes at ReadyForQuery.
void session::server_error(exchange_promise& p, const wire::message& got) {
  auto fields = fields_of(got);
  const bool ends = fields->fatal() || p.op->kind == operation::kind::connect;
  const bool first = p.op->batch && !p.draining && blame_item(p);
  if (!p.error || ends || first) p.error = make_failure(failure::kind::server, std::string(fields->field('M')), fields);
  p.draining = true;
  if (p.op->feeds()) stop_feed(*p.op);
  note_dropped(p, *fields);
  if (ends) {
    fatal_ = std::move(fields);
  } else if (!p.synced) {
    out().sync();
    p.synced = true;
    if (!again_helps(p)) release_writer(p);  // else nobody writes behind it, so that it may run again
  }
}

// A message while no reply is due: the server may say why it ends the connection, nothing else.
void session::unasked(const wire::message& got) {
  if (got.type != backend::error_response)
    throw wire::protocol_violation(wire::name_of(got.type) + ": nothing was asked, at byte 0");
  auto fields = fields_of(got);
  if (!fields->fatal()) throw wire::protocol_violation("ErrorResponse: nothing was asked, at byte 0");
  auto text = std::string(fields->field('M'));
  fail(failure{failure::kind::server, std::move(text), std::move(fields), nullptr});
}

bool session::asynchronous(const wire::message& got) {
  switch (got.type) {
    case backend::notice_response:
      if (authenticated_) keep_notice(got);
      return true;
    case backend::notification_response:
      keep_notification(got);
      return true;
    case backend::parameter_status:
      parameter_status(got);
      return true;
    default:
      return false;
  }
}

void session::keep_notice(const wire::message& got) {
  if (notices_.size() >= max_notices || notice_bytes_ + got.body.size() > max_notice_bytes) {
    ++notices_dropped_;
    return;
  }
  notices_.push_back({fields_of(got), got.body.size()});
  notice_bytes_ += got.body.size();
  ++notices_kept_;
}

std::optional<notice> session::next_notice() {
  if (notices_.empty()) return std::nullopt;
  auto oldest = std::move(notices_.front());
  notices_.pop_front();
  notice_bytes_ -= oldest.size;
  return oldest;
}

void session::keep_notification(const wire::message& got) {
  auto body = got.read("NotificationResponse");
  const auto pid = body.int32();
  const auto channel = body.string();
  const auto payload = body.string();
  body.end();
  if (!keeps_notifications_) return;
  ++notifications_kept_;
  if (notifications_.size() >= max_notifications || notification_bytes_ + got.body.size() > max_notification_bytes)
    return note_lost(channel);
  notifications_.push_back({std::string(channel), std::string(payload), pid, 0, got.body.size()});
  notification_bytes_ += got.body.size();
}

// At the end of what is kept, once for each channel; where those are too many, once for all.
void session::note_lost(std::string_view channel) {
  std::size_t told = 0;
  for (auto each = notifications_.rbegin(); each != notifications_.rend() && each->lost != 0; ++each, ++told)
    if (each->channel == channel || each->channel.empty()) return void(++each->lost);
  notifications_.push_back({std::string(told < max_lossy_channels ? channel : ""), {}, 0, 1, 0});
}

void session::keep_notifications(bool keep) {
  keeps_notifications_ = keep;
  if (keep) return;
  notifications_.clear();
  notification_bytes_ = 0;
}

std::optional<notification> session::next_notification() {
  if (notifications_.empty()) return std::nullopt;
  auto oldest = std::move(notifications_.front());
  notifications_.pop_front();
  notification_bytes_ -= oldest.size;
  return oldest;
}

void session::parameter_status(const wire::message& got) {
  auto body = got.read("ParameterStatus");
  const auto name = body.string();
  const auto value = body.string();
  body.end();
  if (name == "client_encoding" && value != "UTF8")
    body.fail("client_encoding became " + std::string(value) + "; only UTF8 is spoken here,");
  if (name == "integer_datetimes" && value != "on")
    body.fail("integer_datetimes is off; such servers are not supported,");
  auto found = parameters_.find(name);
  if (found == parameters_.end()) {
    parameter_bytes_ += name.size();
    found = parameters_.emplace(std::string(name), std::string()).first;
  }
  parameter_bytes_ += value.size();
  parameter_bytes_ -= found->second.size();
  found->second.assign(value);
  if (parameters_.size() > max_parameters || parameter_bytes_ > max_parameter_bytes)
    body.fail("more than 1,000 parameters or 1 MiB of them");
}

std::shared_ptr<const server_message> session::fields_of(const wire::message& got) const {
  auto fields = std::make_shared<server_message>();
  auto body = got.read(got.type == backend::error_response ? "ErrorResponse" : "NoticeResponse");
  while (body.left() > 0 && fields->fields.size() < max_error_fields) {
    const auto code = static_cast<char>(body.uint8());
    if (code == '\0') break;
    fields->fields.emplace_back(
        code, body.string_or_rest().substr(0, max_error_text));  // errors are told, well-formed or not
  }
  return fields;
}

wire::message session::expect(wire::message got, backend wanted) {
  if (got.type != wanted)
    throw wire::protocol_violation(wire::name_of(got.type) + ": " + wire::name_of(wanted) + " was expected, at byte 0");
  if ((wanted == backend::bind_complete || wanted == backend::parse_complete || wanted == backend::close_complete ||
       wanted == backend::copy_done || wanted == backend::portal_suspended) &&
      !got.body.empty())
    throw wire::protocol_violation(wire::name_of(got.type) + ": a body where none belongs, at byte 0");
  return got;
}

void session::ready_for_query(wire::message got) {
  auto body = expect(got, backend::ready_for_query).read("ReadyForQuery");
  const auto status = static_cast<char>(body.uint8());
  if (status != 'I' && status != 'T' && status != 'E') body.fail("an unknown transaction status");
  body.end();
  transaction_status_ = status;
}

std::string session::command_tag(wire::message got) {
  auto body = got.read("CommandComplete");
  auto tag = std::string(body.string());
  body.end();
  if (tag == "DISCARD ALL" || tag == "DEALLOCATE ALL") cache_.forget();
  return tag;
}

columns_ptr session::row_description_of(wire::message got, formats which) const {
  auto body = got.read("RowDescription");
  auto described = std::make_shared<row_description>();
  const std::size_t count = body.uint16();
  constexpr std::size_t shortest = 19;  // an empty name and the fixed fields
  if (body.left() < count * shortest) body.fail("ends too early");
  described->columns.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    auto& column = described->columns.emplace_back();
    column.name = body.string();
    column.table_oid = body.uint32();
    column.attribute_number = body.int16();
    column.type_oid = body.uint32();
    column.type_size = body.int16();
    column.typmod = body.int32();
    const auto format = body.int16();
    if (format != 0 && !(format == 1 && which == formats::told)) body.fail("a format that was not asked for");
    const bool binary = settings_.decodes_binary != nullptr && settings_.decodes_binary(column.type_oid);
    column.format = which == formats::chosen && binary ? std::int16_t{1} : format;
  }
  body.end();
  return described;
}

}  // namespace pgpoll::core

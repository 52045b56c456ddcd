// date, time, timetz, timestamp, timestamptz, interval.
//
// PostgreSQL counts days, and microseconds, from 2000-01-01. timestamptz is always aware in UTC and takes only aware
// values; timestamp takes only naive ones, and a date as its midnight. What Python cannot hold (infinity, years before
// 1 and after 9999, 24:00:00) raises DataError with the value's text.
//
// An interval has months, days and microseconds. Without months it is a timedelta, a day being 24 hours as in the
// server's own comparison; with months, or beyond timedelta's range, a pgpoll.Interval, which can be passed for any.
#include <algorithm>
#include <cstdio>
#include <limits>

#include "py/codecs/codec.hpp"
// Last: its static pointer is this file's.
#include <datetime.h>

namespace pgpoll::py {
namespace {

constexpr std::int64_t second = 1'000'000;  // in microseconds
constexpr std::int64_t day = 86'400 * second;
constexpr std::int64_t first_day = -730'119;  // 0001-01-01
constexpr std::int64_t last_day = 2'921'939;  // 9999-12-31

struct civil {
  std::int64_t year;
  int month, day;
};

// Days since 2000-01-01 in the proleptic Gregorian calendar: years that begin on March 1st, eras of 400 of them.
civil civil_from_days(std::int64_t days) {
  days += 730'425;  // since 0000-03-01
  const std::int64_t era = (days >= 0 ? days : days - 146'096) / 146'097;
  const auto of_era = static_cast<std::uint32_t>(days - era * 146'097);
  const std::uint32_t year = (of_era - of_era / 1460 + of_era / 36'524 - of_era / 146'096) / 365;
  const std::uint32_t of_year = of_era - (365 * year + year / 4 - year / 100);
  const std::uint32_t shifted = (5 * of_year + 2) / 153;
  const auto month = static_cast<int>(shifted < 10 ? shifted + 3 : shifted - 9);
  return {static_cast<std::int64_t>(year) + era * 400 + (month <= 2 ? 1 : 0), month,
          static_cast<int>(of_year - (153 * shifted + 2) / 5 + 1)};
}

std::int64_t days_from_civil(int year, int month, int day_of_month) {  // years 1 to 9999
  const int shifted = month > 2 ? year : year - 1;
  const int era = shifted / 400;
  const int of_era = shifted - era * 400;
  const int of_year = (153 * (month > 2 ? month - 3 : month + 9) + 2) / 5 + day_of_month - 1;
  return std::int64_t{era} * 146'097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 730'425;
}

struct clock {
  int hour, minute, second, microsecond;
};

clock clock_of(std::int64_t microseconds) {  // 0 <= microseconds < day
  const auto seconds = static_cast<std::uint32_t>(microseconds / second);
  return {static_cast<int>(seconds / 3600), static_cast<int>(seconds / 60 % 60), static_cast<int>(seconds % 60),
          static_cast<int>(microseconds % second)};
}

PyObject* outside(const codec& self, std::int64_t days, std::int64_t rest) {
  const auto date = civil_from_days(days);
  char text[64];
  const auto year = static_cast<long long>(date.year > 0 ? date.year : 1 - date.year);
  int size = std::snprintf(text, sizeof text, "%04lld-%02d-%02d", year, date.month, date.day);
  if (rest >= 0 && size > 0) {
    const auto time = clock_of(rest);
    size += std::snprintf(text + size, sizeof text - static_cast<std::size_t>(size), " %02d:%02d:%02d.%06d", time.hour,
                          time.minute, time.second, time.microsecond);
  }
  return bad_value("%s %s%s is outside Python's range of years, 1 to 9999; select it with ::text", self.name, text,
                   date.year > 0 ? "" : " BC");
}

PyObject* infinite(const codec& self, bool minus) {
  return bad_value("%s %s has no Python value; select it with ::text", self.name, minus ? "-infinity" : "infinity");
}

PyObject* decode_moment(const char* data, std::size_t size, const codec& self, PyObject* zone) {
  if (size != 8) return wrong_size(self, size, 8);
  const auto value = load_int64(data);
  if (value == std::numeric_limits<std::int64_t>::min() || value == std::numeric_limits<std::int64_t>::max())
    return infinite(self, value < 0);
  std::int64_t days = value / day;
  std::int64_t rest = value % day;
  if (rest < 0) {
    rest += day;
    --days;
  }
  if (days < first_day || days > last_day) return outside(self, days, rest);
  const auto date = civil_from_days(days);
  const auto time = clock_of(rest);
  return PyDateTimeAPI->DateTime_FromDateAndTime(static_cast<int>(date.year), date.month, date.day, time.hour,
                                                 time.minute, time.second, time.microsecond, zone,
                                                 PyDateTimeAPI->DateTimeType);
}

PyObject* decode_clock(const char* data, const codec& self, PyObject* zone) {
  const auto value = load_int64(data);
  if (value == day) return bad_value("%s 24:00:00 has no Python value; select it with ::text", self.name);
  if (value < 0 || value > day)
    return bad_value("%lld microseconds are no %s", static_cast<long long>(value), self.name);
  const auto time = clock_of(value);
  return PyDateTimeAPI->Time_FromTime(time.hour, time.minute, time.second, time.microsecond, zone,
                                      PyDateTimeAPI->TimeType);
}

// A subclass may say more than its fields do: pandas' NaT and the nanoseconds of its Timestamp.
bool whole(encoder& out, PyObject* value) {
  auto same = ref::steal(PyObject_RichCompare(value, value, Py_EQ));
  if (!same) return false;
  if (same.get() != Py_True) return out.refuse("it is not a time");
  auto nanosecond = ref::steal(PyObject_GetAttrString(value, "nanosecond"));
  if (!nanosecond) {
    PyErr_Clear();
    return true;
  }
  const int some = PyObject_IsTrue(nanosecond.get());
  return some == 0 || (some == 1 && out.refuse("it has nanoseconds"));
}

// The value's utcoffset(): false with a reason where it has none; `naive_hint` tells what to do then.
bool utc_offset(encoder& out, PyObject* value, PyObject* zone, const char* naive_hint, std::int64_t& microseconds) {
  microseconds = 0;
  if (zone == PyDateTime_TimeZone_UTC) return true;
  auto offset = ref::steal(PyObject_CallMethod(value, "utcoffset", nullptr));
  if (!offset) return false;
  if (!PyDelta_Check(offset.get())) return out.refuse(naive_hint);
  microseconds = PyDateTime_DELTA_GET_DAYS(offset.get()) * day + PyDateTime_DELTA_GET_SECONDS(offset.get()) * second +
                 PyDateTime_DELTA_GET_MICROSECONDS(offset.get());
  return true;
}

std::int64_t moment_of(PyObject* value) {
  const auto days = days_from_civil(PyDateTime_GET_YEAR(value), PyDateTime_GET_MONTH(value), PyDateTime_GET_DAY(value));
  const int seconds = PyDateTime_DATE_GET_HOUR(value) * 3600 + PyDateTime_DATE_GET_MINUTE(value) * 60 +
                      PyDateTime_DATE_GET_SECOND(value);
  return days * day + seconds * second + PyDateTime_DATE_GET_MICROSECOND(value);
}

std::int64_t clock_of(PyObject* value) {
  const int seconds = PyDateTime_TIME_GET_HOUR(value) * 3600 + PyDateTime_TIME_GET_MINUTE(value) * 60 +
                      PyDateTime_TIME_GET_SECOND(value);
  return seconds * second + PyDateTime_TIME_GET_MICROSECOND(value);
}

PyObject* interval_class() {
  static PyObject* cache = nullptr;
  return imported(cache, "pgpoll._values", "Interval");
}

bool int_attribute(encoder& out, PyObject* value, const char* name, long long most, long long& number) {
  auto attribute = ref::steal(PyObject_GetAttrString(value, name));
  if (!attribute) return false;
  if (!PyLong_Check(attribute.get())) return out.refuse("its fields are not all ints");
  int overflow = 0;
  number = PyLong_AsLongLongAndOverflow(attribute.get(), &overflow);
  return (overflow == 0 && number <= most && number >= -most - 1) || out.refuse("out of range");
}

bool encode_interval_fields(encoder& out, PyObject* value) {
  long long months = 0;
  long long days = 0;
  long long microseconds = 0;
  if (!int_attribute(out, value, "months", std::numeric_limits<std::int32_t>::max(), months) ||
      !int_attribute(out, value, "days", std::numeric_limits<std::int32_t>::max(), days) ||
      !int_attribute(out, value, "microseconds", std::numeric_limits<std::int64_t>::max(), microseconds))
    return false;
  return out.int64(microseconds) && out.int32(static_cast<std::int32_t>(days)) &&
         out.int32(static_cast<std::int32_t>(months));
}

}  // namespace

bool prepare_datetime() {
  if (PyDateTimeAPI == nullptr) PyDateTime_IMPORT;
  return PyDateTimeAPI != nullptr;
}

PyObject* decode_date(const char* data, std::size_t size, const codec& self) {
  if (size != 4) return wrong_size(self, size, 4);
  const auto days = wire::load_int32(data);
  if (days == std::numeric_limits<std::int32_t>::min() || days == std::numeric_limits<std::int32_t>::max())
    return infinite(self, days < 0);
  if (days < first_day || days > last_day) return outside(self, days, -1);
  const auto date = civil_from_days(days);
  return PyDateTimeAPI->Date_FromDate(static_cast<int>(date.year), date.month, date.day, PyDateTimeAPI->DateType);
}

PyObject* decode_time(const char* data, std::size_t size, const codec& self) {
  return size == 8 ? decode_clock(data, self, Py_None) : wrong_size(self, size, 8);
}

PyObject* decode_timetz(const char* data, std::size_t size, const codec& self) {
  if (size != 12) return wrong_size(self, size, 12);
  const auto west = wire::load_int32(data + 8);  // seconds
  if (west == 0) return decode_clock(data, self, PyDateTime_TimeZone_UTC);
  if (west <= -86'400 || west >= 86'400) return bad_value("a timetz %d seconds west of UTC", west);
  auto offset = ref::steal(PyDelta_FromDSU(0, -west, 0));
  auto zone = ref::steal(offset ? PyTimeZone_FromOffset(offset.get()) : nullptr);
  return zone ? decode_clock(data, self, zone.get()) : nullptr;
}

PyObject* decode_timestamp(const char* data, std::size_t size, const codec& self) {
  return decode_moment(data, size, self, Py_None);
}

PyObject* decode_timestamptz(const char* data, std::size_t size, const codec& self) {
  return decode_moment(data, size, self, PyDateTime_TimeZone_UTC);
}

PyObject* decode_interval(const char* data, std::size_t size, const codec& self) {
  if (size != 16) return wrong_size(self, size, 16);
  const auto microseconds = load_int64(data);
  const auto days = wire::load_int32(data + 8);
  const auto months = wire::load_int32(data + 12);
  const auto all = [&](auto pick) {
    return microseconds == pick(std::int64_t{}) && days == pick(std::int32_t{}) && months == pick(std::int32_t{});
  };
  if (all([](auto zero) { return std::numeric_limits<decltype(zero)>::max(); })) return infinite(self, false);
  if (all([](auto zero) { return std::numeric_limits<decltype(zero)>::min(); })) return infinite(self, true);
  auto more = microseconds / day;
  auto rest = microseconds % day;
  if (rest < 0) {
    rest += day;
    --more;
  }
  const auto all_days = days + more;
  if (months == 0 && all_days >= -999'999'999 && all_days <= 999'999'999)
    return PyDelta_FromDSU(static_cast<int>(all_days), static_cast<int>(rest / second),
                           static_cast<int>(rest % second));
  auto* kind = interval_class();
  return kind == nullptr ? nullptr
                         : PyObject_CallFunction(kind, "iiL", months, days, static_cast<long long>(microseconds));
}

bool encode_date(encoder& out, PyObject* value, const codec&) {
  if (!PyDate_Check(value)) return out.refuse("pass a datetime.date");
  if (PyDateTime_Check(value)) return out.refuse("a datetime is no date: pass its .date()");
  if (!PyDate_CheckExact(value) && !whole(out, value)) return false;
  return out.int32(static_cast<std::int32_t>(
      days_from_civil(PyDateTime_GET_YEAR(value), PyDateTime_GET_MONTH(value), PyDateTime_GET_DAY(value))));
}

bool encode_time(encoder& out, PyObject* value, const codec&) {
  if (!PyTime_Check(value)) return out.refuse("pass a datetime.time");
  if (PyDateTime_TIME_GET_TZINFO(value) != Py_None) return out.refuse("it is aware: time takes naive ones (timetz?)");
  if (!PyTime_CheckExact(value) && !whole(out, value)) return false;
  return out.int64(clock_of(value));
}

bool encode_timetz(encoder& out, PyObject* value, const codec&) {
  if (!PyTime_Check(value)) return out.refuse("pass a datetime.time");
  if (!PyTime_CheckExact(value) && !whole(out, value)) return false;
  std::int64_t offset = 0;
  const char* hint = "it is naive: timetz takes a time whose tzinfo has a fixed offset";
  if (!utc_offset(out, value, PyDateTime_TIME_GET_TZINFO(value), hint, offset)) return false;
  if (offset % second != 0) return out.refuse("its offset has a fraction of a second");
  return out.int64(clock_of(value)) && out.int32(static_cast<std::int32_t>(-offset / second));
}

bool encode_timestamp(encoder& out, PyObject* value, const codec& self) {
  if (!PyDateTime_Check(value)) {
    if (!PyDate_Check(value)) return out.refuse("pass a naive datetime.datetime");
    if (!PyDate_CheckExact(value) && !whole(out, value)) return false;
    return out.int64(
        days_from_civil(PyDateTime_GET_YEAR(value), PyDateTime_GET_MONTH(value), PyDateTime_GET_DAY(value)) * day);
  }
  if (!PyDateTime_CheckExact(value) && !whole(out, value)) return false;
  if (PyDateTime_DATE_GET_TZINFO(value) != Py_None)
    return out.refuse("it is aware: timestamp takes naive ones (did you mean timestamptz?)");
  (void)self;
  return out.int64(moment_of(value));
}

bool encode_timestamptz(encoder& out, PyObject* value, const codec&) {
  if (!PyDateTime_Check(value)) return out.refuse("pass an aware datetime.datetime");
  if (!PyDateTime_CheckExact(value) && !whole(out, value)) return false;
  std::int64_t offset = 0;
  const char* hint = "it is naive: timestamptz takes aware ones (give it a tzinfo)";
  if (!utc_offset(out, value, PyDateTime_DATE_GET_TZINFO(value), hint, offset)) return false;
  return out.int64(moment_of(value) - offset);
}

bool encode_interval(encoder& out, PyObject* value, const codec&) {
  if (PyDelta_Check(value)) {
    if (!PyDelta_CheckExact(value) && !whole(out, value)) return false;
    std::int64_t days = PyDateTime_DELTA_GET_DAYS(value);
    std::int64_t rest = PyDateTime_DELTA_GET_SECONDS(value) * second + PyDateTime_DELTA_GET_MICROSECONDS(value);
    if (days < 0 && rest > 0) {  // -1 hour, not -1 day and 23 hours
      ++days;
      rest -= day;
    }
    return out.int64(rest) && out.int32(static_cast<std::int32_t>(days)) && out.int32(0);
  }
  auto* kind = interval_class();
  const int is_interval = kind == nullptr ? -1 : PyObject_IsInstance(value, kind);
  if (is_interval < 0) return false;
  return is_interval == 1 ? encode_interval_fields(out, value)
                          : out.refuse("pass a datetime.timedelta or a pgpoll.Interval");
}

}  // namespace pgpoll::py

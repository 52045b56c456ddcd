// What a session holds within, for the explorer's key of equal states. An explicit instantiation may name private
// members, so the session itself need not know of its tests.
#pragma once

#include <string>

#include "core/session.hpp"

namespace pgpoll::test {

template <typename Tag, auto Member>
struct reveal {
  friend constexpr auto revealed(Tag) { return Member; }
};

#define PGPOLL_REVEAL(owner, member)                 \
  struct tag_of_##member {                           \
    friend constexpr auto revealed(tag_of_##member); \
  };                                                 \
  template struct reveal<tag_of_##member, &owner::member>;

PGPOLL_REVEAL(core::session, writing_)
PGPOLL_REVEAL(core::session, writer_)
PGPOLL_REVEAL(core::session, replies_)
PGPOLL_REVEAL(core::session, cancelling_)
PGPOLL_REVEAL(core::session, state_)
PGPOLL_REVEAL(core::session, eof_)
PGPOLL_REVEAL(core::session, inbound_)
PGPOLL_REVEAL(core::session, outbound_)
PGPOLL_REVEAL(core::session, cache_)
PGPOLL_REVEAL(core::session, stray_cancel_)
PGPOLL_REVEAL(core::session, names_may_exist_)
PGPOLL_REVEAL(core::statement_cache, order_)

#undef PGPOLL_REVEAL

}  // namespace pgpoll::test

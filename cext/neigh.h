/* neigh.h: neighbours (next hops). One table for all workers and the control process; an entry is one 64-bit word beside its key.
 *
 *   word = MAC (48 bits) | state (3) | static (1) | MTU class (8) | port (4)
 *
 * The word is written with atomic stores by whoever learns something; readers take one load. An id is the place of the key and
 * stays while the plane lives, so a connection keeps ids and sees a changed MAC at its next packet.
 *
 * An address that routes of several MTUs go through has an entry for each (class 0: the port's MTU). They lie in one run of probing and learn
 * together. So a packet knows how large it may be from the word it reads anyway: port and class are the index of a table of MTUs.
 */
#ifndef FNAT_NEIGH_H
#define FNAT_NEIGH_H

#include "hash.h"

enum neigh_state { NEIGH_EMPTY, NEIGH_CLAIMED, NEIGH_NONE, NEIGH_SEND, NEIGH_REACHABLE, NEIGH_PROBE, NEIGH_DELAY, NEIGH_STATIC = 8 };

/* RFC 4861 section 10 constants, in ticks of 1/64 s; ARP follows them too. */
enum { NEIGH_RETRANS = 64, NEIGH_TRIES = 3, NEIGH_REACHABLE_TIME = 30 * 64, NEIGH_DELAY_TIME = 5 * 64 };

struct neigh_entry {
    u8 addr[16];
    u8 family, port, tries, used; /* used: somebody sent through it since the last look */
    u32 since;                    /* tick of the last change of state or confirmation */
    u64 word;
};
enum { NEIGH_CLASSES = 256, NEIGH_LINKS = 16 * NEIGH_CLASSES };
_Static_assert(sizeof(struct neigh_entry) == 32, "two neighbours a line");

struct neigh_table {
    struct neigh_entry *entries; /* ids 1..count-1 */
    u32 count;
    const struct hash_secret *secret;
};

static inline u8 neigh_word_state(u64 word) { return (u8)(word >> 48) & 7; }
static inline bool neigh_word_static(u64 word) { return word >> 48 & NEIGH_STATIC; }
static inline u32 neigh_word_link(u64 word) { return (u32)(word >> 52); }
static inline u8 neigh_word_port(u64 word) { return (u8)(word >> 60); }
static inline bool neigh_word_usable(u64 word) { return neigh_word_state(word) >= NEIGH_REACHABLE; }
static inline u32 neigh_link(u8 port, u8 mtu_class) { return (u32)port * NEIGH_CLASSES + mtu_class; }
static inline u64 neigh_word(const u8 mac[6], u8 state, u32 link)
{
    u64 word = 0;
    if (mac)
        memcpy(&word, mac, 6);
    return word | (u64)state << 48 | (u64)link << 52;
}
static inline u64 neigh_load(const struct neigh_table *t, u32 id) { return load_relaxed(&t->entries[id].word); }

/* The first entry of (port, address), whatever its class; 0: absent. Then the others. */
u32 neigh_find(const struct neigh_table *t, u8 port, u8 family, const u8 addr[16]);
u32 neigh_next(const struct neigh_table *t, u32 id);
/* Id of (link, address), made when absent: in state NONE, or with the MAC that another class knows. 0: table full. */
u32 neigh_get_link(struct neigh_table *t, u32 link, u8 family, const u8 addr[16]);
static inline u32 neigh_get(struct neigh_table *t, u8 port, u8 family, const u8 addr[16])
{
    return neigh_get_link(t, neigh_link(port, 0), family, addr);
}
/* A MAC was heard or given, for all entries of this address. Static ones keep theirs unless the new one is static too. */
void neigh_learn(struct neigh_table *t, u32 id, const u8 mac[6], u8 state, u32 tick);
/* The state of this entry alone; mac NULL: none. */
void neigh_turn(struct neigh_table *t, u32 id, const u8 mac[6], u8 state, u32 tick);
/* Nobody answered, or it shall not be known: this entry, and those of the address that know a MAC. One that is being asked for goes on. */
void neigh_forget(struct neigh_table *t, u32 id, u32 tick);

#endif

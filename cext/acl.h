/* acl.h: sets of source addresses: prefixes of both families, with exceptions; the longest prefix of a set decides.
 *
 * A set is a trie of nodes of one cache line. A node stands for six bits of the address: it holds the prefixes that end in them
 * (63 of them, as bits) and which of its 64 children exist; children lie side by side, so one is found by counting bits. Bits that
 * all entries below share are skipped: a node carries its whole prefix and is compared with the address. From ACL_TABLE_FROM entries on a
 * table by the first 16 bits stands before the tries, so a million random prefixes are two or three lines deep.
 *
 * What a worker can reach is never changed. Control copies the few nodes on the way to an entry and puts the new way in force with one
 * store (acl_commit); lines that are out of use are free again when every worker has adopted a later snapshot. The tries are the only
 * copy of the entries in the core, and outlive control: the next one reads them (acl_open).
 *
 * References are in units of 64 bytes from the start of the area; the sets themselves are its first units.
 */
#ifndef FNAT_ACL_H
#define FNAT_ACL_H

#include "base.h"

typedef unsigned __int128 u128;

enum { ACL_SETS = 16384, ACL_NAME = 40, ACL_KEY = 18, ACL_TABLE_FROM = 4096, ACL_TABLE_BITS = 16, ACL_DEPTH = 22 };
enum acl_answer { ACL_NO, ACL_YES, ACL_EXCEPT };

struct acl_set {
    u32 root[2];  /* by family (0: IPv4): the first node; with a table only of prefixes shorter than its bits. 0: none */
    u32 table[2]; /* words of node<<2 | answer of the shorter prefixes; 0: none */
    u32 count[2]; /* entries */
    char name[ACL_NAME];
};
_Static_assert(sizeof(struct acl_set) == CACHE_LINE, "a set is one unit");

struct acl_node {
    u64 high, low; /* the address bits before `depth`; the rest 0 */
    u64 present;   /* prefixes that end here, by (1 << length) - 1 + value */
    u64 except;    /* those of them that are exceptions */
    u64 children;  /* by the next six bits */
    u32 child;     /* the first of them */
    u8 depth, pad[19];
};
_Static_assert(sizeof(struct acl_node) == CACHE_LINE, "a node is one unit");

/* The address in host order, IPv4 in the high bits. */
static inline u128 acl_key(u8 family, const u8 *addr)
{
    u64 high, low = 0;
    if (family == 4) {
        u32 four;
        memcpy(&four, addr, 4);
        return (u128)__builtin_bswap32(four) << 96;
    }
    memcpy(&high, addr, 8);
    memcpy(&low, addr + 8, 8);
    return (u128)__builtin_bswap64(high) << 64 | __builtin_bswap64(low);
}

extern const u64 acl_way[64]; /* the prefixes inside a node that hold these six bits */

static inline const struct acl_set *acl_set_at(const u8 *area, u32 id) { return (const struct acl_set *)area + id; }
static inline const struct acl_node *acl_node_at(const u8 *area, u32 unit) { return (const struct acl_node *)area + unit; }
static inline u32 acl_six(u128 key, u32 depth) { return (u32)((u64)(key << depth >> 64) >> 58); }

/* One node of the way: what it says goes to *best, the next node is returned; 0: the end. */
static inline u32 acl_step(const struct acl_node *n, u128 key, u8 *best)
{
    u128 differs = key ^ ((u128)n->high << 64 | n->low);
    if (n->depth && differs >> (128 - n->depth))
        return 0;
    u32 six = acl_six(key, n->depth);
    u64 hits = n->present & acl_way[six];
    if (hits)
        *best = n->except >> (63 - __builtin_clzll(hits)) & 1 ? ACL_EXCEPT : ACL_YES;
    u64 bit = 1ull << six;
    return n->children & bit ? n->child + (u32)__builtin_popcountll(n->children & (bit - 1)) : 0;
}

/* The word from which the way begins. The root is read first: it loses its long prefixes after the table has them. */
static inline u32 acl_begin(const u8 *area, const struct acl_set *s, u32 f, u128 key, u8 *best)
{
    u32 root = load_acquire(&s->root[f]), table = load_acquire(&s->table[f]);
    *best = ACL_NO;
    if (!table)
        return root;
    u32 word = load_acquire((const u32 *)(area + (u64)table * CACHE_LINE) + (u32)(key >> (128 - ACL_TABLE_BITS)));
    *best = word & 3;
    return word >> 2;
}

static inline bool acl_has(const u8 *area, u32 id, u8 family, u128 key)
{
    u8 best;
    u32 unit = acl_begin(area, acl_set_at(area, id), family == 6, key, &best);
    while (unit)
        unit = acl_step(acl_node_at(area, unit), key, &best);
    return best == ACL_YES;
}

/* Many look-ups side by side: whatever waits for memory waits together. */
struct acl_walk {
    u128 key;
    u32 set, unit;
    u8 family, best;
};
void acl_walk_all(const u8 *area, struct acl_walk *walks, u32 n);

/* ---- building, by control; one builder at a time ---- */

struct acl_builder;

u64 acl_area_bytes(u64 bytes); /* at least the sets */
/* Take over what lies in the area; a set that is damaged becomes empty. adopted: the newest snapshot; all workers use it. NULL: no memory. */
struct acl_builder *acl_open(u8 *area, u64 bytes, u32 newest);
void acl_close(struct acl_builder *b);
/* The set of this name, made empty if there is none. -ENOSPC all sets are in use. */
int acl_make(struct acl_builder *b, const char *name);
/* The set goes with the next commit. -ENOENT */
int acl_drop(struct acl_builder *b, u32 id);
/* Put in or take out one entry. A key is family, 16 address bytes in network order, prefix length + 1. ACL_NO takes out. -ENOENT it is not there,
 * -EINVAL no such set or key, -ENOSPC. An entry that is there gets the new answer. */
int acl_edit(struct acl_builder *b, u32 id, const u8 key[ACL_KEY], enum acl_answer answer);
/* All that was edited is in force: the snapshot `seq` is published next. */
void acl_commit(struct acl_builder *b, u32 seq);
/* Every worker uses snapshot `adopted` or a later one. */
void acl_reclaim(struct acl_builder *b, u32 adopted);
bool acl_is_set(const struct acl_builder *b, u32 id);
bool acl_is_changed(const struct acl_builder *b);
u64 acl_free_bytes(const struct acl_builder *b);
/* The entries of a set as keys and answers, at most n; returns how many. */
u32 acl_read_work(const struct acl_builder *b, u32 id, u8 *keys, u8 *answers, u32 n); /* as edited, before the commit */
void acl_count(const struct acl_builder *b, u32 id, u32 counts[2]);                   /* likewise */
u32 acl_read(const u8 *area, u32 id, u8 *keys, u8 *answers, u32 n);

#endif

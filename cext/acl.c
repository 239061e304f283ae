/* acl.c: see acl.h.
 *
 * Space: blocks of 64 units, inside a block powers of two (a buddy system whose state is one word of bits). Lines that were taken since the
 * last commit are nobody's but control's: they are changed and given back at once; older ones are copied, and wait until no
 * worker can hold them.
 */
#include "acl.h"

#include <errno.h>
#include <stdlib.h>

enum { BLOCK = 64, ORDERS = 7, TABLE_UNITS = (1 << ACL_TABLE_BITS) * 4 / CACHE_LINE, TABLE_BLOCKS = TABLE_UNITS / BLOCK };
enum { RESERVE = 4096 /* units that are kept for taking out */ };

struct block {
    u64 used, fresh; /* a bit a unit; fresh: taken since the last commit */
    u32 next, prev;  /* of its list, + 1 */
    u8 order;        /* the list it is in + 1: log2 of the largest free run; 0: full */
};

/* A set as it will be after the next commit. */
struct work {
    u32 root[2], table[2], count[2];
    u32 *words[2]; /* the table's, not yet in force */
    u32 *dirty[2]; /* slots that differ */
    u32 n_dirty[2];
    bool touched, gone;
};

struct dead {
    u32 unit, count; /* count 0: a set */
    u32 since;
};

struct acl_builder {
    u8 *area;
    u32 units, n_blocks, free_units;
    struct block *blocks;
    u32 lists[ORDERS]; /* first block + 1 */
    struct work *sets;
    u32 *touched, n_touched;
    struct dead *dead; /* in the order of since */
    u32 dead_first, dead_end, dead_room;
    u32 seq; /* of the next commit */
    bool burying;
};

#define W(six, length) (1ull << ((1u << (length)) - 1 + ((six) >> (6 - (length)))))
#define WAY(six) (W(six, 0) | W(six, 1) | W(six, 2) | W(six, 3) | W(six, 4) | W(six, 5))
#define WAY4(six) WAY(six), WAY(six + 1), WAY(six + 2), WAY(six + 3)
#define WAY16(six) WAY4(six), WAY4(six + 4), WAY4(six + 8), WAY4(six + 12)
const u64 acl_way[64] = {WAY16(0), WAY16(16), WAY16(32), WAY16(48)};

void acl_walk_all(const u8 *area, struct acl_walk *walks, u32 n)
{
    for (u32 i = 0; i < n; i++) {
        u32 table = load_acquire(&acl_set_at(area, walks[i].set)->table[walks[i].family == 6]);
        if (table)
            prefetch((const u32 *)(area + (u64)table * CACHE_LINE) + (u32)(walks[i].key >> (128 - ACL_TABLE_BITS)));
    }
    u32 left = 0;
    for (u32 i = 0; i < n; i++) {
        struct acl_walk *w = &walks[i];
        w->unit = acl_begin(area, acl_set_at(area, w->set), w->family == 6, w->key, &w->best);
        if (w->unit) {
            prefetch(acl_node_at(area, w->unit));
            left++;
        }
    }
    while (left) {
        left = 0;
        for (u32 i = 0; i < n; i++) {
            struct acl_walk *w = &walks[i];
            if (!w->unit)
                continue;
            w->unit = acl_step(acl_node_at(area, w->unit), w->key, &w->best);
            if (w->unit) {
                prefetch(acl_node_at(area, w->unit));
                left++;
            }
        }
    }
}

/* ---- space ---- */

/* Free runs of 1 << order units, aligned, as the bits where they begin. */
static u64 runs(u64 used, u32 order)
{
    static const u64 aligned[ORDERS] = {
        ~0ull, 0x5555555555555555ull, 0x1111111111111111ull, 0x0101010101010101ull, 0x0001000100010001ull, 0x0000000100000001ull, 1};
    u64 f = ~used;
    for (u32 i = 0; i < order; i++)
        f &= f >> (1u << i);
    return f & aligned[order];
}

static u64 bits(u32 at, u32 n) { return (n == 64 ? ~0ull : (1ull << n) - 1) << at; }
static u32 order_of(u32 n) { return n <= 1 ? 0 : 32 - (u32)__builtin_clz(n - 1); }

static void unlist(struct acl_builder *b, u32 i)
{
    struct block *k = &b->blocks[i];
    if (!k->order)
        return;
    if (k->prev)
        b->blocks[k->prev - 1].next = k->next;
    else
        b->lists[k->order - 1] = k->next;
    if (k->next)
        b->blocks[k->next - 1].prev = k->prev;
    k->order = 0;
}

/* The block's free runs have changed. */
static void enlist(struct acl_builder *b, u32 i)
{
    struct block *k = &b->blocks[i];
    u32 order = ORDERS;
    while (order && !runs(k->used, order - 1))
        order--;
    if (order == k->order)
        return;
    unlist(b, i);
    if (!order)
        return;
    k->order = (u8)order;
    k->prev = 0;
    k->next = b->lists[order - 1];
    if (k->next)
        b->blocks[k->next - 1].prev = i + 1;
    b->lists[order - 1] = i + 1;
}

static void take_units(struct acl_builder *b, u32 unit, u32 n)
{
    struct block *k = &b->blocks[unit / BLOCK];
    k->used |= bits(unit % BLOCK, n);
    k->fresh |= bits(unit % BLOCK, n);
    b->free_units -= n;
    enlist(b, unit / BLOCK);
}

/* Room for n nodes side by side, rounded up to a power of two. 0: none. */
static u32 take(struct acl_builder *b, u32 n)
{
    u32 order = order_of(n), at = order;
    while (at < ORDERS && !b->lists[at])
        at++;
    if (at == ORDERS)
        return 0;
    u32 i = b->lists[at] - 1, unit = i * BLOCK + (u32)__builtin_ctzll(runs(b->blocks[i].used, order));
    take_units(b, unit, 1u << order);
    return unit;
}

static void give_units(struct acl_builder *b, u32 unit, u32 n)
{
    struct block *k = &b->blocks[unit / BLOCK];
    k->used &= ~bits(unit % BLOCK, n);
    k->fresh &= ~bits(unit % BLOCK, n);
    b->free_units += n;
    enlist(b, unit / BLOCK);
}

static bool is_fresh(const struct acl_builder *b, u32 unit) { return b->blocks[unit / BLOCK].fresh >> unit % BLOCK & 1; }

static bool room_to_die(struct acl_builder *b, u32 more)
{
    u32 n = b->dead_end - b->dead_first;
    if (b->dead_end + more <= b->dead_room)
        return true;
    if (b->dead_first)
        memmove(b->dead, b->dead + b->dead_first, n * sizeof *b->dead);
    b->dead_first = 0, b->dead_end = n;
    if (2 * (n + more) <= b->dead_room)
        return true;
    struct dead *queue = realloc(b->dead, (4ull * n + more + 64) * sizeof *queue);
    if (!queue)
        return false;
    b->dead = queue;
    b->dead_room = 4 * n + more + 64;
    return true;
}

/* Lines that workers may hold wait. Where there is no memory to note them, they are lost until the next control. */
static void give(struct acl_builder *b, u32 unit, u32 n)
{
    u32 whole = n > BLOCK ? n : 1u << order_of(n);
    if (whole > BLOCK) {
        for (u32 i = 0; i < whole; i += BLOCK)
            give(b, unit + i, BLOCK);
        return;
    }
    if (b->burying || is_fresh(b, unit))
        give_units(b, unit, whole);
    else if (room_to_die(b, 1))
        b->dead[b->dead_end++] = (struct dead){unit, whole, b->seq};
}

static u32 take_table(struct acl_builder *b)
{
    for (u32 i = b->n_blocks, run = 0; i-- > 0;) {
        run = b->blocks[i].used ? 0 : run + 1;
        if (run < TABLE_BLOCKS)
            continue;
        for (u32 k = i; k < i + TABLE_BLOCKS; k++)
            take_units(b, k * BLOCK, BLOCK);
        return i * BLOCK;
    }
    return 0;
}

/* ---- nodes ---- */

static struct acl_node *at(const struct acl_builder *b, u32 unit) { return (struct acl_node *)b->area + unit; }
static u128 key_of(const struct acl_node *n) { return (u128)n->high << 64 | n->low; }
static u32 children_of(const struct acl_node *n) { return (u32)__builtin_popcountll(n->children); }
static u128 cut(u128 key, u32 depth) { return depth ? key >> (128 - depth) << (128 - depth) : 0; }

static struct acl_node leaf(u128 key, u32 depth)
{
    key = cut(key, depth);
    return (struct acl_node){.high = (u64)(key >> 64), .low = (u64)key, .depth = (u8)depth};
}

static u64 bit_of(u128 key, u32 depth, u32 plen)
{
    return 1ull << ((1u << (plen - depth)) - 1 + (acl_six(key, depth) >> (6 - (plen - depth))));
}

static void set_bit(struct acl_node *n, u64 bit, enum acl_answer answer)
{
    n->present |= bit;
    n->except = answer == ACL_EXCEPT ? n->except | bit : n->except & ~bit;
}

static void free_tree(struct acl_builder *b, u32 unit, u32 n)
{
    for (u32 i = 0; unit && i < n; i++)
        if (at(b, unit + i)->children)
            free_tree(b, at(b, unit + i)->child, children_of(at(b, unit + i)));
    if (unit)
        give(b, unit, n);
}

/* The same nodes where they may be changed. 0: no room. */
static u32 own(struct acl_builder *b, u32 unit, u32 n)
{
    if (is_fresh(b, unit))
        return unit;
    u32 mine = take(b, n);
    if (!mine)
        return 0;
    memcpy(at(b, mine), at(b, unit), n * sizeof(struct acl_node));
    give(b, unit, n);
    return mine;
}

/* The depth of the node in which a prefix ends: nodes stand at first, first + 6, … */
static u32 depth_for(u32 plen, u32 first) { return first + (plen - first) / 6 * 6; }

static bool find(const struct acl_builder *b, u32 unit, u128 key, u32 plen, u32 first)
{
    u32 depth = depth_for(plen, first);
    while (unit) {
        const struct acl_node *n = at(b, unit);
        if (n->depth > depth || cut(key ^ key_of(n), n->depth))
            return false;
        if (n->depth == depth)
            return n->present & bit_of(key, depth, plen);
        u64 bit = 1ull << acl_six(key, n->depth);
        unit = n->children & bit ? n->child + (u32)__builtin_popcountll(n->children & (bit - 1)) : 0;
    }
    return false;
}

/* Make room in the children of a node for one more, at this place. */
static bool grow(struct acl_builder *b, struct acl_node *n, u64 bit, const struct acl_node *child)
{
    u32 count = children_of(n), place = (u32)__builtin_popcountll(n->children & (bit - 1)), unit = n->child;
    if (!count || order_of(count + 1) != order_of(count) || !is_fresh(b, unit)) {
        if (!(unit = take(b, count + 1)))
            return false;
        if (count) {
            memcpy(at(b, unit), at(b, n->child), place * sizeof *n);
            memcpy(at(b, unit + place + 1), at(b, n->child + place), (count - place) * sizeof *n);
            give(b, n->child, count);
        }
    } else
        memmove(at(b, unit + place + 1), at(b, unit + place), (count - place) * sizeof *n);
    *at(b, unit + place) = *child;
    n->child = unit;
    n->children |= bit;
    return true;
}

static int put(struct acl_builder *b, u32 *link, u128 key, u32 plen, u32 first, enum acl_answer answer)
{
    u32 depth = depth_for(plen, first), count = 1, place = 0;
    struct acl_node fresh = leaf(key, depth);
    set_bit(&fresh, bit_of(key, depth, plen), answer);
    if (!*link) {
        if (!(*link = take(b, 1)))
            return -ENOSPC;
        *at(b, *link) = fresh;
        return 0;
    }
    for (;;) {
        u32 mine = own(b, *link, count);
        if (!mine)
            return -ENOSPC;
        *link = mine;
        struct acl_node *n = at(b, mine + place);
        u128 differs = cut(key ^ key_of(n), depth < n->depth ? depth : n->depth);
        if (differs) { /* they part before: a node where both begin */
            u32 same = differs >> 64 ? (u32)__builtin_clzll((u64)(differs >> 64)) : 64 + (u32)__builtin_clzll((u64)differs);
            struct acl_node branch = leaf(key, depth_for(same, first));
            if (!grow(b, &branch, 1ull << acl_six(key_of(n), branch.depth), n))
                return -ENOSPC;
            if (!grow(b, &branch, 1ull << acl_six(key, branch.depth), &fresh)) {
                give(b, branch.child, 1);
                return -ENOSPC;
            }
            *n = branch;
            return 0;
        }
        if (depth < n->depth) {
            if (!grow(b, &fresh, 1ull << acl_six(key_of(n), depth), n))
                return -ENOSPC;
            *n = fresh;
            return 0;
        }
        if (depth == n->depth) {
            set_bit(n, bit_of(key, depth, plen), answer);
            return 0;
        }
        u64 bit = 1ull << acl_six(key, n->depth);
        if (!(n->children & bit))
            return grow(b, n, bit, &fresh) ? 0 : -ENOSPC;
        link = &n->child;
        count = children_of(n);
        place = (u32)__builtin_popcountll(n->children & (bit - 1));
    }
}

/* A node without prefixes and with one child is that child. */
static void merge(struct acl_builder *b, struct acl_node *n)
{
    if (n->present || children_of(n) != 1)
        return;
    u32 child = n->child;
    *n = *at(b, child);
    give(b, child, 1);
}

static void shrink(struct acl_builder *b, struct acl_node *parent, u32 place, u64 bit)
{
    u32 count = children_of(parent), unit = parent->child, before = 1u << order_of(count), after = 1u << order_of(count - 1);
    parent->children &= ~bit;
    if (count == 1) {
        give(b, unit, 1);
        parent->child = 0;
        return;
    }
    memmove(at(b, unit + place), at(b, unit + place + 1), (count - 1 - place) * sizeof *parent);
    if (after < before)
        give_units(b, unit + after, before - after); /* the nodes are this control's own */
    merge(b, parent);
}

/* The entry is there. */
static int take_out(struct acl_builder *b, u32 *link, u128 key, u32 plen, u32 first)
{
    u32 depth = depth_for(plen, first), count = 1, place = 0;
    struct acl_node *parent = NULL;
    u64 parent_bit = 0;
    for (;;) {
        u32 mine = own(b, *link, count);
        if (!mine)
            return -ENOSPC;
        *link = mine;
        struct acl_node *n = at(b, mine + place);
        if (n->depth < depth) {
            parent = n;
            parent_bit = 1ull << acl_six(key, n->depth);
            link = &n->child;
            count = children_of(n);
            place = (u32)__builtin_popcountll(n->children & (parent_bit - 1));
            continue;
        }
        u64 bit = bit_of(key, depth, plen);
        n->present &= ~bit;
        n->except &= ~bit;
        if (n->present || n->children) {
            merge(b, n);
            return 0;
        }
        if (parent) {
            shrink(b, parent, place, parent_bit);
            return 0;
        }
        give(b, *link, 1);
        *link = 0;
        return 0;
    }
}

/* ---- sets ---- */

static struct acl_set *set_at(const struct acl_builder *b, u32 id) { return (struct acl_set *)b->area + id; }

static bool touch(struct acl_builder *b, u32 id)
{
    if (!b->sets[id].touched)
        b->touched[b->n_touched++] = id;
    return b->sets[id].touched = true;
}

static void set_word(struct acl_builder *b, u32 id, u32 f, u32 slot, u32 word)
{
    struct work *w = &b->sets[id];
    if (w->words[f][slot] == word)
        return;
    w->words[f][slot] = word;
    if (is_fresh(b, w->table[f])) {
        ((u32 *)at(b, w->table[f]))[slot] = word;
        return;
    }
    if (w->n_dirty[f] < 1u << ACL_TABLE_BITS)
        w->dirty[f][w->n_dirty[f]] = slot;
    w->n_dirty[f]++; /* more than slots: all of them */
}

static enum acl_answer shorter(const struct acl_builder *b, u32 unit, u128 key)
{
    u8 best = ACL_NO;
    while (unit)
        unit = acl_step(acl_node_at(b->area, unit), key, &best);
    return best;
}

static int edit_work(struct acl_builder *b, u32 id, u32 f, u128 key, u32 plen, enum acl_answer answer)
{
    struct work *w = &b->sets[id];
    if (w->table[f] && plen >= ACL_TABLE_BITS) {
        u32 slot = (u32)(key >> (128 - ACL_TABLE_BITS)), word = w->words[f][slot], root = word >> 2;
        int rc = answer ? put(b, &root, key, plen, ACL_TABLE_BITS, answer) : take_out(b, &root, key, plen, ACL_TABLE_BITS);
        set_word(b, id, f, slot, root << 2 | (word & 3));
        return rc;
    }
    int rc = answer ? put(b, &w->root[f], key, plen, 0, answer) : take_out(b, &w->root[f], key, plen, 0);
    if (rc || !w->table[f])
        return rc;
    u32 from = (u32)(key >> (128 - ACL_TABLE_BITS));
    for (u32 slot = from; slot < from + (1u << (ACL_TABLE_BITS - plen)); slot++)
        set_word(b, id, f, slot, (w->words[f][slot] & ~3u) | shorter(b, w->root[f], (u128)slot << (128 - ACL_TABLE_BITS)));
    return 0;
}

struct entries {
    u8 *keys, *answers;
    u32 n, room, f;
};

static void read_tree(const u8 *area, u32 unit, u32 n, struct entries *out)
{
    for (u32 i = 0; unit && i < n; i++) {
        const struct acl_node *node = acl_node_at(area, unit + i);
        for (u64 left = node->present; left && out->n < out->room; left &= left - 1) {
            u32 bit = (u32)__builtin_ctzll(left), length = 31 - (u32)__builtin_clz(bit + 1), plen = node->depth + length;
            u128 key = key_of(node);
            if (length)
                key |= (u128)(bit + 1 - (1u << length)) << (128 - plen);
            u8 *to = out->keys + (u64)out->n * ACL_KEY;
            to[0] = out->f ? 6 : 4;
            for (u32 k = 0; k < 16; k++)
                to[1 + k] = (u8)(key >> (120 - 8 * k));
            to[17] = (u8)(plen + 1);
            out->answers[out->n++] = node->except >> bit & 1 ? ACL_EXCEPT : ACL_YES;
        }
        if (node->children)
            read_tree(area, node->child, (u32)__builtin_popcountll(node->children), out);
    }
}

u32 acl_read_work(const struct acl_builder *b, u32 id, u8 *keys, u8 *answers, u32 n)
{
    const struct work *w = &b->sets[id];
    struct entries out = {keys, answers, 0, n, 0};
    for (out.f = 0; out.f < 2; out.f++) {
        read_tree(b->area, w->root[out.f], 1, &out);
        for (u32 slot = 0; w->table[out.f] && slot < 1u << ACL_TABLE_BITS; slot++)
            read_tree(b->area, w->words[out.f][slot] >> 2, 1, &out);
    }
    return out.n;
}

void acl_count(const struct acl_builder *b, u32 id, u32 counts[2]) { counts[0] = b->sets[id].count[0], counts[1] = b->sets[id].count[1]; }

u32 acl_read(const u8 *area, u32 id, u8 *keys, u8 *answers, u32 n)
{
    const struct acl_set *s = acl_set_at(area, id);
    struct entries out = {keys, answers, 0, n, 0};
    for (out.f = 0; out.f < 2; out.f++) {
        read_tree(area, s->root[out.f], 1, &out);
        for (u32 slot = 0; s->table[out.f] && slot < 1u << ACL_TABLE_BITS; slot++)
            read_tree(area, ((const u32 *)acl_node_at(area, s->table[out.f]))[slot] >> 2, 1, &out);
    }
    return out.n;
}

/* A set that has grown gets a table; it stays as it is where there is no room for one. */
static void make_table(struct acl_builder *b, u32 id, u32 f)
{
    struct work *w = &b->sets[id];
    u32 n = w->count[f], old = w->root[f];
    u8 *keys = malloc((u64)n * (ACL_KEY + 1)), *answers = keys + (u64)n * ACL_KEY;
    u32 *words = calloc(1u << ACL_TABLE_BITS, sizeof *words), *dirty = malloc(sizeof *dirty << ACL_TABLE_BITS);
    u32 table = keys && words && dirty ? take_table(b) : 0;
    if (!table) {
        free(keys), free(words), free(dirty);
        return;
    }
    struct entries all = {keys, answers, 0, n, f};
    read_tree(b->area, old, 1, &all);
    memset(at(b, table), 0, TABLE_UNITS * CACHE_LINE);
    w->words[f] = words, w->dirty[f] = dirty, w->n_dirty[f] = 0;
    w->table[f] = table, w->root[f] = 0;
    int rc = 0;
    for (u32 i = 0; i < all.n && !rc; i++) {
        const u8 *key = keys + (u64)i * ACL_KEY;
        rc = edit_work(b, id, f, acl_key(6, key + 1), key[17] - 1u, answers[i]);
    }
    free(keys);
    if (!rc) {
        free_tree(b, old, 1);
        return;
    }
    free_tree(b, w->root[f], 1);
    for (u32 slot = 0; slot < 1u << ACL_TABLE_BITS; slot++)
        free_tree(b, words[slot] >> 2, 1);
    give(b, table, TABLE_UNITS);
    free(words), free(dirty);
    w->words[f] = w->dirty[f] = NULL;
    w->table[f] = 0, w->root[f] = old;
}

int acl_edit(struct acl_builder *b, u32 id, const u8 key[ACL_KEY], enum acl_answer answer)
{
    u32 f = key[0] == 6, plen = key[17] - 1u;
    if (!acl_is_set(b, id) || (key[0] != 4 && key[0] != 6) || plen > (f ? 128u : 32u))
        return -EINVAL;
    u128 addr = cut(acl_key(6, key + 1), plen);
    struct work *w = &b->sets[id];
    bool in_table = w->table[f] && plen >= ACL_TABLE_BITS;
    u32 root = in_table ? w->words[f][addr >> (128 - ACL_TABLE_BITS)] >> 2 : w->root[f];
    bool known = find(b, root, addr, plen, in_table ? ACL_TABLE_BITS : 0);
    if (!answer && !known)
        return -ENOENT;
    if (answer && b->free_units < RESERVE)
        return -ENOSPC;
    touch(b, id);
    int rc = edit_work(b, id, f, addr, plen, answer);
    if (rc)
        return rc;
    w->count[f] += (answer && !known) - (!answer);
    if (w->count[f] == ACL_TABLE_FROM && answer && !known && !w->table[f])
        make_table(b, id, f);
    return 0;
}

bool acl_is_set(const struct acl_builder *b, u32 id) { return id && id < ACL_SETS && set_at(b, id)->name[0] && !b->sets[id].gone; }
bool acl_is_changed(const struct acl_builder *b) { return b->n_touched; }
u64 acl_free_bytes(const struct acl_builder *b) { return (u64)b->free_units * CACHE_LINE; }

int acl_make(struct acl_builder *b, const char *name)
{
    u32 free_id = 0;
    if (!name[0] || strlen(name) >= ACL_NAME)
        return -EINVAL;
    for (u32 id = ACL_SETS - 1; id; id--) {
        if (acl_is_set(b, id) && !strcmp(set_at(b, id)->name, name))
            return (int)id;
        if (!set_at(b, id)->name[0])
            free_id = id;
    }
    if (!free_id)
        return -ENOSPC;
    strcpy(set_at(b, free_id)->name, name);
    return (int)free_id;
}

int acl_drop(struct acl_builder *b, u32 id)
{
    if (!acl_is_set(b, id))
        return -ENOENT;
    if (!room_to_die(b, 1))
        return -ENOMEM;
    touch(b, id);
    b->sets[id].gone = true;
    b->dead[b->dead_end++] = (struct dead){id, 0, b->seq};
    return 0;
}

static void forget_tables(struct work *w)
{
    for (u32 f = 0; f < 2; f++) {
        free(w->words[f]);
        free(w->dirty[f]);
    }
    *w = (struct work){0};
}

/* No worker looks into the set any more. */
static void bury(struct acl_builder *b, u32 id)
{
    struct acl_set *s = set_at(b, id);
    b->burying = true;
    for (u32 f = 0; f < 2; f++) {
        free_tree(b, b->sets[id].root[f], 1);
        for (u32 slot = 0; b->sets[id].table[f] && slot < 1u << ACL_TABLE_BITS; slot++)
            free_tree(b, b->sets[id].words[f][slot] >> 2, 1);
        if (b->sets[id].table[f])
            give(b, b->sets[id].table[f], TABLE_UNITS);
    }
    b->burying = false;
    forget_tables(&b->sets[id]);
    memset(s, 0, sizeof *s);
}

void acl_commit(struct acl_builder *b, u32 seq)
{
    for (u32 i = 0; i < b->n_touched; i++) {
        struct work *w = &b->sets[b->touched[i]];
        struct acl_set *s = set_at(b, b->touched[i]);
        w->touched = false;
        for (u32 f = 0; f < 2; f++) {
            u32 *table = w->table[f] ? (u32 *)at(b, w->table[f]) : NULL;
            bool all = w->n_dirty[f] > 1u << ACL_TABLE_BITS;
            for (u32 k = 0; k < (all ? 1u << ACL_TABLE_BITS : w->n_dirty[f]); k++) {
                u32 slot = all ? k : w->dirty[f][k];
                store_release(&table[slot], w->words[f][slot]);
            }
            w->n_dirty[f] = 0;
            store_release(&s->table[f], w->table[f]);
            store_release(&s->root[f], w->root[f]);
            store_relaxed(&s->count[f], w->count[f]);
        }
    }
    for (u32 i = 0; b->n_touched && i < b->n_blocks; i++)
        b->blocks[i].fresh = 0;
    b->n_touched = 0;
    b->seq = seq + 1;
}

void acl_reclaim(struct acl_builder *b, u32 adopted)
{
    while (b->dead_first < b->dead_end && (s32)(b->dead[b->dead_first].since - adopted) <= 0) {
        struct dead d = b->dead[b->dead_first++];
        if (d.count)
            give_units(b, d.unit, d.count);
        else
            bury(b, d.unit);
    }
}

/* ---- opening ---- */

u64 acl_area_bytes(u64 bytes) { return align_up(bytes, (u64)BLOCK * CACHE_LINE) + (u64)ACL_SETS * CACHE_LINE; }

static bool mark(struct acl_builder *b, u32 unit, u32 n)
{
    u32 whole = n > BLOCK ? n : 1u << order_of(n);
    if (unit < ACL_SETS || (u64)unit + whole > b->units || (whole > BLOCK ? unit % BLOCK : unit % whole))
        return false;
    for (u32 i = 0; i < whole; i += BLOCK) {
        u64 mine = bits((unit + i) % BLOCK, whole < BLOCK ? whole : BLOCK);
        struct block *k = &b->blocks[(unit + i) / BLOCK];
        if (k->used & mine)
            return false;
        k->used |= mine;
        b->free_units -= whole < BLOCK ? whole : BLOCK;
    }
    return true;
}

static bool mark_tree(struct acl_builder *b, u32 unit, u32 n, s32 above, u32 *count)
{
    if (!unit)
        return true;
    if (!mark(b, unit, n))
        return false;
    for (u32 i = 0; i < n; i++) {
        const struct acl_node *node = at(b, unit + i);
        if (node->depth > 126 || (s32)node->depth <= above)
            return false;
        *count += (u32)__builtin_popcountll(node->present);
        if (node->children && (!node->child || !mark_tree(b, node->child, children_of(node), node->depth, count)))
            return false;
    }
    return true;
}

static bool take_over(struct acl_builder *b, u32 id)
{
    struct work *w = &b->sets[id];
    const struct acl_set *s = set_at(b, id);
    for (u32 f = 0; f < 2; f++) {
        w->root[f] = s->root[f];
        if (!mark_tree(b, s->root[f], 1, -1, &w->count[f]))
            return false;
        if (!s->table[f])
            continue;
        w->words[f] = malloc(sizeof(u32) << ACL_TABLE_BITS);
        w->dirty[f] = malloc(sizeof(u32) << ACL_TABLE_BITS);
        if (!w->words[f] || !w->dirty[f] || !mark(b, s->table[f], TABLE_UNITS))
            return false;
        w->table[f] = s->table[f];
        memcpy(w->words[f], at(b, s->table[f]), sizeof(u32) << ACL_TABLE_BITS);
        for (u32 slot = 0; slot < 1u << ACL_TABLE_BITS; slot++)
            if (!mark_tree(b, w->words[f][slot] >> 2, 1, ACL_TABLE_BITS - 1, &w->count[f]))
                return false;
    }
    return true;
}

struct acl_builder *acl_open(u8 *area, u64 bytes, u32 newest)
{
    struct acl_builder *b = calloc(1, sizeof *b);
    if (!b)
        return NULL;
    b->area = area;
    b->n_blocks = (u32)(bytes / (BLOCK * CACHE_LINE));
    b->units = b->free_units = b->n_blocks * BLOCK;
    b->seq = newest + 1;
    b->blocks = calloc(b->n_blocks, sizeof *b->blocks);
    b->sets = calloc(ACL_SETS, sizeof *b->sets);
    b->touched = calloc(ACL_SETS, sizeof *b->touched);
    if (!b->blocks || !b->sets || !b->touched) {
        acl_close(b);
        return NULL;
    }
    for (u32 i = 0; i < ACL_SETS / BLOCK; i++)
        b->blocks[i].used = ~0ull;
    b->free_units -= ACL_SETS;
    for (u32 id = 1; id < ACL_SETS; id++) {
        struct acl_set *s = set_at(b, id);
        if (!s->name[0])
            continue;
        s->name[ACL_NAME - 1] = 0;
        if (take_over(b, id))
            continue;
        /* What was marked so far stays marked: no worker is disturbed, and the next control has it again. */
        forget_tables(&b->sets[id]);
        touch(b, id);
    }
    for (u32 i = b->n_blocks; i-- > ACL_SETS / BLOCK;)
        enlist(b, i);
    return b;
}

void acl_close(struct acl_builder *b)
{
    if (!b)
        return;
    for (u32 id = 0; b->sets && id < ACL_SETS; id++)
        forget_tables(&b->sets[id]);
    free(b->blocks);
    free(b->sets);
    free(b->touched);
    free(b->dead);
    free(b);
}

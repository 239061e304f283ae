/* lip.c: see lip.h. What is unsatisfying: a worker's ports of one endpoint are handed out in order, so a neighbour on the RS's
 * network can guess the next one; the start is random per endpoint. */
#include "lip.h"

#include <errno.h>
#include <stdlib.h>

static u64 endpoint_hash(const struct lip_table *t, u8 proto, u8 family, u16 lip_id, const u8 rip[16], u16 rport)
{
    return hash_addr(t->secret, rip, (u64)proto << 40 | (u64)family << 32 | (u64)lip_id << 16 | rport);
}

/* ---- whose ports ---- */

static void drop_map(struct lip_table *t, const struct steer_map *map)
{
    if (map && map != &t->by_mask)
        free((void *)map);
}

static void set_rule(struct lip_table *t, struct lip_rule *rule, const struct steer_map *map, bool loose)
{
    const struct steer_map *before =
        rule->before ? rule->before : rule->map; /* of several changes in a row the first counts, with the last */
    if (rule->before)
        drop_map(t, rule->map);
    if (!(u16)++t->rule_numbers)
        t->rule_numbers++; /* 0: none */
    *rule = (struct lip_rule){.map = map, .before = before, .number = t->rule_numbers, .loose = loose};
}

void lip_all_follow(struct lip_table *t)
{
    for (u32 i = 0; i < LIP_RULES; i++) {
        if (t->rules[i].before != t->rules[i].map)
            drop_map(t, t->rules[i].before);
        t->rules[i].before = NULL;
    }
    for (u32 w = 0; t->changing && t->crew && w < t->workers; w++)
        t->contested |= load_relaxed(&t->crew[w]->marks->ports_used) != 0;
    t->changing = false;
}

void lip_init(struct lip_table *t, u32 worker, u32 workers)
{
    t->first = LIP_PORT_FIRST;
    t->last = 65535;
    t->worker = worker, t->workers = workers;
    steer_make(&t->by_mask, NULL, 0, worker, workers);
    for (u32 i = 0; i < LIP_RULES; i++)
        set_rule(t, &t->rules[i], &t->by_mask, i == LIP_MAPS);
    lip_all_follow(t);
}

void lip_close(struct lip_table *t)
{
    lip_all_follow(t);
    for (u32 i = 0; i < LIP_RULES; i++)
        drop_map(t, t->rules[i].map);
}

int lip_steer(struct lip_table *t, u8 port, u32 flow, const struct fnat_steering_spec *spec)
{
    struct steer_map *map = &t->by_mask;
    int rc = 0;
    if (spec->mode != FNAT_STEER_MASK) {
        struct steer_map *made = malloc(sizeof *made);
        if (made)
            steer_make(map = made, spec, flow, t->worker, t->workers);
        else
            rc = -ENOMEM;
    }
    set_rule(t, &t->rules[port * FNAT_FLOWS + flow], map, spec->loose);
    t->changing = true;
    return rc;
}

/* The rule of this endpoint, with its k in the header. */
static const struct steer_map *steered(struct lip_table *t, struct endpoint *e, u8 port, const u8 lip[16])
{
    const struct lip_rule *rule = lip_rule(t, port, e->proto, e->family);
    if (unlikely(e->steered != (u16)rule->number)) {
        e->steered = (u16)rule->number;
        e->k = (u16)steer_rest(rule->map, e->rip, lip, e->rport);
    }
    return rule->map;
}

/* ---- endpoints ---- */

u32 lip_find(const struct lip_table *t, u8 proto, u8 family, u16 lip_id, const u8 rip[16], u16 rport)
{
    u64 h = endpoint_hash(t, proto, family, lip_id, rip, rport);
    u32 steps = 0; /* another worker's chains may change under our feet */
    for (u32 i = t->heads[h & t->head_mask]; i && i <= t->endpoint_count && steps < 1024; i = t->endpoints[i].next, steps++) {
        const struct endpoint *e = &t->endpoints[i];
        if (e->lip_id == lip_id && e->rport == rport && e->proto == proto && e->family == family && same_addr(e->rip, rip))
            return i;
    }
    return 0;
}

/* Take an unused endpoint out of its chain: the first one from the sweep mark on. */
static u32 reclaim_endpoint(struct lip_table *t)
{
    for (u32 tries = 0; tries < 4096 && tries < t->endpoint_count; tries++) {
        u32 i = t->marks->endpoint_sweep % t->endpoint_count + 1;
        t->marks->endpoint_sweep = i;
        struct endpoint *e = &t->endpoints[i];
        if (e->used)
            continue;
        for (u32 *link = &t->heads[e->salt & t->head_mask]; *link; link = &t->endpoints[*link].next)
            if (*link == i) {
                *link = e->next;
                return i;
            }
    }
    return 0;
}

u32 lip_endpoint(struct lip_table *t, u8 proto, u8 family, u16 lip_id, const u8 rip[16], u16 rport)
{
    u32 i = lip_find(t, proto, family, lip_id, rip, rport);
    if (likely(i))
        return i;
    if (t->marks->endpoint_fresh < t->endpoint_count)
        i = ++t->marks->endpoint_fresh;
    else if (!(i = reclaim_endpoint(t)))
        return 0;
    struct endpoint *e = &t->endpoints[i];
    memset(e, 0, sizeof *e);
    memcpy(e->rip, rip, 16);
    e->rport = rport, e->lip_id = lip_id, e->proto = proto, e->family = family;
    u64 h = endpoint_hash(t, proto, family, lip_id, rip, rport);
    e->salt = h;
    e->cursor = (u16)max_u32((u32)(h >> 48), LIP_PORT_FIRST);
    e->next = t->heads[h & t->head_mask];
    t->heads[h & t->head_mask] = i;
    return i;
}

/* ---- port maps ---- */

static u32 block_take(struct lip_table *t)
{
    u32 i = t->marks->block_free;
    if (i)
        t->marks->block_free = t->blocks[i].next_free;
    else if (t->marks->block_fresh < t->block_count)
        i = ++t->marks->block_fresh;
    else
        return 0;
    memset(&t->blocks[i], 0, sizeof t->blocks[i]);
    t->marks->blocks_used++;
    return i;
}

static void block_give(struct lip_table *t, u32 i)
{
    t->blocks[i].next_free = t->marks->block_free;
    t->marks->block_free = i;
    t->marks->blocks_used--;
}

static bool block_empty(const struct port_block *b)
{
    u64 any = 0;
    for (u32 i = 0; i < LIP_CHUNK / 64; i++)
        any |= b->bits[i];
    return !any;
}

/* The block with the bits of this chunk; made when absent and `make`. 0: absent, or no room. */
static u32 chunk_block(struct lip_table *t, struct endpoint *e, u32 chunk, bool make)
{
    u32 *dir = &e->dir[chunk / LIP_DIR_CHUNKS];
    bool fresh_dir = false;
    if (!*dir) {
        if (!make || !(*dir = block_take(t)))
            return 0;
        fresh_dir = true;
    }
    u32 *block = &t->blocks[*dir].chunk[chunk % LIP_DIR_CHUNKS];
    if (!*block && make) {
        *block = block_take(t);
        if (!*block && fresh_dir) {
            block_give(t, *dir);
            *dir = 0;
            return 0;
        }
    }
    return *block;
}

static void set_port(struct lip_table *t, struct endpoint *e, u32 block, u16 port)
{
    t->blocks[block].bits[port % LIP_CHUNK / 64] |= 1ull << port % 64;
    if (!e->used++)
        t->marks->endpoints_used++;
    t->marks->ports_used++;
}

/* Bits of the 64 ports from `base` on that lie within [first, last]. */
static u64 within(u32 base, u32 first, u32 last)
{
    if (base + 63 < first || base > last)
        return 0;
    u64 bits = ~0ull;
    if (first > base)
        bits &= ~0ull << (first - base);
    if (last - base < 63)
        bits &= ~0ull >> (63 - (last - base));
    return bits;
}

/* Ports of this word that are taken in another worker's map of the endpoint. That worker goes on meanwhile: what it takes now is its own
 * by the rule all follow, so only what it holds from before matters, and that is only given back. */
static u64 taken_elsewhere(const struct lip_table *t, const struct endpoint *e, u32 chunk, u32 word)
{
    u64 bits = 0;
    for (u32 w = 0; w < t->workers; w++) {
        const struct lip_table *o = t->crew[w];
        if (o == t)
            continue;
        u32 i = lip_find(o, e->proto, e->family, e->lip_id, e->rip, e->rport);
        u32 dir = i ? load_relaxed(&o->endpoints[i].dir[chunk / LIP_DIR_CHUNKS]) : 0;
        u32 block = dir && dir <= o->block_count ? load_relaxed(&o->blocks[dir].chunk[chunk % LIP_DIR_CHUNKS]) : 0;
        if (block && block <= o->block_count)
            bits |= load_relaxed(&o->blocks[block].bits[word]);
    }
    return bits;
}

u16 lip_port_take(struct lip_table *t, u32 endpoint, u8 nic_port, const u8 lip[16])
{
    struct endpoint *e = &t->endpoints[endpoint];
    const struct steer_map *map = steered(t, e, nic_port, lip);
    const struct steer_map *before = t->changing ? lip_rule(t, nic_port, e->proto, e->family)->before : NULL;
    u32 k_before = unlikely(before) ? steer_rest(before, e->rip, lip, e->rport) : 0;
    u32 start = e->cursor < t->first || e->cursor > t->last ? t->first : e->cursor;
    u32 chunk = start / LIP_CHUNK, word = start % LIP_CHUNK / 64;
    for (u32 n = 0; n <= t->last / LIP_CHUNK - t->first / LIP_CHUNK + 1u; n++, word = 0) {
        u32 block = chunk_block(t, e, chunk, false), x = map->high[chunk] ^ e->k;
        for (; word < LIP_CHUNK / 64; word++) {
            u32 base = chunk * LIP_CHUNK + word * 64;
            u64 taken = block ? t->blocks[block].bits[word] : 0;
            u64 free = ~taken & steer_owned(map, word, x) & within(base, n ? t->first : start, t->last);
            if (unlikely(before))
                free &= steer_owned(before, word, before->high[chunk] ^ k_before);
            if (unlikely(t->contested) && free && t->crew)
                free &= ~taken_elsewhere(t, e, chunk, word);
            if (!free)
                continue;
            if (!block && !(block = chunk_block(t, e, chunk, true)))
                break; /* no room for a new chunk: look in those that exist */
            u16 port = (u16)(base + (u32)__builtin_ctzll(free));
            set_port(t, e, block, port);
            e->cursor = (u16)(port + 1);
            return port;
        }
        chunk = chunk == t->last / LIP_CHUNK ? t->first / LIP_CHUNK : chunk + 1;
    }
    return 0;
}

u16 lip_port_oldest(struct lip_table *t, u32 endpoint, u8 nic_port, const u8 lip[16], u32 n)
{
    struct endpoint *e = &t->endpoints[endpoint];
    const struct steer_map *map = steered(t, e, nic_port, lip);
    u32 port = e->cursor;
    for (u32 looks = 0; looks < 65536; looks++, port++) {
        if (port > t->last || port < t->first)
            port = t->first;
        if (steer_owner(map, (u16)port, e->k) == t->worker && !n--)
            return (u16)port;
    }
    return 0;
}

bool lip_port_mark(struct lip_table *t, u32 endpoint, u16 port)
{
    struct endpoint *e = &t->endpoints[endpoint];
    u32 block = chunk_block(t, e, port / LIP_CHUNK, true);
    if (!block || t->blocks[block].bits[port % LIP_CHUNK / 64] >> port % 64 & 1)
        return false;
    set_port(t, e, block, port);
    return true;
}

void lip_port_give(struct lip_table *t, u32 endpoint, u16 port)
{
    struct endpoint *e = &t->endpoints[endpoint];
    u32 chunk = port / LIP_CHUNK, block = chunk_block(t, e, chunk, false);
    if (!block)
        return;
    t->blocks[block].bits[port % LIP_CHUNK / 64] &= ~(1ull << port % 64);
    t->marks->ports_used--;
    if (!--e->used)
        t->marks->endpoints_used--;
    if (block_empty(&t->blocks[block])) {
        u32 *dir = &e->dir[chunk / LIP_DIR_CHUNKS];
        t->blocks[*dir].chunk[chunk % LIP_DIR_CHUNKS] = 0;
        block_give(t, block);
        if (block_empty(&t->blocks[*dir])) {
            block_give(t, *dir);
            *dir = 0;
        }
    }
}

/* RFC 6528: an offset per tuple hides the clock; it is constant, so order per tuple is kept. */
static u32 isn_offset(const struct lip_table *t, u32 endpoint, u16 port)
{
    return (u32)hash_mum(t->endpoints[endpoint].salt ^ port, t->secret->k[1]);
}

u32 lip_isn(struct lip_table *t, u32 endpoint, u16 port, u32 clock_us4)
{
    struct endpoint *e = &t->endpoints[endpoint];
    if (!e->isn_floor || after_u32(clock_us4, e->isn_floor))
        e->isn_floor = clock_us4;
    e->isn_floor += 64;
    return e->isn_floor + isn_offset(t, endpoint, port);
}

void lip_isn_used(struct lip_table *t, u32 endpoint, u16 port, u32 end, u64 bytes)
{
    struct endpoint *e = &t->endpoints[endpoint];
    u32 floor = end - isn_offset(t, endpoint, port);
    if (after_u32(floor, e->isn_floor))
        e->isn_floor += (u32)min_u64(floor - e->isn_floor, bytes);
}

u32 lip_timestamp(struct lip_table *t, u32 endpoint, u32 clock_ms)
{
    struct endpoint *e = &t->endpoints[endpoint];
    u32 ts = clock_ms + e->ts_lead;
    if (e->ts_last && !after_u32(ts, e->ts_last)) {
        e->ts_lead += e->ts_last + 1 - ts;
        ts = e->ts_last + 1;
    }
    e->ts_last = ts ? ts : 1;
    return ts;
}

/* frag.c: see frag.h. */
#include "frag.h"

#include <errno.h>
#include <stdlib.h>

int frag_open(struct frag_table *t, const struct hash_secret *secret, u32 worker, u32 workers)
{
    memset(t, 0, sizeof *t);
    t->datagrams = calloc(FRAG_DATAGRAMS + 1, sizeof *t->datagrams);
    t->held = aligned_alloc(CACHE_LINE, FRAG_HELD * sizeof *t->held);
    if (!t->datagrams || !t->held) {
        frag_close(t);
        return -ENOMEM;
    }
    t->secret = secret;
    t->id_high = worker;
    while (1u << t->id_bits < workers)
        t->id_bits++;
    return 0;
}

void frag_close(struct frag_table *t)
{
    free(t->datagrams);
    free(t->held);
    t->datagrams = NULL;
    t->held = NULL;
}

/* ---- lists by age ---- */

static void list_add(struct frag_table *t, struct frag_list *l, u32 i)
{
    struct datagram *d = &t->datagrams[i];
    d->older = l->newest;
    d->newer = 0;
    if (l->newest)
        t->datagrams[l->newest].newer = i;
    else
        l->oldest = i;
    l->newest = i;
}

static void list_remove(struct frag_table *t, struct frag_list *l, u32 i)
{
    struct datagram *d = &t->datagrams[i];
    if (d->older)
        t->datagrams[d->older].newer = d->newer;
    else
        l->oldest = d->newer;
    if (d->newer)
        t->datagrams[d->newer].older = d->older;
    else
        l->newest = d->older;
}

/* ---- datagrams ---- */

static u32 *head_of(struct frag_table *t, const struct frag_key *key) { return &t->heads[frag_hash(t->secret, key) % FRAG_DATAGRAMS]; }

static u32 take_place(struct frag_table *t)
{
    if (!t->free && t->fresh == FRAG_DATAGRAMS && t->done.oldest)
        frag_forget(t, &t->datagrams[t->done.oldest]);
    u32 i = t->free;
    if (i)
        t->free = t->datagrams[i].chain;
    else if (t->fresh < FRAG_DATAGRAMS)
        i = ++t->fresh;
    return i;
}

struct datagram *frag_find(const struct frag_table *t, const struct frag_key *key, u64 hash)
{
    for (u32 i = t->heads[hash % FRAG_DATAGRAMS]; i; i = t->datagrams[i].chain)
        if (!memcmp(&t->datagrams[i].key, key, sizeof *key))
            return &t->datagrams[i];
    return NULL;
}

struct datagram *frag_datagram(struct frag_table *t, const struct frag_key *key, u64 hash, u32 tick)
{
    struct datagram *known = frag_find(t, key, hash);
    if (known)
        return known;
    u32 *head = &t->heads[hash % FRAG_DATAGRAMS], i = take_place(t);
    if (!i)
        return NULL;
    struct datagram *d = &t->datagrams[i];
    memset(d, 0, offsetof(struct datagram, place));
    d->key = *key;
    d->held = d->first = d->last = 0;
    d->since = tick;
    d->chain = *head;
    *head = i;
    list_add(t, &t->under_way, i);
    t->count++;
    return d;
}

void frag_forget(struct frag_table *t, struct datagram *d)
{
    u32 i = (u32)(d - t->datagrams), *link = head_of(t, &d->key);
    while (*link != i)
        link = &t->datagrams[*link].chain;
    *link = d->chain;
    list_remove(t, d->done ? &t->done : &t->under_way, i);
    d->chain = t->free;
    t->free = i;
    t->count--;
}

static enum counter refuse(struct datagram *d, enum counter reason)
{
    d->refused = (u8)reason;
    return reason;
}

enum counter frag_note(struct frag_table *t, struct datagram *d, u32 from, u32 len, bool more, u32 tick)
{
    u32 to = from + len, first = from / 8, end = (to + 7) / 8;
    if (d->refused)
        return d->refused;
    for (u32 i = 0; i < d->places; i++) {
        if (d->place[i].from >= end || first >= d->place[i].to)
            continue;
        bool same = d->place[i].from == first && d->place[i].to == end && (more ? d->total != to : d->total == to);
        return same ? DROP_fragment_duplicate : refuse(d, DROP_fragment_overlap);
    }
    if (d->total && (!more || to > d->total))
        return refuse(d, DROP_fragment_overlap); /* two ends */
    for (u32 i = 0; !more && i < d->places; i++)
        if (d->place[i].to > end)
            return refuse(d, DROP_fragment_overlap); /* it ends before what has been seen */
    if (d->places == FRAG_PLACES)
        return refuse(d, DROP_fragment_many);
    d->place[d->places].from = (u16)first;
    d->place[d->places++].to = (u16)end;
    d->seen += len;
    if (!more)
        d->total = to;
    if (d->total && d->seen == d->total) {
        u32 i = (u32)(d - t->datagrams);
        list_remove(t, &t->under_way, i);
        list_add(t, &t->done, i);
        d->done = true;
        d->since = tick;
    }
    return 0;
}

/* ---- held fragments ---- */

bool frag_hold(struct frag_table *t, struct datagram *d, const struct packet *p)
{
    if (d->held == FRAG_HELD_EACH)
        return false;
    u16 at = t->held_free;
    if (at)
        t->held_free = t->held[at - 1].next;
    else if (t->held_fresh < FRAG_HELD)
        at = ++t->held_fresh;
    else
        return false;
    t->held[at - 1].packet = *p;
    t->held[at - 1].next = 0;
    if (d->held++)
        t->held[d->last - 1].next = at;
    else
        d->first = at;
    d->last = at;
    t->held_count++;
    return true;
}

bool frag_take(struct frag_table *t, struct datagram *d, struct packet *out)
{
    if (!d->held)
        return false;
    struct frag_held *h = &t->held[d->first - 1];
    u16 at = d->first;
    *out = h->packet;
    d->first = h->next;
    d->held--;
    h->next = t->held_free;
    t->held_free = at;
    t->held_count--;
    return true;
}

struct datagram *frag_expired(struct frag_table *t, u32 tick, u32 timeout)
{
    struct datagram *d = &t->datagrams[t->under_way.oldest];
    if (t->under_way.oldest && !after_u32(d->since + timeout, tick))
        return d;
    d = &t->datagrams[t->done.oldest];
    return t->done.oldest && !after_u32(d->since + FRAG_DONE_TICKS, tick) ? d : NULL;
}

/* ---- identifications ---- */

u32 frag_next_id(struct frag_table *t, u64 pair_hash, u32 bits)
{
    u32 n = t->ids[pair_hash >> 52]++ + (u32)pair_hash, low = bits - t->id_bits;
    return (u32)((u64)t->id_high << low) | (n & (u32)((1ull << low) - 1));
}

/* pieces.c: see pieces.h.
 *
 * What is unsatisfying: a first fragment of TCP does not say how long its segment is, so the sequence number that an expiring connection's
 * RST carries may lag behind by the rest of one segment, if that was the last one.
 */
#include "pieces.h"

#include "answer.h"
#include "rewrite.h"

/* ---- a fragment that comes in ---- */

static struct frag_key key_of(const struct packet *p)
{
    struct frag_key key = {.id = p->frag_id, .family = p->family, .proto = p->family == 4 ? p->proto : 0};
    memcpy(key.src, packet_src(p).b, 16);
    memcpy(key.dst, packet_dst(p).b, 16);
    return key;
}

/* Where the part begins that is cut in pieces. */
static u32 part_at(const struct packet *p) { return p->family == 4 ? p->l4 : p->frag_at + (u32)sizeof(struct ip6_fragment); }

static u32 part_len(const struct packet *p) { return p->l3 + p->l3_len - part_at(p); }

static bool is_last(const struct packet *p)
{
    const u8 *l3 = p->data + p->l3;
    return p->family == 4 ? !(be16(((const struct ip4_header *)l3)->frag) & IP4_MF)
                          : !(be16(((const struct ip6_fragment *)(p->data + p->frag_at))->frag) & IP6_MF);
}

u32 pieces_home(const struct core *k, const struct packet *p)
{
    struct frag_key key = key_of(p);
    return scale_u32((u32)(frag_hash(&k->secret, &key) >> 32), k->workers);
}

/* RFC 3128, RFC 7112: the first fragment has all of the headers. */
static enum counter read_first(struct packet *p)
{
    const u8 *l4 = p->data + p->l4;
    u32 room = p->l3 + p->l3_len - p->l4;
    if (p->proto == PROTO_TCP) {
        const struct tcp_header *tcp = (const struct tcp_header *)l4;
        u32 header = room < sizeof *tcp ? 0 : (tcp->offset >> 4) * 4u;
        if (room < sizeof *tcp || header > room)
            return DROP_fragment_tiny;
        if (header < sizeof *tcp)
            return DROP_l4_header;
        p->tcp_flags = tcp->flags;
        p->payload = (u16)(room - header);
    } else if (p->proto == PROTO_UDP) {
        const struct udp_header *udp = (const struct udp_header *)l4;
        if (room < sizeof *udp)
            return DROP_fragment_tiny;
        if (be16(udp->len) < sizeof *udp)
            return DROP_l4_header;
        if (p->family == 6 && !udp->csum)
            return DROP_udp_no_checksum;
    } else
        return DROP_protocol;
    memcpy(&p->sport, l4, 4);
    return 0;
}

static void drop_held(struct core *k, struct datagram *d, enum counter reason)
{
    struct packet p;
    while (frag_take(&k->frags, d, &p)) {
        drop(k, &p, reason);
        frame_free(&k->pool, p.frame);
        k->counters[TAKEN_held]--;
    }
}

static enum counter note(struct core *k, struct packet *p, struct datagram *d)
{
    enum counter reason = frag_note(&k->frags, d, p->frag_offset, part_len(p), !is_last(p), k->tick);
    if (reason || p->fragment != FRAGMENT_FIRST)
        return reason;
    reason = read_first(p);
    d->refused = (u8)reason;
    d->known = !reason;
    d->proto = p->proto;
    d->tcp_flags = p->tcp_flags;
    d->sport = p->sport, d->dport = p->dport;
    return reason;
}

enum counter pieces_note(struct core *k, struct packet *p, struct datagram **out)
{
    u32 len = part_len(p), header = p->family == 4 ? part_at(p) - p->l3 : 0;
    if (!len || (!is_last(p) && len % 8) || p->frag_offset + len + header > 65535)
        return DROP_fragment_length;
    struct frag_key key = key_of(p);
    struct datagram *d = *out = frag_datagram(&k->frags, &key, frag_hash(&k->secret, &key), k->tick);
    if (!d)
        return DROP_fragment_table;
    enum counter reason = note(k, p, d);
    if (d->refused)
        drop_held(k, d, d->refused);
    return reason;
}

void pieces_tell(struct packet *p, const struct datagram *d)
{
    p->proto = d->proto;
    p->tcp_flags = d->tcp_flags;
    p->sport = d->sport, p->dport = d->dport;
}

/* Parsing again leaves alone what a fragment does not have. */
void pieces_pack(struct packet *p)
{
    p->hops |= HOPS_LEARNED;
    p->payload = (u16)(p->proto << 8 | p->tcp_flags);
}

void pieces_unpack(struct packet *p)
{
    p->hops &= (u8)~HOPS_LEARNED;
    p->proto = (u8)(p->payload >> 8);
    p->tcp_flags = (u8)p->payload;
    if (p->fragment == FRAGMENT_FIRST)
        read_first(p);
}

enum verdict pieces_hold(struct core *k, struct packet *p, struct datagram *d)
{
    if (!frag_hold(&k->frags, d, p))
        return drop(k, p, DROP_fragment_held);
    k->counters[TAKEN_held]++;
    return VERDICT_HELD;
}

struct packet *pieces_release(struct core *k, struct datagram *d)
{
    struct packet p;
    for (;;) {
        if (!frag_take(&k->frags, d, &p))
            return NULL;
        k->counters[TAKEN_held]--;
        if (k->own_count < OWN_PACKETS)
            break;
        drop(k, &p, DROP_fragment_held);
        frame_free(&k->pool, p.frame);
    }
    pieces_tell(&p, d);
    k->own[k->own_count] = p;
    return &k->own[k->own_count++];
}

/* ---- its new name ---- */

static enum counter may_cross(const struct packet *p)
{
    if (p->fragment == FRAGMENT_FIRST && p->l4 != part_at(p))
        return DROP_ext_headers; /* in the part that is cut in pieces: every offset would change */
    if (p->family == 4 && p->fragment == FRAGMENT_FIRST && p->proto == PROTO_UDP &&
        !get16(p->data + p->l4 + offsetof(struct udp_header, csum)))
        return DROP_udp_no_checksum; /* RFC 7915 4.5: it takes the whole datagram to compute one */
    if (p->family == 6 && p->frag_offset + part_len(p) + sizeof(struct ip4_header) > 65535)
        return DROP_fragment_length;
    return 0;
}

static u32 next_id(struct core *k, const struct conn *c, enum direction dir)
{
    struct addr16 src = dir == TO_RS ? conn_lip(k, c) : conn_vip(k, c), dst = dir == TO_RS ? conn_rip(c) : conn_cip(c);
    u8 family = conn_family(c, !dir);
    return frag_next_id(&k->frags, rewrite_pair(k, family, src.b, dst.b), family == 4 ? 16 : 32);
}

enum counter pieces_name(struct core *k, const struct packet *p, const struct conn *c, enum direction dir, u32 *id)
{
    if (p->kind != KIND_FRAGMENT) {
        *id = c->families == FAMILIES_44 ? next_id(k, c, dir) : 0;
        return 0;
    }
    struct frag_key key = key_of(p);
    u64 hash = frag_hash(&k->secret, &key);
    struct datagram *d = frag_datagram(&k->frags, &key, hash, k->tick);
    if (!d)
        return DROP_fragment_table;
    if (scale_u32((u32)(hash >> 32), k->workers) != k->index)
        frag_note(&k->frags, d, p->frag_offset, part_len(p), !is_last(p), k->tick); /* to know when it is complete */
    if (d->refused)
        return d->refused;
    if (p->family != conn_family(c, !dir))
        d->refused = (u8)may_cross(p);
    if (d->refused)
        return d->refused;
    if (!d->renamed)
        d->new_id = next_id(k, c, dir);
    d->renamed = true;
    if (conn_one_packet(c) && dir == TO_RS)
        d->conn = (u32)(c - k->conns) << 1 | TO_RS, d->gen = c->gen;
    *id = d->new_id;
    return 0;
}

u32 pieces_conn(const struct core *k, const struct packet *p)
{
    struct frag_key key = key_of(p);
    const struct datagram *d = frag_find(&k->frags, &key, frag_hash(&k->secret, &key));
    return d && d->conn && k->conns[d->conn >> 1].gen == d->gen ? d->conn : 0;
}

/* ---- a packet that must leave in fragments ---- */

/* A whole IPv6 packet gets a fragment header. */
static void add_fragment_header(struct core *k, struct packet *p)
{
    enum { EXTRA = sizeof(struct ip6_fragment), HEADERS = ETH_HEADER + sizeof(struct ip6_header) };
    memmove(p->data - EXTRA, p->data, HEADERS);
    p->data -= EXTRA;
    p->len += EXTRA;
    struct ip6_header *ip = (struct ip6_header *)(p->data + ETH_HEADER);
    u32 id = frag_next_id(&k->frags, rewrite_pair(k, 6, ip->src, ip->dst), 32);
    *(struct ip6_fragment *)(ip + 1) = (struct ip6_fragment){.next = ip->next, .id = be32(id)};
    ip->next = IP6_FRAGMENT;
    ip->payload_len = be16((u16)(be16(ip->payload_len) + EXTRA));
}

/* RFC 791 3.1: only options that say so are in every fragment. `to` has room for all of them; returns the header's bytes. */
static u32 copy_header4(u8 *to, const u8 *from, u32 header)
{
    u32 len = sizeof(struct ip4_header);
    memcpy(to, from, len);
    for (u32 at = len; at < header && from[at] != 0;) {
        u32 size = from[at] == 1 ? 1 : at + 1 < header ? from[at + 1] : 0;
        if (!size || (from[at] != 1 && size < 2) || at + size > header)
            break;
        if (from[at] & 0x80) {
            memcpy(to + len, from + at, size);
            len += size;
        }
        at += size;
    }
    while (len % 4)
        to[len++] = 0;
    *to = (u8)(0x40 | len / 4);
    return len;
}

/* The header of a fragment that begins at byte `at` of this part and has `len` bytes of it. */
static void put_place(u8 *ip, u32 header, u32 at, u32 len, bool more)
{
    if (*ip >> 4 == 4) {
        struct ip4_header *v4 = (struct ip4_header *)ip;
        u16 frag = be16(v4->frag);
        v4->total_len = be16((u16)(header + len));
        v4->frag = be16((u16)(frag + at / 8) | (more ? IP4_MF : 0));
        v4->csum = 0;
        v4->csum = csum_ip4(v4, header);
        return;
    }
    struct ip6_header *v6 = (struct ip6_header *)ip;
    struct ip6_fragment *f = (struct ip6_fragment *)(v6 + 1);
    v6->payload_len = be16((u16)(header - sizeof *v6 + len));
    f->frag = be16((u16)(be16(f->frag) + at) | (more ? IP6_MF : 0));
}

enum verdict pieces_split(struct core *k, struct packet *p, u32 mtu)
{
    bool v4 = p->data[ETH_HEADER] >> 4 == 4;
    if (!v4 && p->data[ETH_HEADER + offsetof(struct ip6_header, next)] != IP6_FRAGMENT)
        add_fragment_header(k, p);
    u8 *ip = p->data + ETH_HEADER;
    u32 header = v4 ? (*ip & 15) * 4u : (u32)(sizeof(struct ip6_header) + sizeof(struct ip6_fragment)), len = pieces_len(p) - header;
    if (mtu < header + 8)
        return drop(k, p, DROP_mtu);
    u32 most = (mtu - header) & ~7u, n = 0;
    for (u32 at = most; at < len; at += most)
        n++;
    if (n > OWN_PACKETS - k->own_count || n > k->pool.free)
        return drop(k, p, DROP_no_frame);
    for (u32 at = most; at < len; at += most) {
        u32 part = min_u32(most, len - at);
        struct packet *q = answer_own(k, (u16)max_u32(ETH_HEADER + header + part, ETH_MIN_FRAME));
        u8 *to = q->data + ETH_HEADER;
        q->out_port = p->out_port;
        memcpy(q->data, p->data, ETH_HEADER);
        u32 own_header = v4 ? copy_header4(to, ip, header) : header;
        if (!v4)
            memcpy(to, ip, header);
        memcpy(to + own_header, ip + header + at, part);
        put_place(to, own_header, at, part, at + part < len);
        q->len = (u16)max_u32(ETH_HEADER + own_header + part, ETH_MIN_FRAME);
    }
    put_place(ip, header, 0, min_u32(most, len), most < len);
    p->len = (u16)(ETH_HEADER + header + min_u32(most, len));
    count(k, CNT_split);
    return VERDICT_TX;
}

/* ---- time ---- */

void pieces_turn(struct core *k)
{
    struct datagram *d;
    if (likely(!k->frags.count))
        return;
    while ((d = frag_expired(&k->frags, k->tick, k->snap->settings.fragment_seconds * TICKS_PER_SECOND))) {
        drop_held(k, d, DROP_fragment_timeout);
        frag_forget(&k->frags, d);
    }
}

void pieces_quiesce(struct core *k)
{
    struct packet p;
    for (u32 i = 1; i <= k->frags.fresh; i++)
        while (frag_take(&k->frags, &k->frags.datagrams[i], &p)) {
            drop(k, &p, DROP_stale);
            frame_free(&k->pool, p.frame);
        }
    k->counters[TAKEN_held] = 0;
}

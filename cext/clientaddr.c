/* clientaddr.c: see clientaddr.h. TOA and UOA as DPVS's modules for the RS read them (toa.ko, uoa.ko), PROXY as HAProxy's
 * proxy-protocol.txt defines it.
 *
 * PROXY on TCP. Let I be the number of the client's first byte, R the bytes of a header of its own that is translated (else 0), N the
 * bytes of the header that the RS gets. Every segment that begins at I carries the header, so that whatever gets lost is said again, and
 * what begins later is shifted by N - R. The client's ACK of the handshake begins at I: it carries the header to an RS that speaks
 * first, too. What the RS acknowledges inside the header is I for the client. When the RS has acknowledged the whole header, N - R
 * becomes part of dseq, which is all that rewriting knows; a while later (SETTLED) old acknowledgements need no care any more and
 * the connection is like any other.
 *
 * Nobody forges: TOA and UOA options of the client's own become padding, and no byte of a client can come to lie before or inside the
 * header: segments that begin before I lose their payload.
 *
 * What is unsatisfying: the window that the RS gives is used by the header, too; a client that fills it to the last byte loses the
 * end of the first window and sends it again.
 */
#include "clientaddr.h"

#include "csum.h"

enum { TOA_KIND = 254, UOA_KIND = 31, SETTLED = 65536, OPTIONS_MOST = 40 };

static u8 mode_of(const struct conn *c) { return c->marks & MARK_MODE; }
static bool is_proxy(const struct conn *c) { return mode_of(c) >= FNAT_CLIENT_ADDR_PROXY_V1; }
static u32 option_size(const struct conn *c) { return conn_family(c, TO_RS) == 4 ? 8 : 20; }
static struct tcp_header *tcp_of(const struct packet *p) { return (struct tcp_header *)(p->data + p->l4); }
static void unmark(struct conn *c) { c->flags &= (u8)~CONN_MARKED; }

void clientaddr_opens(struct conn *c, u8 wanted)
{
    if (!wanted)
        return;
    c->flags |= CONN_MARKED;
    c->marks = wanted;
}

void clientaddr_again(struct conn *c)
{
    if (!mode_of(c))
        return;
    c->flags |= CONN_MARKED;
    c->marks &= (u8) ~(MARK_SENT | MARK_ACKED);
    c->insertion = c->next_seq[TO_RS];
    c->insertion_len = 0;
    c->replaced = 0;
}

void clientaddr_follow(struct conn *c, bool was_half_open, u32 first)
{
    if (was_half_open && !(c->flags & CONN_HALF_OPEN))
        c->insertion = first;
}

/* ---- changing a packet ---- */

/* What the L4 checksum covers, before a change. */
struct before {
    u16 sum, len;
};

static struct before before(const struct packet *p)
{
    return (struct before){csum_fold(csum_partial(p->data + p->l4, p->l4_len)), p->l4_len};
}

/* The change is made: a right checksum is right again, a wrong one as wrong as it was. A UDP datagram without one stays without. */
static void mend_checksum(struct packet *p, struct before b)
{
    bool tcp = p->proto == PROTO_TCP;
    u8 *field = p->data + p->l4 + (tcp ? offsetof(struct tcp_header, csum) : offsetof(struct udp_header, csum));
    u16 value = get16(field);
    if (!tcp && !value)
        return;
    u64 now = csum_fold(csum_partial(p->data + p->l4, p->l4_len));
    value = csum_apply(value, (u16)~b.sum + now + csum_delta16(be16(b.len), be16(p->l4_len)));
    put16(field, tcp || value ? value : 0xffff);
}

/* The IP packet is now `by` bytes longer. */
static void lengthen(struct packet *p, s32 by)
{
    u8 *l3 = p->data + p->l3;
    p->l3_len = (u16)(p->l3_len + by);
    if (l3[0] >> 4 == 4) {
        struct ip4_header *ip = (struct ip4_header *)l3;
        u16 from = ip->total_len;
        ip->total_len = be16(p->l3_len);
        ip->csum = csum_apply(ip->csum, csum_delta16(from, ip->total_len));
    } else
        ((struct ip6_header *)l3)->payload_len = be16((u16)(p->l3_len - sizeof(struct ip6_header)));
    p->len = (u16)(ETH_HEADER + p->l3_len);
    if (p->len < ETH_MIN_FRAME) {
        memset(p->data + p->len, 0, ETH_MIN_FRAME - p->len);
        p->len = ETH_MIN_FRAME;
    }
}

/* Make n bytes of room at this offset: what lies before it moves into the headroom. */
static u8 *open_gap(struct packet *p, u32 at, u32 n)
{
    memmove(p->data - n, p->data, at);
    p->data -= n;
    return p->data + at;
}

static void close_gap(struct packet *p, u32 at, u32 n)
{
    memmove(p->data + n, p->data, at);
    p->data += n;
}

static u32 l4_header(const struct packet *p)
{
    return p->proto == PROTO_TCP ? (tcp_of(p)->offset >> 4) * 4u : (u32)sizeof(struct udp_header);
}
static u8 *payload_of(const struct packet *p) { return p->data + p->l4 + l4_header(p); }

/* Replace the first `cut` bytes of the payload by these. */
static void replace_payload(struct packet *p, u32 cut, const u8 *bytes, u32 n)
{
    struct before b = before(p);
    u32 at = p->l4 + l4_header(p);
    if (cut > n)
        close_gap(p, at, cut - n);
    else
        open_gap(p, at, n - cut);
    if (n)
        memcpy(p->data + at, bytes, n);
    p->l4_len = (u16)(p->l4_len + n - cut);
    p->payload = (u16)(p->payload + n - cut);
    if (p->proto == PROTO_UDP)
        put16(p->data + p->l4 + offsetof(struct udp_header, len), be16(p->l4_len));
    lengthen(p, (s32)(n - cut));
    mend_checksum(p, b);
}

static void drop_payload(struct packet *p)
{
    if (p->payload)
        replace_payload(p, p->payload, NULL, 0);
}

static void put_number(struct packet *p, void *field, u32 value)
{
    struct before b = before(p);
    put32(field, be32(value));
    mend_checksum(p, b);
}

/* Walk options of TCP or IPv4 (RFC 9293 3.1, RFC 791 3.1): the size of the one at `at`; 0: the end, or malformed from here on. */
static u32 option_at(const u8 *options, u32 len, u32 at)
{
    if (at >= len || options[at] == TCP_OPT_END)
        return 0;
    if (options[at] == TCP_OPT_NOP)
        return 1;
    return at + 2 > len || options[at + 1] < 2 || at + options[at + 1] > len ? 0 : options[at + 1];
}

/* Options of this kind become padding. */
static void strip(u8 *options, u32 len, u8 kind)
{
    for (u32 at = 0, size; (size = option_at(options, len, at)); at += size)
        if (options[at] == kind)
            memset(options + at, TCP_OPT_NOP, size);
}

/* Options without padding between them; returns their bytes. What is malformed stays, whole. */
static u32 pack(u8 *to, const u8 *options, u32 len)
{
    u32 at = 0, n = 0;
    for (u32 size; (size = option_at(options, len, at)); at += size) {
        if (options[at] == TCP_OPT_NOP)
            continue;
        memcpy(to + n, options + at, size);
        n += size;
    }
    if (at < len && options[at] != TCP_OPT_END) {
        memcpy(to + n, options + at, len - at);
        n += len - at;
    }
    return n;
}

/* kind, size, the client's port and address: TOA and UOA alike. */
static u32 put_option(u8 *to, const struct conn *c, u8 kind)
{
    u32 size = option_size(c);
    struct addr16 cip = conn_cip(c);
    to[0] = kind, to[1] = (u8)size;
    put16(to + 2, c->cport);
    memcpy(to + 4, cip.b, size - 4);
    return size;
}

/* ---- TOA ---- */

static enum clientaddr toa_insert(struct packet *p, const struct conn *c, u32 mtu)
{
    u8 made[OPTIONS_MOST + OPTIONS_MOST];
    u32 old = l4_header(p) - (u32)sizeof(struct tcp_header), size = put_option(made, c, TOA_KIND), rest = old;
    const u8 *options = p->data + p->l4 + sizeof(struct tcp_header);
    if (size + old <= OPTIONS_MOST)
        memcpy(made + size, options, old);
    else
        rest = pack(made + size, options, old);
    u32 len = (size + rest + 3) & ~3u;
    if (len > OPTIONS_MOST || p->l3_len - old + len > mtu)
        return CLIENTADDR_NO_ROOM;
    memset(made + size + rest, TCP_OPT_NOP, len - size - rest);
    if (len >= old)
        open_gap(p, p->l4 + (u32)sizeof(struct tcp_header), len - old);
    else
        close_gap(p, p->l4 + (u32)sizeof(struct tcp_header), old - len);
    struct tcp_header *tcp = tcp_of(p);
    memcpy(tcp + 1, made, len);
    tcp->offset = (u8)((tcp->offset & 15) | (sizeof *tcp + len) / 4 << 4);
    p->l4_len = (u16)(p->l4_len + len - old);
    lengthen(p, (s32)(len - old));
    return CLIENTADDR_TOLD;
}

static enum clientaddr toa_to_rs(struct packet *p, const struct conn *c, u32 mtu)
{
    struct before b = before(p);
    struct tcp_header *tcp = tcp_of(p);
    enum clientaddr done = CLIENTADDR_NOTHING;
    strip((u8 *)(tcp + 1), l4_header(p) - (u32)sizeof *tcp, TOA_KIND);
    if (!(p->tcp_flags & (TCP_SYN | TCP_RST)) && c->flags & CONN_SYNACK_SEEN)
        done = toa_insert(p, c, mtu);
    mend_checksum(p, b);
    return done;
}

/* The client's segments shall have room for the option. */
static void lower_mss(struct packet *p, u32 by)
{
    struct before b = before(p);
    u8 *options = (u8 *)(tcp_of(p) + 1);
    u32 len = l4_header(p) - (u32)sizeof(struct tcp_header);
    for (u32 at = 0, size; (size = option_at(options, len, at)); at += size) {
        u32 mss = size == 4 ? be16(get16(options + at + 2)) : 0;
        if (options[at] != TCP_OPT_MSS || mss <= by)
            continue;
        put16(options + at + 2, be16((u16)(mss - by)));
        break;
    }
    mend_checksum(p, b);
}

static void toa_to_client(struct packet *p, struct conn *c)
{
    const struct tcp_header *tcp = tcp_of(p);
    u8 flags = p->tcp_flags;
    if (flags & TCP_SYN) {
        if (flags & TCP_ACK)
            lower_mss(p, option_size(c));
        return;
    }
    if (c->flags & CONN_HALF_OPEN)
        return;
    if (p->payload || flags & TCP_FIN || (flags & TCP_ACK && after_u32(be32(get32(&tcp->ack)), c->insertion)))
        unmark(c); /* the RS has its socket, made of a segment that told */
}

/* ---- UOA ---- */

/* The byte that names the L4 protocol. */
static u8 *next_header(struct packet *p)
{
    struct ip6_header *ip = (struct ip6_header *)(p->data + p->l3);
    u8 *next = &ip->next;
    for (u32 at = p->l3 + (u32)sizeof *ip; at < p->l4;) {
        u32 size = *next == IP6_FRAGMENT ? 8 : (p->data[at + 1] + 1) * 8u;
        next = p->data + at;
        at += size;
    }
    return next;
}

/* Version 1: the option has an IPv4 address, 2: an IPv6 one; the length is of all that is inserted. */
static u32 put_uoa_header(u8 *to, const struct conn *c, u8 next)
{
    u32 size = 4 + option_size(c);
    to[0] = size == 12 ? 1 << 4 : 2 << 4;
    to[1] = next;
    put16(to + 2, be16((u16)size));
    return 4 + put_option(to + 4, c, UOA_KIND);
}

static enum clientaddr uoa_header(struct packet *p, const struct conn *c, u32 mtu)
{
    u32 size = 4 + option_size(c);
    if (p->l3_len + size > mtu)
        return p->l3_len - p->payload + size <= mtu ? CLIENTADDR_AHEAD : CLIENTADDR_NO_ROOM;
    put_uoa_header(open_gap(p, p->l4, size), c, PROTO_UDP);
    if (p->data[p->l3] >> 4 == 4) {
        struct ip4_header *ip = (struct ip4_header *)(p->data + p->l3);
        u16 from = get16(&ip->ttl);
        ip->proto = PROTO_UOA;
        ip->csum = csum_apply(ip->csum, csum_delta16(from, get16(&ip->ttl)));
        put16(p->data + p->l4 + size + offsetof(struct udp_header, csum),
              0); /* as DPVS: what lies between it and its pseudo-header is not UDP */
    } else
        *next_header(p) = PROTO_UOA;
    p->l4 = (u8)(p->l4 + size);
    lengthen(p, (s32)size);
    return CLIENTADDR_TOLD;
}

/* The option of IPv4, which has no room for an IPv6 address. */
static enum clientaddr uoa_option(struct packet *p, const struct conn *c, u32 mtu)
{
    struct ip4_header *ip = (struct ip4_header *)(p->data + p->l3);
    u32 header = p->l4 - p->l3;
    if (c->families != FAMILIES_44 || header + 8 > 60)
        return CLIENTADDR_NO_ROOM;
    if (p->l3_len + 8u > mtu)
        return p->l3_len - p->payload + 8u <= mtu ? CLIENTADDR_AHEAD : CLIENTADDR_NO_ROOM;
    put_option(open_gap(p, p->l3 + (u32)sizeof *ip, 8), c, UOA_KIND);
    ip = (struct ip4_header *)(p->data + p->l3);
    ip->version_ihl = (u8)(0x40 | (header + 8) / 4);
    ip->total_len = be16((u16)(p->l3_len + 8));
    p->l4 = (u8)(p->l4 + 8);
    p->l3_len = (u16)(p->l3_len + 8);
    lengthen(p, 0);
    ip->csum = 0;
    ip->csum = csum_ip4(ip, header + 8);
    return CLIENTADDR_TOLD;
}

static enum clientaddr uoa_to_rs(struct packet *p, struct conn *c, u32 mtu)
{
    bool header = mode_of(c) == FNAT_CLIENT_ADDR_UOA_OPP;
    u32 options = p->l4 - p->l3 - (u32)sizeof(struct ip4_header);
    if (!header && c->families == FAMILIES_44 && options) {
        struct ip4_header *ip = (struct ip4_header *)(p->data + p->l3);
        strip((u8 *)(ip + 1), options, UOA_KIND);
        ip->csum = 0;
        ip->csum = csum_ip4(ip, (u32)sizeof *ip + options);
    }
    if (c->insertion_len == UOA_TRAIL)
        return CLIENTADDR_NOTHING;
    enum clientaddr done = header ? uoa_header(p, c, mtu) : uoa_option(p, c, mtu);
    if (done == CLIENTADDR_TOLD && ++c->insertion_len == UOA_TRAIL && header)
        unmark(c);
    return done;
}

/* It answers, so it has seen the client's address. Options of the client's own are looked for to the end. */
static void uoa_to_client(struct conn *c)
{
    c->insertion_len = UOA_TRAIL;
    if (mode_of(c) == FNAT_CLIENT_ADDR_UOA_OPP)
        unmark(c);
}

/* ---- PROXY headers ---- */

static const u8 signature[12] = "\r\n\r\n\0\r\nQUIT\n";
enum { V2_FIXED = 16, V2_LOCAL = 0x20, V2_PROXY = 0x21 };

/* What a header says. */
struct peers {
    struct addr16 src, dst;
    u16 sport, dport; /* network order */
    u8 family;        /* 4 | 6; 0: nothing is said (v1 UNKNOWN, v2 LOCAL) */
    u8 version;
};

static u8 *put_decimal(u8 *to, u32 value)
{
    u8 digits[5];
    u32 n = 0;
    do
        digits[n++] = (u8)('0' + value % 10);
    while (value /= 10);
    while (n)
        *to++ = digits[--n];
    return to;
}

static u8 *put_text(u8 *to, const char *text)
{
    while (*text)
        *to++ = (u8)*text++;
    return to;
}

static u8 *put_addr4(u8 *to, const u8 addr[4])
{
    for (u32 i = 0; i < 4; i++) {
        if (i)
            *to++ = '.';
        to = put_decimal(to, addr[i]);
    }
    return to;
}

/* RFC 5952: the first of the longest runs of zero groups, of two at least, becomes "::". */
static u8 *put_addr6(u8 *to, const u8 addr[16])
{
    u32 best = 8, most = 1;
    for (u32 i = 0; i < 8; i++) {
        u32 n = 0;
        while (i + n < 8 && !get16(addr + 2 * (i + n)))
            n++;
        if (n > most)
            best = i, most = n;
    }
    for (u32 i = 0; i < 8; i++) {
        if (i == best) {
            to = put_text(to, "::");
            i += most - 1;
            continue;
        }
        if (i && i != best + most)
            *to++ = ':';
        u32 group = be16(get16(addr + 2 * i));
        for (s32 shift = group > 0xfff ? 12 : group > 0xff ? 8 : group > 0xf ? 4 : 0; shift >= 0; shift -= 4)
            *to++ = (u8) "0123456789abcdef"[group >> shift & 15];
    }
    return to;
}

static u32 put_v1(u8 *to, const struct peers *s)
{
    u8 *end = put_text(to, s->family == 4 ? "PROXY TCP4 " : s->family == 6 ? "PROXY TCP6 " : "PROXY UNKNOWN");
    if (s->family) {
        u8 *(*const put_addr)(u8 *, const u8 *) = s->family == 4 ? put_addr4 : put_addr6;
        end = put_addr(end, s->src.b);
        *end++ = ' ';
        end = put_addr(end, s->dst.b);
        *end++ = ' ';
        end = put_decimal(end, be16(s->sport));
        *end++ = ' ';
        end = put_decimal(end, be16(s->dport));
    }
    return (u32)(put_text(end, "\r\n") - to);
}

static u32 put_v2(u8 *to, const struct peers *s, u8 proto)
{
    u32 addr = s->family == 4 ? 4 : s->family ? 16 : 0, len = addr ? 2 * addr + 4 : 0;
    memcpy(to, signature, sizeof signature);
    to[12] = s->family ? V2_PROXY : V2_LOCAL;
    to[13] = !s->family ? 0 : (u8)((s->family == 4 ? 0x10 : 0x20) | (proto == PROTO_TCP ? 1 : 2));
    put16(to + 14, be16((u16)len));
    memcpy(to + V2_FIXED, s->src.b, addr);
    memcpy(to + V2_FIXED + addr, s->dst.b, addr);
    if (len) {
        put16(to + V2_FIXED + 2 * addr, s->sport);
        put16(to + V2_FIXED + 2 * addr + 2, s->dport);
    }
    return V2_FIXED + len;
}

/* The header that the RS gets for these. */
static u32 put_header(u8 to[CLIENTADDR_HEADER], const struct conn *c, const struct peers *s)
{
    return mode_of(c) == FNAT_CLIENT_ADDR_PROXY_V1 ? put_v1(to, s) : put_v2(to, s, c->proto);
}

static struct peers own_peers(const struct core *k, const struct conn *c)
{
    return (struct peers){.src = conn_cip(c), .dst = conn_vip(k, c), .sport = c->cport, .dport = c->vport, .family = conn_family(c, TO_RS)};
}

/* ---- reading a header that the client sent ---- */

struct words {
    const u8 *at, *end;
};

/* The next word up to a space, which it must have unless it is the last one. */
static struct words next_word(struct words *w, bool last)
{
    const u8 *from = w->at;
    while (w->at < w->end && *w->at != ' ')
        w->at++;
    struct words word = {from, w->at};
    if ((w->at == w->end) != last)
        word.end = word.at; /* too few words or too many */
    if (w->at < w->end)
        w->at++;
    return word;
}

static bool read_decimal(struct words w, u32 most, u32 *out)
{
    u32 value = 0, n = (u32)(w.end - w.at);
    if (!n || n > 5 || (n > 1 && *w.at == '0'))
        return false;
    for (; w.at < w.end; w.at++) {
        if (*w.at < '0' || *w.at > '9')
            return false;
        value = value * 10 + *w.at - '0';
    }
    *out = value;
    return value <= most;
}

static bool read_addr4(struct words w, u8 out[4])
{
    for (u32 i = 0, value; i < 4; i++) {
        struct words part = {w.at, w.at};
        while (part.end < w.end && *part.end != '.')
            part.end++;
        if ((part.end == w.end) != (i == 3) || !read_decimal(part, 255, &value))
            return false;
        out[i] = (u8)value;
        w.at = part.end + 1;
    }
    return true;
}

static s32 hex_digit(u8 c) { return c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1; }

static bool read_addr6(struct words w, u8 out[16])
{
    u8 groups[16];
    u32 n = 0, gap = 8;
    memset(out, 0, 16);
    if (w.end - w.at >= 2 && w.at[0] == ':' && w.at[1] == ':') {
        gap = 0;
        w.at += 2;
    }
    while (w.at < w.end) {
        u32 value = 0, digits = 0;
        for (; w.at < w.end && hex_digit(*w.at) >= 0 && digits < 4; w.at++, digits++)
            value = value << 4 | (u32)hex_digit(*w.at);
        if (!digits || n == 8)
            return false;
        put16(groups + 2 * n++, be16((u16)value));
        if (w.at == w.end)
            break;
        if (*w.at++ != ':' || w.at == w.end)
            return false;
        if (*w.at != ':')
            continue;
        if (gap != 8)
            return false;
        gap = n;
        w.at++;
    }
    if (gap == 8 ? n != 8 : n == 8)
        return false;
    u32 head = gap == 8 ? n : gap;
    memcpy(out, groups, 2 * head);
    memcpy(out + 16 - 2 * (n - head), groups + 2 * head, 2 * (n - head));
    return true;
}

static u32 read_v1(const u8 *data, u32 len, struct peers *s)
{
    static const char start[] = "PROXY ";
    u32 end = 0;
    *s = (struct peers){.version = 1};
    if (len < sizeof start || memcmp(data, start, sizeof start - 1))
        return 0;
    while (end + 1 < len && end + 2 < CLIENTADDR_HEADER && (data[end] != '\r' || data[end + 1] != '\n'))
        end++;
    if (end + 1 >= len || data[end] != '\r' || data[end + 1] != '\n')
        return 0;
    struct words w = {data + sizeof start - 1, data + end};
    if (end >= 13 && !memcmp(w.at, "UNKNOWN", 7))
        return end + 2;
    struct words family = next_word(&w, false);
    if (family.end - family.at != 4 || memcmp(family.at, "TCP", 3) || (family.at[3] != '4' && family.at[3] != '6'))
        return 0;
    s->family = (u8)(family.at[3] - '0');
    bool (*const read_addr)(struct words, u8 *) = s->family == 4 ? read_addr4 : read_addr6;
    u32 sport, dport;
    if (!read_addr(next_word(&w, false), s->src.b) || !read_addr(next_word(&w, false), s->dst.b) ||
        !read_decimal(next_word(&w, false), 65535, &sport) || !read_decimal(next_word(&w, true), 65535, &dport))
        return 0;
    s->sport = be16((u16)sport), s->dport = be16((u16)dport);
    return end + 2;
}

static u32 read_v2(const u8 *data, u32 len, struct peers *s)
{
    *s = (struct peers){.version = 2};
    if (len < V2_FIXED || memcmp(data, signature, sizeof signature) || (data[12] != V2_LOCAL && data[12] != V2_PROXY))
        return 0;
    u32 addrs = be16(get16(data + 14)), addr = data[13] >> 4 == 1 ? 4 : data[13] >> 4 == 2 ? 16 : 0;
    if (V2_FIXED + addrs > len)
        return 0;
    if (data[12] == V2_LOCAL || !addr || addrs < 2 * addr + 4)
        return V2_FIXED + addrs;
    s->family = addr == 4 ? 4 : 6;
    memcpy(s->src.b, data + V2_FIXED, addr);
    memcpy(s->dst.b, data + V2_FIXED + addr, addr);
    s->sport = get16(data + V2_FIXED + 2 * addr), s->dport = get16(data + V2_FIXED + 2 * addr + 2);
    return V2_FIXED + addrs;
}

/* Bytes of the whole header that this payload begins with; 0: it does not. A header arrives in one piece (proxy-protocol.txt 2). */
static u32 read_header(const u8 *data, u32 len, struct peers *s)
{
    u32 n = read_v1(data, len, s);
    return n ? n : read_v2(data, len, s);
}

/* ---- PROXY on UDP: in the first datagram ---- */

static enum clientaddr proxy_datagram(struct core *k, struct packet *p, struct conn *c, u32 mtu)
{
    u8 header[CLIENTADDR_HEADER];
    struct peers peers;
    if (c->marks & MARK_INSECURE && read_v2(payload_of(p), p->payload, &peers)) {
        unmark(c);
        return CLIENTADDR_NOTHING;
    }
    peers = own_peers(k, c);
    u32 n = put_header(header, c, &peers);
    if (p->l3_len + n > mtu)
        return CLIENTADDR_NO_ROOM;
    replace_payload(p, 0, header, n);
    unmark(c);
    return CLIENTADDR_TOLD;
}

/* ---- PROXY on TCP ---- */

static u32 shift_of(const struct conn *c) { return c->insertion_len - c->replaced; }

/* The first data of a client that may bring a header of its own: is it one? False: it is what the RS wants already. */
static bool decide(const struct core *k, const struct packet *p, struct conn *c)
{
    u8 header[CLIENTADDR_HEADER];
    struct peers peers;
    u32 own = c->marks & MARK_INSECURE ? read_header(payload_of(p), p->payload, &peers) : 0;
    if (own && peers.version == (mode_of(c) == FNAT_CLIENT_ADDR_PROXY_V1 ? 1 : 2))
        return false;
    if (!own)
        peers = own_peers(k, c);
    c->replaced = own;
    c->insertion_len = (u8)put_header(header, c, &peers);
    return true;
}

/* The same header as the first time; 0: the client's own one is not in this segment. */
static u32 header_again(const struct core *k, const struct packet *p, const struct conn *c, u8 header[CLIENTADDR_HEADER])
{
    struct peers peers = own_peers(k, c);
    if (c->replaced && read_header(payload_of(p), p->payload, &peers) != c->replaced)
        return 0;
    u32 n = put_header(header, c, &peers);
    return n == c->insertion_len ? n : 0;
}

/* A segment that begins with the client's first byte. */
static enum clientaddr proxy_first(struct core *k, struct packet *p, struct conn *c, u32 mtu)
{
    u8 header[CLIENTADDR_HEADER];
    struct tcp_header *tcp = tcp_of(p);
    if (p->tcp_flags & TCP_RST) {
        if (c->marks & MARK_SENT)
            put_number(p, &tcp->seq, be32(get32(&tcp->seq)) + shift_of(c));
        drop_payload(p);
        return CLIENTADDR_NOTHING;
    }
    if (!c->insertion_len) {
        if (c->marks & MARK_INSECURE && !p->payload && !(p->tcp_flags & TCP_FIN))
            return CLIENTADDR_NOTHING; /* its data will show */
        if (!decide(k, p, c)) {
            unmark(c);
            return CLIENTADDR_NOTHING;
        }
    }
    u32 n = header_again(k, p, c, header);
    if (!n) {
        drop_payload(p);
        return CLIENTADDR_NO_ROOM;
    }
    if (p->l3_len + n - c->replaced > mtu)
        return CLIENTADDR_AHEAD;
    replace_payload(p, c->replaced, header, n);
    c->marks |= MARK_SENT;
    return CLIENTADDR_TOLD;
}

static enum clientaddr proxy_to_rs(struct core *k, struct packet *p, struct conn *c, u32 mtu)
{
    u32 at = be32(get32(&tcp_of(p)->seq)) - c->dseq - c->insertion;
    if (c->flags & CONN_HALF_OPEN) {
        drop_payload(p); /* with a SYN: TCP Fast Open falls back; else nobody knows yet where the stream begins */
        return CLIENTADDR_NOTHING;
    }
    if (c->marks & MARK_ACKED)
        return CLIENTADDR_NOTHING;
    if (!at && !(p->tcp_flags & TCP_SYN))
        return proxy_first(k, p, c, mtu);
    if ((s32)at < 0 || p->tcp_flags & TCP_SYN) {
        drop_payload(p);
        return CLIENTADDR_NOTHING;
    }
    if (!c->insertion_len && (c->marks & MARK_INSECURE || !decide(k, p, c))) {
        drop_payload(p); /* nobody knows yet by how much to shift it */
        return CLIENTADDR_NOTHING;
    }
    if (at < c->replaced) {
        drop_payload(p);
        at = c->replaced;
    }
    put_number(p, &tcp_of(p)->seq, c->insertion + c->dseq + at + shift_of(c));
    return CLIENTADDR_NOTHING;
}

static void proxy_sack(struct packet *p, const struct conn *c, bool header_missing)
{
    u8 *options = (u8 *)(tcp_of(p) + 1);
    u32 len = l4_header(p) - (u32)sizeof(struct tcp_header);
    if (header_missing)
        return strip(options, len, TCP_OPT_SACK); /* what the RS has begins with the byte that it still asks for */
    for (u32 at = 0, size; (size = option_at(options, len, at)); at += size)
        for (u32 i = 2; options[at] == TCP_OPT_SACK && size % 8 == 2 && i < size; i += 4)
            put32(options + at + i, be32(conn_client_number(c, be32(get32(options + at + i)))));
}

static void proxy_to_client(struct packet *p, struct conn *c)
{
    struct tcp_header *tcp = tcp_of(p);
    if (!(p->tcp_flags & TCP_ACK) || c->flags & CONN_HALF_OPEN || !c->insertion_len)
        return;
    struct before b = before(p);
    u32 ack = be32(get32(&tcp->ack)), at = ack - c->insertion;
    bool short_of = !(c->marks & MARK_ACKED) && (s32)at < c->insertion_len;
    proxy_sack(p, c, short_of);
    ack = conn_client_number(c, ack);
    put32(&tcp->ack, be32(ack));
    mend_checksum(p, b);
    if (!(c->marks & MARK_ACKED) && !short_of) {
        c->dseq += shift_of(c);
        c->marks |= MARK_ACKED;
    }
    if (c->marks & MARK_ACKED && (s32)(ack - c->insertion) > SETTLED)
        unmark(c);
}

/* ---- the whole ---- */

enum clientaddr clientaddr_apply(struct core *k, struct packet *p, struct conn *c, enum direction dir, u32 mtu)
{
    switch (mode_of(c)) {
    case FNAT_CLIENT_ADDR_TOA:
        if (dir == TO_RS)
            return toa_to_rs(p, c, mtu);
        toa_to_client(p, c);
        break;
    case FNAT_CLIENT_ADDR_UOA_OPP:
    case FNAT_CLIENT_ADDR_UOA_IPO:
        if (dir == TO_RS)
            return uoa_to_rs(p, c, mtu);
        uoa_to_client(c);
        break;
    default:
        if (dir == TO_RS)
            return c->proto == PROTO_TCP ? proxy_to_rs(k, p, c, mtu) : proxy_datagram(k, p, c, mtu);
        if (c->proto == PROTO_TCP)
            proxy_to_client(p, c);
    }
    return CLIENTADDR_NOTHING;
}

bool clientaddr_needs_whole(const struct conn *c, const struct packet *p, enum direction dir)
{
    if (c->proto == PROTO_TCP)
        return is_proxy(c) ? !(c->marks & MARK_ACKED) : dir == TO_RS;
    return mode_of(c) == FNAT_CLIENT_ADDR_UOA_IPO && dir == TO_RS && p->family == 4 && p->l4 - p->l3 > (int)sizeof(struct ip4_header);
}

/* Headers of p alone, and a checksum that is right whatever that of p is. */
static void make_ahead(const struct packet *p, struct packet *ahead)
{
    u32 headers = p->l4 + l4_header(p);
    ahead->l3 = p->l3, ahead->l4 = p->l4, ahead->proto = p->proto, ahead->family = p->family, ahead->l3_len = p->l3_len;
    ahead->l4_len = (u16)(headers - p->l4);
    ahead->payload = 0;
    memcpy(ahead->data, p->data, headers);
    u8 *l3 = ahead->data + ahead->l3, *l4 = ahead->data + ahead->l4;
    lengthen(ahead, (s32)(headers - p->l3) - (s32)p->l3_len);
    u64 pseudo;
    if (l3[0] >> 4 == 4) {
        struct ip4_header *ip = (struct ip4_header *)l3;
        ip->id = 0, ip->frag = be16(IP4_DF), ip->csum = 0; /* RFC 6864: what is never fragmented needs no identification */
        ip->csum = csum_ip4(ip, ahead->l4 - (u32)ahead->l3);
        pseudo = csum_pseudo4(ip->src, ip->dst, p->proto, ahead->l4_len);
    } else
        pseudo = csum_pseudo6(l3 + offsetof(struct ip6_header, src), p->proto, ahead->l4_len);
    u16 *field = (u16 *)(l4 + (p->proto == PROTO_TCP ? offsetof(struct tcp_header, csum) : offsetof(struct udp_header, csum)));
    if (p->proto == PROTO_TCP) {
        struct tcp_header *tcp = tcp_of(ahead);
        tcp->flags = TCP_ACK, tcp->urgent = 0;
    } else
        put16(l4 + offsetof(struct udp_header, len), be16(ahead->l4_len));
    put16(field, 0);
    u16 sum = (u16)~csum_fold(pseudo + csum_partial(l4, ahead->l4_len));
    put16(field, p->proto == PROTO_TCP || sum ? sum : 0xffff);
}

void clientaddr_ahead(struct core *k, struct packet *p, struct conn *c, struct packet *ahead)
{
    u8 header[CLIENTADDR_HEADER];
    if (ahead)
        make_ahead(p, ahead);
    if (is_proxy(c)) {
        u32 n = header_again(k, p, c, header);
        struct tcp_header *tcp = tcp_of(p);
        put_number(p, &tcp->seq, be32(get32(&tcp->seq)) + n);
        if (c->replaced)
            replace_payload(p, c->replaced, NULL, 0);
        if (ahead) {
            replace_payload(ahead, 0, header, n);
            c->marks |= MARK_SENT;
        }
    } else if (ahead) {
        mode_of(c) == FNAT_CLIENT_ADDR_UOA_OPP ? uoa_header(ahead, c, 65535) : uoa_option(ahead, c, 65535);
        if (++c->insertion_len == UOA_TRAIL && mode_of(c) == FNAT_CLIENT_ADDR_UOA_OPP)
            unmark(c);
    }
}

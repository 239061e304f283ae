/* sctp.c: SCTP associations with one address on each side (RFC 9260).
 *
 * State. A balancer sees both ways of an association, so four states do where an end host or a tracker that sees one way needs a
 * dozen: INIT (half open) until the RS acknowledges the cookie, ESTABLISHED, SHUTDOWN as soon as one side begins it, CLOSED after
 * SHUTDOWN COMPLETE or ABORT. What somebody sends who does not see the association must not move them: all but the first
 * packets carry a verification tag that the receiver has chosen (RFC 9260 5.3.1, 8.5), so a chunk counts only with the right one.
 * The tags are learned from the handshake: INIT ACK names both, and they count from the COOKIE ECHO on, which only a client sends that has
 * received it. An INIT inside a living association thus moves nothing; a restart of the client (5.2.4) is one more handshake of the same kind.
 *
 * Checksum. CRC32c covers ports and chunks, no address. It is linear: changing the word at distance n from the end changes the sum by word * x^(8n)
 * mod P, whatever else the packet holds. So a packet costs a few multiplications, not a pass over its bytes, and a wrong sum stays
 * exactly as wrong. A sum of zero was left to the sender's hardware (veth, virtio) or agreed to be none (RFC 9653): it is computed,
 * which is right for both; one sound packet in 2^32 looks the same, and gets the value it should have.
 *
 * Further addresses. INIT and INIT ACK may name more addresses of their sender. The other side must not see them: it would
 * send there past the balancer, and what came back from there would belong to no association of the receiver. Refusing
 * such associations would refuse nearly all of them, as most stacks name all addresses of their host unasked. So each address parameter becomes a
 * padding parameter (RFC 4820: to be skipped in silence, by its number even where it is unknown) of the same length, zeroed. Nothing moves, no
 * length changes, and nothing is signed yet: the cookie is made afterwards, of what the RS has seen, and the keys of RFC 4895 come from other
 * parameters. Both sides then know one address of each other, the one they see.
 *
 * Left out: addresses added later (ASCONF, RFC 5061) are signed and pass unchanged; the peer's path probes to them fail and it stays
 * where it is. Fragments of SCTP are dropped (`protocol`): the sum of a datagram whose length is unknown cannot follow its ports;
 * SCTP finds the path's MTU itself. An association that expires tells nobody: with heartbeats one that is alive is never silent for so long.
 */
#include "sctp.h"

#ifdef __SSE4_2__
#include <nmmintrin.h>
#endif

/* ---- CRC32c (RFC 3309); bits in reverse order, as the checksum lies in memory ---- */

enum { POLYNOMIAL = (int)0x82f63b78 };

/* a * b mod P. */
static u32 multiply(u32 a, u32 b)
{
    u32 product = 0;
    for (u32 bit = 1u << 31; bit; bit >>= 1) {
        product ^= b & -(u32) !!(a & bit);
        b = b >> 1 ^ ((u32)POLYNOMIAL & -(b & 1));
    }
    return product;
}

/* What changing bits of a 32-bit word changes the sum by; `left`: bytes from the word to the end. */
static u32 sum_change(u32 bits, u32 left)
{
    static const u32 powers[16] = {
        /* x^(8 * 2^i) */
        0x00800000, 0x00008000, 0x82f63b78, 0x6ea2d55c, 0x18b8ea18, 0x510ac59a, 0xb82be955, 0xb8fdb1e7,
        0x88e56f72, 0x74c360a4, 0xe4172b16, 0x0d65762a, 0x35d73a62, 0x28461564, 0xbf455269, 0xe2ea32dc,
    };
    for (u32 i = 0; left; i++, left >>= 1)
        if (left & 1)
            bits = multiply(powers[i], bits);
    return bits;
}

static u32 crc_bytes(u32 crc, const u8 *data, u32 len)
{
#ifdef __SSE4_2__
    u64 wide = crc;
    for (; len >= 8; data += 8, len -= 8)
        wide = _mm_crc32_u64(wide, get64(data));
    crc = (u32)wide;
    for (; len; data++, len--)
        crc = _mm_crc32_u8(crc, *data);
#else
    static const u32 nibbles[16] = {
        0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3, 0x61c69362, 0x7198540d,
        0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9, 0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75,
    };
    for (; len; data++, len--) {
        crc ^= *data;
        crc = crc >> 4 ^ nibbles[crc & 15];
        crc = crc >> 4 ^ nibbles[crc & 15];
    }
#endif
    return crc;
}

/* The right checksum of a packet, whatever its field holds. */
static u32 sum_of(const u8 *l4, u32 len)
{
    u32 crc = crc_bytes(~0u, l4, offsetof(struct sctp_header, sum));
    crc = crc_bytes(crc, (const u8[4]){0}, 4);
    return ~crc_bytes(crc, l4 + sizeof(struct sctp_header), len - (u32)sizeof(struct sctp_header));
}

/* ---- the state ---- */

/* Of an SCTP connection the numbers of TCP are tags: those that packets of a direction carry, and those of a handshake under way. */
static u32 *agreed(struct conn *c, enum direction dir) { return &c->next_seq[dir]; }
static u32 *offered(struct conn *c, enum direction dir) { return dir == TO_RS ? &c->dseq : &c->dts; }

/* RFC 9260 8.5.1; reflected: the T bit, the sender has no tag of its own receiver and gives back what it got. */
static bool has_right_tag(struct conn *c, enum direction dir, u8 state, u32 tag, bool reflected)
{
    enum direction way = reflected ? (enum direction) !dir : dir;
    return tag && tag == (state == SCTP_INIT ? *offered(c, way) : *agreed(c, way));
}

static u8 after_chunk(struct conn *c, enum direction dir, u8 state, u32 tag, const struct sctp_chunk *chunk, u32 len)
{
    bool whole_init = len >= sizeof(struct sctp_init);
    u32 own = whole_init ? get32(&((const struct sctp_init *)chunk)->tag) : 0;
    bool reflected = chunk->flags & SCTP_REFLECTED;
    switch (chunk->type) {
    case SCTP_CHUNK_INIT:
        if (whole_init && dir == TO_RS && !tag && state == SCTP_INIT)
            *offered(c, TO_CLIENT) = own;
        return state;
    case SCTP_CHUNK_INIT_ACK:
        if (whole_init && dir == TO_CLIENT)
            *offered(c, TO_RS) = own, *offered(c, TO_CLIENT) = tag;
        return state;
    case SCTP_CHUNK_COOKIE_ECHO:
        if (dir == TO_RS && tag && tag == *offered(c, TO_RS))
            *agreed(c, TO_RS) = tag, *agreed(c, TO_CLIENT) = *offered(c, TO_CLIENT);
        return state;
    case SCTP_CHUNK_COOKIE_ACK:
        return state == SCTP_INIT && dir == TO_CLIENT && tag && tag == *agreed(c, dir) ? SCTP_EST : state;
    case SCTP_CHUNK_SHUTDOWN:
    case SCTP_CHUNK_SHUTDOWN_ACK:
        return state == SCTP_EST && has_right_tag(c, dir, state, tag, false) ? SCTP_SHUTDOWN : state;
    case SCTP_CHUNK_SHUTDOWN_COMPLETE:
        return state != SCTP_INIT && has_right_tag(c, dir, state, tag, reflected) ? SCTP_CLOSED : state;
    case SCTP_CHUNK_ABORT:
        return has_right_tag(c, dir, state, tag, reflected) ? SCTP_CLOSED : state;
    default:
        return state;
    }
}

void sctp_opens(struct conn *c, const struct packet *p)
{
    const struct sctp_init *init = (const struct sctp_init *)(p->data + p->l4 + sizeof(struct sctp_header));
    *offered(c, TO_CLIENT) = get32(&init->tag);
}

u8 sctp_follow(struct conn *c, enum direction dir, const struct packet *p)
{
    const u8 *l4 = p->data + p->l4;
    u32 tag = get32(l4 + offsetof(struct sctp_header, tag)), len;
    u8 state = c->state;
    for (u32 at = sizeof(struct sctp_header); at + sizeof(struct sctp_chunk) <= p->l4_len; at += (len + 3) & ~3u) {
        const struct sctp_chunk *chunk = (const struct sctp_chunk *)(l4 + at);
        len = be16(chunk->len);
        if (len < sizeof *chunk || at + len > p->l4_len)
            break;
        state = after_chunk(c, dir, state, tag, chunk, len);
    }
    return state;
}

/* ---- what leaves ---- */

static bool names_address(u16 type) { return type == SCTP_PARAM_IP4 || type == SCTP_PARAM_IP6 || type == SCTP_PARAM_PRIMARY; }

/* Of an INIT or INIT ACK. Returns whether there was an address. */
static bool hide_addresses(u8 *l4, u32 len)
{
    const struct sctp_chunk *chunk = (const struct sctp_chunk *)(l4 + sizeof(struct sctp_header));
    bool found = false;
    if (len < sizeof(struct sctp_header) + sizeof(struct sctp_init))
        return false;
    u32 end = min_u32(len, (u32)sizeof(struct sctp_header) + be16(chunk->len)), size;
    for (u32 at = sizeof(struct sctp_header) + sizeof(struct sctp_init); at + 4 <= end; at += (size + 3) & ~3u) {
        size = be16(get16(l4 + at + 2));
        if (size < 4 || at + size > end)
            break;
        if (!names_address(be16(get16(l4 + at))))
            continue;
        put16(l4 + at, be16(SCTP_PARAM_PADDING));
        memset(l4 + at + 4, 0, size - 4);
        found = true;
    }
    return found;
}

void sctp_complete_if_absent(struct core *k, struct packet *p)
{
    u8 *l4 = p->data + p->l4, *field = l4 + offsetof(struct sctp_header, sum);
    if (get32(field))
        return;
    put32(field, sum_of(l4, p->l4_len));
    count(k, CNT_checksums_completed);
}

void sctp_rewrite(struct core *k, struct packet *p, const struct conn *c, enum direction dir)
{
    u8 *l4 = p->data + p->l4, *field = l4 + offsetof(struct sctp_header, sum);
    u8 type = p->l4_len > sizeof(struct sctp_header) ? l4[sizeof(struct sctp_header)] : 0;
    u32 before = get32(l4), ports = get32(&c->cport + 2 * !dir), after = ports >> 16 | ports << 16, change = 0;
    put32(l4, after);
    if (type == SCTP_CHUNK_INIT || type == SCTP_CHUNK_INIT_ACK) {
        u32 named = sum_of(l4, p->l4_len);
        if (hide_addresses(l4, p->l4_len)) {
            change = named ^ sum_of(l4, p->l4_len);
            count(k, CNT_sctp_addresses_hidden);
        }
    }
    if (get32(field))
        put32(field, get32(field) ^ change ^ sum_change(before ^ after, p->l4_len));
    else
        sctp_complete_if_absent(k, p);
}

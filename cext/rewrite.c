/* rewrite.c: the parts of a rewrite that only TCP or rare packets need. */
#include "rewrite.h"

/* Change a 32-bit number at any offset of the segment; returns the checksum delta (bytes swapped at odd offsets, RFC 1071 2B). */
static u64 shift32(u8 *at, bool odd, u32 by)
{
    u64 delta = rewrite_shift32(at, by);
    return odd ? be16(csum_fold(delta)) : delta;
}

static u64 shift_sack(u8 *option, bool odd, u8 len, u32 by)
{
    u64 delta = 0;
    for (u8 at = 2; at + 4 <= len; at += 4)
        delta += shift32(option + at, odd, by);
    return delta;
}

/* RFC 7323 timestamps and RFC 2018 SACK blocks. Malformed options are left as they are: the receiver judges them. */
u64 rewrite_options(const struct conn *c, enum direction dir, struct tcp_header *tcp)
{
    u8 *options = (u8 *)(tcp + 1);
    u32 len = (tcp->offset >> 4) * 4u - (u32)sizeof *tcp;
    u64 delta = 0;
    for (u32 at = 0; at < len;) {
        u8 kind = options[at];
        if (kind == TCP_OPT_END)
            break;
        if (kind == TCP_OPT_NOP) {
            at++;
            continue;
        }
        if (at + 2 > len || options[at + 1] < 2 || at + options[at + 1] > len)
            break;
        u8 size = options[at + 1];
        bool odd = at & 1; /* numbers start two bytes on: same parity */
        if (kind == TCP_OPT_TS && size == 10 && c->flags & CONN_SHIFT_TS) {
            if (dir == TO_RS)
                delta += shift32(options + at + 2, odd, c->dts);
            else if (tcp->flags & TCP_ACK)
                delta += shift32(options + at + 6, odd, 0u - c->dts);
        } else if (kind == TCP_OPT_SACK && size % 8 == 2 && dir == TO_CLIENT)
            delta += shift_sack(options + at, odd, size, 0u - c->dseq);
        at += size;
    }
    return delta;
}

void rewrite_complete_checksum(struct packet *p)
{
    const struct ip4_header *ip = (const struct ip4_header *)(p->data + p->l3);
    u8 *l4 = p->data + p->l4;
    u16 *field = rewrite_checksum_field(p);
    put16(field, 0);
    u16 sum = csum_fold(csum_pseudo4(get32(&ip->src), get32(&ip->dst), p->proto, p->l4_len) + csum_partial(l4, p->l4_len));
    put16(field, sum == 0xffff && p->proto == PROTO_UDP ? 0xffff : (u16)~sum);
}

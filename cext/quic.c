/* quic.c: a client that has moved to another address or port (RFC 9000 9) goes on with the RS it had. Its datagrams belong to no known
 * connection, but they begin with the connection ID that the RS has given it, and the RS has written its own address into that. The form
 * is DPVS's, so that the same servers work behind either; bits in the order of the wire:
 *
 *     first octet 8, length of the address 3 (one less than it is), port given 1, address 8..64, [port 16], nonce at least 32
 *
 * The address are the last bytes of the RS's, so it begins in the middle of the second octet. Only short headers are looked at: a client moves
 * after the handshake, and before it the IDs of long headers are the client's own choice. Their header does not say how long the ID is;
 * at least 7 octets, as in DPVS.
 *
 * What differs from DPVS: addresses of more than 4 bytes work, and a server of weight 0 gets its own connections back, unless the
 * service ends them (expire-quiescent). An ID that names nobody is scheduled like any first datagram. The ID is in the clear: a client can choose
 * its server, and an observer on both paths can tell that they belong together.
 * What is unsatisfying: the members are searched one by one; it happens once for each datagram that opens a connection.
 */
#include "quic.h"

enum { LONG_HEADER = 0x80, CID_LEAST = 7, HEAD_AND_NONCE = 5 };

/* Two nibbles of different octets. */
static u8 octet(const u8 *at) { return (u8)(at[0] << 4 | at[1] >> 4); }

static bool is_it(const struct snap_member *m, const u8 *address, u32 len, bool with_port, u16 port)
{
    u32 own = m->family == 4 ? 4 : 16;
    return len <= own && !memcmp(m->rip + own - len, address, len) && (!with_port || m->rport == port);
}

int quic_member(const struct snap_service *svc, const struct packet *p)
{
    const u8 *data = p->data + p->l4 + sizeof(struct udp_header), *cid = data + 1;
    if (p->kind != KIND_UDP || p->payload < 1 + CID_LEAST || data[0] & LONG_HEADER)
        return -1;
    u32 len = (cid[1] >> 5) + 1u;
    bool with_port = cid[1] & 0x10;
    if (p->payload < 1 + HEAD_AND_NONCE + len + 2 * with_port)
        return -1;
    u8 read[8 + 2] = {0};
    for (u32 i = 0; i < len + 2 * with_port; i++)
        read[i] = octet(cid + 1 + i);
    bool stay = !(svc->flags & FNAT_SVC_EXPIRE_QUIESCENT);
    for (u32 i = 0; i < svc->n_members; i++) {
        const struct snap_member *m = &svc->members[i];
        if ((m->weight || stay || m->flags & FNAT_MEMBER_DRAINS) && is_it(m, read, len, with_port, get16(read + len)))
            return (int)i;
    }
    return -1;
}

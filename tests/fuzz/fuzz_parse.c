/* Invariant: whatever the bytes, parse_packet sets a kind, reads no byte beyond data[len), and
 *  - KIND_INVALID names a drop reason;
 *  - KIND_TCP and KIND_UDP: the L4 header and payload lie within the IP packet, the IP packet within the frame;
 *  - the same bytes with another neighbourhood in memory give the same answer.
 * The frame is copied to a heap block of exactly its length, so that ASan sees every byte too many.
 */
#include <stdlib.h>

#include "parse.h"

#define CHECK(x)                                                                                                                           \
    do {                                                                                                                                   \
        if (!(x))                                                                                                                          \
            __builtin_trap();                                                                                                              \
    } while (0)

static void parse(struct packet *p, const uint8_t *bytes, size_t len, u8 **block)
{
    *block = malloc(len ? len : 1);
    memcpy(*block, bytes, len);
    memset(p, 0, sizeof *p);
    p->data = *block;
    p->len = (u16)len;
    parse_packet(p);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    struct packet p, again;
    u8 *first, *second;
    if (len > FRAME_SIZE - FRAME_HEADROOM)
        return 0;
    parse(&p, bytes, len, &first);
    parse(&again, bytes, len, &second);
    CHECK(p.kind <= KIND_OTHER && p.kind == again.kind && p.reason == again.reason && p.payload == again.payload);
    CHECK(!memcmp(first, bytes, len)); /* reading changes nothing */
    if (p.kind == KIND_INVALID)
        CHECK(p.reason >= DROP_truncated && p.reason < TAKEN_conns);
    if (p.kind == KIND_TCP || p.kind == KIND_UDP || p.kind == KIND_ICMP || p.kind == KIND_FRAGMENT || p.kind == KIND_OTHER_IP) {
        CHECK(p.l3 == ETH_HEADER && p.l3 + p.l3_len <= len && p.l4 >= p.l3 + 20 && p.l4 <= p.l3 + p.l3_len);
        CHECK(p.family == 6 || csum_fold(csum_partial(p.data + p.l3, (u32)(p.l4 - p.l3))) == 0xffff);
        CHECK(p.data[p.l3] >> 4 == p.family && (p.family == 4 || p.l4 >= p.l3 + 40));
        CHECK(p.frag_at == 0 || (p.family == 6 && p.frag_at + 8 <= p.l4));
    }
    if (p.kind == KIND_TCP)
        CHECK(p.l4 + (p.data[p.l4 + 12] >> 4) * 4 + p.payload == p.l3 + p.l3_len);
    if (p.kind == KIND_UDP)
        CHECK(p.l4 + 8 + p.payload <= p.l3 + p.l3_len);
    free(first);
    free(second);
    return 0;
}

/* Invariant: whatever the bytes, parse_packet sets a kind, and every header it announces lies within the frame.
 *
 * The frame is copied to the end of an exactly sized allocation, so that AddressSanitizer sees any read beyond it. */
#include <stdlib.h>

#include "parse.h"

#define MUST(x)                                                                                                                            \
    do {                                                                                                                                   \
        if (!(x))                                                                                                                          \
            __builtin_trap();                                                                                                              \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size > FRAME_SIZE - FRAME_HEADROOM)
        return 0;
    u8 *frame = malloc(size + !size);
    memcpy(frame, data, size);
    struct packet p = {.data = frame, .len = (u16)size, .kind = 99};
    parse_packet(&p);
    MUST(p.kind <= KIND_OTHER);
    if (p.kind == KIND_INVALID)
        MUST(p.reason >= DROP_truncated && p.reason < TAKEN_conns);
    if (p.kind == KIND_TCP || p.kind == KIND_UDP || p.kind == KIND_ICMP || p.kind == KIND_FRAGMENT || p.kind == KIND_OTHER4) {
        MUST(p.l3 == ETH_HEADER && p.l4 >= p.l3 + 20);
        MUST((u32)p.l3 + p.l3_len <= p.len && p.l4 - p.l3 <= p.l3_len);
    }
    if (p.kind == KIND_TCP || p.kind == KIND_UDP)
        MUST((u32)p.l4 + (p.kind == KIND_TCP ? 20u : 8u) + p.payload <= (u32)p.l3 + p.l3_len);
    free(frame);
    return 0;
}

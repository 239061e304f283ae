/* announce.c: see announce.h. What is unsatisfying: an announcement is sent once; one that is lost on the way is made good by the next packet that the
 * balancer sends, or by the neighbour's own clock. */
#include "announce.h"

#include "answer.h"

#include <errno.h>
#include <stdlib.h>

enum { IDS = 65536, SLOTS_PER_TURN = 128, OWN_PACKETS_LEFT = OWN_PACKETS / 2, ROUND = 0x80 };
_Static_assert((int)FNAT_PORTS < (int)ROUND, "a port and a mark fit a byte");

int announce_open(struct announcer *a)
{
    a->known = calloc(IDS, 1);
    return a->known ? 0 : -ENOMEM;
}

void announce_close(struct announcer *a) { free(a->known); }

void announce_adopt(struct core *k)
{
    struct announcer *a = &k->announcer;
    bool wanted = a->known && k->snap->settings.announce;
    if (wanted && a->directory == k->snap->addresses.directory)
        return;
    a->directory = wanted ? k->snap->addresses.directory : 0;
    a->due = wanted;
    a->cursor = 0;
    a->round ^= ROUND;
}

static void forget_missing(struct announcer *a)
{
    for (u32 id = 0; id < IDS; id++)
        a->known[id] = (u8)((a->known[id] & ROUND) == a->round ? a->known[id] : a->round);
    a->due = false;
}

void announce_turn(struct core *k)
{
    struct announcer *a = &k->announcer;
    for (u32 n = 0; n < SLOTS_PER_TURN && k->own_count < OWN_PACKETS_LEFT; n++) {
        const union snap_slot *slot = snapshot_next(&k->snap->addresses, k->area, &a->cursor);
        if (!slot)
            return forget_missing(a);
        u8 *known = &a->known[slot->address.id], now = (u8)((slot->address.port + 1) | a->round);
        if ((*known & ~ROUND) != (now & ~ROUND))
            answer_announce(k, slot->address.port, slot->family, slot->addr);
        *known = now;
    }
}

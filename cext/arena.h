/* arena.h: memory that outlives a process: one file on hugetlbfs or tmpfs, mapped shared; or anonymous memory for tests.
 *
 * The length is fixed, space is allocated and populated at once, so that the packet path never meets SIGBUS or a page fault.
 */
#ifndef FNAT_ARENA_H
#define FNAT_ARENA_H

#include "base.h"

struct arena {
    u8 *base;
    u64 len;
    int fd;        /* -1: anonymous */
    u32 huge_page; /* bytes of a huge page, 0: ordinary pages */
    bool fresh;    /* this call made it: all bytes are zero */
};

enum { ARENA_CREATE = 1, ARENA_FRESH = 2 };

/* dir NULL: anonymous. Without ARENA_CREATE the file must exist and len is read from it. A file of another length is made anew.
 * 0 or -errno; -EXDEV: dir is on neither hugetlbfs nor tmpfs. */
int arena_open(const char *dir, const char *name, u64 len, int flags, struct arena *out);
void arena_close(struct arena *a);

#endif

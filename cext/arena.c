/* arena.c: see arena.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "arena.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

enum { HUGE_PAGE = 2 << 20 };
static const u64 TMPFS = 0x01021994, HUGETLBFS = 0x958458f6; /* statfs(2) */

static int open_anonymous(u64 len, struct arena *out)
{
    u64 huge_len = align_up(len, HUGE_PAGE);
    if (len >= HUGE_PAGE) {
        void *p = mmap(NULL, huge_len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_POPULATE, -1, 0);
        if (p != MAP_FAILED) {
            *out = (struct arena){p, huge_len, -1, HUGE_PAGE, true};
            return 0;
        }
    }
    void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return -errno;
    madvise(p, len, MADV_HUGEPAGE);
    *out = (struct arena){p, len, -1, 0, true};
    return 0;
}

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* madvise(2), Linux 6.1 */
#endif

/* Map the file at an address at which pages of this size can be used. */
static void *map_aligned(int fd, u64 len, u64 page, int flags)
{
    u8 *room = mmap(NULL, len + page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED)
        return MAP_FAILED;
    u8 *at = (u8 *)align_up((u64)(uintptr_t)room, page), *end = at + align_up(len, 4096);
    if (mmap(at, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | flags, fd, 0) == MAP_FAILED) {
        int error = errno;
        munmap(room, len + page);
        errno = error;
        return MAP_FAILED;
    }
    if (at > room)
        munmap(room, (size_t)(at - room));
    munmap(end, (size_t)(room + len + page - end));
    return at;
}

int arena_open(const char *dir, const char *name, u64 len, int flags, struct arena *out)
{
    char path[512];
    struct stat st;
    struct statfs fs;
    int rc;

    if (!dir)
        return open_anonymous(align_up(len, 4096), out);
    if (snprintf(path, sizeof path, "%s/%s", dir, name) >= (int)sizeof path)
        return -ENAMETOOLONG;
    int fd = open(path, O_RDWR | O_CLOEXEC | (flags & ARENA_CREATE ? O_CREAT : 0), 0600);
    if (fd < 0)
        return -errno;
    if (fstatfs(fd, &fs) || fstat(fd, &st)) {
        rc = -errno;
        goto close_file;
    }
    u32 huge = 0;
    if ((u64)(u32)fs.f_type == HUGETLBFS)
        huge = (u32)fs.f_bsize;
    else if ((u64)(u32)fs.f_type != TMPFS) {
        rc = -EXDEV;
        goto close_file;
    }
    u64 unit = huge ? huge : len >= HUGE_PAGE ? HUGE_PAGE : 4096;
    len = flags & ARENA_CREATE ? align_up(len, unit) : (u64)st.st_size;
    bool fresh = false;
    if (flags & ARENA_CREATE && ((u64)st.st_size != len || flags & ARENA_FRESH)) {
        fresh = true;
        if (ftruncate(fd, 0) || ftruncate(fd, (off_t)len) || fallocate(fd, 0, 0, (off_t)len)) {
            rc = errno == EINTR ? -EINTR : -errno;
            goto remove_file;
        }
    }
    if (!len) {
        rc = -EPROTO;
        goto close_file;
    }
    void *p = map_aligned(fd, len, huge ? huge : HUGE_PAGE, flags & ARENA_CREATE ? MAP_POPULATE : 0);
    if (p == MAP_FAILED) {
        rc = -errno;
        goto remove_file;
    }
    madvise(p, len, MADV_DONTFORK);
    /* tmpfs: what lies on small pages is gathered into huge ones now, whatever the system's setting for transparent ones. It takes
     * a second for each GiB, once: the file keeps them. */
    if (!huge && flags & ARENA_CREATE && len % HUGE_PAGE == 0 && !madvise(p, len, MADV_COLLAPSE))
        huge = HUGE_PAGE;
    *out = (struct arena){p, len, fd, huge, fresh};
    return 0;

remove_file:
    if (fresh)
        unlink(path);
close_file:
    close(fd);
    return rc;
}

void arena_close(struct arena *a)
{
    if (a->base)
        munmap(a->base, a->len);
    if (a->base && a->fd >= 0)
        close(a->fd);
    a->base = NULL;
}

/* plane.c: create or attach the files of a data plane and find everything in them. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "plane.h"

#include "acl.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/random.h>
#include <time.h>

static const u8 MAGIC[8] = {'f', 'n', 'a', 't', 0, 'p', 'l', '1'};
static const u8 WORKER_MAGIC[8] = {'f', 'n', 'a', 't', 0, 'w', 'k', '1'};

/* Hands out consecutive, line-aligned parts of an area; with base NULL it only measures. */
struct carver {
    u8 *base;
    u64 used;
};

static void *carve(struct carver *c, u64 bytes)
{
    u64 at = align_up(c->used, CACHE_LINE);
    c->used = at + bytes;
    return c->base ? c->base + at : NULL;
}

static u64 lay_out_plane(struct fnat_plane *p)
{
    const struct fnat_plane_config *c = &p->config;
    struct carver area = {p->arena.base, 0};
    p->header = carve(&area, sizeof *p->header);
    p->addresses = carve(&area, 65536 * sizeof *p->addresses);
    p->members = carve(&area, (u64)c->members * sizeof *p->members);
    p->services = carve(&area, (u64)c->services * sizeof *p->services);
    p->limits = carve(&area, (u64)c->members * sizeof *p->limits);
    p->clients = carve(&area, (u64)plane_client_buckets(c) * CACHE_LINE);
    p->templates = carve(&area, (u64)plane_client_buckets(c) * CACHE_LINE);
    p->steering = carve(&area, (u64)FNAT_PORTS * FNAT_FLOWS * sizeof *p->steering);
    p->neighbours = carve(&area, (u64)c->neighbours * sizeof *p->neighbours);
    p->snapshots_len = (u64)c->snapshot_mib << 20;
    p->snapshots = carve(&area, p->snapshots_len);
    p->acl_len = acl_area_bytes((u64)c->acl_mib << 20);
    p->acl = carve(&area, p->acl_len);
    return area.used;
}

static u64 lay_out_worker(const struct fnat_plane_config *c, struct worker_map *m)
{
    struct carver area = {m->arena.base, 0};
    m->bucket_count = conntab_buckets_for(c->conns);
    /* Of the 512 ports of a block, 512 / workers are this worker's. */
    m->block_count = (u32)max_u64(c->conns / 64, (u64)c->conns * c->workers / LIP_CHUNK) + c->endpoints * 2 + 16;
    u32 heads = 16;
    while (heads < c->endpoints)
        heads *= 2;
    m->head_mask = heads - 1;
    m->header = carve(&area, sizeof *m->header);
    m->members = carve(&area, (u64)c->members * sizeof *m->members);
    m->services = carve(&area, (u64)c->services * sizeof *m->services);
    m->addresses = carve(&area, 65536 * sizeof *m->addresses);
    u64 fixed = area.used;
    m->endpoints = carve(&area, ((u64)c->endpoints + 1) * sizeof *m->endpoints);
    m->endpoint_heads = carve(&area, (u64)heads * sizeof *m->endpoint_heads);
    m->blocks = carve(&area, ((u64)m->block_count + 1) * sizeof *m->blocks);
    m->buckets = carve(&area, (u64)m->bucket_count * sizeof *m->buckets);
    area.used = align_up(area.used, 2 * CACHE_LINE);
    m->conns = carve(&area, ((u64)c->conns + 1) * sizeof *m->conns);
    m->conn_bytes = area.used - fixed;
    return area.used;
}

static int check_config(const struct fnat_plane_config *c)
{
    bool ok = c->workers >= 1 && c->workers <= FNAT_WORKERS && c->conns >= 16 && c->conns < 1u << 29 && c->services >= 1 &&
              c->services <= 1u << 20 && c->members >= 1 && c->members <= 1u << 24 && c->endpoints >= 1 && c->endpoints <= 1u << 24 &&
              c->neighbours >= 16 && c->neighbours <= 65535 && c->frames <= 1u << 22 && c->snapshot_mib >= 1 && c->snapshot_mib <= 4096 &&
              c->acl_mib <= 65536;
    return ok ? 0 : -EINVAL;
}

int plane_measure(const struct fnat_plane_config *config, struct fnat_plane_info *out)
{
    struct fnat_plane p = {.config = *config};
    int rc = check_config(config);
    if (rc)
        return rc;
    *out = (struct fnat_plane_info){
        .config = *config,
        .plane_bytes = lay_out_plane(&p),
        .worker_bytes = lay_out_worker(config, &p.maps[0]),
        .frames_bytes = (u64)config->frames * config->workers * FRAME_SIZE,
        .conn_bytes = p.maps[0].conn_bytes,
    };
    return 0;
}

static void init_header(struct fnat_plane *p)
{
    struct plane_header *h = p->header;
    struct timespec wall, mono;
    h->layout = PLANE_LAYOUT;
    h->size_of_header = sizeof *h;
    h->config = p->config;
    while (getrandom(&h->secret, sizeof h->secret, 0) != sizeof h->secret)
        ;
    clock_gettime(CLOCK_REALTIME, &wall);
    clock_gettime(CLOCK_MONOTONIC, &mono);
    h->wall_offset_ns = (wall.tv_sec - mono.tv_sec) * 1000000000ll + (wall.tv_nsec - mono.tv_nsec);
    __atomic_thread_fence(__ATOMIC_RELEASE);
    memcpy(h->magic, MAGIC, sizeof MAGIC); /* last: a plane without it was never finished */
}

static int open_worker(const char *dir, struct fnat_plane *p, u32 index, int flags)
{
    struct worker_map *m = &p->maps[index];
    char name[32];
    snprintf(name, sizeof name, "worker-%u", index);
    u64 len = lay_out_worker(&p->config, m);
    int rc = arena_open(dir, name, len, flags, &m->arena);
    if (rc)
        return rc;
    if (m->arena.len < len)
        return -EPROTO;
    lay_out_worker(&p->config, m);
    if (m->arena.fresh) {
        memcpy(m->header->magic, WORKER_MAGIC, sizeof WORKER_MAGIC);
        m->header->layout = PLANE_LAYOUT;
        m->header->index = index;
    }
    return memcmp(m->header->magic, WORKER_MAGIC, sizeof WORKER_MAGIC) ? -EPROTO : 0;
}

/* True: what lies in the file is a finished plane of this layout and configuration. */
static bool is_same_plane(const struct fnat_plane *p)
{
    const struct plane_header *h = p->header;
    return !memcmp(h->magic, MAGIC, sizeof MAGIC) && h->layout == PLANE_LAYOUT && h->size_of_header == sizeof *h &&
           !memcmp(&h->config, &p->config, sizeof p->config);
}

static int open_parts(const char *dir, struct fnat_plane *p, int flags, bool create)
{
    int mode = create ? ARENA_CREATE | (flags & FNAT_FRESH ? ARENA_FRESH : 0) : 0;
    int rc = arena_open(dir, "plane", create ? lay_out_plane(p) : 0, create ? ARENA_CREATE : 0, &p->arena);
    if (rc)
        return rc;
    if (create && dir && flock(p->arena.fd, LOCK_EX | LOCK_NB))
        return -EBUSY;
    if (!create) {
        p->header = (struct plane_header *)p->arena.base;
        if (p->arena.len < sizeof *p->header || memcmp(p->header->magic, MAGIC, sizeof MAGIC) || p->header->layout != PLANE_LAYOUT)
            return -EPROTO;
        p->config = p->header->config;
    }
    if (lay_out_plane(p) > p->arena.len)
        return -EPROTO;
    if (create && (flags & FNAT_FRESH || !is_same_plane(p))) {
        mode |= ARENA_FRESH;
        if (!p->arena.fresh)
            memset(p->arena.base, 0, p->arena.len);
        init_header(p);
    }
    for (u32 i = 0; i < p->config.workers; i++)
        if ((rc = open_worker(dir, p, i, mode)))
            return rc;
    if (create && p->config.frames)
        rc = arena_open(dir, "frames", (u64)p->config.frames * p->config.workers * FRAME_SIZE, ARENA_CREATE, &p->frames);
    return rc;
}

int plane_open(const char *dir, const struct fnat_plane_config *config, int flags, bool create, struct fnat_plane **out)
{
    int rc = config ? check_config(config) : 0;
    if (rc)
        return rc;
    struct fnat_plane *p = calloc(1, sizeof *p);
    if (!p)
        return -ENOMEM;
    if (config)
        p->config = *config;
    p->owner = create;
    rc = open_parts(dir, p, flags, create);
    if (rc) {
        plane_close(p);
        return rc;
    }
    *out = p;
    return 0;
}

void plane_close(struct fnat_plane *p)
{
    for (u32 i = 0; i < FNAT_WORKERS; i++)
        arena_close(&p->maps[i].arena);
    arena_close(&p->frames);
    arena_close(&p->arena);
    free(p);
}

void plane_sum_member(const struct fnat_plane *p, u32 id, struct fnat_stats *out)
{
    for (u32 w = 0; w < p->config.workers; w++) {
        const struct member_stats *m = &p->maps[w].members[id];
        out->conns += load_relaxed(&m->conns);
        out->in_packets += load_relaxed(&m->packets[TO_RS]), out->out_packets += load_relaxed(&m->packets[TO_CLIENT]);
        out->in_bytes += load_relaxed(&m->bytes[TO_RS]), out->out_bytes += load_relaxed(&m->bytes[TO_CLIENT]);
        out->active += load_relaxed(&m->active), out->inactive += load_relaxed(&m->inactive);
    }
}

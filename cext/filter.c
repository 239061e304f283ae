/* filter.c: see filter.h. */
#include "filter.h"

#include <errno.h>

static u8 end_family(const struct conn *c, u32 end) { return conn_family(c, end < 2 ? TO_RS : TO_CLIENT); }

struct addr16 filter_end(const struct fnat_plane *p, const struct conn *c, u32 end)
{
    if (c->families == FAMILIES_44)
        return addr16_4((&c->a.v4.cip)[end]);
    const u8 *addrs[4] = {c->a.v6.cip, p->addresses[c->vip_id].addr, c->a.v6.rip, p->addresses[c->lip_id].addr};
    return addr16_of(6, addrs[end]);
}

/* addr with all but its first n bits cleared. */
static struct addr16 first_bits(struct addr16 addr, u32 n)
{
    for (u32 i = 0; i < 16; i++) {
        u32 left = n > i * 8 ? min_u32(n - i * 8, 8) : 0;
        addr.b[i] &= (u8)(0xff00 >> left);
    }
    return addr;
}

int filter_read(const struct fnat_conn_filter *f, struct filter *w)
{
    *w = (struct filter){.service = -1, .member = -1, .state = -1, .proto = -1};
    if (!f)
        return 0;
    w->service = f->service, w->member = f->member, w->state = f->state, w->proto = f->proto;
    const struct fnat_conn_end *ends[4] = {&f->client, &f->vip, &f->rs, &f->lip};
    for (u32 i = 0; i < 4; i++) {
        const struct fnat_conn_end *e = ends[i];
        if ((e->family && e->family != 4 && e->family != 6) || e->plen > (e->family == 6 ? 128 : 32))
            return -EINVAL;
        struct addr16 ones;
        memset(ones.b, 0xff, sizeof ones);
        w->family[i] = e->family;
        w->mask[i] = first_bits(ones, e->family ? e->plen : 0);
        w->addr[i] = first_bits(addr16_of(6, e->addr), e->family ? e->plen : 0);
        w->port[i] = be16(e->port);
        if (e->family || w->port[i])
            w->ends[w->n_ends++] = i;
    }
    return 0;
}

bool filter_passes(const struct fnat_plane *p, const struct filter *w, const struct conn *c)
{
    const u16 ports[4] = {c->cport, c->vport, c->rport, c->lport};
    for (u32 i = 0; i < w->n_ends; i++) {
        u32 end = w->ends[i];
        if ((w->family[end] && end_family(c, end) != w->family[end]) || (w->port[end] && ports[end] != w->port[end]))
            return false;
        struct addr16 addr = filter_end(p, c, end);
        for (u32 half = 0; half < 16; half += 8)
            if ((get64(addr.b + half) & get64(w->mask[end].b + half)) != get64(w->addr[end].b + half))
                return false;
    }
    if ((w->state >= 0 && c->state != w->state) || (w->proto >= 0 && c->proto != w->proto))
        return false;
    if (w->member < 0 && w->service < 0)
        return true;
    u32 member = load_relaxed(&c->member);
    return member < p->config.members && (w->member < 0 || member == w->member) &&
           (w->service < 0 || p->members[member].service == w->service + 1);
}

/* admit.c: see admit.h. */
#include "admit.h"

#include "acl.h"
#include "conn.h"

static bool in_list(const u8 *area, const u16 *sets, u32 n, u8 family, u128 key)
{
    for (u32 i = 0; i < n; i++)
        if (acl_has(area, sets[i], family, key))
            return true;
    return false;
}

static enum counter judge(const struct core *k, u8 family, const u8 *src, const struct snap_service *svc)
{
    const struct snapshot *s = k->snap;
    u128 key = acl_key(family, src);
    if (in_list(k->acl, s->acl, s->n_deny, family, key))
        return DROP_acl_general_deny;
    if (s->n_allow && !in_list(k->acl, s->acl + s->n_deny, s->n_allow, family, key))
        return DROP_acl_general_not_allowed;
    if (!svc)
        return 0;
    const u16 *sets = snap_service_acl(svc);
    if (in_list(k->acl, sets, svc->n_deny, family, key))
        return DROP_acl_deny;
    if (svc->n_allow && !in_list(k->acl, sets + svc->n_deny, svc->n_allow, family, key))
        return DROP_acl_not_allowed;
    return 0;
}

enum counter admit(struct core *k, u8 family, const u8 *src, const struct snap_service *svc)
{
    enum counter reason = judge(k, family, src, svc);
    if (reason == DROP_acl_deny)
        k->services[svc->id].acl_denied++;
    else if (reason == DROP_acl_not_allowed)
        k->services[svc->id].acl_not_allowed++;
    return reason;
}

enum { WALKS = 128 };

static u32 add_walks(struct acl_walk *walks, u32 n, const u16 *sets, u32 count, u8 family, u128 key)
{
    for (u32 i = 0; i < count && n < WALKS; i++)
        walks[n++] = (struct acl_walk){.key = key, .set = sets[i], .family = family};
    return n;
}

void admit_fetch(const struct core *k, const struct packet *pkts, u32 n)
{
    struct acl_walk walks[WALKS];
    u32 n_walks = 0;
    for (u32 i = 0; i < n; i++) {
        const struct packet *p = &pkts[i];
        if (p->conn || (p->kind != KIND_TCP && p->kind != KIND_UDP))
            continue;
        struct addr16 src = packet_src(p), dst = packet_dst(p);
        u128 key = acl_key(p->family, src.b);
        n_walks = add_walks(walks, n_walks, k->snap->acl, (u32)k->snap->n_deny + k->snap->n_allow, p->family, key);
        const struct snap_service *svc = snapshot_service(k->snap, k->area, &k->secret, dst.b, p->dport, p->proto, p->family);
        if (svc)
            n_walks = add_walks(walks, n_walks, snap_service_acl(svc), (u32)svc->n_deny + svc->n_allow, p->family, key);
    }
    if (n_walks > 1)
        acl_walk_all(k->acl, walks, n_walks);
}

void admit_sweep(struct core *k, u32 budget)
{
    u32 end = k->header->conn_fresh;
    for (; budget && k->acl_sweep <= end; budget--, k->acl_sweep++) {
        struct conn *c = &k->conns[k->acl_sweep];
        if (!conn_live(c))
            continue;
        struct addr16 cip = conn_cip(c), vip = conn_vip(k, c);
        u8 family = conn_family(c, TO_RS);
        const struct snap_service *svc = snapshot_service(k->snap, k->area, &k->secret, vip.b, c->vport, c->proto, family);
        if (!judge(k, family, cip.b, svc))
            continue;
        conn_close(k, k->acl_sweep);
        count(k, CNT_acl_closed);
    }
    if (k->acl_sweep <= end)
        return;
    k->acl_sweep = 0;
    store_release(&k->header->acl_rechecked, k->acl_pass);
}

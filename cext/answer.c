/* answer.c: see answer.h. Answers to a sender go back by the MAC and port they came from, so they need no route.
 * Echo replies and ICMP errors have a rate; RSTs and answers of neighbour discovery have none, each costs its sender one packet. */
#include "answer.h"

#include "csum.h"
#include "icmp.h"
#include "track.h"

static void swap_macs(struct core *k, struct packet *p)
{
    memcpy(p->data, p->data + 6, 6);
    memcpy(p->data + 6, k->ports[p->in_port].mac, 6);
    p->out_port = p->in_port;
}

static void swap_addresses(struct packet *p)
{
    u8 *l3 = p->data + p->l3, src[16];
    u32 at = p->family == 4 ? offsetof(struct ip4_header, src) : offsetof(struct ip6_header, src), len = p->family == 4 ? 4 : 16;
    memcpy(src, l3 + at, len);
    memcpy(l3 + at, l3 + at + len, len);
    memcpy(l3 + at + len, src, len);
}

/* Pseudo-header sum of the packet as it is now. */
static u64 pseudo(const struct packet *p, u8 proto, u16 l4_len)
{
    const u8 *l3 = p->data + p->l3;
    return p->family == 4 ? csum_pseudo4(get32(l3 + 12), get32(l3 + 16), proto, l4_len) : csum_pseudo6(l3 + 8, proto, l4_len);
}

/* total: bytes from the IP header on. */
static enum verdict send_back(struct core *k, struct packet *p, u16 total)
{
    if (p->family == 4) {
        struct ip4_header *ip = (struct ip4_header *)(p->data + p->l3);
        ip->total_len = be16(total);
        ip->ttl = 64;
        ip->csum = 0;
        ip->csum = csum_ip4(ip, (ip->version_ihl & 15) * 4u);
    } else {
        struct ip6_header *ip = (struct ip6_header *)(p->data + p->l3);
        ip->payload_len = be16((u16)(total - sizeof *ip));
        ip->hop_limit = 64;
    }
    swap_macs(k, p);
    p->len = (u16)(ETH_HEADER + total);
    if (p->len < ETH_MIN_FRAME) {
        memset(p->data + p->len, 0, ETH_MIN_FRAME - p->len);
        p->len = ETH_MIN_FRAME;
    }
    return VERDICT_TX;
}

enum verdict answer_echo(struct core *k, struct packet *p, const struct snap_address_slot *pinged)
{
    const struct fnat_settings *s = &k->snap->settings;
    if (s->echo == FNAT_ECHO_SERVED && (pinged->kind & (FNAT_ADDR_VIP | FNAT_ADDR_SERVED)) == FNAT_ADDR_VIP)
        return drop(k, p, DROP_echo_unserved);
    if (!core_may(k, &k->echo_limit, s->echo_rate))
        return drop(k, p, DROP_rate_limited);
    if (p->fragment != FRAGMENT_LATER) {
        struct icmp_header *icmp = (struct icmp_header *)(p->data + p->l4);
        u16 from = get16(icmp);
        icmp->type = p->family == 4 ? ICMP_ECHO_REPLY : ICMP6_ECHO_REPLY;
        icmp->csum = csum_apply(icmp->csum, csum_delta16(from, get16(icmp)));
        count(k, CNT_echo_replies_sent);
    }
    swap_addresses(p);
    count(k, CNT_answered);
    return send_back(k, p, p->l3_len);
}

/* RFC 9293 3.5.2: a segment for a port that does not exist. */
enum verdict answer_reset(struct core *k, struct packet *p)
{
    struct tcp_header *tcp = (struct tcp_header *)(p->data + p->l4);
    u32 end = be32(get32(&tcp->seq)) + p->payload + !!(p->tcp_flags & TCP_SYN) + !!(p->tcp_flags & TCP_FIN);
    u16 sport = tcp->sport;
    tcp->sport = tcp->dport;
    tcp->dport = sport;
    if (p->tcp_flags & TCP_ACK) {
        tcp->seq = tcp->ack;
        tcp->ack = 0;
        tcp->flags = TCP_RST;
    } else {
        tcp->seq = 0;
        tcp->ack = be32(end);
        tcp->flags = TCP_RST | TCP_ACK;
    }
    tcp->offset = 5 << 4;
    tcp->window = tcp->urgent = tcp->csum = 0;
    if (p->family == 4)
        ((struct ip4_header *)(p->data + p->l3))->frag = be16(IP4_DF);
    swap_addresses(p);
    tcp->csum = (u16)~csum_fold(pseudo(p, PROTO_TCP, sizeof *tcp) + csum_partial(tcp, sizeof *tcp));
    count(k, CNT_resets_sent);
    count(k, CNT_answered);
    return send_back(k, p, (u16)(p->l4 - p->l3 + sizeof *tcp));
}

/* What the errors are called in both families, and how much of the packet they may quote: RFC 1812 4.3.2.3, RFC 4443 2.4 (c). */
static const struct {
    u8 type, code;
} errors4[] = {[ERROR_TTL] = {ICMP_TIME_EXCEEDED, 0},
               [ERROR_TOO_BIG] = {ICMP_UNREACHABLE, ICMP_FRAG_NEEDED},
               [ERROR_PORT] = {ICMP_UNREACHABLE, ICMP_PORT_UNREACHABLE}},
  errors6[] = {[ERROR_TTL] = {ICMP6_TIME_EXCEEDED, 0},
               [ERROR_TOO_BIG] = {ICMP6_TOO_BIG, 0},
               [ERROR_PORT] = {ICMP6_UNREACHABLE, ICMP6_PORT_UNREACHABLE}};

/* Must this packet never get an error? RFC 1812 4.3.2.7, RFC 4443 2.4 (e): broadcast and multicast, later fragments, ICMP errors. Sources
 * that are no single host are dropped before, as martians. */
static bool stays_unanswered(const struct packet *p)
{
    u8 first = p->family == 4 ? (u8)p->daddr : packet_dst6(p)[0], type = p->data[p->l4];
    if (p->data[0] & 1 || p->fragment == FRAGMENT_LATER || (p->family == 4 ? first >= 224 : first == 0xff))
        return true;
    return p->kind == KIND_ICMP && (p->family == 4 ? type != ICMP_ECHO : type < 128);
}

/* Where the balancer is a hop of its own it speaks from its address on the way to the sender, if the routes name one: traceroute then shows
 * it beside the service it stands for. */
static struct addr16 own_hop(const struct core *k, const struct packet *p)
{
    struct addr16 to = packet_src(p);
    for (int looks = 0; looks < 2; looks++) {
        const struct fib_hop *hop = fib_lookup(&k->fib, p->family, to.b, 0);
        if (!hop || hop->kind != FNAT_ROUTE_UNICAST)
            break;
        struct addr16 src = addr16_of(6, hop->src);
        if (!same_addr(src.b, (const u8[16]){0}))
            return src;
        if (hop->on_link)
            break;
        memcpy(to.b, hop->gateway, sizeof to.b);
    }
    return packet_dst(p);
}

enum verdict answer_error(struct core *k, struct packet *p, enum error what, u32 mtu, enum counter reason)
{
    if (stays_unanswered(p) || !core_may(k, &k->icmp_limit, k->snap->settings.icmp_rate)) {
        count(k, CNT_icmp_errors_withheld);
        return drop(k, p, reason);
    }
    bool v4 = p->family == 4;
    u16 l3 = v4 ? sizeof(struct ip4_header) : sizeof(struct ip6_header),
        most = (u16)((v4 ? 576 : IP6_MIN_MTU) - l3 - sizeof(struct icmp_header));
    u16 quoted = p->l3_len < most ? p->l3_len : most;
    u8 *data = p->data + p->l3;
    struct addr16 from = what == ERROR_TTL ? own_hop(k, p) : packet_dst(p), to = packet_src(p);
    memmove(data + l3 + sizeof(struct icmp_header), data, quoted);
    struct icmp_header *icmp = (struct icmp_header *)(data + l3);
    *icmp = (struct icmp_header){
        .type = v4 ? errors4[what].type : errors6[what].type, .code = v4 ? errors4[what].code : errors6[what].code, .rest = be32(mtu)};
    u16 len = (u16)(sizeof *icmp + quoted);
    if (v4) {
        struct ip4_header *ip = (struct ip4_header *)data;
        *ip = (struct ip4_header){.version_ihl = 0x45, .tos = 0xc0, .proto = PROTO_ICMP, .src = get32(from.b), .dst = get32(to.b)};
    } else {
        struct ip6_header *ip = (struct ip6_header *)data;
        *ip = (struct ip6_header){.version_class_flow = be32(6u << 28), .next = PROTO_ICMP6};
        memcpy(ip->src, from.b, 16);
        memcpy(ip->dst, to.b, 16);
    }
    icmp->csum = (u16)~csum_fold((v4 ? 0 : pseudo(p, PROTO_ICMP6, len)) + csum_partial(icmp, len));
    count(k, reason);
    count(k, CNT_icmp_errors_sent);
    p->reason = (u8)reason;
    return send_back(k, p, (u16)(l3 + len));
}

/* ---- packets out of nothing ---- */

struct packet *answer_own(struct core *k, u16 len)
{
    if (k->own_count == OWN_PACKETS)
        return NULL;
    u32 frame = frame_alloc(&k->pool);
    if (frame == FRAME_NONE)
        return NULL;
    struct packet *p = &k->own[k->own_count++];
    *p = (struct packet){.frame = frame, .data = frame_data(&k->pool, frame), .len = len, .verdict = VERDICT_TX};
    memset(p->data, 0, len);
    count(k, CNT_own_packets);
    return p;
}

struct packet *answer_blank(struct core *k) { return answer_own(k, ETH_MIN_FRAME); }

/* An owned address to ask from: that of the route by this port, else any on it, else any. The reply is addressed to it. All zero: there is none. */
static struct addr16 asking_address(const struct core *k, u8 port, u8 family, const u8 target[16])
{
    const struct fib_hop *hops;
    const struct addr16 none = {{0}};
    u32 n = fib_equals(&k->fib, family, target, &hops);
    for (u32 i = 0; i < n; i++)
        if (hops[i].port == port && !same_addr(hops[i].src, none.b))
            return addr16_of(6, hops[i].src);
    const union snap_slot *slot, *any = NULL;
    for (u32 cursor = 0; (slot = snapshot_next(&k->snap->addresses, k->area, &cursor));) {
        if (slot->family != family)
            continue;
        if (slot->address.port == port)
            return addr16_of(6, slot->addr);
        any = any ? any : slot;
    }
    return any ? addr16_of(6, any->addr) : none;
}

static void put_link(struct packet *p, const u8 to[6], const u8 from[6], u16 type)
{
    memcpy(p->data, to, 6);
    memcpy(p->data + 6, from, 6);
    put16(p->data + 12, be16(type));
}

/* RFC 826. */
static void put_arp(struct core *k, struct packet *p, u8 port, const u8 to[6], u32 sender, u32 target)
{
    put_link(p, to, k->ports[port].mac, ETH_TYPE_ARP);
    struct arp_header *arp = (struct arp_header *)(p->data + ETH_HEADER);
    *arp = (struct arp_header){.htype = be16(1), .ptype = be16(ETH_TYPE_IP4), .hlen = 6, .plen = 4, .op = be16(ARP_REQUEST)};
    memcpy(arp->sha, k->ports[port].mac, 6);
    arp->spa = sender;
    arp->tpa = target;
    p->out_port = port;
}

/* RFC 4861 4.3, 4.4, with the port's MAC as the only option. */
enum { ND_LEN = sizeof(struct ip6_header) + sizeof(struct nd_message) + ND_OPTION_LEN };
static void put_nd(struct core *k, struct packet *p, u8 port, const u8 to_mac[6], const u8 src[16], const u8 dst[16], u8 type, u32 flags,
                   const u8 target[16])
{
    put_link(p, to_mac, k->ports[port].mac, ETH_TYPE_IP6);
    struct ip6_header *ip = (struct ip6_header *)(p->data + ETH_HEADER);
    struct nd_message *nd = (struct nd_message *)(ip + 1);
    u8 *option = (u8 *)(nd + 1);
    u16 len = ND_LEN - sizeof *ip;
    *ip =
        (struct ip6_header){.version_class_flow = be32(6u << 28), .payload_len = be16(len), .next = PROTO_ICMP6, .hop_limit = ND_HOP_LIMIT};
    memcpy(ip->src, src, 16);
    memcpy(ip->dst, dst, 16);
    *nd = (struct nd_message){.type = type, .flags = be32(flags)};
    memcpy(nd->target, target, 16);
    option[0] = type == ICMP6_NEIGHBOUR_SOLICITATION ? ND_OPTION_SOURCE : ND_OPTION_TARGET;
    option[1] = 1;
    memcpy(option + 2, k->ports[port].mac, 6);
    nd->csum = (u16)~csum_fold(csum_pseudo6(ip->src, PROTO_ICMP6, len) + csum_partial(nd, len));
    p->len = ETH_HEADER + ND_LEN;
    p->out_port = port;
}

/* The MAC of an IPv6 multicast address (RFC 2464 7), and the group in which an address is asked for (RFC 4291 2.7.1). */
static void multicast_mac(u8 mac[6], const u8 group[16])
{
    put16(mac, 0x3333);
    memcpy(mac + 2, group + 12, 4);
}

static struct addr16 solicited_node(const u8 addr[16])
{
    struct addr16 group = {{0xff, 0x02, [11] = 1, 0xff}};
    memcpy(group.b + 13, addr + 13, 3);
    return group;
}

static void ask_by_nd(struct core *k, const struct neigh_entry *e, const u8 *known, struct addr16 asker)
{
    struct packet *p = same_addr(asker.b, (const u8[16]){0}) ? NULL : answer_own(k, ETH_HEADER + ND_LEN);
    struct addr16 to = known ? addr16_of(6, e->addr) : solicited_node(e->addr);
    u8 mac[6];
    if (!p)
        return;
    multicast_mac(mac, to.b);
    put_nd(k, p, e->port, known ? known : mac, asker.b, to.b, ICMP6_NEIGHBOUR_SOLICITATION, 0, e->addr);
    count(k, CNT_nd_solicitations_sent);
}

static const u8 broadcast[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};

void answer_ask_neighbour(struct core *k, u32 neigh, bool unicast)
{
    const struct neigh_entry *e = &k->neigh.entries[neigh];
    u64 word = neigh_load(&k->neigh, neigh);
    const u8 *known = unicast ? (const u8 *)&word : NULL;
    struct addr16 asker = asking_address(k, e->port, e->family, e->addr);
    if (e->family == 6)
        return ask_by_nd(k, e, known, asker);
    struct packet *p = answer_own(k, ETH_MIN_FRAME);
    if (!p)
        return;
    put_arp(k, p, e->port, known ? known : broadcast, get32(asker.b), get32(e->addr));
    count(k, CNT_arp_requests_sent);
}

/* What is not for us: the host's, or nobody's. */
static enum verdict overheard(struct core *k, struct packet *p)
{
    if (k->ports[p->in_port].punt) {
        count(k, CNT_passed);
        return VERDICT_PASS;
    }
    count(k, CNT_absorbed);
    return VERDICT_DONE;
}

enum verdict answer_arp(struct core *k, struct packet *p)
{
    struct arp_header *arp = (struct arp_header *)(p->data + ETH_HEADER);
    if (p->len < ETH_HEADER + sizeof *arp || arp->htype != be16(1) || arp->ptype != be16(ETH_TYPE_IP4) || arp->hlen != 6 ||
        arp->plen != 4 || (arp->op != be16(ARP_REQUEST) && arp->op != be16(ARP_REPLY)) || arp->sha[0] & 1)
        return drop(k, p, DROP_arp);
    struct addr16 sender = addr16_4(arp->spa);
    const struct snap_address_slot *target = owned4(k, arp->tpa);
    bool ask_us = target && target->port == p->in_port && arp->op == be16(ARP_REQUEST);
    /* RFC 826: refresh what is known; learn anew only from those who ask for us. */
    u32 id = arp->spa ? neigh_find(&k->neigh, p->in_port, 4, sender.b) : 0;
    if (!id && ask_us && arp->spa && !owned4(k, arp->spa))
        id = neigh_get(&k->neigh, p->in_port, 4, sender.b);
    if (id && !owned4(k, arp->spa))
        neigh_learn(&k->neigh, id, arp->sha, NEIGH_REACHABLE, k->tick);
    if (!ask_us)
        return overheard(k, p);
    u32 asked = arp->tpa;
    arp->op = be16(ARP_REPLY);
    memcpy(arp->tha, arp->sha, 6);
    arp->tpa = arp->spa;
    memcpy(arp->sha, k->ports[p->in_port].mac, 6);
    arp->spa = asked;
    swap_macs(k, p);
    count(k, CNT_arp_replies_sent);
    count(k, CNT_answered);
    return VERDICT_TX;
}

/* ---- neighbour discovery ---- */

/* Is the message valid by RFC 4861 7.1.1, 7.1.2 and RFC 6980 5? *mac: its link-layer address option; NULL: it has none. */
static bool nd_is_valid(const struct packet *p, const u8 **mac)
{
    const struct nd_message *nd = (const struct nd_message *)(p->data + p->l4);
    const u8 *at = (const u8 *)(nd + 1), *end = p->data + p->l3 + p->l3_len, *src = packet_src6(p), *dst = packet_dst6(p);
    bool asks = p->data[p->l4] == ICMP6_NEIGHBOUR_SOLICITATION, nobody = same_addr(src, (const u8[16]){0});
    u8 wanted = asks ? ND_OPTION_SOURCE : ND_OPTION_TARGET;
    *mac = NULL;
    if (at > end || ((const struct ip6_header *)(p->data + p->l3))->hop_limit != ND_HOP_LIMIT || nd->code || p->frag_at ||
        nd->target[0] == 0xff || src[0] == 0xff || !icmp_checksum_right(p))
        return false;
    for (; at < end; at += at[1] * 8) {
        if (end - at < 8 || !at[1] || at[1] * 8 > end - at)
            return false;
        if (*at == wanted && at[1] == 1 && !*mac)
            *mac = at + 2;
    }
    if (*mac && (*mac)[0] & 1)
        return false;
    if (!asks)
        return !nobody && !(dst[0] == 0xff && be32(nd->flags) & ND_SOLICITED);
    struct addr16 group = solicited_node(nd->target);
    return !nobody || (!*mac && same_addr(dst, group.b));
}

/* An advertisement: RFC 4861 7.2.5. Only who is known is learned. Without override it does not replace another MAC. */
static enum verdict nd_advertised(struct core *k, struct packet *p, const u8 *mac)
{
    const struct nd_message *nd = (const struct nd_message *)(p->data + p->l4);
    u32 id = owned(k, 6, nd->target) ? 0 : neigh_find(&k->neigh, p->in_port, 6, nd->target), flags = be32(nd->flags);
    u64 word = id ? neigh_load(&k->neigh, id) : 0;
    bool known = neigh_word_usable(word);
    u8 now[6];
    memcpy(now, &word, 6);
    if (id && !mac && known && flags & ND_SOLICITED)
        mac = now; /* it is there */
    bool same = mac && known && !memcmp(mac, now, 6);
    if (id && mac && (!known || (same ? flags & ND_SOLICITED : flags & ND_OVERRIDE)))
        neigh_learn(&k->neigh, id, mac, NEIGH_REACHABLE, k->tick);
    return overheard(k, p);
}

static const struct addr16 all_nodes = {{0xff, 0x02, [15] = 1}};

enum verdict answer_nd(struct core *k, struct packet *p)
{
    const struct nd_message *nd = (const struct nd_message *)(p->data + p->l4);
    const u8 *mac;
    if (!nd_is_valid(p, &mac))
        return drop(k, p, DROP_nd);
    if (nd->type == ICMP6_NEIGHBOUR_ADVERTISEMENT)
        return nd_advertised(k, p, mac);
    struct addr16 asker = packet_src(p), target = addr16_of(6, nd->target);
    const struct snap_address_slot *mine = owned(k, 6, target.b);
    bool ask_us = mine && mine->port == p->in_port, nobody = same_addr(asker.b, (const u8[16]){0});
    /* As with ARP: refresh what is known, learn anew only from those who ask for us. */
    if (mac && !owned(k, 6, asker.b)) {
        u32 id = neigh_find(&k->neigh, p->in_port, 6, asker.b);
        if (!id && ask_us)
            id = neigh_get(&k->neigh, p->in_port, 6, asker.b);
        if (id)
            neigh_learn(&k->neigh, id, mac, NEIGH_REACHABLE, k->tick);
    }
    if (!ask_us)
        return overheard(k, p);
    /* Who asks from nowhere is about to take the address (RFC 4862 5.4): everybody hears that it is in use. */
    u8 to[6];
    memcpy(to, p->data + 6, 6);
    if (nobody)
        multicast_mac(to, all_nodes.b);
    put_nd(k, p, p->in_port, to, target.b, nobody ? all_nodes.b : asker.b, ICMP6_NEIGHBOUR_ADVERTISEMENT,
           ND_OVERRIDE | (nobody ? 0 : ND_SOLICITED), target.b);
    count(k, CNT_nd_advertisements_sent);
    count(k, CNT_answered);
    return VERDICT_TX;
}

void answer_announce(struct core *k, u8 port, u8 family, const u8 addr[16])
{
    u8 mac[6];
    struct packet *p = k->ports[port].mtu ? answer_own(k, family == 4 ? ETH_MIN_FRAME : ETH_HEADER + ND_LEN) : NULL;
    if (!p)
        return;
    multicast_mac(mac, all_nodes.b);
    if (family == 4)
        put_arp(k, p, port, broadcast, get32(addr), get32(addr));
    else
        put_nd(k, p, port, mac, addr, all_nodes.b, ICMP6_NEIGHBOUR_ADVERTISEMENT, ND_OVERRIDE, addr);
    count(k, CNT_announcements_sent);
}

bool answer_link(struct core *k, struct packet *p, u32 neigh)
{
    u64 word = neigh_load(&k->neigh, neigh);
    p->out_port = neigh_word_port(word);
    if (!neigh_word_usable(word))
        return false;
    memcpy(p->data, &word, 6);
    memcpy(p->data + 6, k->ports[p->out_port].mac, 6);
    return true;
}

/* A segment to one side, its number `behind` bytes behind the next one. False: there is no way to send it now. */
static bool own_segment(struct core *k, const struct conn *c, enum direction dir, u8 flags, u32 behind)
{
    bool to_rs = dir == TO_RS, v4 = conn_family(c, !dir) == 4;
    u16 l3 = v4 ? sizeof(struct ip4_header) : sizeof(struct ip6_header);
    u16 len = (u16)(ETH_HEADER + l3 + sizeof(struct tcp_header));
    struct packet *p =
        neigh_word_usable(neigh_load(&k->neigh, c->next_hop[dir])) ? answer_own(k, len < ETH_MIN_FRAME ? ETH_MIN_FRAME : len) : NULL;
    if (!p)
        return false;
    struct addr16 src = to_rs ? conn_lip(k, c) : conn_vip(k, c), dst = to_rs ? conn_rip(c) : conn_cip(c);
    p->l3 = ETH_HEADER;
    p->family = v4 ? 4 : 6;
    put16(p->data + 12, be16(v4 ? ETH_TYPE_IP4 : ETH_TYPE_IP6));
    if (v4) {
        struct ip4_header *ip = (struct ip4_header *)(p->data + ETH_HEADER);
        *ip = (struct ip4_header){.version_ihl = 0x45, .total_len = be16(40), .frag = be16(IP4_DF), .ttl = 64, .proto = PROTO_TCP};
        ip->src = get32(src.b), ip->dst = get32(dst.b);
        ip->csum = csum_ip4(ip, sizeof *ip);
    } else {
        struct ip6_header *ip = (struct ip6_header *)(p->data + ETH_HEADER);
        *ip = (struct ip6_header){.version_class_flow = be32(6u << 28), .payload_len = be16(20), .next = PROTO_TCP, .hop_limit = 64};
        memcpy(ip->src, src.b, 16);
        memcpy(ip->dst, dst.b, 16);
    }
    struct tcp_header *tcp = (struct tcp_header *)(p->data + ETH_HEADER + l3);
    *tcp = (struct tcp_header){.offset = 5 << 4, .flags = flags};
    tcp->sport = to_rs ? c->lport : c->vport;
    tcp->dport = to_rs ? c->rport : c->cport;
    tcp->seq = be32((to_rs ? c->next_seq[TO_RS] + c->dseq + conn_inserted(c) : c->next_seq[TO_CLIENT]) - behind);
    tcp->ack = be32(to_rs ? c->next_seq[TO_CLIENT] : c->next_seq[TO_RS]);
    tcp->csum = (u16)~csum_fold(pseudo(p, PROTO_TCP, sizeof *tcp) + csum_partial(tcp, sizeof *tcp));
    return answer_link(k, p, c->next_hop[dir]);
}

/* The next sequence number the receiver expects: acceptable to every stack, challenge ACKs included (RFC 5961 3.2). */
void answer_reset_side(struct core *k, const struct conn *c, enum direction dir)
{
    if (own_segment(k, c, dir, TCP_RST | TCP_ACK, 0))
        count(k, CNT_resets_sent);
}

/* Just below the window: not acceptable, so a living RS answers with an ACK and changes nothing (RFC 9293 3.10.7.4); one that has no such
 * connection answers with a RST, whose number is the ACK sent here. */
bool answer_probe(struct core *k, const struct conn *c)
{
    bool sent = own_segment(k, c, TO_RS, TCP_ACK, track_window(c, TO_RS) + 1);
    if (sent)
        count(k, CNT_probes_sent);
    return sent;
}

/* answer.c: see answer.h. Answers to a sender go back by the MAC and port they came from, so they need no route.
 * What is unsatisfying: answers are not rate limited; each costs its sender one packet. */
#include "answer.h"

#include "csum.h"

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

enum verdict answer_echo(struct core *k, struct packet *p)
{
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

enum verdict answer_error(struct core *k, struct packet *p, enum error what, u32 mtu, enum counter reason)
{
    bool v4 = p->family == 4;
    u16 l3 = v4 ? sizeof(struct ip4_header) : sizeof(struct ip6_header),
        most = (u16)((v4 ? 576 : IP6_MIN_MTU) - l3 - sizeof(struct icmp_header));
    u16 quoted = p->l3_len < most ? p->l3_len : most;
    u8 *data = p->data + p->l3;
    struct addr16 from = packet_dst(p), to = packet_src(p);
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

/* An owned address to ask from: that of the route by this port, else any on it, else any. The reply is addressed to it. */
static u32 asking_address(const struct core *k, u8 port, const u8 target[16])
{
    const struct fib_hop *hops;
    u32 n = fib_equals(&k->fib, 4, target, &hops);
    for (u32 i = 0; i < n; i++)
        if (hops[i].port == port && get32(hops[i].src))
            return get32(hops[i].src);
    const union snap_slot *slot;
    u32 any = 0;
    for (u32 cursor = 0; (slot = snapshot_next(&k->snap->addresses, k->area, &cursor));) {
        if (slot->family != 4)
            continue;
        if (slot->address.port == port)
            return get32(slot->addr);
        any = any ? any : get32(slot->addr);
    }
    return any;
}

void answer_ask_neighbour(struct core *k, u32 neigh, bool unicast)
{
    const struct neigh_entry *e = &k->neigh.entries[neigh];
    struct packet *p = answer_own(k, ETH_MIN_FRAME);
    if (!p)
        return;
    p->out_port = e->port;
    u64 word = neigh_load(&k->neigh, neigh);
    if (unicast)
        memcpy(p->data, &word, 6);
    else
        memset(p->data, 0xff, 6);
    memcpy(p->data + 6, k->ports[e->port].mac, 6);
    put16(p->data + 12, be16(ETH_TYPE_ARP));
    struct arp_header *arp = (struct arp_header *)(p->data + ETH_HEADER);
    *arp = (struct arp_header){.htype = be16(1), .ptype = be16(ETH_TYPE_IP4), .hlen = 6, .plen = 4, .op = be16(ARP_REQUEST)};
    memcpy(arp->sha, k->ports[e->port].mac, 6);
    arp->spa = asking_address(k, e->port, e->addr);
    memcpy(&arp->tpa, e->addr, 4);
    count(k, CNT_arp_requests_sent);
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
    if (!ask_us) {
        if (k->ports[p->in_port].punt) {
            count(k, CNT_passed);
            return VERDICT_PASS;
        }
        count(k, CNT_absorbed);
        return VERDICT_DONE;
    }
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

/* The next sequence number the receiver expects: acceptable to every stack, challenge ACKs included (RFC 5961 3.2). */
void answer_reset_side(struct core *k, const struct conn *c, enum direction dir)
{
    bool to_rs = dir == TO_RS, v4 = conn_family(c, !dir) == 4;
    u16 l3 = v4 ? sizeof(struct ip4_header) : sizeof(struct ip6_header);
    u16 len = (u16)(ETH_HEADER + l3 + sizeof(struct tcp_header));
    struct packet *p =
        neigh_word_usable(neigh_load(&k->neigh, c->next_hop[dir])) ? answer_own(k, len < ETH_MIN_FRAME ? ETH_MIN_FRAME : len) : NULL;
    if (!p)
        return;
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
    *tcp = (struct tcp_header){.offset = 5 << 4, .flags = TCP_RST | TCP_ACK};
    tcp->sport = to_rs ? c->lport : c->vport;
    tcp->dport = to_rs ? c->rport : c->cport;
    tcp->seq = be32(to_rs ? c->next_seq[TO_RS] + c->dseq : c->next_seq[TO_CLIENT]);
    tcp->ack = be32(to_rs ? c->next_seq[TO_CLIENT] : c->next_seq[TO_RS]);
    tcp->csum = (u16)~csum_fold(pseudo(p, PROTO_TCP, sizeof *tcp) + csum_partial(tcp, sizeof *tcp));
    answer_link(k, p, c->next_hop[dir]);
    count(k, CNT_resets_sent);
}

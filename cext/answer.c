/* answer.c: see answer.h. Answers to a sender go back by the MAC and port they came from, so they need no route.
 * What is unsatisfying: answers are not rate limited; each costs its sender one packet. */
#include "answer.h"

#include "csum.h"
#include "track.h"

static void swap_macs(struct core *k, struct packet *p)
{
    memcpy(p->data, p->data + 6, 6);
    memcpy(p->data + 6, k->ports[p->in_port].mac, 6);
    p->out_port = p->in_port;
}

static void swap_addresses(struct ip4_header *ip)
{
    u32 src = get32(&ip->src);
    put32(&ip->src, get32(&ip->dst));
    put32(&ip->dst, src);
}

static enum verdict send_back(struct core *k, struct packet *p, struct ip4_header *ip, u16 total)
{
    ip->total_len = be16(total);
    ip->ttl = 64;
    ip->csum = 0;
    ip->csum = csum_ip4(ip, (ip->version_ihl & 15) * 4u);
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
    struct ip4_header *ip = (struct ip4_header *)(p->data + p->l3);
    struct icmp_header *icmp = (struct icmp_header *)(p->data + p->l4);
    u16 from = get16(icmp);
    icmp->type = ICMP_ECHO_REPLY;
    icmp->csum = csum_apply(icmp->csum, csum_delta16(from, get16(icmp)));
    swap_addresses(ip);
    count(k, CNT_echo_replies_sent);
    count(k, CNT_answered);
    return send_back(k, p, ip, p->l3_len);
}

/* RFC 9293 3.5.2: a segment for a port that does not exist. */
enum verdict answer_reset(struct core *k, struct packet *p)
{
    struct ip4_header *ip = (struct ip4_header *)(p->data + p->l3);
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
    ip->frag = be16(IP4_DF);
    swap_addresses(ip);
    tcp->csum = (u16)~csum_fold(csum_pseudo4(get32(&ip->src), get32(&ip->dst), PROTO_TCP, sizeof *tcp) + csum_partial(tcp, sizeof *tcp));
    count(k, CNT_resets_sent);
    count(k, CNT_answered);
    return send_back(k, p, ip, (u16)(p->l4 - p->l3 + sizeof *tcp));
}

enum verdict answer_icmp_error(struct core *k, struct packet *p, u8 type, u8 code, u32 rest, u32 from, enum counter reason)
{
    u16 quoted = p->l3_len < 548 ? p->l3_len : 548; /* RFC 1812 4.3.2.3: at most 576 bytes in all */
    u8 *l3 = p->data + p->l3;
    struct ip4_header quoted_ip;
    memcpy(&quoted_ip, l3, sizeof quoted_ip);
    memmove(l3 + sizeof(struct ip4_header) + sizeof(struct icmp_header), l3, quoted);
    struct ip4_header *ip = (struct ip4_header *)l3;
    struct icmp_header *icmp = (struct icmp_header *)(ip + 1);
    *ip = (struct ip4_header){.version_ihl = 0x45, .tos = 0xc0, .proto = PROTO_ICMP, .src = from, .dst = quoted_ip.src};
    *icmp = (struct icmp_header){.type = type, .code = code, .rest = rest};
    icmp->csum = (u16)~csum_fold(csum_partial(icmp, sizeof *icmp + quoted));
    count(k, reason);
    count(k, CNT_icmp_errors_sent);
    p->reason = (u8)reason;
    return send_back(k, p, ip, (u16)(sizeof *ip + sizeof *icmp + quoted));
}

/* ---- packets out of nothing ---- */

static struct packet *own_packet(struct core *k, u16 len)
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

/* An owned address to ask from: the connected route's, else any on that port, else any. The reply is addressed to it. */
static u32 asking_address(const struct core *k, u8 port, u32 target)
{
    const struct fnat_route_spec *route = fib4_lookup(&k->fib, target);
    if (route && route->port == port && get32(route->src))
        return get32(route->src);
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
    struct packet *p = own_packet(k, ETH_MIN_FRAME);
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
    arp->spa = asking_address(k, e->port, get32(e->addr));
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

/* A segment to one side, its number `behind` bytes behind the next one. False: there is no way to send it now. */
static bool own_segment(struct core *k, const struct conn *c, enum direction dir, u8 flags, u32 behind)
{
    struct packet *p = neigh_word_usable(neigh_load(&k->neigh, c->next_hop[dir])) ? own_packet(k, ETH_MIN_FRAME) : NULL;
    if (!p)
        return false;
    put16(p->data + 12, be16(ETH_TYPE_IP4));
    struct ip4_header *ip = (struct ip4_header *)(p->data + ETH_HEADER);
    struct tcp_header *tcp = (struct tcp_header *)(ip + 1);
    bool to_rs = dir == TO_RS;
    *ip = (struct ip4_header){.version_ihl = 0x45, .total_len = be16(40), .frag = be16(IP4_DF), .ttl = 64, .proto = PROTO_TCP};
    ip->src = to_rs ? c->a.v4.lip : c->a.v4.vip;
    ip->dst = to_rs ? c->a.v4.rip : c->a.v4.cip;
    ip->csum = csum_ip4(ip, sizeof *ip);
    *tcp = (struct tcp_header){.offset = 5 << 4, .flags = flags};
    tcp->sport = to_rs ? c->lport : c->vport;
    tcp->dport = to_rs ? c->rport : c->cport;
    tcp->seq = be32((to_rs ? c->next_seq[TO_RS] + c->dseq : c->next_seq[TO_CLIENT]) - behind);
    tcp->ack = be32(to_rs ? c->next_seq[TO_CLIENT] : c->next_seq[TO_RS]);
    tcp->csum = (u16)~csum_fold(csum_pseudo4(ip->src, ip->dst, PROTO_TCP, sizeof *tcp) + csum_partial(tcp, sizeof *tcp));
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

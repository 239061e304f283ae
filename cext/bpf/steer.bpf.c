/* steer.bpf.c: the XDP program. Our frames go to the AF_XDP socket of their receive queue, the rest to the kernel.
 *
 * Ours is, behind at most two VLAN tags:
 *  - any IPv4 packet or fragment for an owned address (by destination alone, so no header behind IPv4 is read),
 *  - any IPv6 packet for an owned address, and a neighbour solicitation whose target is owned (RFC 4861, 4.3),
 *  - an ARP request or reply whose target protocol address is owned (RFC 826).
 * A port in exclusive mode has no kernel behind it: all is ours but 802.1D link-local control (LACP, LLDP, pause).
 *
 * All other control traffic of IPv6 is the host's: router advertisements, MLD, solicitations of its own addresses.
 *
 * Rules: what is ours and finds no socket is dropped, never passed: the host would answer with RST and end what a
 * restart of the data plane saves. A header cut short is not ours. An IPv4 header with a wrong length or checksum but an
 * owned destination is ours: the worker drops it under a name.
 *
 * Unsatisfying: a VLAN tag that the device has already taken out of the frame (rx-vlan-offload) is not seen here; the
 * frame counts as untagged. Solicitations behind IPv6 extension headers pass to the kernel, which does not have the address.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

enum { QUEUES = 64, ADDRESSES = 65536 };
enum { SETTING_FLAGS, SETTINGS };
enum { FLAG_EXCLUSIVE = 1 };
enum { COUNT_OWNED, COUNT_PASSED, COUNTS };

/* Sockets by receive queue. A socket that closes leaves the map by itself. */
struct {
    __uint(type, BPF_MAP_TYPE_XSKMAP);
    __uint(max_entries, QUEUES);
    __type(key, __u32);
    __type(value, __u32);
} xsks SEC(".maps");

/* Owned addresses in network order. The value is reserved for flags. */
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, ADDRESSES);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __type(key, __be32);
    __type(value, __u32);
} owned4 SEC(".maps");

struct address6 {
    __be32 word[4];
};

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, ADDRESSES);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __type(key, struct address6);
    __type(value, __u32);
} owned6 SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, SETTINGS);
    __type(key, __u32);
    __type(value, __u32);
} settings SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, COUNTS);
    __type(key, __u32);
    __type(value, __u64);
} counts SEC(".maps");

struct vlan_tag {
    __be16 tci, proto;
};

/* RFC 826 with Ethernet and IPv4 addresses. */
struct arp4 {
    __be16 hardware, protocol;
    __u8 hardware_len, protocol_len;
    __be16 operation;
    __u8 sender_mac[6], sender[4], target_mac[6], target[4];
};

/* IPv6 header and the fixed part of a neighbour solicitation; every field is on its natural boundary. */
struct solicitation {
    struct ipv6hdr ip;
    __u8 type, code;
    __be16 checksum;
    __be32 reserved;
    struct address6 target;
};
enum { ICMPV6 = 58, NEIGHBOUR_SOLICITATION = 135 };

static __always_inline int has4(const void *address)
{
    __be32 key;

    __builtin_memcpy(&key, address, sizeof(key));
    return bpf_map_lookup_elem(&owned4, &key) != NULL;
}

static __always_inline int has6(const void *address)
{
    struct address6 key;

    __builtin_memcpy(&key, address, sizeof(key));
    return bpf_map_lookup_elem(&owned6, &key) != NULL;
}

static __always_inline int arp_is_ours(const void *l3, const void *end)
{
    const struct arp4 *arp = l3;

    if ((const void *)(arp + 1) > end)
        return 0;
    if (arp->protocol != bpf_htons(ETH_P_IP) || arp->hardware_len != 6 || arp->protocol_len != 4)
        return 0;
    return has4(arp->target);
}

static __always_inline int ipv4_is_ours(const void *l3, const void *end)
{
    const struct iphdr *ip = l3;

    return (const void *)(ip + 1) <= end && ip->version == 4 && has4(&ip->daddr);
}

static __always_inline int ipv6_is_ours(const void *l3, const void *end)
{
    const struct ipv6hdr *ip = l3;
    const struct solicitation *ns = l3;

    if ((const void *)(ip + 1) > end || ip->version != 6)
        return 0;
    if (has6(&ip->daddr))
        return 1;
    if (ip->nexthdr != ICMPV6 || (const void *)(ns + 1) > end || ns->type != NEIGHBOUR_SOLICITATION)
        return 0;
    return has6(&ns->target);
}

/* 01:80:c2:00:00:00 to 0f: frames that no bridge forwards (IEEE 802.1Q, table 8-1). */
static __always_inline int is_link_control(const struct ethhdr *eth)
{
    const __u8 *to = eth->h_dest;

    return to[0] == 0x01 && to[1] == 0x80 && to[2] == 0xc2 && to[3] == 0 && to[4] == 0 && to[5] <= 0x0f;
}

static __always_inline int is_ours(const void *frame, const void *end)
{
    const struct ethhdr *eth = frame;
    const void *l3 = eth + 1;
    __u32 key = SETTING_FLAGS;
    __be16 proto;

    if (l3 > end)
        return 0;
    const __u32 *flags = bpf_map_lookup_elem(&settings, &key);
    if (flags && (*flags & FLAG_EXCLUSIVE))
        return !is_link_control(eth);

    proto = eth->h_proto;
#pragma unroll
    for (int tags = 0; tags < 2; tags++) {
        const struct vlan_tag *tag = l3;

        if (proto != bpf_htons(ETH_P_8021Q) && proto != bpf_htons(ETH_P_8021AD))
            break;
        if ((const void *)(tag + 1) > end)
            return 0;
        proto = tag->proto;
        l3 = tag + 1;
    }
    if (proto == bpf_htons(ETH_P_IP))
        return ipv4_is_ours(l3, end);
    if (proto == bpf_htons(ETH_P_ARP))
        return arp_is_ours(l3, end);
    if (proto == bpf_htons(ETH_P_IPV6))
        return ipv6_is_ours(l3, end);
    return 0;
}

static __always_inline void count(__u32 which)
{
    __u64 *value = bpf_map_lookup_elem(&counts, &which);

    if (value)
        (*value)++;
}

SEC("xdp")
int fnat_steer(struct xdp_md *ctx)
{
    if (!is_ours((const void *)(long)ctx->data, (const void *)(long)ctx->data_end)) {
        count(COUNT_PASSED);
        return XDP_PASS;
    }
    count(COUNT_OWNED);
    return bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_DROP);
}

char licence[] SEC("license") = "Apache-2.0";

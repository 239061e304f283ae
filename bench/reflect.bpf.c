/* reflect.bpf.c: real servers that cost next to nothing. UDP over IPv4 goes back where it came from, with its addresses and ports
 * swapped (no checksum changes by that); one packet in 1,024 goes through the AF_XDP socket instead, whose owner checks it and sends
 * it back. The rest (ARP) is the kernel's.
 *
 * It bears the name and the socket map of the balancer's own program, so that fnat.drivers.xdp attaches it and opens its queue.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

enum { SAMPLE = 1024 };

struct {
    __uint(type, BPF_MAP_TYPE_XSKMAP);
    __uint(max_entries, 64);
    __type(key, __u32);
    __type(value, __u32);
} xsks SEC(".maps");

/* cext/traffic.c: struct mark */
struct reflected {
    struct ethhdr eth;
    struct iphdr ip;
    struct udphdr udp;
    __u32 flow, guard, seq_low;
} __attribute__((packed));

SEC("xdp")
int fnat_steer(struct xdp_md *ctx)
{
    struct reflected *p = (void *)(long)ctx->data;
    __u8 mac[6];

    if ((void *)(p + 1) > (void *)(long)ctx->data_end || p->eth.h_proto != bpf_htons(ETH_P_IP) || p->ip.ihl != 5 || p->ip.protocol != 17 ||
        p->guard != ~p->flow)
        return XDP_PASS;
    if (p->seq_low % SAMPLE == 0)
        return bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_DROP);
    __builtin_memcpy(mac, p->eth.h_dest, 6);
    __builtin_memcpy(p->eth.h_dest, p->eth.h_source, 6);
    __builtin_memcpy(p->eth.h_source, mac, 6);
    __be32 address = p->ip.saddr;
    p->ip.saddr = p->ip.daddr;
    p->ip.daddr = address;
    __be16 port = p->udp.source;
    p->udp.source = p->udp.dest;
    p->udp.dest = port;
    return XDP_TX;
}

/* For a device that takes the frames above as the kernel does: veth delivers them only where a program is attached. */
SEC("xdp")
int pass(struct xdp_md *ctx)
{
    (void)ctx;
    return XDP_PASS;
}

char licence[] SEC("license") = "Apache-2.0";

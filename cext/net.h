/* net.h: wire structures, exactly as on the wire; multi-byte fields are big-endian unless a name says otherwise. */
#ifndef FNAT_NET_H
#define FNAT_NET_H

#include "base.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "fnat is written for little-endian machines"
#endif

static inline u16 be16(u16 v) { return __builtin_bswap16(v); }
static inline u32 be32(u32 v) { return __builtin_bswap32(v); }

/* Unaligned access: headers start at any even offset. */
static inline u16 get16(const void *p)
{
    u16 v;
    memcpy(&v, p, 2);
    return v;
}
static inline u32 get32(const void *p)
{
    u32 v;
    memcpy(&v, p, 4);
    return v;
}
static inline u64 get64(const void *p)
{
    u64 v;
    memcpy(&v, p, 8);
    return v;
}
static inline void put16(void *p, u16 v) { memcpy(p, &v, 2); }
static inline void put32(void *p, u32 v) { memcpy(p, &v, 4); }
static inline void put64(void *p, u64 v) { memcpy(p, &v, 8); }

enum {
    ETH_HEADER = 14,
    ETH_TYPE_IP4 = 0x0800,
    ETH_TYPE_ARP = 0x0806,
    ETH_TYPE_IP6 = 0x86dd,
    ETH_TYPE_VLAN = 0x8100,
    ETH_MIN_FRAME = 60, /* without FCS */
};

struct eth_header {
    u8 dst[6], src[6];
    u16 type;
} __attribute__((packed, aligned(2)));

/* RFC 791 */
struct ip4_header {
    u8 version_ihl, tos;
    u16 total_len, id, frag; /* frag: flags and offset in 8-byte units */
    u8 ttl, proto;
    u16 csum;
    u32 src, dst;
} __attribute__((packed, aligned(2)));
enum { IP4_DF = 0x4000, IP4_MF = 0x2000, IP4_OFFSET = 0x1fff };
enum { IP4_OPT_END = 0, IP4_OPT_NOP = 1, IP4_OPT_LSRR = 131, IP4_OPT_SSRR = 137 };
enum { PROTO_ICMP = 1, PROTO_TCP = 6, PROTO_UDP = 17, PROTO_ICMP6 = 58, PROTO_UOA = 248 };

/* RFC 8200 */
struct ip6_header {
    u32 version_class_flow; /* 4 bits version, 8 traffic class, 20 flow label */
    u16 payload_len;
    u8 next, hop_limit;
    u8 src[16], dst[16];
} __attribute__((packed, aligned(2)));
/* Headers that may stand between the IPv6 header and the payload. */
enum { IP6_HOP_BY_HOP = 0, IP6_ROUTING = 43, IP6_FRAGMENT = 44, IP6_DESTINATION = 60 };
struct ip6_routing {
    u8 next, len, type, left; /* len: in 8-byte units, the first one not counted; left: segments left */
} __attribute__((packed, aligned(2)));
struct ip6_fragment {
    u8 next, reserved;
    u16 frag; /* offset in the upper 13 bits, in 8-byte units; IP6_MF */
    u32 id;
} __attribute__((packed, aligned(2)));
enum { IP6_MF = 1, IP6_OFFSET = 0xfff8, IP6_MIN_MTU = 1280 };

/* RFC 9293 */
struct tcp_header {
    u16 sport, dport;
    u32 seq, ack;
    u8 offset, flags; /* offset: high nibble, in 32-bit words */
    u16 window, csum, urgent;
} __attribute__((packed, aligned(2)));
enum { TCP_FIN = 1, TCP_SYN = 2, TCP_RST = 4, TCP_PSH = 8, TCP_ACK = 16 };
/* RFC 9293, RFC 7323, RFC 2018 */
enum { TCP_OPT_END = 0, TCP_OPT_NOP = 1, TCP_OPT_MSS = 2, TCP_OPT_WSCALE = 3, TCP_OPT_SACK_OK = 4, TCP_OPT_SACK = 5, TCP_OPT_TS = 8 };

/* RFC 768 */
struct udp_header {
    u16 sport, dport, len, csum;
} __attribute__((packed, aligned(2)));

/* RFC 792 */
struct icmp_header {
    u8 type, code;
    u16 csum;
    u32 rest;
} __attribute__((packed, aligned(2)));
enum {
    ICMP_ECHO_REPLY = 0,
    ICMP_UNREACHABLE = 3,
    ICMP_SOURCE_QUENCH = 4,
    ICMP_REDIRECT = 5,
    ICMP_ECHO = 8,
    ICMP_TIME_EXCEEDED = 11,
    ICMP_PARAMETER = 12, /* pointer in the first byte of rest */
};
/* Codes of ICMP_UNREACHABLE: RFC 792, RFC 1122 3.2.2.1, RFC 1812 5.2.7.1. */
enum {
    ICMP_HOST_UNREACHABLE = 1,
    ICMP_PROTOCOL_UNREACHABLE = 2,
    ICMP_PORT_UNREACHABLE = 3,
    ICMP_FRAG_NEEDED = 4, /* MTU in the low 16 bits of rest, RFC 1191 */
    ICMP_HOST_PROHIBITED = 10,
    ICMP_UNREACHABLE_CODES = 16,
};

/* RFC 4443; the header is that of ICMP */
enum {
    ICMP6_UNREACHABLE = 1,
    ICMP6_TOO_BIG = 2, /* MTU in rest */
    ICMP6_TIME_EXCEEDED = 3,
    ICMP6_PARAMETER = 4, /* pointer in rest */
    ICMP6_ECHO = 128,
    ICMP6_ECHO_REPLY = 129,
    ICMP6_NEIGHBOUR_SOLICITATION = 135, /* RFC 4861 */
    ICMP6_NEIGHBOUR_ADVERTISEMENT = 136,
};
enum { ICMP6_NO_ROUTE, ICMP6_PROHIBITED, ICMP6_BEYOND_SCOPE, ICMP6_ADDRESS_UNREACHABLE, ICMP6_PORT_UNREACHABLE }; /* of ICMP6_UNREACHABLE */
enum { ICMP6_ERRONEOUS_FIELD, ICMP6_UNKNOWN_NEXT_HEADER };                                                        /* of ICMP6_PARAMETER */

/* RFC 4861 4.3, 4.4: solicitation and advertisement of a neighbour, options behind it. */
struct nd_message {
    u8 type, code;
    u16 csum;
    u32 flags; /* of an advertisement */
    u8 target[16];
} __attribute__((packed, aligned(2)));
enum { ND_HOP_LIMIT = 255, ND_OPTION_SOURCE = 1, ND_OPTION_TARGET = 2, ND_OPTION_LEN = 8 };
enum { ND_ROUTER = 1u << 31, ND_SOLICITED = 1u << 30, ND_OVERRIDE = 1u << 29 }; /* host order */

/* RFC 826, for Ethernet and IPv4 */
struct arp_header {
    u16 htype, ptype;
    u8 hlen, plen;
    u16 op;
    u8 sha[6];
    u32 spa;
    u8 tha[6];
    u32 tpa;
} __attribute__((packed, aligned(2)));
enum { ARP_REQUEST = 1, ARP_REPLY = 2 };

_Static_assert(sizeof(struct eth_header) == 14, "Ethernet header");
_Static_assert(sizeof(struct ip4_header) == 20, "RFC 791 header");
_Static_assert(sizeof(struct ip6_header) == 40, "RFC 8200 header");
_Static_assert(sizeof(struct ip6_fragment) == 8, "RFC 8200 fragment header");
_Static_assert(sizeof(struct tcp_header) == 20, "RFC 9293 header");
_Static_assert(sizeof(struct udp_header) == 8, "RFC 768 header");
_Static_assert(sizeof(struct icmp_header) == 8, "RFC 792 header");
_Static_assert(sizeof(struct nd_message) == 24, "RFC 4861 message");
_Static_assert(sizeof(struct arp_header) == 28, "RFC 826 header");

#endif

/* packet.h: what the steps say to each other about one packet. */
#ifndef FNAT_PACKET_H
#define FNAT_PACKET_H

#include "base.h"

enum { BATCH = 64 };           /* packets a worker takes from a queue in one turn */
enum { FRAME_SIZE = 4096 };    /* bytes of a frame, headroom included */
enum { FRAME_HEADROOM = 256 }; /* bytes before the packet that every driver keeps free */
enum { FRAME_NONE = 0xffffffff };
enum { WHOLE_ANYWHERE = 576 }; /* bytes of an IPv4 packet that every link should carry (RFC 791) */

/* What becomes of a packet. */
enum verdict {
    VERDICT_DROP, /* reason says why; the frame is free again */
    VERDICT_TX,   /* send on out_port */
    VERDICT_PASS, /* hand to the host through the punt queue of in_port */
    VERDICT_HELD, /* somebody else keeps the frame: neighbour queue or another worker */
    VERDICT_DONE, /* read and finished; the frame is free again */
};

/* One counter enum for counts, drop reasons and gauges, in the order of counters.def. */
enum counter {
#define COUNTER(name, help) CNT_##name,
#define DROP(name, help) DROP_##name,
#define TAKEN(name, help) TAKEN_##name,
#include "counters.def"
    COUNTERS
};

/* What parse.c found. */
enum packet_kind {
    KIND_INVALID, /* reason is set */
    KIND_TCP,
    KIND_UDP,
    KIND_SCTP,     /* tcp_flags: PACKET_OPENS_SCTP or 0 */
    KIND_ICMP,     /* any ICMP of its family */
    KIND_FRAGMENT, /* of a datagram, the first one included */
    KIND_OTHER_IP, /* another IP protocol */
    KIND_ROUTED,   /* IPv4 with a source route, whatever it carries */
    KIND_ARP,
    KIND_OTHER, /* neither IP nor ARP */
};

enum { PACKET_OPENS_SCTP = 1 }; /* begins with an INIT as RFC 9260 8.5.1 wants it */

enum direction { TO_RS = 0, TO_CLIENT = 1 };

enum fragment {
    FRAGMENT_NONE,  /* a whole datagram */
    FRAGMENT_FIRST, /* has the L4 header */
    FRAGMENT_LATER, /* has none: ports are learned from the first one */
    FRAGMENT_LOOSE, /* a whole datagram that may become fragments on its way: IPv4 without DF, longer than every host takes whole */
};

/* A frame and all that the steps learn about it: one cache line.
 * A driver fills data, frame, len and in_port; parse.c the header fields; forward.c the rest. */
struct packet {
    u8 *data;  /* first byte of the Ethernet header; FRAME_HEADROOM bytes before it belong to the frame */
    u32 frame; /* index of the frame in the frame area */
    u16 len;   /* bytes from data on */
    u8 in_port, out_port;
    u8 verdict; /* enum verdict */
    u8 kind;    /* enum packet_kind */
    u8 reason;  /* enum counter, a DROP_ one, valid with VERDICT_DROP or KIND_INVALID */
    u8 tcp_flags;
    u16 l3_len; /* bytes of the IP packet: total_len, padding excluded */
    u8 l3, l4;  /* offsets of the headers from data */
    u8 proto;
    u8 hops;          /* workers this packet has already visited */
    u16 payload;      /* bytes after the TCP, UDP or SCTP header */
    u32 saddr, daddr; /* network order; IPv6 addresses stay in the header: packet_src, packet_dst */
    u16 sport, dport; /* network order */
    u64 hash;         /* of the flow key */
    u32 conn;         /* index<<1 | direction; 0 while none is found */
    u16 l4_len;       /* bytes of the TCP segment, UDP datagram or SCTP packet, header included */
    u16 frag_offset;  /* host order, in bytes; valid for fragments */
    u32 frag_id;      /* network order; likewise */
    u8 family;        /* 4 | 6; 0: not IP */
    u8 fragment;      /* enum fragment */
    u8 frag_at;       /* offset from data of the IPv6 fragment header, that of an atomic fragment (RFC 6946) included; 0: none */
    u8 spare;
} cache_aligned;

_Static_assert(sizeof(struct packet) == CACHE_LINE, "a packet's description is one cache line");

#endif

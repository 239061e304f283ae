/* fnat.h: the door. The only header Python sees: opaque handles, plain structs, results are 0 (or a count) or -errno.
 *
 * A *plane* is the shared memory of one data plane: files in a directory on hugetlbfs or tmpfs, or anonymous memory.
 *   DIR/plane      ids, neighbours, snapshots      written by control (and workers: neighbour words only)
 *   DIR/worker-I   connections, tables, counters   written by worker I alone
 *   DIR/frames     packet frames                   owned by whoever holds a frame
 * The data plane process creates it and takes its workers; the control process attaches to the same files, writes
 * snapshots and reads everything else.
 *
 * Addresses are 16 bytes in network order, an IPv4 address in the first 4, the rest zero. Ports (lport, vport, …) are in
 * host order. Times are nanoseconds of CLOCK_MONOTONIC, timeouts are seconds.
 */
#ifndef FNAT_FNAT_H
#define FNAT_FNAT_H

#include <stddef.h>
#include <stdint.h>

struct fnat_plane;
struct fnat_worker;
struct io_queue;
struct frame_pool;

enum { FNAT_PORTS = 16, FNAT_WORKERS = 64, FNAT_NAME = 32, FNAT_TCP_STATES = 11, FNAT_UDP_STATES = 4, FNAT_STATES = 19 };

/* ---- the plane ---- */

struct fnat_plane_config {
    uint32_t workers;      /* 1..FNAT_WORKERS */
    uint32_t conns;        /* connections of each worker */
    uint32_t services;     /* service ids, all workers */
    uint32_t members;      /* member ids (service x RS), all workers */
    uint32_t endpoints;    /* (protocol, LIP, RS) port maps of each worker */
    uint32_t neighbours;   /* 16..65535 */
    uint32_t frames;       /* frames of each worker, 4 KiB each; 0: none (the caller brings its own queues) */
    uint32_t snapshot_mib; /* room for snapshots */
    uint32_t acl_mib;      /* room for entries of address sets, at most 65536; 0: none */
};

struct fnat_plane_info {
    struct fnat_plane_config config;
    uint64_t plane_bytes, worker_bytes, frames_bytes; /* of the mappings; worker_bytes is of one worker */
    uint64_t conn_bytes;                              /* of one worker's memory that grows with config.conns */
    uint32_t huge_page_size;                          /* bytes; 0: ordinary pages */
    uint32_t restored;                                /* connections found in the arena at creation */
};

enum { FNAT_ANON = 1, FNAT_FRESH = 2 /* ignore what an earlier run left */ };

/* Create or take up again the plane in `dir` (NULL with FNAT_ANON). -EINVAL config, -ENOMEM/-ENOSPC no memory, -EBUSY another
 * process owns it, -EXDEV dir is neither tmpfs nor hugetlbfs, -EPROTO what lies there is of another layout. */
int fnat_plane_create(const char *dir, const struct fnat_plane_config *config, int flags, struct fnat_plane **out);
/* Attach as control. -ENOENT no plane there. */
int fnat_plane_attach(const char *dir, struct fnat_plane **out);
void fnat_plane_close(struct fnat_plane *plane);
/* What a plane of this configuration would take, by the layout itself; nothing is made. -EINVAL config. */
int fnat_plane_measure(const struct fnat_plane_config *config, struct fnat_plane_info *out);
void fnat_plane_info(const struct fnat_plane *plane, struct fnat_plane_info *out);

/* ---- control: what the workers shall do. Nothing is in force before fnat_publish ---- */

enum {
    FNAT_SCHED_RR = 0,
    FNAT_SCHED_WRR = 1,
    FNAT_SCHED_LC = 2,      /* fewest connections */
    FNAT_SCHED_WLC = 3,     /* fewest by weight */
    FNAT_SCHED_SED = 4,     /* fewest by weight, the new one counted */
    FNAT_SCHED_NQ = 5,      /* an idle one first, else as SED */
    FNAT_SCHED_SH = 6,      /* by hash, parts of its range by weight */
    FNAT_SCHED_MH = 7,      /* by hash, Maglev's table */
    FNAT_SCHED_CONHASH = 8, /* by hash, rendezvous: a member that goes moves only its own flows */
    FNAT_SCHED_FO = 9,      /* the highest weight */
    FNAT_SCHED_P2C = 10,    /* of two drawn by weight the less loaded */
    FNAT_SCHEDS
};
enum { FNAT_HASH_SIP = 0, FNAT_HASH_SIP_PORT = 1, FNAT_HASH_QID = 2 /* UDP: the first 8 bytes of QUIC's destination connection ID */ };
enum { FNAT_NO_RS_DROP = 0, FNAT_NO_RS_RESET = 1 };
/* A member is asked only when none of the roles before its own can take a connection. */
enum { FNAT_PERSISTENT_MOST = 31 * 86400 }; /* seconds */
enum {
    FNAT_MEMBER_DRAINS = 1, /* no new connections, whatever its weight; those that there are may end by themselves */
    FNAT_MEMBER_LEAVES = 2  /* with it: persistent clients go elsewhere, too */
};
enum { FNAT_ROLE_ACTIVE = 0, FNAT_ROLE_BACKUP = 1, FNAT_ROLE_SORRY = 2, FNAT_ROLES = 3 };
enum {
    FNAT_SVC_EXPIRE_QUIESCENT = 1,
    FNAT_SVC_ONE_PACKET = 2, /* UDP: every datagram of a client is scheduled anew */
    FNAT_SVC_QUIC = 4,       /* UDP: a client that moves goes on with the RS its connection ID names */
};
/* How a service tells its RSs the client's address and port (clientaddr.h). */
enum {
    FNAT_CLIENT_ADDR_NONE = 0,
    FNAT_CLIENT_ADDR_TOA = 1,      /* TCP: option 254, as DPVS's toa.ko reads it */
    FNAT_CLIENT_ADDR_UOA_OPP = 2,  /* UDP: header of IP protocol 248, as uoa.ko reads it */
    FNAT_CLIENT_ADDR_UOA_IPO = 3,  /* UDP over IPv4: IP option 31 */
    FNAT_CLIENT_ADDR_PROXY_V1 = 4, /* TCP: a line of text before the stream */
    FNAT_CLIENT_ADDR_PROXY_V2 = 5, /* TCP, UDP: binary; before the stream, in the first datagram */
    FNAT_CLIENT_ADDR_INSECURE = 8  /* with a PROXY version: a header that the client itself brings counts */
};

struct fnat_member_spec {
    uint8_t rip[16];
    uint32_t id; /* member id, stable: counters live there */
    uint16_t rport;
    uint16_t weight; /* 0: gets no new connections */
    uint8_t family;  /* 4 | 6 */
    uint8_t role;    /* FNAT_ROLE_* */
    uint8_t flags;   /* FNAT_MEMBER_* */
    uint8_t pad;
    uint32_t upper,
        lower; /* connections over all workers: at `upper` no more until there are fewer than `lower`; 0: no limit, three quarters */
    uint32_t new_per_s; /* new connections a second over all workers, at most FNAT_RATE_MOST; 0: unlimited */
};

struct fnat_service_spec {
    uint8_t vip[16];
    uint32_t id; /* service id, stable */
    uint16_t vport;
    uint8_t family, proto;                     /* 4 | 6; 6 (TCP) | 17 (UDP) */
    uint8_t sched, no_rs, flags, client_addr;  /* client_addr: FNAT_CLIENT_ADDR_* */
    uint32_t conn_timeout;                     /* seconds, replaces ESTABLISHED (TCP, SCTP) or all states (UDP); 0: the general timeouts */
    uint32_t half_open;                        /* most half-open connections of this service on one worker; 0: unlimited */
    uint32_t persistent;                       /* seconds that a client keeps its RS after its last connection; 0: it has none of its own */
    uint32_t persistent_plen;                  /* bits of a client's address that make it the same client */
    uint32_t max_conns, new_per_s, per_client; /* over all workers; per_client: connections of one client address; 0: unlimited */
    uint32_t n_members, n_lips;
    uint32_t slow_start; /* seconds in which a member that comes to others grows to its weight; WRR, WLC, SED, NQ, P2C */
    uint32_t slots;      /* MH: of the table, a prime up to 131071, at least as many as members */
    uint64_t now_ns;     /* when members that come begin to grow */
    uint8_t hash_target; /* FNAT_HASH_*: of a client, for SH, MH and CONHASH */
    uint8_t pad[7];
    const uint16_t *acl;      /* ids of address sets: those of `deny`, then those of `allow` */
    uint16_t n_deny, n_allow; /* at most FNAT_ACL_LIST each */
};

enum { FNAT_ADDR_VIP = 1, FNAT_ADDR_LIP = 2, FNAT_ADDR_SERVED = 4 /* a service on this VIP has a usable RS: FNAT_ECHO_SERVED */ };

struct fnat_address_spec {
    uint8_t addr[16];
    uint16_t id;    /* address id, 1..65535, stable */
    uint8_t family; /* 4 | 6 */
    uint8_t kind;   /* FNAT_ADDR_* bits */
    uint8_t port;   /* port id that answers ARP for it */
    uint8_t pad[3];
};

enum { FNAT_ROUTE_UNICAST = 0, FNAT_ROUTE_HOST = 1 /* hand to the host: kni_host */, FNAT_ROUTE_UNREACHABLE = 2 };

struct fnat_route_spec {
    uint8_t prefix[16], gateway[16], src[16]; /* gateway 0: on link; src: sender of ARP, 0: any owned address on the port */
    uint32_t mtu;                             /* of the IP packet, 68 (IPv6: 1280) to 65535; 0, or more than the port's: the port's */
    uint32_t metric;                          /* of equal prefixes the lowest wins; unicast routes with the same share the flows */
    uint8_t family, plen, port, kind;
    uint8_t pad[4];
};

enum { FNAT_PORT_UP = 1, FNAT_PORT_EXCLUSIVE = 2 /* what is not ours goes to the punt queue */ };

struct fnat_port_spec {
    char name[FNAT_NAME];
    uint8_t mac[6];
    uint8_t id; /* 0..FNAT_PORTS-1 */
    uint8_t flags;
    uint16_t mtu; /* of the IP packet, at most 3500 */
    uint8_t pad[6];
};

enum { FNAT_UNSERVED_DROP = 0, FNAT_UNSERVED_RESET = 1 };
enum { FNAT_ECHO_ALWAYS = 0, FNAT_ECHO_SERVED = 1 /* for a VIP only while it is FNAT_ADDR_SERVED */ };
enum { FNAT_RATE_MOST = 10000000 };

struct fnat_settings {
    uint32_t timeouts[FNAT_STATES];   /* seconds, by conn state */
    uint16_t lport_first, lport_last; /* local ports that may be used, 1024..65535 */
    uint8_t unserved;                 /* a SYN for an owned address and a port nobody serves */
    uint8_t echo;                     /* FNAT_ECHO_*: when pings are answered */
    uint8_t announce;                 /* tell the links of addresses that are new on a port (gratuitous ARP, unsolicited NA) */
    uint8_t own_sources;              /* 1: an owned address may be the source of a first packet; else that is a forgery: `martian` */
    uint8_t fragment_seconds;         /* 1..60: until the fragments of a datagram are forgotten */
    uint8_t pad[3];
    uint32_t icmp_rate,
        echo_rate;        /* most ICMP errors and echo replies a worker makes, packets a second, at most FNAT_RATE_MOST; 0: unlimited */
    uint64_t hash_key[4]; /* of SH, MH and CONHASH: what all balancers of a cluster share; zero: one that everybody knows */
};

int fnat_put_settings(struct fnat_plane *plane, const struct fnat_settings *settings);
int fnat_put_port(struct fnat_plane *plane, const struct fnat_port_spec *port); /* flags without FNAT_PORT_UP: gone */
/* Add or replace one service. -EINVAL an id, number or combination that cannot be, -ENOSPC snapshot area full. */
int fnat_put_service(struct fnat_plane *plane, const struct fnat_service_spec *svc, const struct fnat_member_spec *members,
                     const uint16_t *lips);
int fnat_del_service(struct fnat_plane *plane, uint32_t id);
/* Who would own n hashes spread evenly over all: places in `members`. With slots of MH for n, its table. SH, MH, CONHASH, with a member
 * of weight; -EINVAL as above, -ENOMEM. */
int fnat_sched_owners(const struct fnat_service_spec *svc, const struct fnat_member_spec *members, uint32_t n, uint32_t *out);
/* Maglev's table of these members: offset and skip of their preferences, weights above 0. -EINVAL, -ENOMEM */
int fnat_maglev(const uint32_t *offset, const uint32_t *skip, const uint16_t *weight, uint32_t n, uint32_t slots, uint16_t *table);
int fnat_put_address(struct fnat_plane *plane, const struct fnat_address_spec *addr); /* add or replace one */
int fnat_del_address(struct fnat_plane *plane, uint16_t id);
int fnat_put_addresses(struct fnat_plane *plane, const struct fnat_address_spec *addrs, uint32_t n); /* the whole list */
/* The whole list; bits of a prefix beyond its length do not count. -EINVAL a length, port, kind, MTU or gateway that cannot be,
 * -E2BIG more than 64 equal-cost routes to a prefix or 255 different MTUs; then the routes of before stay. */
int fnat_put_routes(struct fnat_plane *plane, const struct fnat_route_spec *routes, uint32_t n);
/* The way of a flow to this address by the newest snapshot, from the process that publishes: family, gateway, src, port, mtu, kind. A worker's
 * flow is a hash of the client's tuple. -ENETUNREACH no route. */
int fnat_route_get(const struct fnat_plane *plane, uint8_t family, const uint8_t *addr, uint32_t flow, struct fnat_route_spec *out);

/* Sets of source addresses, in force with the next snapshot. A source passes the general deny list, the general allow list, then the
 * service's: it is in a list if it is in one of its sets, and in a set if the longest prefix there that holds it is no exception. A list without
 * sets lets all pass. Looked up once for each new connection. */
enum { FNAT_ACL_SETS = 16384, FNAT_ACL_NAME = 40, FNAT_ACL_KEY = 18, FNAT_ACL_LIST = 64 };
enum { FNAT_ACL_NO = 0, FNAT_ACL_YES = 1, FNAT_ACL_EXCEPT = 2 };
int fnat_put_acl(struct fnat_plane *plane, const uint16_t *sets, uint32_t n_deny, uint32_t n_allow); /* the general lists */
/* The id of the set of this name, made empty if there is none; what an earlier control made is there. -ENOSPC too many sets. */
int fnat_acl_make(struct fnat_plane *plane, const char *name);
/* Nothing that is published next may refer to it. -ENOENT */
int fnat_acl_drop(struct fnat_plane *plane, uint32_t id);
/* Put in (FNAT_ACL_YES, _EXCEPT) and take out (FNAT_ACL_NO) n entries. A key is family (4 | 6), 16 bytes of address, prefix length + 1.
 * -ENOENT one to be taken out is not there, -EINVAL, -ENOSPC; *done entries before it are done. */
int fnat_acl_edit(struct fnat_plane *plane, uint32_t id, const uint8_t *keys, const uint8_t *answers, uint32_t n, uint32_t *done);
/* As edited, from the process that edits, else as workers see it: the name and number of entries of a set; -ENOENT; its entries, at most n,
 * returns how many. As workers see it: is the address in the set? */
int fnat_acl_info(const struct fnat_plane *plane, uint32_t id, char name[FNAT_ACL_NAME], uint32_t counts[2]);
int fnat_acl_read(const struct fnat_plane *plane, uint32_t id, uint8_t *keys, uint8_t *answers, uint32_t n);
int fnat_acl_test(const struct fnat_plane *plane, uint32_t id, uint8_t family, const uint8_t *addr);
int64_t fnat_acl_free(struct fnat_plane *plane); /* bytes free for entries */
/* From the next snapshot on every worker goes through its connections and closes those that the lists would not let open; returns the number
 * of this pass. */
uint32_t fnat_acl_recheck(struct fnat_plane *plane);
uint32_t fnat_acl_rechecked(const struct fnat_plane *plane); /* the last pass that every running worker has finished */
struct fnat_acl_stats {
    uint64_t denied, not_allowed; /* new connections refused by the service's own lists */
};
int fnat_acl_stats(const struct fnat_plane *plane, uint32_t service, struct fnat_acl_stats *out);
int fnat_acl_zero(struct fnat_plane *plane, uint32_t service); /* those start from 0 */
/* Measure look-ups of random addresses in a set, 64 side by side: ns of all; floor_ns: touching one random line each of an area as large as
 * the entries take. hits: how many were in it. */
struct fnat_acl_bench {
    uint64_t lookups, hits, ns, floor_ns, alone_ns, area_bytes;
};
int fnat_acl_bench(const struct fnat_plane *plane, uint32_t id, uint8_t family, const uint8_t *like, uint8_t plen, uint64_t lookups,
                   struct fnat_acl_bench *out);

/* Seal and swap; returns the snapshot's number (> 0). What it costs goes with what was put, not with what is there. -EEXIST two
 * ids have one VIP:port/proto or one address, -ENOSPC snapshot area full; then the last snapshot stays in force. */
int64_t fnat_publish(struct fnat_plane *plane);
/* The oldest snapshot that a running worker still uses; a change is in force when this reaches its number. */
int64_t fnat_adopted(const struct fnat_plane *plane);

/* How the answers that arrive on a NIC port find their worker, by flow; in force in the workers' next turn. steer.h has the
 * rule. Without a word about a port: by mask. */
enum { FNAT_FLOW_TCP4 = 0, FNAT_FLOW_UDP4 = 1, FNAT_FLOW_TCP6 = 2, FNAT_FLOW_UDP6 = 3, FNAT_FLOWS = 4 };
enum { FNAT_STEER_MASK = 0, FNAT_STEER_RSS = 1 };
enum { FNAT_STEER_SLOTS = 512, FNAT_STEER_KEY = 64, FNAT_STEER_NOTE = 96 };

struct fnat_steering_spec {
    uint8_t mode;    /* FNAT_STEER_* */
    uint8_t loose;   /* the queue does not follow from the packet: a flow may come by another one at any time */
    uint8_t key_len; /* bytes, at least 16 for IPv4 and 40 for IPv6; this and the next ones for RSS */
    uint8_t pad;
    uint16_t slots;                   /* of the indirection table: a power of two */
    uint8_t key[FNAT_STEER_KEY];      /* of the Toeplitz hash */
    uint8_t worker[FNAT_STEER_SLOTS]; /* whose queue a slot names */
    char note[FNAT_STEER_NOTE];       /* for listings: why so */
};
/* -EINVAL: not a rule for this plane's workers. */
int fnat_put_steering(struct fnat_plane *plane, uint8_t port, uint8_t flow, const struct fnat_steering_spec *spec);
int fnat_get_steering(const struct fnat_plane *plane, uint8_t port, uint8_t flow, struct fnat_steering_spec *out);
/* The hash of `len` bytes; the key has at least 4 bytes more. */
uint32_t fnat_toeplitz(const uint8_t *key, const uint8_t *input, uint32_t len);
/* Whose a local port is; -EINVAL as above. Addresses are 16 bytes, rport and lport in host order. */
int fnat_steering_owner(const struct fnat_steering_spec *spec, uint8_t flow, uint32_t workers, const uint8_t *rip, const uint8_t *lip,
                        uint16_t rport, uint16_t lport);
/* The fewest and the most of the ports first..last that one worker owns towards any RS. -EINVAL as above. */
int fnat_steering_shares(const struct fnat_steering_spec *spec, uint8_t flow, uint32_t workers, uint16_t first, uint16_t last,
                         uint32_t *fewest, uint32_t *most);

/* Neighbours are one shared table: both sides may write. mac NULL with state 0 deletes. */
enum {
    FNAT_NEIGH_NONE = 0,
    FNAT_NEIGH_SEND = 1,
    FNAT_NEIGH_REACHABLE = 2,
    FNAT_NEIGH_PROBE = 3,
    FNAT_NEIGH_DELAY = 4,
    FNAT_NEIGH_STATIC = 8 /* flag */
};

struct fnat_neigh_info {
    uint8_t addr[16];
    uint8_t family, port, mac[6], state; /* state: FNAT_NEIGH_*, FNAT_NEIGH_STATIC as a flag */
    uint8_t pad[7];
};
int fnat_neigh_set(struct fnat_plane *plane, uint8_t port, uint8_t family, const uint8_t *addr, const uint8_t *mac, uint8_t state);
/* Neighbours from *cursor on, at most n; returns how many, 0 at the end. */
int fnat_neigh_list(const struct fnat_plane *plane, uint32_t *cursor, struct fnat_neigh_info *out, uint32_t n);

/* ---- reading: never through a worker ---- */

struct fnat_stats {
    uint64_t conns, in_packets, out_packets, in_bytes, out_bytes; /* in: from clients, out: from RSs; bytes of IP packets */
    uint32_t active, inactive;                                    /* connections now: ESTABLISHED | all others */
};
struct fnat_address_stats {
    uint64_t misses; /* new connections that found no free port here */
    uint32_t used;   /* ports in use (a port towards two RSs counts twice) */
    uint32_t conns;  /* connections that hold this address as VIP or LIP */
};
int fnat_service_stats(const struct fnat_plane *plane, uint32_t id, struct fnat_stats *out);
int fnat_member_stats(const struct fnat_plane *plane, uint32_t id, struct fnat_stats *out);
/* 1: it reached its upper limit, and no connection has come since it fell below the lower one. */
int fnat_member_overloaded(const struct fnat_plane *plane, uint32_t id);
/* Clients that are persistent to each member, by member id. */
void fnat_persistent(const struct fnat_plane *plane, uint64_t now_ns, uint32_t *counts, uint32_t members);
int fnat_address_stats(const struct fnat_plane *plane, uint16_t id, struct fnat_address_stats *out);
/* Endpoints (protocol, LIP, RS) with ports in use by one worker, from *cursor on, at most n; returns how many; *cursor becomes
 * 0xffffffff at the end. */
struct fnat_endpoint_info {
    uint8_t rip[16];
    uint32_t used;       /* ports taken */
    uint16_t lip, rport; /* address id; host order */
    uint8_t proto, family, worker, pad;
};
int fnat_endpoints(const struct fnat_plane *plane, uint32_t worker, uint32_t *cursor, struct fnat_endpoint_info *out, uint32_t n);
/* Counters of counters.def: number, and values of one worker. kind: 'c' counter, 'd' drop reason, 't' taken. */
uint32_t fnat_counter_count(void);
const char *fnat_counter_name(uint32_t i);
const char *fnat_counter_help(uint32_t i);
char fnat_counter_kind(uint32_t i);
int fnat_counters(const struct fnat_plane *plane, uint32_t worker, uint64_t *out);

/* How long turns take, by wall clock. [0]: turns that ran through; [1]: turns during which the CPU was away: an involuntary context
 * switch, or CPU time that a hypervisor took. Which it was is looked up for turns of 131 us and more; shorter ones count as [0]. */
enum { FNAT_STEP_BUCKETS = 32 };
struct fnat_step_stats {
    uint64_t count[2][FNAT_STEP_BUCKETS]; /* bucket i: 2^i <= ns < 2^(i+1) */
    uint64_t sum_ns[2], max_ns[2];
};
int fnat_worker_steps(const struct fnat_plane *plane, uint32_t worker, struct fnat_step_stats *out);

/* The CPU a worker runs on; -1: it does not run. */
int fnat_worker_cpu(const struct fnat_plane *plane, uint32_t worker);

struct fnat_conn_info {
    uint8_t cip[16], vip[16], lip[16], rip[16];
    uint64_t packets[2], bytes[2]; /* from the client, from the RS */
    uint32_t index, service, member;
    uint32_t remaining, age; /* seconds: until it expires when idle, since it was opened */
    uint16_t cport, vport, lport, rport;
    uint8_t worker, proto, family, state; /* family: of cip and vip */
    uint8_t rs_family, pad[7];            /* of lip and rip */
};
struct fnat_conn_end { /* one of the four ends of a connection */
    uint8_t addr[16];
    uint8_t family, plen; /* family 0: any address; plen: bits of addr that must agree */
    uint16_t port;        /* 0: any */
};
struct fnat_conn_filter {
    int64_t service, member; /* -1: any */
    int32_t state, proto;    /* -1: any */
    struct fnat_conn_end client, vip, lip, rs;
};
/* Connections of one worker from *cursor on that pass the filter (NULL: all), at most n; returns how many; *cursor becomes
 * 0xffffffff at the end. A page may be short, or empty, before the end: no call looks at more than a million records. */
int fnat_conns(const struct fnat_plane *plane, uint32_t worker, uint32_t *cursor, const struct fnat_conn_filter *filter, uint64_t now_ns,
               struct fnat_conn_info *out, uint32_t n);
/* How many connections of one worker pass the filter; all records are looked at (about 0.02 s for each million). */
int64_t fnat_conn_count(const struct fnat_plane *plane, uint32_t worker, const struct fnat_conn_filter *filter);
/* End the connections that pass the filter, as they were found: RST: TCP's two ends are told. Each running worker goes through its records,
 * some thousand a turn. Returns the request's number (> 0). -EBUSY a worker has not finished the one before, -EINVAL the filter. */
enum { FNAT_KILL_SILENT = 0, FNAT_KILL_RESET = 1 };
int64_t fnat_conn_kill(struct fnat_plane *plane, const struct fnat_conn_filter *filter, int how);
/* The newest request that every running worker has finished, and how many connections it has ended. */
int64_t fnat_conn_killed(const struct fnat_plane *plane, uint64_t *ended);
const char *fnat_state_name(uint32_t state); /* TCP_NONE … SCTP_CLOSED, NULL beyond */

/* ---- workers: only in the process that created the plane ---- */

struct fnat_worker *fnat_worker_get(struct fnat_plane *plane, uint32_t index);
struct frame_pool *fnat_worker_pool(struct fnat_worker *worker);
/* Give the worker a queue of a port; punt: the way to the host (a TAP) for that port. The worker closes it. */
int fnat_worker_attach(struct fnat_worker *worker, uint8_t port, int punt, struct io_queue *queue);
void fnat_worker_detach(struct fnat_worker *worker); /* close all its queues */
/* One turn at time now; returns the number of packets received. */
int fnat_worker_step(struct fnat_worker *worker, uint64_t now_ns);
/* Turns until *stop is non-zero. After spin_us without work it sleeps in poll() until the next wheel tick (0: never sleeps). */
int fnat_worker_run(struct fnat_worker *worker, volatile int *stop, uint32_t spin_us);
/* The process stops using the plane: packets that wait are dropped, so that every frame is back in its pool. */
void fnat_worker_quiesce(struct fnat_worker *worker);

/* ---- drivers that need nothing but libc ---- */

/* mem: frames put in by the caller, frames taken out by the caller. */
int fnat_mem_open(struct frame_pool *pool, uint32_t ring, struct io_queue **out);
int fnat_mem_put(struct io_queue *q, const uint8_t *data, uint32_t len); /* -ENOSPC full, -EMSGSIZE too long */
int fnat_mem_take(struct io_queue *q, uint8_t *out, uint32_t room);      /* length, or -EAGAIN */
/* pcap: prepared frames handed out over and over; what is sent is only counted. */
int fnat_pcap_open(struct frame_pool *pool, uint32_t batch, struct io_queue **out);
int fnat_pcap_add(struct io_queue *q, const uint8_t *data, uint32_t len); /* before the first rx; -EMSGSIZE, -ENOMEM, -EBUSY */
void fnat_pcap_counts(const struct io_queue *q, uint64_t *received, uint64_t *sent);
uint64_t fnat_pcap_measure(struct io_queue *q, uint64_t packets); /* ns that the driver alone takes */
/* tap: a TAP device, created when absent; fd is its non-blocking descriptor. */
int fnat_tap_open(struct frame_pool *pool, const char *name, const uint8_t *mac, uint32_t mtu, struct io_queue **out);

/* ---- measuring ---- */

enum { FNAT_STAGES = 9 }; /* rx parse hash find conn rewrite neighbour tx tick */

struct fnat_bench_result {
    uint64_t packets, ns, generator_ns; /* ns: with forwarding; generator_ns: the generator alone, same number of packets */
    uint64_t conns, opened, verified, mismatched, dropped;
    uint64_t floor_ns;              /* touching one bucket line and both conn lines in the same random order */
    uint64_t open_ns, expire_ns;    /* first packets of all conns, generator taken out; the end of all conns by time */
    uint64_t left;                  /* things still taken when all conns have ended: 0 */
    uint64_t stage_ps[FNAT_STAGES]; /* picoseconds a packet, generator and marks taken out; 0 where not asked for */
};
struct fnat_bench_options {
    uint8_t proto;    /* 6 | 17 */
    uint8_t stages;   /* measure the stages too */
    uint16_t payload; /* bytes after the TCP or UDP header, 4..1440 */
    uint32_t conns;
    double seconds; /* of steady state */
};
/* Open conns flows over the plane's services, forward a packet of each in both directions, then random ones for `seconds`, let all expire;
 * see bench/README.md. */
int fnat_bench_nat(struct fnat_worker *worker, const struct fnat_bench_options *options, struct fnat_bench_result *out);
/* Whole TCP lives: SYN, SYN-ACK, ACK, data, FIN both ways: 6 packets in and 6 out; packets = lives x 6. */
int fnat_bench_cps(struct fnat_worker *worker, double seconds, struct fnat_bench_result *out);
/* n picks of a service's scheduler by one worker, for clients of random addresses and ports, without packets. Each of the last `held` picks stays
 * a connection until a random later one takes its place. picked, holds: by place of the member; ns: of the picks and of
 * drawing clients and ends. -ENOENT no such service in the newest snapshot, -ENOMEM. */
int fnat_bench_picks(struct fnat_worker *worker, uint32_t service, uint64_t n, uint32_t held, uint64_t seed, uint64_t *picked,
                     uint64_t *holds, uint64_t *ns);

/* ---- measuring from outside: load over real queues, and a forwarder that does nothing else (traffic.c) ---- */

enum { FNAT_TRAFFIC_SLOTS = 8192, FNAT_TRAFFIC_SLOT_NS = 500 };

struct fnat_traffic;
/* Addresses in host order. Flow i: CIP cip + i / 50000, port 10000 + i % 50000, to vip:vport + i % services. At the server side a packet
 * comes from one of from_first..from_last and goes to one of to_first..to_last. */
struct fnat_traffic_spec {
    uint32_t cip, vip, from_first, from_last, to_first, to_last;
    uint32_t flows, services, window; /* window: most packets under way */
    uint16_t vport;
    uint8_t client_mac[6], gateway_mac[6];
};
struct fnat_traffic_result {
    uint64_t ns, sent, unsent, returned,
        in_time; /* unsent: no room in the send ring; returned: distinct ones; in_time: before ns had passed */
    uint64_t duplicates, wrong, arrived, checked; /* checked: arrived ones whose checksums were verified */
    uint64_t reflected;                           /* packets that the server side saw, all of them checked */
    uint64_t latency[FNAT_TRAFFIC_SLOTS];         /* returned packets by round-trip time, the last slot takes all beyond */
};
/* server may be NULL: somebody else reflects. The queues stay the caller's. */
int fnat_traffic_open(struct frame_pool *pool, struct io_queue *client, struct io_queue *server, const struct fnat_traffic_spec *spec,
                      struct fnat_traffic **out);
void fnat_traffic_close(struct fnat_traffic *traffic);
uint32_t fnat_traffic_step(struct fnat_traffic *traffic, uint64_t now_ns); /* one turn; packets moved */
/* Send packets of every flow until each has come back once; -ETIMEDOUT when some have not within the time. */
int fnat_traffic_open_flows(struct fnat_traffic *traffic, double seconds, volatile int *stop);
/* Random flows at `rate` packets a second, 0: as fast as the window lets. */
void fnat_traffic_run(struct fnat_traffic *traffic, double seconds, double rate, volatile int *stop);
void fnat_traffic_result_get(const struct fnat_traffic *traffic,
                             struct fnat_traffic_result *out); /* since the last open_flows or run began */

/* The bare forwarder: what comes in at one queue goes out at the other with its MAC addresses swapped. */
uint32_t fnat_relay_step(struct io_queue *a, struct io_queue *b);
void fnat_relay_run(struct io_queue *a, struct io_queue *b, volatile int *stop, uint32_t spin_us);

#endif

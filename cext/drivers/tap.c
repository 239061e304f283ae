/* tap.c: a TAP device as a queue: the way between a worker and the host's own network stack.
 *
 * Rules: the device is born down and stays so until an operator brings it up; IPv6 is told beforehand to accept no router
 * advertisement and to make no address. It is not persistent: it goes with its descriptor. There is no virtio header, so
 * the host hands over whole packets of at most the MTU with complete checksums, and expects the same.
 *
 * Unsatisfying: a system call per packet, both ways. So that a worker with nothing to read makes none in each turn, a
 * read that found nothing is repeated only after SKIP turns, or at once after io_arm.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../fnat.h"
#include "../io.h"

enum { SKIP = 15 };

struct tap_queue {
    struct io_base base;
    u32 skip;     /* turns until the next read */
    u64 no_space; /* frames the host did not take: device down or its queue full */
    u64 no_frame; /* reads not made because the pool was empty */
};

static unsigned tap_rx(struct io_queue *queue, struct packet *pkts, unsigned max)
{
    struct tap_queue *q = (struct tap_queue *)queue;
    struct frame_pool *pool = q->base.pool;
    unsigned n = 0;

    if (q->skip) {
        q->skip--;
        return 0;
    }
    while (n < max) {
        u32 frame = frame_alloc(pool);
        if (frame == FRAME_NONE) {
            q->no_frame++;
            break;
        }
        u8 *data = frame_data(pool, frame);
        ssize_t len = read(q->base.fd, data, FRAME_SIZE - FRAME_HEADROOM);
        if (len <= 0) {
            frame_free(pool, frame);
            q->skip = n ? 0 : SKIP;
            break;
        }
        pkts[n].data = data;
        pkts[n].frame = frame;
        pkts[n].len = (u16)len;
        n++;
    }
    return n;
}

static unsigned tap_tx(struct io_queue *queue, struct packet *pkts, unsigned n)
{
    struct tap_queue *q = (struct tap_queue *)queue;
    unsigned sent = 0;

    for (unsigned i = 0; i < n; i++) {
        if (write(q->base.fd, pkts[i].data, pkts[i].len) == (ssize_t)pkts[i].len)
            sent++;
        frame_free(q->base.pool, pkts[i].frame);
    }
    q->no_space += n - sent;
    return sent;
}

static void tap_stats(struct io_queue *queue, struct io_stats *out)
{
    const struct tap_queue *q = (const struct tap_queue *)queue;

    *out = (struct io_stats){.rx_no_frame = q->no_frame, .tx_no_space = q->no_space};
}

static void tap_arm(struct io_queue *queue) { ((struct tap_queue *)queue)->skip = 0; }

static void tap_close(struct io_queue *queue)
{
    struct tap_queue *q = (struct tap_queue *)queue;

    close(q->base.fd);
    free(q);
}

static const struct io_driver tap_driver = {
    .name = "tap",
    .rx = tap_rx,
    .tx = tap_tx,
    .stats = tap_stats,
    .arm = tap_arm,
    .close = tap_close,
};

/* Write one of the device's IPv6 settings. A kernel without IPv6, or an MTU below IPv6's 1280, has none to write. */
static int set_ipv6(const char *name, const char *setting, const char *value)
{
    char path[128];
    int fd, rc = 0;

    snprintf(path, sizeof(path), "/proc/sys/net/ipv6/conf/%s/%s", name, setting);
    fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? 0 : -errno;
    if (write(fd, value, strlen(value)) < 0)
        rc = -errno;
    close(fd);
    return rc;
}

static int set_link(const char *name, const u8 *mac, u32 mtu)
{
    struct ifreq ifr = {0};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), rc = 0;

    if (fd < 0)
        return -errno;
    memcpy(ifr.ifr_name, name, strlen(name));
    ifr.ifr_hwaddr.sa_family = ARPHRD_ETHER;
    memcpy(ifr.ifr_hwaddr.sa_data, mac, 6);
    if (ioctl(fd, SIOCSIFHWADDR, &ifr) < 0)
        rc = -errno;
    ifr.ifr_mtu = (int)mtu;
    if (!rc && ioctl(fd, SIOCSIFMTU, &ifr) < 0)
        rc = -errno;
    close(fd);
    return rc;
}

/* -EINVAL name or MTU, or the name belongs to a device that is no TAP; -EADDRNOTAVAIL a group's MAC; -EBUSY the TAP is in
 * use; -EPERM no CAP_NET_ADMIN; -ENOENT no /dev/net/tun. */
int fnat_tap_open(struct frame_pool *pool, const char *name, const uint8_t *mac, uint32_t mtu, struct io_queue **out)
{
    struct ifreq ifr = {.ifr_flags = IFF_TAP | IFF_NO_PI};
    size_t len = strlen(name);
    int fd, rc;

    if (!len || len >= IFNAMSIZ || mtu > FRAME_SIZE - FRAME_HEADROOM - 18)
        return -EINVAL;
    memcpy(ifr.ifr_name, name, len);
    struct tap_queue *q = calloc(1, sizeof(*q));
    if (!q)
        return -ENOMEM;
    fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) {
        rc = -errno;
        goto no_device;
    }
    rc = ioctl(fd, TUNSETIFF, &ifr) < 0 ? -errno : 0;
    if (!rc)
        rc = set_ipv6(name, "accept_ra", "0");
    if (!rc)
        rc = set_ipv6(name, "autoconf", "0");
    if (!rc)
        rc = set_ipv6(name, "addr_gen_mode", "1"); /* no link-local address either */
    if (!rc)
        rc = set_link(name, mac, mtu);
    if (rc)
        goto not_set;
    q->base = (struct io_base){.driver = &tap_driver, .pool = pool, .fd = fd};
    *out = (struct io_queue *)q;
    return 0;
not_set:
    close(fd);
no_device:
    free(q);
    return rc;
}

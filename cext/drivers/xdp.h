/* xdp.h: open one AF_XDP socket as a queue of io.h. */
#ifndef FNAT_DRIVERS_XDP_H
#define FNAT_DRIVERS_XDP_H

#include "../io.h"

struct xdp_params {
    struct frame_pool *pool; /* frames come from here and go back here; its whole area is registered with the socket */
    int ifindex;
    u32 queue; /* receive queue of the device */
    u32 ring;  /* descriptors of each of the four rings, a power of two */
    u32 fill;  /* most frames lent to the device for receiving, at most `ring` */
    bool copy; /* never zero-copy; a must when the XDP program runs in generic mode */
};

/* 0 or -errno: -EBUSY another socket has this queue, -EPERM no CAP_NET_RAW, -EINVAL a parameter or no such queue,
 * -ENODEV no such device, -ENOMEM, -EAFNOSUPPORT the kernel has no AF_XDP. On success *out is closed by io_close. */
int xdp_queue_open(const struct xdp_params *params, struct io_queue **out);
bool xdp_queue_zero_copy(const struct io_queue *queue);
/* Does any AF_XDP socket, of whatever process, have this queue? 1, 0 or -errno. */
int xdp_queue_busy(int ifindex, u32 queue);

#endif

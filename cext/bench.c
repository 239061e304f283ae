#include "worker.h"
#include <errno.h>
int fnat_bench_nat(struct fnat_worker *w, uint8_t proto, uint32_t conns, double seconds, struct fnat_bench_result *out)
{
    (void)w, (void)proto, (void)conns, (void)seconds, (void)out;
    return -ENOSYS;
}
int fnat_bench_cps(struct fnat_worker *w, double seconds, struct fnat_bench_result *out)
{
    (void)w, (void)seconds, (void)out;
    return -ENOSYS;
}

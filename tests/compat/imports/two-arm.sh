#!/bin/sh
# two arms
set -e
./bin/dpvs &
/usr/sbin/dpip addr add 10.0.0.100/32 dev dpdk1
dpip addr add 192.168.100.1/24 dev dpdk0 sapool
dpip route add default via 10.0.0.1 dev dpdk1
./ipvsadm -A -t 10.0.0.100:80 -s rr \
    -j enable
ipvsadm -a -t 10.0.0.100:80 -r 192.168.100.2 -b
sudo ipvsadm -a -t 10.0.0.100:80 -r 192.168.100.3 -b -w 0
ipvsadm --add-laddr -z 192.168.100.200 -t 10.0.0.100:80 -F dpdk0
ipvsadm -ln
dpip vlan add dpdk0.100 link dpdk0 id 100

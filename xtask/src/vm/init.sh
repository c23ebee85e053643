#!/bin/busybox sh
# First process of the virtual machine: takes the host's root, read-only,
# under a layer of memory, runs /job/command in it as root and reports its
# exit code. $KERNEL and $WRITABLE come from /job/settings.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
while read -r module; do insmod "/modules/$module"; done </modules/order
. /job/settings

fail() {
    echo "vm: $*" >/dev/console
    reboot -f
}
port() {
    for folder in /sys/class/virtio-ports/*; do
        read -r name <"$folder/name" && [ "$name" = "$1" ] && echo "/dev/${folder##*/}"
    done
}
tries=0
while [ -z "$(port code)" ]; do
    tries=$((tries + 1))
    [ $tries -lt 100 ] || fail "no serial ports"
    sleep 0.05
done

mount -t virtiofs host /host || fail "the host's files can't be mounted"
mount -t tmpfs -o size=75% none /layer
mkdir /layer/upper /layer/work
mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work none /root ||
    fail "no overlay over the host's files"
mount -t proc none /root/proc
mount -t sysfs none /root/sys
mount -t devtmpfs none /root/dev
mkdir -p /root/dev/pts /root/dev/shm
mount -t devpts none /root/dev/pts
mount -t tmpfs none /root/dev/shm
mount -t tmpfs none /root/run
for pair in fd:fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do
    [ -e "/root/dev/${pair%%:*}" ] || ln -s "/proc/self/${pair#*:}" "/root/dev/${pair%%:*}"
done
mount -t cgroup2 none /root/sys/fs/cgroup
mount -t bpf none /root/sys/fs/bpf
mount -t tracefs none /root/sys/kernel/tracing
mount -t securityfs none /root/sys/kernel/security
mkdir -p /root/lib/modules
mount --bind "/host$KERNEL/lib/modules" /root/lib/modules
for folder in $WRITABLE; do
    mount --bind "/host$folder" "/root$folder" || fail "$folder can't be made writable"
done
hostname vm
ip link set lo up
# The daemon that serves the host's files holds a descriptor for each inode known here.
(while sleep 1; do
    read -r inodes free </proc/sys/fs/inode-nr
    [ "$inodes" -lt 10000 ] || echo 2 >/proc/sys/vm/drop_caches
done) &

mkdir /root/run/vm
cp /job/command /root/run/vm/command
chroot /root /bin/sh /run/vm/command </dev/null >"$(port output)" 2>"$(port errors)"
code=$?
sync
echo $code >"$(port code)"
reboot -f

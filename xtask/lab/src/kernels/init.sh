#!/bin/busybox sh
# Process 1 of a kernel that is tried. It runs the tests of /tests, or all but those of /left-out,
# one process each, and tells by lines that begin with `@@` what came of them. What a test that failed said begins with `@|`.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
busybox mkdir -p /proc /sys /dev /run /tmp
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
busybox --install -s /bin 2>/dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
# Only the end of the kernel itself may come between our lines.
dmesg -n 1
ip link set lo up

tell() { printf '\n@@ %s\n' "$*"; }
hundredths() { cut -d' ' -f1 /proc/uptime | tr -d .; }

tell "kernel $(uname -r)"
for module in $(cat /modules); do
    modprobe "$module" || tell "module $module"
done

. /where
# Waiting that is bounded to see a fault early is bounded later here.
export SOCKLB_TEST_PATIENCE=6 RUST_BACKTRACE=1
cd "$CARGO_MANIFEST_DIR" || tell "lost $CARGO_MANIFEST_DIR"
[ -e /tests ] || "$TEST" --list --format terse | sed -n 's/: test$//p' | grep -v -f /left-out >/tests
[ -e /left-out ] && while read -r name; do tell "found $name"; done </tests
limit=$(cat /limit)
while read -r name; do
    begun=$(hundredths)
    timeout -s KILL "$limit" "$TEST" --exact "$name" --nocapture --test-threads=1 \
        >/tmp/said 2>&1 </dev/null
    code=$?
    took=$(($(hundredths) - begun))
    grep '^program ' /tmp/said | while read -r line; do tell "$line"; done
    if [ "$code" = 0 ] && grep -q '^test result: ok. 1 passed' /tmp/said; then
        tell "passed $took $name"
    else
        tail -n 60 /tmp/said | sed 's/^/@| /'
        case $code in
        0) tell "absent $took $name" ;;
        137 | 143) tell "late $took $name" ;;
        *) tell "failed $took $name" ;;
        esac
    fi
done </tests

dmesg -r | grep -E '^<[0-4]>.*(BUG|WARNING|Oops|INFO: |Call Trace)' | head -n 20 |
    while read -r line; do tell "complaint $line"; done
tell "taint $(cat /proc/sys/kernel/tainted)"
tell "end"
sync
reboot -f

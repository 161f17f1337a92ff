# Boots this machine's systemd as PID 1 of a box of its own, and takes the box
# down again when standard input ends. `machine.rs` holds the other end of
# that pipe, so the box cannot outlive the test process, however it dies.
#
# usage: machine.sh outside CGROUP SCRIPT | machine.sh inside
#
# It is run from an argument and not from a file (SCRIPT is this text again), so
# that it is readable wherever the box hides the folder it came from.
set -eu

outside() {
    cgroup=$1
    script=$2

    # This shell has a mount namespace of its own: what it mounts nobody else
    # sees. The box gets a cgroup below the root of the unified hierarchy, for
    # its systemd would otherwise sort its units among the machine's own.
    hierarchy=$(mktemp -d)
    mount -t cgroup2 cgroup2 "$hierarchy"
    mkdir "$hierarchy/$cgroup"

    (
        echo 0 > "$hierarchy/$cgroup/cgroup.procs"
        exec setpriv --pdeathsig KILL \
            unshare --fork --kill-child=KILL --pid --mount --net --cgroup \
                --uts --ipc --mount-proc sh -c "$script" machine.sh inside \
            < /dev/null > /dev/null
    ) &
    unshare=$!
    echo "$unshare"

    read -r _ || true

    # One write ends every process of the box at once. `unshare` is taken out
    # first: it reaps the box's PID 1, and with that the box is gone.
    echo "$unshare" > "$hierarchy/cgroup.procs" 2> /dev/null || true
    echo 1 > "$hierarchy/$cgroup/cgroup.kill" 2> /dev/null || kill -KILL "$unshare" || true
    wait "$unshare" 2> /dev/null || true
    tries=0
    until find "$hierarchy/$cgroup" -depth -type d -exec rmdir {} + 2> /dev/null; do
        tries=$((tries + 1))
        [ "$tries" -lt 100 ] || break
        sleep 0.05
    done
    umount "$hierarchy"
    rmdir "$hierarchy"
}

inside() {
    mount --make-rprivate /

    # Everything the box writes goes to memory and is gone with it.
    scratch=/run
    mount -t tmpfs -o mode=755 tmpfs "$scratch"
    for folder in /etc /usr /var /srv /opt; do
        [ -d "$folder" ] || continue
        mkdir -p "$scratch/scratch$folder/upper" "$scratch/scratch$folder/work"
        mount -t overlay -o \
            "lowerdir=$folder,upperdir=$scratch/scratch$folder/upper,workdir=$scratch/scratch$folder/work" \
            overlay "$folder"
    done
    # The overlays hold the tmpfs they write to; a second one on top gives
    # systemd an empty /run.
    mount -t tmpfs -o mode=755 tmpfs /run
    mount -t tmpfs -o mode=1777 tmpfs /tmp

    # Devices of its own: journald puts its /dev/log there, systemd its
    # messages on /dev/console.
    mkdir /run/dev
    mount -t tmpfs -o mode=755 tmpfs /run/dev
    for device in null zero full random urandom tty; do
        touch "/run/dev/$device"
        mount --bind "/dev/$device" "/run/dev/$device"
    done
    touch /run/dev/console
    mount --bind /dev/null /run/dev/console
    mkdir /run/dev/pts /run/dev/shm
    mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts /run/dev/pts
    mount -t tmpfs -o mode=1777 tmpfs /run/dev/shm
    ln -s pts/ptmx /run/dev/ptmx
    ln -s /proc/self/fd /run/dev/fd
    mount --move /run/dev /dev
    rmdir /run/dev

    # The network's own settings belong to the box; all others are the
    # machine's and stay as they are.
    mount -t sysfs -o ro sysfs /sys
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mount --bind /proc/sys /proc/sys
    mount --bind /proc/sys/net /proc/sys/net
    mount -o remount,bind,ro /proc/sys
    ip link set lo up

    # Between the box's own processes mounts spread, as systemd has it where it is not in a
    # container: a service's credentials are mounted by another process than the service.
    mount --make-rshared /

    # An id of its own, or journald would write to the machine's journal.
    tr -d - < /proc/sys/kernel/random/uuid > /run/machine-id
    cat /run/machine-id > /etc/machine-id
    rm -f /run/machine-id
    hostname box
    echo box > /etc/hostname

    # Memory only, and everything at once: a test reads the journal right
    # after the event it waits for.
    mkdir -p /etc/systemd/journald.conf.d
    printf '[Journal]\nStorage=volatile\nForwardToSyslog=no\n' \
        > /etc/systemd/journald.conf.d/box.conf

    # Units that manage hardware, terminals, the real disk or the kernel's settings
    # have no place here. Nor has D-Bus, which not every machine has: root's
    # `systemctl` speaks with PID 1 directly.
    rm -rf /etc/systemd/system/*.target.wants /etc/systemd/system/*.target.requires
    rm -f /etc/fstab
    for unit in systemd-udevd.service systemd-udevd-control.socket \
        systemd-udevd-kernel.socket systemd-udev-trigger.service \
        systemd-udev-settle.service systemd-sysctl.service \
        systemd-modules-load.service systemd-random-seed.service \
        systemd-remount-fs.service systemd-update-utmp.service \
        systemd-binfmt.service systemd-firstboot.service \
        systemd-hwdb-update.service systemd-sysusers.service \
        systemd-tmpfiles-setup-dev.service systemd-journal-flush.service \
        systemd-pstore.service systemd-machine-id-commit.service \
        proc-sys-fs-binfmt_misc.automount dev-hugepages.mount \
        dev-mqueue.mount sys-kernel-config.mount sys-kernel-debug.mount \
        sys-kernel-tracing.mount sys-fs-fuse-connections.mount \
        systemd-initctl.socket systemd-journald-audit.socket getty.target \
        dbus.socket dbus.service; do
        ln -sf /dev/null "/etc/systemd/system/$unit"
    done

    exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        LANG=C.UTF-8 container=steadfast-box \
        /lib/systemd/systemd --system --unit=basic.target --show-status=0 \
        --log-target=journal
}

command=$1
shift
"$command" "$@"

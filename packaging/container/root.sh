#!/bin/sh
# Lays out the root of the image: the program, the libraries that it is linked with, a config, and empty folders.
#
# usage: root.sh BINARY CONFIG FOLDER
set -eu
binary=$1
config=$2
root=$3

install -D -m 0755 "$binary" "$root/usr/bin/steadfast"
install -D -m 0644 "$config" "$root/etc/steadfast/config.toml"

# Each has its path in what ldd(1) prints. Of a static program it finds none.
ldd "$binary" | grep -o '/[^ ]*' | while read -r library; do
    install -D -m 0755 "$library" "$root$library"
done

# Names of upstreams: first /etc/hosts, which the runtime writes, then its /etc/resolv.conf.
echo 'hosts: files dns' > "$root/etc/nsswitch.conf"
chmod 0644 "$root/etc/nsswitch.conf"

# What is served; and where the runtime mounts its own.
install -d -m 0755 "$root/srv/www" "$root/dev" "$root/proc" "$root/sys"
# The control socket's folder, for whatever user the container runs as.
install -d -m 1777 "$root/run/steadfast"

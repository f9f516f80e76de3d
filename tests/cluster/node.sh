#!/bin/bash
# Usage: node.sh NAME LAB - the first process of a machine of the lab.
# It runs in its own PID, mount, network, UTS and IPC namespaces; what it hides or mounts here
# nobody else sees, and everything that it started dies with it.
set -euo pipefail
name=$1 lab=$2 own=$2/$1

mount --make-rprivate /
hostname "$name"
rm -rf "$own/run"  # of before a crash
mkdir -p "$own/ray" "$own/run"
[ -d "$own/home" ] || cp -r /etc/skel "$own/home"
mkdir -p "$own/home/.config/pip"
cp "$lab/pip.conf" "$own/home/.config/pip/"

# A fresh home for root, and nobody else's Ray: `ray stop` and /tmp/ray must not reach the host's.
sed 's|^\(root:.*\):/root:|\1:/srv:|' /etc/passwd > "$own/passwd"
mount --bind "$own/passwd" /etc/passwd
mount --bind "$lab/hosts" /etc/hosts
mount --bind "$own/home" /srv
mount --bind "$own/ray" /tmp/ray
mount --bind "$own/run" /run
mount -t tmpfs -o size=1g tmpfs /dev/shm
mount --bind "$lab/storage" /mnt/ssdet  # stands for the file system that cluster.yaml mounts

mkdir -p /run/sshd
touch "$own/ready"
exec /usr/sbin/sshd -D -e -f "$lab/sshd_config"

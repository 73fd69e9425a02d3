# A hook of mmdebstrap: $1 is the root filesystem with all packages and our files in it, still mounted upon.
# It adds the user that jobs run as, drops what must not be shared by machines, and writes the image and the list
# of packages to $1/.tgr, from where mmdebstrap hands them over, or to the folder $TGR_OUT if that is set.
set -eu
root="$1"
chroot "$root" groupadd --gid 1001 runner
chroot "$root" useradd --uid 1001 --gid 1001 --create-home --shell /bin/bash runner
for dir in /home/runner/work /opt/hostedtoolcache; do
	chroot "$root" install -d -o runner -g runner -m 0755 "$dir"
done
for file in "$root"/opt/node*/lib/node_modules/npm/bin/*-cli.js; do chmod 0755 "$file"; done

: > "$root/etc/machine-id"
rm -f "$root"/etc/ssh/ssh_host_* "$root"/var/lib/systemd/random-seed "$root"/etc/resolv.conf
rm -rf "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* \
	"$root"/var/cache/debconf/*-old "$root"/var/lib/dpkg/*-old "$root"/var/log/*
rm -f "$root"/tmp/mmdebstrap.apt.conf.*
mkdir -p "$root/var/lib/apt/lists/partial" "$root/var/log/apt"
: > "$root/etc/resolv.conf"

# What mmdebstrap mounted for its own use must not be copied: a plain bind mount shows what lies below.
view="$root.view"
mkdir "$view"
mount --bind "$root" "$view"
trap 'umount "$view" && rmdir "$view"' EXIT
kib=$(du -sk --one-file-system "$view" | cut -f1)
image="$root.ext4"
mkfs.ext4 -q -F -L tgr-root -m 0 -O ^has_journal,^resize_inode -E lazy_itable_init=0,nodiscard \
	-d "$view" "$image" "$((kib + kib / 12 + 16384))k"
out="${TGR_OUT:-$root/.tgr}"
mkdir -p "$out"
mv "$image" "$out/root.ext4"
chroot "$root" dpkg-query -W -f '${Package}\t${Version}\n' > "$out/packages"

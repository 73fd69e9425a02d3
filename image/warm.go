package image

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
)

// Warmup is a script for the image's bash, as root, that runs what jobs run first: what it has read is in the
// memory of the machine, and of every clone of that machine. It leaves nothing behind.
const Warmup = `set -eu
export HOME=/root PYTHONDONTWRITEBYTECODE=1
dir=$(mktemp -d)
cd "$dir"
sh -c true
bash --noprofile --norc -ec 'cat <(echo) | sed -n p >/dev/null'
git init -q . && git status --short >/dev/null
python3 -c 'import json, os, re, subprocess, sys, unittest'
for node in /opt/node*/bin/node; do [ ! -x "$node" ] || "$node" -e 0; done
sudo -n -u runner true
mkdir a && touch a/b && tar -cf c a && tar -xf c && ls -la >/dev/null && sed -n p a/b && env >/dev/null
cd / && rm -rf "$dir"
: > /etc/machine-id
sync
`

// Hash identifies the contents of the image's kernel, initramfs (which holds the agent) and root filesystem.
func (im *Image) Hash() string {
	h := sha256.New()
	for _, f := range im.Manifest.files() {
		fmt.Fprintf(h, "%d %s\n", f.Size, f.SHA256)
	}
	return hex.EncodeToString(h.Sum(nil))
}

package image

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
)

// Warmup is a script for the image's /bin/sh, as root, that runs what jobs run first: what it has read is in the memory of
// the machine, and of every clone of that machine. It leaves nothing behind.
func (im *Image) Warmup() string {
	root := im.Manifest.Root
	switch {
	case root.From != "": // there is no telling what it has
		return ": > /etc/machine-id\nsync\n"
	case slices.ContainsFunc(root.Packages, func(p Package) bool { return p.Name == "podman" }):
		return engineWarmup + debianWarmup
	}
	return debianWarmup
}

// engineWarmup reads the engine's programs. Nothing of its store may be made: it would be the same in all machines.
const engineWarmup = `for p in podman crun conmon /usr/lib/podman/netavark /usr/lib/podman/aardvark-dns; do "$p" --version >/dev/null 2>&1 || true; done
`

const debianWarmup = `set -eu
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
# Last, what every job runs: a machine with little memory has forgotten it by now.
git --version >/dev/null
sh -c true
bash --noprofile --norc -c true
`

// Hash identifies the contents of the image's kernel, initramfs (which holds the agent) and root filesystem.
func (im *Image) Hash() string {
	h := sha256.New()
	for _, f := range im.Manifest.files() {
		fmt.Fprintf(h, "%d %s\n", f.Size, f.SHA256)
	}
	return hex.EncodeToString(h.Sum(nil))
}

package qemu

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/terraphim/tgr/vm"
)

// fakeQEMU is a program that only says its version.
func fakeQEMU(t *testing.T, version string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "qemu")
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho QEMU emulator version "+version+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestGoldenKey changes each part that a snapshot depends on: another part, another snapshot.
func TestGoldenKey(t *testing.T) {
	binary := fakeQEMU(t, "7.2.0")
	type host struct {
		cfg  Config
		args args
		spec vm.Spec
	}
	base := func() host {
		overlay := func(context.Context, string, int64) error { return nil }
		im := Image{Kernel: "/i/vmlinux", Initrd: "/i/initramfs", Root: "/i/root", Overlay: overlay, Hash: "image"}
		return host{
			cfg:  Config{Image: im, Journal: vm.Journal{Dir: t.TempDir()}, Binary: binary, Warmup: Warmup{ID: "warm", Run: nil}},
			args: args{ID: "job", Image: im, Overlay: overlayFile, VCPUs: 1, Memory: 256 << 20, Listen: true, TSC: 2_000_000},
			spec: vm.Spec{ID: "job", Disk: 1 << 30},
		}
	}
	key := func(h host) string {
		t.Helper()
		p, err := New(h.cfg)
		if err != nil {
			t.Fatal(err)
		}
		k, err := p.goldenKeyOf(t.Context(), h.args, h.spec)
		if err != nil {
			t.Fatal(err)
		}
		return k.hash()
	}
	want := key(base())
	other := fakeQEMU(t, "7.2.1")
	for name, change := range map[string]func(*host){
		"image, with kernel and agent": func(h *host) { h.cfg.Image.Hash = "another" },
		"VMM version":                  func(h *host) { h.cfg.Binary = other },
		"accelerator and CPU model":    func(h *host) { h.args.KVM = true },
		"memory":                       func(h *host) { h.args.Memory *= 2 },
		"vCPUs":                        func(h *host) { h.args.VCPUs = 2 },
		"disk":                         func(h *host) { h.spec.Disk *= 2 },
		"devices":                      func(h *host) { h.args.Network = "user" },
		"kernel's command line":        func(h *host) { h.args.Append = []string{"quiet"} },
		"rate of the clock":            func(h *host) { h.args.TSC++ },
		"warm-up":                      func(h *host) { h.cfg.Warmup.ID = "hot" },
	} {
		h := base()
		change(&h)
		if got := key(h); got == want {
			t.Errorf("another %s has the same snapshot", name)
		}
	}
	for name, same := range map[string]func(*host){
		"id":      func(h *host) { h.args.ID, h.spec.ID = "job-2", "job-2" },
		"backing": func(h *host) { h.args.Backing, h.args.Incoming = private, true },
		"journal": func(h *host) { h.cfg.Journal.Dir = t.TempDir() },
	} {
		h := base()
		same(&h)
		if got := key(h); got != want {
			t.Errorf("another %s has another snapshot", name)
		}
	}
	k := goldenKey{CPU: "a"}
	if k.hash() == (goldenKey{CPU: "b"}).hash() || k.hash() == (goldenKey{CPU: "a", Format: 1}).hash() {
		t.Error("another CPU, or another format, has the same snapshot")
	}
	// The same version in another file is another build.
	later := time.Now().Add(time.Hour)
	if err := os.Chtimes(binary, later, later); err != nil {
		t.Fatal(err)
	}
	if got := key(base()); got == want {
		t.Error("another build of QEMU has the same snapshot")
	}
}

package qemu_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/image"
	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/qemu"
)

// garbage is a file that is nothing in particular.
func garbage(t *testing.T, size int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "garbage")
	if err := os.WriteFile(path, bytes.Repeat([]byte("garbage!"), size/8), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestStartFails has every way not to come up: each ends within a bounded time, says why, and leaves nothing.
func TestStartFails(t *testing.T) {
	enough := errors.New("enough")
	for name, tc := range map[string]struct {
		change  func(cfg *qemu.Config)
		infra   bool
		want    string // in the error
		console string // in the console
		cause   error
	}{
		"no init": {
			change:  func(cfg *qemu.Config) { cfg.Image.Initrd = garbage(t, 4096) },
			want:    "panicked",
			console: "Kernel panic",
		},
		"root is no file system": {
			change:  func(cfg *qemu.Config) { cfg.Image.Root = garbage(t, 4<<20) },
			want:    "powered off before its agent was ready",
			console: "boot failed: mount /dev/vda (ext4) on /lower",
		},
		"kernel is no kernel": {
			change: func(cfg *qemu.Config) { cfg.Image.Kernel = garbage(t, 4096) },
			infra:  true, want: "exit status 1",
		},
		"no agent in time": {
			change: func(cfg *qemu.Config) { cfg.BootTimeout = 50 * time.Millisecond },
			want:   "did not open the port within 50ms",
		},
		"no image": {
			change: func(cfg *qemu.Config) { cfg.Image.Root = "/nonexistent/root.ext4" },
			infra:  true, want: "tgr image build", cause: os.ErrNotExist,
		},
		"no QEMU": {
			change: func(cfg *qemu.Config) { cfg.Binary = "/nonexistent/qemu" },
			infra:  true, want: "install the Debian package qemu-system-x86", cause: os.ErrNotExist,
		},
		"not QEMU": {
			change: func(cfg *qemu.Config) { cfg.Binary = "/bin/true" },
			infra:  true, want: "ended",
		},
		"no room for the disk": {
			change: func(cfg *qemu.Config) {
				cfg.Image.Overlay = func(context.Context, string, int64) error { return unix.ENOSPC }
			},
			infra: true, want: "overlay disk", cause: unix.ENOSPC,
		},
		"no journal": {
			change: func(cfg *qemu.Config) { cfg.Journal.Dir = "/proc/nonexistent" },
			infra:  true, want: "journal",
		},
		"cancelled": {
			change: func(cfg *qemu.Config) {
				overlay := cfg.Image.Overlay
				cfg.Image.Overlay = func(ctx context.Context, path string, size int64) error {
					defer ctx.Value(cancelKey{}).(context.CancelCauseFunc)(enough)
					return overlay(ctx, path, size)
				}
			},
			cause: enough,
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(t)
			cfg.Accel = qemu.TCG
			tc.change(&cfg)
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			begin := time.Now()
			m, err := provider(t, cfg).Start(context.WithValue(ctx, cancelKey{}, cancel), vm.Spec{ID: "fails"})
			if err == nil {
				m.Close()
				t.Fatal("it started")
			}
			if took := time.Since(begin); took > time.Minute {
				t.Errorf("it took %v", took)
			}
			var boot *vm.BootError
			var infra *vm.InfraError
			if errors.As(err, &infra) != tc.infra || errors.As(err, &boot) == tc.infra {
				t.Errorf("%v: of the wrong kind", err)
			}
			if !strings.Contains(err.Error(), tc.want) || tc.cause != nil && !errors.Is(err, tc.cause) {
				t.Errorf("got %s, want %q (%v)", withConsole(err), tc.want, tc.cause)
			}
			if tc.console != "" && (boot == nil || !strings.Contains(boot.Console, tc.console)) {
				t.Errorf("got %s, want %q on the console", withConsole(err), tc.console)
			}
			nothingLeft(t, cfg.Journal)
		})
	}
}

type cancelKey struct{}

func TestSameIDTwice(t *testing.T) {
	p := provider(t, config(t))
	m, c := start(t, p, "twin")
	if _, err := p.Start(t.Context(), vm.Spec{ID: "twin"}); !errors.Is(err, vm.ErrMachineExists) {
		t.Errorf("got %v, want ErrMachineExists", err)
	}
	run(t, c, "true")
	m.Close()
	if _, err := p.Start(t.Context(), vm.Spec{ID: "../evil"}); err == nil {
		t.Error("an id that is a path was accepted")
	}
}

// TestFloodingAgent boots an agent that writes garbage for ever: the host notices and is free of it.
func TestFloodingAgent(t *testing.T) {
	cfg := config(t)
	agent, err := goBuild(t.TempDir(), "github.com/terraphim/tgr/vm/qemu/testdata/flood")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Image.Initrd = initrdWith(t, agent)
	m, err := provider(t, cfg).Start(t.Context(), vm.Spec{ID: "flood"})
	if err != nil {
		t.Fatal(withConsole(err))
	}
	defer m.Close()
	conn, err := m.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := guest.Connect(ctx, conn); err == nil {
		t.Error("the host understood garbage")
	} else if ctx.Err() != nil {
		t.Errorf("the host listened for a minute: %v", err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	nothingLeft(t, cfg.Journal)
}

// initrdWith is an initramfs with another agent, made in a store of its own.
func initrdWith(t *testing.T, agent string) string {
	t.Helper()
	im, err := built()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "initramfs")
	b := image.BuildConfig{Agent: agent}
	if err := b.WriteInitramfs(path, im.Release); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestHostDiskFull fills the host's file system from inside: the machine ends as our fault, not as the guest's.
func TestHostDiskFull(t *testing.T) {
	cfg := config(t)
	if os.Geteuid() != 0 {
		t.Skip("mounts a small file system, which root may")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=48m"); err != nil {
		t.Skipf("may not mount: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	cfg.Journal.Dir = filepath.Join(dir, "machines")
	m, c := start(t, provider(t, cfg), "full")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	go c.Exec(ctx, guest.Cmd{Args: []string{"dd", "if=/dev/zero", "of=/var/tmp/big", "bs=1M", "count=200", "oflag=direct"}, Env: env()}, &bytes.Buffer{})
	var infra *vm.InfraError
	if err := m.Wait(ctx); !errors.As(err, &infra) || !strings.Contains(err.Error(), "No space left") {
		t.Errorf("Wait: %v, want an InfraError that says that the disk is full", err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	nothingLeft(t, cfg.Journal)
}

func TestNewErrors(t *testing.T) {
	good := qemu.Config{
		Image:   qemu.Image{Kernel: "k", Initrd: "i", Root: "r", Overlay: func(context.Context, string, int64) error { return nil }},
		Journal: vm.Journal{Dir: "/x"},
	}
	if _, err := qemu.New(good); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(c *qemu.Config){
		"image":   func(c *qemu.Config) { c.Image.Kernel = "" },
		"journal": func(c *qemu.Config) { c.Journal.Dir = "" },
		"accel":   func(c *qemu.Config) { c.Accel = "xen" },
		"network": func(c *qemu.Config) { c.Network = "bridge" },
	} {
		cfg := good
		change(&cfg)
		if _, err := qemu.New(cfg); err == nil || !strings.Contains(strings.ToLower(err.Error()), name[:4]) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// TestVerdict keeps what was found for this boot and this QEMU, and asks anew for any other.
func TestVerdict(t *testing.T) {
	cfg := config(t)
	cfg.CacheDir = t.TempDir()
	v, err := provider(t, cfg).Accelerator(t.Context())
	if err != nil || v.Reason == "" {
		t.Fatalf("%+v, %v", v, err)
	}
	t.Log(v)
	begin := time.Now()
	again, err := provider(t, cfg).Accelerator(t.Context())
	if err != nil || again != v {
		t.Errorf("%+v, %v: want the same again", again, err)
	}
	if _, err := os.Stat("/dev/kvm"); err == nil && time.Since(begin) > 4*time.Second {
		t.Errorf("the second answer took %v", time.Since(begin))
	}
	cfg.Accel = qemu.KVM
	if _, err := provider(t, cfg).Accelerator(t.Context()); (err == nil) != v.KVM {
		t.Errorf("asked for KVM by name: %v", err)
	}
	cfg.Accel = qemu.Auto
	if took, err := provider(t, cfg).Probe(t.Context()); err != nil || took <= 0 {
		t.Errorf("probe: %v, %v", took, err)
	}
}

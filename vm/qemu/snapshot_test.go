package qemu_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/qemu"
	"github.com/terraphim/tgr/vm/vmtest"
)

// exercise has a machine run a script, as its warm-up or before it waits.
func exercise(script string) func(context.Context, vm.VM) error {
	return func(ctx context.Context, m vm.VM) error {
		conn, err := m.Dial(ctx)
		if err != nil {
			return err
		}
		return guest.Exercise(ctx, conn, guest.Cmd{Args: []string{"bash", "-c", script}, Env: env()})
	}
}

// warmUp is exercise before a snapshot.
func warmUp(script string) func(context.Context, vm.VM) error {
	return func(ctx context.Context, m vm.VM) error {
		return guest.WarmUp(ctx, m.Dial, guest.Cmd{Args: []string{"bash", "-c", script}, Env: env()})
	}
}

// records is a log that can be asked what was said.
type records struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (r *records) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.Write(b)
}

func (r *records) count(s string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Count(r.text.String(), s)
}

func (r *records) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.String()
}

// snapshots is where tests keep snapshots from one run to the next.
func snapshots(t testing.TB) string {
	t.Helper()
	dir, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "tgr", "test")
}

// warmConfig is config with snapshots, which are made if need be.
func warmConfig(t testing.TB) (qemu.Config, *records) {
	t.Helper()
	cfg := config(t)
	im, err := built()
	if err != nil {
		t.Fatal(err)
	}
	log := &records{}
	cfg.Image.Hash = im.Hash()
	cfg.CacheDir = snapshots(t)
	cfg.Warmup = qemu.Warmup{ID: im.Warmup(), Run: warmUp(im.Warmup())}
	cfg.Log = slog.New(slog.NewTextHandler(log, nil))
	return cfg, log
}

// warmed is a provider whose machines are restored.
func warmed(t testing.TB, cfg qemu.Config, s vm.Spec) *qemu.Provider {
	t.Helper()
	p := provider(t, cfg)
	if err := p.Warm(t.Context(), s); err != nil {
		t.Fatal(withConsole(err))
	}
	return p
}

// TestRestore restores machines that know what the warm-up knew, each with a disk of its own.
func TestRestore(t *testing.T) {
	cfg, log := warmConfig(t)
	p := warmed(t, cfg, vm.Spec{})
	for i := range 3 {
		m, c := start(t, p, fmt.Sprintf("clone-%d", i))
		if got := run(t, c, "ls -d /tmp/tmp.* /tmp/mine /root/.[^bp]* 2>/dev/null || true; ls -A /home/runner/work; cat /etc/machine-id; echo written > /tmp/mine; cat /tmp/mine"); got != "written" {
			t.Errorf("a clone has %q of the warm-up, or of another clone", got)
		}
		info := m.(vm.Infoer).Info()
		if info.Boot <= 0 || !strings.HasPrefix(info.Isolation, "qemu (") {
			t.Errorf("info: %+v", info)
		}
		if fi, err := os.Stat(fmt.Sprintf("/proc/%d", info.PID)); err != nil || fi.Sys().(*syscall.Stat_t).Uid == 0 {
			t.Errorf("QEMU runs as root: %v", err)
		}
		c.Close()
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
	if log.count("machine restored") != 3 {
		t.Errorf("not all machines were restored:\n%s", log)
	}
	nothingLeft(t, cfg.Journal)
}

// copySnapshots gives a test the snapshots as its own, to be damaged.
func copySnapshots(t *testing.T, cfg *qemu.Config) {
	t.Helper()
	from := cfg.CacheDir
	cfg.CacheDir = t.TempDir()
	if out, err := exec.Command("cp", "-a", from+"/.", cfg.CacheDir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// rewrite changes a file of all snapshots in a folder.
func rewrite(t *testing.T, cfg qemu.Config, name string, change func([]byte) []byte) {
	t.Helper()
	paths, _ := filepath.Glob(filepath.Join(cfg.CacheDir, "snapshots", "*", name))
	if len(paths) == 0 {
		t.Fatalf("no %s in any snapshot", name)
	}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Remove(path), os.WriteFile(path, change(b), 0o400)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDamagedSnapshots: a snapshot that is not what was made is not used, which the log tells; the machine is
// booted. Warm makes it again.
func TestDamagedSnapshots(t *testing.T) {
	whole, _ := warmConfig(t)
	warmed(t, whole, vm.Spec{})
	flip := func(b []byte) []byte { b[len(b)/2] ^= 1; return b }
	for name, damage := range map[string]func(*testing.T, qemu.Config){
		"memory": func(t *testing.T, c qemu.Config) { rewrite(t, c, "memory", flip) },
		// What QEMU itself refuses.
		"state": func(t *testing.T, c qemu.Config) {
			junk := bytes.Repeat([]byte("junk"), 100)
			rewrite(t, c, "state", func([]byte) []byte { return junk })
			rewrite(t, c, "manifest.json", func(b []byte) []byte {
				var m map[string]any
				if err := json.Unmarshal(b, &m); err != nil {
					t.Fatal(err)
				}
				m["files"].(map[string]any)["state"] = map[string]any{"size": len(junk), "sha256": fmt.Sprintf("%x", sha256.Sum256(junk))}
				b, _ = json.Marshal(m)
				return b
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, log := warmConfig(t)
			copySnapshots(t, &cfg)
			damage(t, cfg)
			p := provider(t, cfg)
			m, err := p.Start(t.Context(), vm.Spec{ID: "damaged"})
			if err != nil {
				t.Fatal(withConsole(err))
			}
			m.Close()
			if log.count("machine booted") != 1 || log.count("level=WARN") != 1 {
				t.Errorf("want one machine that was booted, and why:\n%s", log)
			}
			if name != "state" { // the others are refused before QEMU sees them
				return
			}
			if err := p.Warm(t.Context(), vm.Spec{}); err != nil {
				t.Fatal(withConsole(err))
			}
			if m, err = p.Start(t.Context(), vm.Spec{ID: "mended"}); err != nil {
				t.Fatal(withConsole(err))
			}
			m.Close()
			if log.count("machine restored") != 1 {
				t.Errorf("the snapshot was not mended:\n%s", log)
			}
			nothingLeft(t, cfg.Journal)
		})
	}
}

// TestWarmFails: what goes wrong while a snapshot is made leaves nothing, and machines are booted.
func TestWarmFails(t *testing.T) {
	cfg, log := warmConfig(t)
	cfg.CacheDir = t.TempDir()
	cfg.Accel = qemu.TCG
	broken := errors.New("broken")
	cfg.Warmup = qemu.Warmup{ID: "broken", Run: func(context.Context, vm.VM) error { return broken }}
	p := provider(t, cfg)
	if err := p.Warm(t.Context(), vm.Spec{}); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if left, err := filepath.Glob(filepath.Join(cfg.CacheDir, "snapshots", "*")); err != nil || len(left) != 1 {
		t.Errorf("%q are left, %v: want the lock", left, err)
	}
	m, err := p.Start(t.Context(), vm.Spec{ID: "cold"})
	if err != nil {
		t.Fatal(withConsole(err))
	}
	m.Close()
	if log.count("machine booted") != 1 || log.count("level=WARN") != 0 {
		t.Errorf("want a machine that was booted:\n%s", log)
	}
	cfg.Image.Hash = ""
	if err := provider(t, cfg).Warm(t.Context(), vm.Spec{}); err == nil {
		t.Error("a snapshot of an image without a hash")
	}
	nothingLeft(t, cfg.Journal)
}

// TestRestoredConformance runs the suite of all providers on machines that are restored, many of them by an emulator that was
// started ahead.
func TestRestoredConformance(t *testing.T) {
	cfg, log := warmConfig(t)
	cfg.Spare = true
	p := warmed(t, cfg, vm.Spec{})
	vmtest.Run(t, vmtest.Factory{
		Provider: p, Dir: cfg.Journal.Dir, Close: p.Close, Temp: "/var/tmp/vmtest", Crash: "kill -QUIT 1", Memory: true,
		Cycles: cycles(), OutputMB: 64, Within: 4 * time.Minute,
	})
	if log.count("machine booted") != 0 || log.count("level=WARN") != 0 || log.count("machine restored") < cycles() {
		t.Errorf("not all machines were restored:\n%s", log)
	}
}

// TestPool: machines that wait are real ones, and nothing is left of those that nobody took.
func TestPool(t *testing.T) {
	cfg, log := warmConfig(t)
	pool, err := vm.NewPool(vm.PoolConfig{Provider: provider(t, cfg), Budget: 2, Cost: 1, Min: 2, Greet: exercise("true"), Log: cfg.Log})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	for range 2 {
		for pool.Idle() == 0 {
			select {
			case <-ctx.Done():
				t.Fatalf("no machine waits:\n%s", log)
			case <-time.After(10 * time.Millisecond):
			}
		}
		m, err := pool.Start(ctx, vm.Spec{ID: "asked-for"})
		if err != nil {
			t.Fatal(withConsole(err))
		}
		if id := m.(vm.Infoer).Info().ID; !strings.HasPrefix(id, "pool-") {
			t.Errorf("machine %s did not wait", id)
		}
		c := connect(t, m)
		run(t, c, "mkdir /tmp/once")
		c.Close()
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := pool.Close(); err != nil {
		t.Error(err)
	}
	if log.count("machine booted") > 0 {
		t.Errorf("machines were booted:\n%s", log)
	}
	nothingLeft(t, cfg.Journal)
}

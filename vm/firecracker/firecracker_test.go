package firecracker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/network"
	"github.com/terraphim/tgr/vm/network/networktest"
	"github.com/terraphim/tgr/vm/vmtest"
)

// blankImage is one that the stand-in finds, and does not read.
func blankImage(t testing.TB) Image {
	t.Helper()
	dir := t.TempDir()
	im := Image{Kernel: filepath.Join(dir, "vmlinux"), Initrd: filepath.Join(dir, "initrd"), Root: filepath.Join(dir, "root.ext4"), Hash: "blank"}
	for _, path := range []string{im.Kernel, im.Initrd, im.Root} {
		if err := os.WriteFile(path, []byte("blank"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	im.Overlay = blankDisk
	return im
}

// blankDisk has a mark.
func blankDisk(_ context.Context, path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte("disk"), 1<<20)
	return errors.Join(err, f.Truncate(max(size, 2<<20)), f.Close())
}

// open returns a provider of the stand-in's machines, with the jailer where this user is root.
func open(t testing.TB, change func(*Config)) *Provider {
	t.Helper()
	binary, jailer := programs(t, "1.16.1")
	if os.Geteuid() != 0 {
		t.Log("NOT ROOT: the jailer is not tested")
		jailer = ""
	}
	cfg := Config{Image: blankImage(t), Journal: vm.Journal{Dir: t.TempDir()}, Binary: binary, Jailer: jailer, Disk: 64 << 20, Memory: 256 << 20}
	if change != nil {
		change(&cfg)
	}
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestConformance(t *testing.T) {
	for _, jailer := range []string{"", None} {
		t.Run("jailer="+jailer, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "journal")
			p := open(t, func(c *Config) {
				c.Journal.Dir = dir
				if jailer == None {
					c.Jailer = None
				}
			})
			vmtest.Run(t, vmtest.Factory{
				Provider: p, Dir: dir, Temp: t.TempDir(), Crash: "kill -9 $PPID", OutputMB: 64, Cycles: 5,
			})
		})
	}
}

// All that a machine had is gone with it, and its user is free for the next.
func TestNothingIsLeft(t *testing.T) {
	p := open(t, func(c *Config) { c.UIDs = [2]int{210000, 1} })
	m, err := p.Start(t.Context(), vm.Spec{ID: "first"})
	if err != nil {
		t.Fatal(err)
	}
	if p.jailer != "" {
		if _, err := p.Start(t.Context(), vm.Spec{ID: "second"}); err == nil || !strings.Contains(err.Error(), "all 1 users for machines are taken") {
			t.Errorf("a second machine for one user: %v", err)
		}
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	orphan := ownerKilled(t, p, "third")
	reaped, err := p.cfg.Journal.Reap(t.Context(), nil)
	if err != nil || len(reaped) != 1 || reaped[0].ID != "third" || reaped[0].Err != nil {
		t.Errorf("reaped %+v, %v", reaped, err)
	}
	if orphan.Alive() {
		t.Error("the process is alive")
	}
	if m, err = p.Start(t.Context(), vm.Spec{ID: "fourth"}); err != nil {
		t.Fatalf("the user of a machine that was reaped is not free: %v", err)
	}
	m.Close()
	left, err := os.ReadDir(p.cfg.Journal.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range left {
		t.Errorf("%s is left", d.Name())
	}
}

// ownerKilled has another process make a machine, kills that process, and returns the machine's own.
func ownerKilled(t *testing.T, p *Provider, id string) vm.Process {
	t.Helper()
	im := p.cfg.Image
	cmd := exec.Command(os.Args[0], id, p.cfg.Journal.Dir, p.binary, p.cfg.Jailer, im.Kernel, im.Initrd, im.Root)
	cmd.Env, cmd.Stderr = append(os.Environ(), standinRole+"=owner"), os.Stderr
	return vmtest.Orphan(t, cmd)
}

// owner is a process that makes a machine, says which process that is, and waits to be killed.
func owner(args []string) int {
	p, err := New(Config{Journal: vm.Journal{Dir: args[1]}, Binary: args[2], Jailer: args[3], UIDs: [2]int{210000, 1}, Disk: 1 << 20,
		Image: Image{Kernel: args[4], Initrd: args[5], Root: args[6], Overlay: blankDisk}})
	if err == nil {
		var m vm.VM
		if m, err = p.Start(context.Background(), vm.Spec{ID: args[0]}); err == nil {
			fmt.Println(m.(vm.Infoer).Info().PID)
			select {}
		}
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// exec runs a script in a machine.
func execIn(t *testing.T, m vm.VM, script string) string {
	t.Helper()
	conn, err := m.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c, err := guest.Connect(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var out bytes.Buffer
	exit, err := c.Exec(t.Context(), guest.Cmd{Args: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin"}}, &out)
	if err != nil || !exit.Success() {
		t.Fatalf("%s: %+v, %v: %s", script, exit, err, out.String())
	}
	return strings.TrimSpace(out.String())
}

func TestGoldenSnapshot(t *testing.T) {
	warmups := 0
	p := open(t, func(c *Config) {
		c.CacheDir = t.TempDir()
		c.DiskLimit = &Limiter{Ops: &Bucket{Size: 1000, Refill: 100}}
		c.Warmup = Warmup{ID: "w1", Run: func(ctx context.Context, m vm.VM) error {
			warmups++
			conn, err := m.Dial(ctx)
			if err != nil {
				return err
			}
			return guest.Exercise(ctx, conn, guest.Cmd{Args: []string{"/bin/true"}})
		}}
	})
	size := vm.Spec{VCPUs: 2, Memory: 64 << 20, Disk: 32 << 20}
	start := func(want bool) *machine {
		t.Helper()
		s := size
		s.ID = fmt.Sprintf("m-%d", time.Now().UnixNano())
		m, err := p.Start(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		if got := m.(*machine); got.restored != want {
			t.Errorf("restored: %t, want %t", got.restored, want)
		}
		return m.(*machine)
	}
	start(false).Close()
	for range 2 {
		if err := p.Warm(t.Context(), size); err != nil {
			t.Fatal(err)
		}
	}
	if warmups != 1 {
		t.Errorf("%d warm-ups, want 1", warmups)
	}
	m := start(true)
	if got := execIn(t, m, "echo hello"); got != "hello" {
		t.Errorf("a restored machine says %q", got)
	}
	disk, err := os.ReadFile(m.proc.jail.path(overlayFile))
	if err != nil || len(disk) != 32<<20 || string(disk[1<<20:1<<20+4]) != "disk" {
		t.Errorf("the disk of a clone has %d bytes, %v", len(disk), err)
	}
	m.Close()
	other := size
	other.Memory *= 2
	if key, err := p.goldenKeyOf(t.Context(), other); err != nil {
		t.Error(err)
	} else if _, ok, err := p.find(key); ok || err != nil {
		t.Errorf("there is a snapshot for another size: %v", err)
	}

	// A snapshot that was changed is not used by a later process, nor one that does not load; it is made again.
	key, err := p.goldenKeyOf(t.Context(), vm.Spec{VCPUs: 2, Memory: size.Memory, Disk: size.Disk})
	if err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(p.cfg.CacheDir, goldenDir, key.hash(), stateFile)
	if err := errors.Join(os.Chmod(state, 0o600), os.WriteFile(state, []byte("{}"), 0o600)); err != nil {
		t.Fatal(err)
	}
	start(false).Close() // it does not load
	start(false).Close() // and is not tried again
	p.goldens = goldens{}
	start(false).Close() // another process sees that it has changed
	if err := p.Warm(t.Context(), size); err != nil {
		t.Fatal(err)
	}
	if warmups != 2 {
		t.Errorf("%d warm-ups, want 2", warmups)
	}
	start(true).Close()
}

func TestRollback(t *testing.T) {
	p := open(t, nil)
	m, err := p.Start(t.Context(), vm.Spec{ID: "rolled"})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	s := m.(vm.Snapshotter)
	disk := func() string { return m.(*machine).proc.jail.path(overlayFile) }
	mark := func(text string) {
		t.Helper()
		f, err := os.OpenFile(disk(), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte(text), 1<<20); err != nil {
			t.Fatal(err)
		}
	}
	var ids []string
	for i := range keepSnapshots + 1 {
		mark(fmt.Sprint("at ", i))
		got, err := s.Snapshot(t.Context(), fmt.Sprint("step ", i))
		if err != nil {
			t.Fatal(err)
		}
		if got.Name != fmt.Sprint("step ", i) || got.Paused <= 0 || got.Bytes <= 0 || time.Since(got.Taken) > time.Minute {
			t.Errorf("snapshot %+v", got)
		}
		ids = append(ids, got.ID)
	}
	if got := execIn(t, m, "echo goes on"); got != "goes on" {
		t.Errorf("after its snapshots the machine says %q", got)
	}
	var listed []string
	for _, l := range s.Snapshots() {
		listed = append(listed, l.ID)
	}
	if diff := cmp.Diff(ids[1:], listed); diff != "" {
		t.Errorf("snapshots (-want +got):\n%s", diff)
	}
	if err := s.Rollback(t.Context(), ids[0]); !errors.Is(err, vm.ErrNoSnapshot) {
		t.Errorf("the oldest, which is gone: %v", err)
	}
	mark("later")
	for _, i := range []int{2, 1, 3} {
		pid := m.(vm.Infoer).Info().PID
		if err := s.Rollback(t.Context(), ids[i]); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(disk())
		if want := fmt.Sprint("at ", i); err != nil || string(b[1<<20:1<<20+4]) != want {
			t.Errorf("after the rollback the disk has %q, %v; want %q", b[1<<20:1<<20+4], err, want)
		}
		if m.(vm.Infoer).Info().PID == pid {
			t.Error("the process is the old one")
		}
		if got := execIn(t, m, "echo back"); got != "back" {
			t.Errorf("a machine that was rolled back says %q", got)
		}
	}
	waited, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := m.Wait(waited); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a rollback ended the machine: %v", err)
	}
	// A snapshot that does not load ends the machine, and says so.
	state := m.(*machine).snapshots[0].path(stateFile)
	if err := errors.Join(os.Chmod(state, 0o644), os.Remove(state), os.WriteFile(state, []byte("broken"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if err := s.Rollback(t.Context(), ids[1]); err == nil || !strings.Contains(err.Error(), "invalid character") {
		t.Errorf("a rollback to a broken snapshot: %v", err)
	}
	var boot *vm.BootError
	var infra *vm.InfraError // whichever is noticed first: the refusal, or that the process ended
	if err := m.Wait(t.Context()); !errors.As(err, &boot) && !errors.As(err, &infra) {
		t.Errorf("the machine ended with %v", err)
	}
}

func TestMetrics(t *testing.T) {
	p := open(t, nil)
	m, err := p.Start(t.Context(), vm.Spec{ID: "measured"})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	b, err := m.(*machine).Metrics(t.Context())
	var got struct {
		VCPU map[string]int `json:"vcpu"`
	}
	if err != nil || json.Unmarshal(b, &got) != nil || got.VCPU["exit_io_in"] != 1 {
		t.Errorf("metrics %s, %v", b, err)
	}
}

// What is wrong with the host or the image is said, and nothing is left of the try.
func TestStartErrors(t *testing.T) {
	old, _ := programs(t, "1.15.1")
	dumb := filepath.Join(t.TempDir(), "firecracker")
	if err := os.WriteFile(dumb, []byte("#!/bin/sh\necho 'cannot open /dev/kvm' >&2\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		change func(*Config)
		spec   vm.Spec
		want   string
	}{
		{"too old", func(c *Config) { c.Binary = old }, vm.Spec{}, "firecracker 1.15.1 is too old: at least 1.16.1 is needed"},
		{"it ends at once", func(c *Config) { c.Binary, c.Jailer = dumb, None }, vm.Spec{}, "cannot open /dev/kvm"},
		{"no kernel", func(c *Config) { c.Image.Kernel = "/nonesuch" }, vm.Spec{}, "/nonesuch: no such file"},
		{"33 processors", nil, vm.Spec{VCPUs: 33}, "out of range"},
		{"a disk that cannot be made", func(c *Config) {
			c.Image.Overlay = func(context.Context, string, int64) error { return errors.New("no space") }
		}, vm.Spec{}, "no space"},
		{"an ID that is none", nil, vm.Spec{ID: "../x"}, "../x"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := open(t, tt.change)
			if tt.spec.ID == "" {
				tt.spec.ID = "broken"
			}
			_, err := p.Start(t.Context(), tt.spec)
			var infra *vm.InfraError
			var boot *vm.BootError
			if !errors.As(err, &infra) && !errors.As(err, &boot) {
				t.Errorf("%T is neither an InfraError nor a BootError", err)
			}
			said := fmt.Sprint(err)
			if boot != nil {
				said += boot.Console
			}
			if !strings.Contains(said, tt.want) {
				t.Errorf("got %v, want %q", said, tt.want)
			}
			if left, err := p.cfg.Journal.List(); err != nil || len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
	if os.Geteuid() == 0 {
		p := open(t, nil)
		os.Chmod(p.cfg.Image.Root, 0o600)
		if _, err := p.Start(t.Context(), vm.Spec{ID: "private"}); err == nil || !strings.Contains(err.Error(), "chmod o+r") {
			t.Errorf("an image that the machine's user cannot read: %v", err)
		}
	}
}

func TestNewErrors(t *testing.T) {
	good := Config{Image: Image{Kernel: "k", Initrd: "i", Root: "r", Overlay: func(context.Context, string, int64) error { return nil }},
		Journal: vm.Journal{Dir: "j"}, Binary: "/nonesuch/firecracker"}
	if _, err := New(good); !errors.Is(err, ErrAbsent) {
		t.Errorf("without Firecracker: %v", err)
	}
	for want, change := range map[string]func(*Config){
		"Config.Image":   func(c *Config) { c.Image.Root = "" },
		"Config.Journal": func(c *Config) { c.Journal.Dir = "" },
		"Config.Warmup":  func(c *Config) { c.Warmup.Run = func(context.Context, vm.VM) error { return nil } },
		"not root":       func(c *Config) { c.UIDs = [2]int{0, 5} },
	} {
		c := good
		change(&c)
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// The jailer's command line, by its documentation.
func TestArgv(t *testing.T) {
	p := &Provider{cfg: Config{Parent: "tgr/vms"}, binary: "/usr/bin/firecracker", jailer: "/usr/bin/jailer"}
	j := &jail{id: "m-1", uid: 210003, root: "/var/lib/tgr/machines/m-1/jail/firecracker/m-1/root"}
	got := strings.Join(p.argv(j, vm.Spec{VCPUs: 2, Memory: 1 << 30}, "/run/netns/tgr-1"), "\n")
	want := strings.Join([]string{
		"/usr/bin/jailer", "--id", "m-1", "--exec-file", "/usr/bin/firecracker", "--uid", "210003", "--gid", "210003",
		"--chroot-base-dir", "/var/lib/tgr/machines/m-1/jail", "--resource-limit", "no-file=2048", "--cgroup-version", "2",
		"--netns", "/run/netns/tgr-1", "--parent-cgroup", "tgr/vms", "--cgroup", "memory.max=1207959552", "--cgroup", "cpu.max=200000 100000", "--cgroup", "pids.max=66",
		"--", "--api-sock", "api.sock",
	}, "\n")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("with the jailer (-want +got):\n%s", diff)
	}
	p.jailer = ""
	if diff := cmp.Diff("/usr/bin/firecracker --id m-1 --api-sock api.sock", strings.Join(p.argv(j, vm.Spec{}, ""), " ")); diff != "" {
		t.Errorf("without the jailer (-want +got):\n%s", diff)
	}
	if n := len(p.cmdline()) + len(" root=/dev/vda ro"); n > 2048 {
		t.Errorf("the kernel's command line has %d bytes", n)
	}
}

// A machine has its slot's tap device, by name and in the slot's namespace, and so has one that is restored or rolled
// back; its guest, which is only a process here, is in that namespace.
func TestNetwork(t *testing.T) {
	w := networktest.New(t, network.Config{Ready: 1})
	p := open(t, func(c *Config) { c.Slots, c.CacheDir = w.Pool, t.TempDir() })
	check := func(m vm.VM) {
		t.Helper()
		if got := execIn(t, m, "grep -c tap0: /proc/net/dev"); got != "1" {
			t.Errorf("the machine is not in its slot's namespace: %q", got)
		}
	}
	size := vm.Spec{ID: "booted"}
	m, err := p.Start(t.Context(), size)
	if err != nil {
		t.Fatal(err)
	}
	check(m)
	if err := m.(vm.Networked).SetEgress("job-1", vm.Egress{Mode: vm.EgressOpen}); err != nil {
		t.Error(err)
	}
	snap, err := m.(vm.Snapshotter).Snapshot(t.Context(), "")
	if err == nil {
		err = m.(vm.Snapshotter).Rollback(t.Context(), snap.ID)
	}
	if err != nil {
		t.Fatal(err)
	}
	check(m)
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if err := p.Warm(t.Context(), size); err != nil {
		t.Fatal(err)
	}
	size.ID = "restored"
	if m, err = p.Start(t.Context(), size); err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if !m.(*machine).restored {
		t.Error("it was booted")
	}
	check(m)
}

// A guest that boots is enough, and nothing less; the verdict is kept until Firecracker is another.
func TestProbe(t *testing.T) {
	if kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err != nil {
		t.Skip("SKIPPED: a probe does not go further than this: ", err)
	} else {
		kvm.Close()
	}
	cache := t.TempDir()
	p := open(t, func(c *Config) { c.CacheDir = cache })
	v, err := p.Probe(t.Context())
	if err != nil || !v.OK || !strings.HasPrefix(v.Reason, "a guest booted in ") {
		t.Fatalf("%+v, %v", v, err)
	}
	if left, err := p.cfg.Journal.List(); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	again, err := p.Probe(t.Context())
	if diff := cmp.Diff(v, again); diff != "" || err != nil {
		t.Errorf("the second time (-want +got):\n%s%v", diff, err)
	}
	script, err := os.ReadFile(p.binary)
	if err != nil {
		t.Fatal(err)
	}
	mute := filepath.Join(t.TempDir(), "firecracker")
	if err := os.WriteFile(mute, bytes.ReplaceAll(script, []byte(probeMessage), []byte("Kernel panic - not syncing: no")), 0o755); err != nil {
		t.Fatal(err)
	}
	p = open(t, func(c *Config) { c.CacheDir, c.Binary = cache, mute })
	if v, err = p.Probe(t.Context()); err != nil || v.OK || !strings.Contains(v.Reason, "Kernel panic - not syncing: no") {
		t.Errorf("a guest that panics: %+v, %v", v, err)
	}
}
